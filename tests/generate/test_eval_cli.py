"""`hgrn2 eval` from the outside."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from hgrn2.cli.eval import Eval
from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.samples import shakespeare, shakespeare_corpora
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError
from hgrn2.files import write_json
from hgrn2.models.saved import load_model
from hgrn2.perplexity import Beginning, carried, strided, windows

TEXT = "abc def. bad cab\n" * 40


def run(*arguments: object) -> None:
    verb = tyro.cli(Eval, args=["--device", "cpu", *map(str, arguments)])
    verb.run()


def results(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    run(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_all_methods_on_a_text_file(saved: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved()
    found = results(capsys, folder, "--data", text, "--window", 64)
    model, corpus = load_model(folder), Corpus.from_text(TEXT, CharTokenizer("abcdefgh .\n"))
    wanted = [carried(model, corpus), strided(model, corpus, window=64, stride=32), windows(model, corpus, window=64)]
    assert (found["model"], found["data"], found["tokens"]) == (str(folder), str(text), len(TEXT))
    for row, result in zip(found["results"], wanted, strict=True):
        assert row["name"] == result.name
        assert row["nats_per_token"] == pytest.approx(result.nats_per_token, rel=1e-6)
        assert row["bits_per_byte"] == pytest.approx(result.bits_per_byte, rel=1e-6)
        assert row["tokens"] == len(TEXT) - 1
    assert found["results"][1]["stride"] == 32
    run(folder, "--data", text, "--window", 64)
    printed = capsys.readouterr()
    assert printed.err.split() == ["carried", "strided", "windows"]  # what is under way
    for row in found["results"]:
        assert row["name"] in printed.out
        assert f"{row['nats_per_token']:.4f}" in printed.out
    assert "Compare a number only with others of the same name" in printed.out


def test_a_bar_on_terminals(
    saved: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(saved(), "--data", text, "--method", "windows", "--json")
    printed = capsys.readouterr()
    assert "windows" in printed.err
    assert json.loads(printed.out)


def test_one_method_and_a_limit(saved: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved()
    arguments = ("--method", "strided", "--window", 32, "--stride", 8, "--limit-tokens", 100)
    found = results(capsys, folder, "--data", text, *arguments)
    tokenizer = CharTokenizer("abcdefgh .\n")
    part = Beginning(Corpus.from_text(TEXT, tokenizer), 100, tokenizer)
    wanted = strided(load_model(folder), part, window=32, stride=8)
    assert found["tokens"] == 100
    assert [row["nats_per_token"] for row in found["results"]] == [pytest.approx(wanted.nats_per_token, rel=1e-6)]
    assert found["results"][0]["bits_per_byte"] == pytest.approx(wanted.bits_per_byte, rel=1e-6)


def test_prepared_corpus_and_documents(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "docs.jsonl"
    lines.write_text("".join(json.dumps({"text": f"document {n} " * 5}) + "\n" for n in range(40)))
    prepare([lines], tmp_path / "corpus", "bytes", valid_fraction=0.25)
    folder = saved(tokenizer=ByteTokenizer())
    corpus = Corpus.open(tmp_path / "corpus", "valid")
    assert corpus.n_documents == 10
    model = load_model(folder)
    arguments = (folder, "--data", tmp_path / "corpus", "--method", "carried")
    for extra, reset in (((), False), (("--reset-documents",), True)):
        row = results(capsys, *arguments, *extra)["results"][0]
        wanted = carried(model, corpus, reset_documents=reset)
        assert row["nats_per_token"] == pytest.approx(wanted.nats_per_token, rel=1e-6)
        assert row["reset_documents"] is reset
    train = results(capsys, *arguments, "--split", "train")
    assert train["tokens"] == Corpus.open(tmp_path / "corpus", "train").n_tokens
    same = results(capsys, folder, "--data", lines, "--method", "carried")  # the file itself: all documents
    assert same["tokens"] == train["tokens"] + corpus.n_tokens


@pytest.fixture
def trained(saved: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A run folder as training leaves it, on a named source."""

    def write(source: str) -> Path:
        tokenizer = CharTokenizer.from_text(shakespeare())
        checkpoint = saved("run/checkpoints/step-00000010", tokenizer)
        (checkpoint / "tokenizer").rename(tmp_path / "run" / "tokenizer")
        write_json(tmp_path / "run" / "config.json", {"kind": "lm", "data": {"source": source}})
        return tmp_path / "run"

    return write


def test_a_run_on_the_embedded_text(trained: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained("shakespeare")
    found = results(capsys, folder, "--method", "windows", "--limit-tokens", 3_000)
    assert found["model"] == f"{folder} (step 10)"
    assert found["data"] == "shakespeare (valid)"
    sample = shakespeare_corpora()
    wanted = windows(load_model(folder), Beginning(sample.valid, 3_000, sample.tokenizer), window=256)
    assert found["results"][0]["nats_per_token"] == pytest.approx(wanted.nats_per_token, rel=1e-6)
    assert (
        results(capsys, folder, "--method", "windows", "--window", 3, "--limit-tokens", 9, "--split", "train")["data"]
        == "shakespeare (train)"
    )
    with pytest.raises(UserError, match="no split 'test'"):
        run(folder, "--split", "test")


def test_a_run_whose_corpus_is_gone(trained: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"/gone/corpus does not exist, where the run had its data: give --data"):
        run(trained("/gone/corpus"))


def test_refusals(saved: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    folder = saved()
    prepare([text], tmp_path / "corpus", "bytes", valid_fraction=0.5)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    empty = tmp_path / "empty.txt"
    empty.touch()
    for arguments, message in (
        ((), "does not say what it was trained on: give --data"),
        (("--data", tmp_path / "nowhere"), "nowhere does not exist"),
        (("--data", tmp_path / "corpus"), "was prepared with another tokenizer"),
        (("--data", folder), "is not a prepared corpus"),
        (("--data", latin), "latin.txt is not UTF-8 at byte 3"),
        (("--data", empty), "empty.txt is empty"),
        (("--data", text, "--window", 0), "window is 0"),
        (("--data", text, "--stride", 999, "--method", "strided"), "stride is 999"),
        (("--data", text, "--limit-tokens", 1), "leaves nothing to predict"),
    ):
        with pytest.raises(UserError) as refused:
            run(folder, *arguments)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_ids_beyond_the_model(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved()
    (folder / "tokenizer" / "hgrn2_tokenizer.json").unlink()
    (folder / "tokenizer").rmdir()
    (tmp_path / "t").write_text(TEXT)
    prepare([tmp_path / "t"], tmp_path / "corpus", "bytes", valid_fraction=0.5)
    with pytest.raises(UserError, match="has ids up to 256, the model knows 11"):
        run(folder, "--data", tmp_path / "corpus")
    with pytest.raises(UserError, match="has no tokenizer/ folder"):
        run(folder, "--data", tmp_path / "t")
