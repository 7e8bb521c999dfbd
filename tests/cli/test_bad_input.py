"""What a user gets wrong: one clear line, exit code 2, and nothing that was written before is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hgrn2.cli.main import entry

TINY = (
    "train.budget_s=0", "train.steps=4", "train.sequence_length=16", "train.batch_size=2", "train.log_every=1",
    "train.eval_every=0", "train.save_every=2", "train.eval_tokens=200", "model.width=32", "model.layers=1",
    "model.glu_width=32", "model.mixer.head_size=16",
)  # fmt: skip


def train(folder: Path, *settings: str, recipe: str = "demo", more: tuple[str, ...] = ()) -> list[str]:
    return ["train", "lm", recipe, "--out", str(folder), *more, "--set", *TINY, *settings]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The command fails with code 2 and one line that has these words."""
    assert entry(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the embedded text."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert entry(train(folder)) == 0
    return folder


@pytest.fixture
def own_corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


def prepare(source: Path, out: Path) -> list[str]:
    return ["data", "prepare", str(source), "--out", str(out), "--tokenizer", "bytes"]


def test_missing_empty_and_wrongly_encoded_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_bytes(b"")
    latin.write_bytes("Grüße".encode("latin-1"))
    refused(prepare(tmp_path / "none.txt", tmp_path / "out"), capsys, "none.txt")
    refused(prepare(empty, tmp_path / "out"), capsys, "empty")
    refused(prepare(latin, tmp_path / "out"), capsys, "latin.txt", "UTF-8")
    assert not (tmp_path / "out").exists()


def test_truncated_shard(own_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = own_corpus / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-7])
    refused(train(tmp_path / "r", more=("--data", str(own_corpus))), capsys, "train-00000.bin")
    refused(["data", "verify", str(own_corpus)], capsys, "train-00000.bin")


def test_checksum_mismatch(own_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = own_corpus / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    refused(["data", "verify", str(own_corpus)], capsys, "train-00000.bin")


def test_corpus_shorter_than_one_sequence(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train(tmp_path / "r", "train.sequence_length=100000", more=("--data", str(tiny_corpus)))
    refused(command, capsys, "shorter than one sequence")


def test_ids_outside_the_vocabulary(tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(train(tmp_path / "r", "model.vocab_size=100", more=("--data", str(tiny_corpus))), capsys, "257", "100")


def test_a_character_the_model_does_not_know(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["generate", str(run), "--prompt", "naïve"], capsys, "ï")


def test_empty_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["generate", str(run), "--prompt", ""], capsys, "empty")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "lm", "dem"], "demo"),
        (["train", "lm", "demo", "--model", "hgrn2_70"], "hgrn2_70m"),
        (["trian"], "train"),
        (["data", "prepair"], "prepare"),
        (["train", "lm", "demo", "--set", "model.widht=3"], "model.widht"),
        (["train", "lm", "demo", "--set", "model.width=wide"], "whole number"),
        (["train", "lm", "demo", "--set", "model.width"], "name=value"),
        (["train", "lm", "demo", "--set", "model.width=100"], "does not divide"),
        (["train", "lm", "demo", "--set", "train.batch_size=3", "train.accumulate=2"], "does not divide"),
        (["train", "lm", "demo", "--set", "optim.optimizer=sgd"], "adamw"),
        (["train", "lm", "demo", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "lm", "demo", "--device", "tpu9"], "tpu9"),
        (["eval", "no/such/run"], "no/such/run"),
        (["generate", "no/such/run", "--prompt", "x"], "no/such/run"),
    ],
)
def test_unknown_names_and_sizes(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(arguments, capsys, word)
    assert not list(tmp_path.rglob("checkpoints"))


def test_checkpoint_of_another_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    values = json.loads((folder / "config.json").read_text())
    values["model"]["width"] = 48
    (folder / "config.json").write_text(json.dumps(values))
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    refused(train(folder, "model.width=48", "train.steps=6"), capsys, "another model")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_corrupt_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for checkpoint in (folder / "checkpoints").iterdir():
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    refused(["generate", str(folder), "--prompt", "x"], capsys, "damaged")
    refused(train(folder), capsys, "damaged", "--restart")
    assert list((folder / "checkpoints").iterdir())


def test_state_of_another_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert entry(train(other, "train.seed=1")) == 0
    state = tmp_path / "state.safetensors"
    assert entry(["generate", str(run), "--prompt", "x", "--max-tokens", "3", "--save-state", str(state)]) == 0
    before = state.read_bytes()
    capsys.readouterr()
    refused(["generate", str(other), "--prompt", "x", "--state", str(state)], capsys, "another model")
    assert state.read_bytes() == before


def limited(arguments: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    """Run the command where no file can grow beyond `limit` bytes: what a full disk looks like to a program."""
    return subprocess.run(
        [sys.executable, "-m", "hgrn2", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "HGRN2_NATIVE": "0"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def test_full_disk_while_training(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    found = limited(train(folder, "train.steps=8"), 20_000)
    assert found.returncode == 2, found.stderr
    assert found.stderr.count("hgrn2: error: ") == 1
    assert "Traceback" not in found.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert entry(train(folder, "train.steps=8")) == 0


def test_full_disk_while_preparing(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("word " * 20_000)
    found = limited(prepare(source, tmp_path / "out"), 20_000)
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can write to read-only folders")
def test_read_only_folder(tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(train(closed / "run"), capsys, "closed")
    refused(prepare(tiny_corpus, closed / "out"), capsys, "closed")


def test_a_file_where_a_folder_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    refused(train(tmp_path / "file"), capsys, "is a file")
    refused(train(tmp_path / "file" / "below"), capsys, "file")
    assert (tmp_path / "file").read_text() == "x"
