"""`--quantize` from the outside, saved states with it, and what docs/quantize.md tells people to type."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrn2.cli.main import entry
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.models.quantize.config import QuantizeConfig

PAGE = (Path(__file__).parents[2] / "docs" / "quantize.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_text_is_that_of_the_quantised_model(
    kind: str, saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    common = ["generate", str(folder), "--device", "cpu", "--prompt", "abc", "--seed", "3", "--max-tokens", "30"]
    assert entry([*common, "--quantize", kind, "--json"]) == 0
    printed = capsys.readouterr()
    loaded = load(folder, "cpu", quantization=QuantizeConfig(kind=kind))  # type: ignore[arg-type]
    generator = Generator(loaded.model, loaded.need_tokenizer())
    expected = generator.generate("abc", GenerationConfig(max_tokens=30, sampling=SamplingConfig(seed=3)))[0].text
    result = json.loads(printed.out)
    assert result["samples"][0]["text"] == expected
    assert result["quantize"] == kind
    assert ("inputs do not divide into groups of 32" in printed.err) == (kind == "int4")  # a model of 16 channels
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_saved_state_belongs_to_one_kind(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, state = str(saved()), str(tmp_path / "state.safetensors")
    common = ["generate", folder, "--device", "cpu", "--greedy"]
    int8 = ["--quantize", "int8"]
    assert entry([*common, *int8, "--prompt", "abc", "--max-tokens", "5", "--save-state", state]) == 0
    begun = capsys.readouterr().out
    assert entry([*common, *int8, "--state", state, "--max-tokens", "5"]) == 0
    begun += capsys.readouterr().out
    assert entry([*common, *int8, "--prompt", "abc", "--max-tokens", "10"]) == 0
    assert capsys.readouterr().out == begun
    for other in ([], ["--quantize", "int4"]):
        assert entry([*common, *other, "--state", state]) == 2
        assert "is a state of another model" in capsys.readouterr().err


def test_unknown_kind(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["generate", str(saved()), "--prompt", "a", "--quantize", "int3"]) == 2
    assert "int8" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from hgrn2.cli.main import entry; entry(['generate', '--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quantize" in done.stdout


def test_commands_of_the_page(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    saved("runs/demo")
    (tmp_path / "held-out.txt").write_text("abcdefgh. abc\n" * 8)
    short = {"bench": ["--context", "8", "--tokens", "2", "--text-tokens", "40", "--repeats", "2"],
             "generate": ["--max-tokens", "3"]}  # fmt: skip
    commands = [shlex.split(line, comments=True)[1:] for block in blocks("sh") for line in block.splitlines()]
    assert {arguments[0] for arguments in commands} == {"generate", "bench"}
    for arguments in commands:
        told = [word.replace("ROMEO:", "abc") for word in arguments]
        if "cuda" in told:
            continue
        assert entry([*told, *short[told[0]]]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "results" / "quantize.jsonl").read_text().splitlines()]
    assert [row["subject"] for row in rows] == ["float32", "bfloat16", "int8", "int4"]
    size = {row["subject"]: row["details"]["weight_bytes"] for row in rows}
    assert size["float32"] > size["bfloat16"] > size["int8"]
    for block in blocks("python"):
        exec(compile(block, "quantize.md", "exec"), {})
    assert entry(["bench", "quantize", "runs/demo", "--data", "held-out.txt", "--context", "5000"]) == 2
    assert "--context 5000" in capsys.readouterr().err
    assert entry(["bench", "quantize", "runs/demo", "--weights", "int3"]) == 2
