"""`hgrn2 convert`: what docs/convert.md shows works; what a user gets wrong is one line and leaves nothing behind."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hgrn2.cli.main import entry
from hgrn2.models.saved import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from published import FLA, HGRU2, TOKENS, made, randomised, shapes, write

PAGE = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
SHARD = "model-00002-of-00003.safetensors"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands and its Python, in the order in which they stand, on small models under the names of the page."""
    monkeypatch.chdir(tmp_path)
    made(Path("hgrn2-1.3B-100B"), "fla", shards=2)
    made(Path("hgrn-1.3B-100B"), "fla, HGRN")
    write(Path("hgru2-checkpoint"), HGRU2, {})
    Path("hgru2-checkpoint/model.safetensors").unlink()
    torch.save(randomised(shapes(HGRU2)), "hgru2-checkpoint/pytorch_model.bin")
    ran = []
    for block in re.findall(r"```(?:sh|python)\n.*?```", PAGE, re.DOTALL):
        language, _, code = block.strip("`").partition("\n")
        if language == "python":
            exec(compile(code, "convert.md", "exec"), {})
            continue
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["hgrn2"]:
                assert entry(words[1:]) == 0, (line, capsys.readouterr().err)
                ran.append(words[2])
    assert set(ran) == {"fla", "hgru2", "to-fla"}
    for folder in sorted(Path("models").iterdir()):
        assert load_model(folder)(TOKENS)[0].isfinite().all()


def test_help_loads_no_torch() -> None:
    for arguments in (["convert"], ["convert", "fla", "--help"], ["convert", "to-fla", "--help"]):
        code = f"import sys; from hgrn2.cli.main import entry; assert entry({arguments!r}) == 0"
        code += "; print('torch' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "False"


def test_a_tokenizer_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizer of the test needs tokenizers")
    source = made(tmp_path / "m")
    vocabulary = {letter: n for n, letter in enumerate("abcdefg")}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).save(str(source / "tokenizer.json"))
    assert entry(["convert", "fla", str(source), str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "tokenizer").is_dir()
    (source / "tokenizer.json").write_text("{}")
    assert entry(["convert", "fla", str(source), str(tmp_path / "without")]) == 0
    assert "the tokenizer stays behind" in capsys.readouterr().err
    assert not (tmp_path / "without" / "tokenizer").exists()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2, one line with these words."""
    assert entry(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("hgrn2: error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return change


def first_shard(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / SHARD.replace("00002", "00001")
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


def cut(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-100])


def point_outside(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(f'"{SHARD}"', '"../other.safetensors"', 1))


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def without_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


EMBEDDING, NORM = "lm_head.weight", "model.norm.weight"
BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), ("incomplete", SHARD)),
    "missing index": (lambda folder: (folder / "model.safetensors.index.json").unlink(), ("without", "index.json")),
    "half a shard": (cut, (SHARD, "damaged")),
    "index names a file elsewhere": (point_outside, ("index.json", "../other.safetensors")),
    "index without a map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), ("no weight_map",)),
    "tensor gone": (first_shard(lambda t: t.pop(EMBEDDING)), ("lacks", EMBEDDING)),
    "tensor too many": (first_shard(lambda t: t.update(more=torch.ones(1))), ("more", "does not place there")),
    "wrong shape": (first_shard(lambda t: t.update({EMBEDDING: torch.ones(3, 4)})), (EMBEDDING, "[3, 4]", "[23, 16]")),
    "whole numbers": (
        first_shard(lambda t: t.update({EMBEDDING: torch.ones(23, 16, dtype=torch.long)})), (EMBEDDING, "I64")
    ),
    "pickled weights": (only_pickles, ("pickled", "pytorch_model.bin", "docs/convert.md")),
    "no weights": (without_weights, ("holds no weights",)),
    "no settings": (lambda folder: (folder / "config.json").unlink(), ("config.json does not exist",)),
    "broken settings": (lambda folder: (folder / "config.json").write_text("{"), ("not valid JSON",)),
    "a list as settings": (lambda folder: (folder / "config.json").write_text("[]"), ("must hold an object",)),
    "of no project": (lambda folder: (folder / "config.json").write_text("{}"), ("of no known model",)),
    "of the other project": (
        lambda folder: (folder / "config.json").write_text(json.dumps(HGRU2)), ("hgrn2 convert hgru2",)
    ),
    "unknown field": (settings(new_gate=True), ("unknown fields: new_gate", "--ignore")),
    "hybrid": (settings(attn={"layers": [1], "num_heads": 2}), ("attn is set", "not supported")),
    "attention over residuals": (settings(attnres_block_size=4), ("attnres_block_size", "not supported")),
    "another model": (settings(model_type="gla"), ("model_type 'gla'", "hgrn2, hgrn")),
    "another activation": (settings(hidden_act="powlu"), ("hidden_act 'powlu'", "swish")),
    "expanded HGRN": (settings(model_type="hgrn", expand_ratio=2), ("expand_ratio 2", "HGRN")),
    "HGRN with convolutions": (settings(model_type="hgrn", expand_ratio=1, use_short_conv=True), ("use_short_conv",)),
    "convolutions of 2024": (settings(use_short_conv=True, share_conv_kernel=True), ("share_conv_kernel",)),
    "heads that do not divide": (settings(expand_ratio=5), ("config.json", "does not divide")),
    "neither heads nor size": (settings(expand_ratio=None), ("neither expand_ratio nor num_heads",)),
    "contradicting names": (settings(rms_norm_eps=1e-6), ("norm_eps is 0.001", "rms_norm_eps is 1e-06")),
    "no number": (settings(hidden_size="wide"), ("hidden_size", "whole number")),
    "null": (settings(hidden_size=None), ("hidden_size", "whole number")),
    "no layers": (settings(num_hidden_layers=0), ("num_hidden_layers is 0",)),
    "more layers than tensors": (settings(num_hidden_layers=10**9), ("tensors cannot be 1000000000 layers",)),
    "endless": (settings(hidden_ratio=float("inf"), intermediate_size=None), ("hidden_ratio is inf",)),
    "one layer too many": (settings(num_hidden_layers=4), ("lacks model.layers.3.", "and 7 more")),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    damage, words = BAD[fault]
    source = made(tmp_path / "m", "fla", shards=3)
    damage(source)
    refused(["convert", "fla", str(source), str(tmp_path / "new" / "out")], capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_wrong_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = made(tmp_path / "m")
    out = str(tmp_path / "out")
    refused(["convert", "fla", str(tmp_path / "none"), out], capsys, "none does not exist")
    refused(["convert", "fla", str(source / "model.safetensors"), out], capsys, "is not a folder")
    refused(["convert", "fla", str(source), str(source)], capsys, "already exists")
    refused(["convert", "to-fla", str(source), str(source)], capsys, "already exists")
    refused(["convert", "to-fla", str(source), out], capsys, "config.json holds no model settings")
    refused(["convert", "fla", str(source), str(source / "config.json" / "x")], capsys, "config.json")
    refused(["convert", "mamba", str(source), out], capsys, "no task of hgrn2 convert 'mamba'")
    assert not (tmp_path / "out").exists()


def test_ignored_fields_and_hgru2_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "m", FLA | {"new_note": "hello"}, randomised(shapes(FLA)))
    assert entry(["convert", "fla", str(source), str(tmp_path / "a"), "--ignore", "new_note"]) == 0
    made(tmp_path / "h", "hgru2")
    assert entry(["convert", "hgru2", str(tmp_path / "h"), str(tmp_path / "b"), "--bounds", "exclusive"]) == 0
    assert load_model(tmp_path / "b").config.lower_bound == "exclusive"
    refused(["convert", "hgru2", str(source), str(tmp_path / "c")], capsys, "use `hgrn2 convert fla`")
    settings(norm_type="batchnorm")(tmp_path / "h")
    refused(["convert", "hgru2", str(tmp_path / "h"), str(tmp_path / "c")], capsys, "norm_type 'batchnorm'")
    refused(["convert", "to-fla", str(tmp_path / "b"), str(tmp_path / "c")], capsys, "glu_activation none")
    assert not (tmp_path / "c").exists()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    source = made(tmp_path / "m")
    assert entry(["convert", "fla", str(source), str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    monkeypatch.setattr("hgrn2.models.saved.save_file", full)
    monkeypatch.setattr("hgrn2.models.convert.save_file", full)
    refused(["convert", "fla", str(source), str(tmp_path / "a")], capsys, "No space left")
    refused(["convert", "to-fla", str(tmp_path / "ours"), str(tmp_path / "b")], capsys, "No space left")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "ours"]
