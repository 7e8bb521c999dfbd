"""The verbs of `hgrn2 data`: parsing, results on standard output, and a light import."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from hgrn2.cli.data import Info, Prepare, Verify
from hgrn2.data.corpus import Corpus
from hgrn2.errors import UserError


def run(verb: type, *arguments: object) -> None:
    tyro.cli(verb, args=[str(argument) for argument in arguments]).run()


def test_prepare_info_verify(
    tmp_path: Path, write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_lines(["alpha"] * 30, "a.jsonl", field="body"), write_lines(["beta"] * 30, "b.jsonl", field="body")
    out = tmp_path / "out"
    run(Prepare, a, b, "--out", out, "--tokenizer", "bytes", "--valid-fraction", 0.25, "--field", "body")
    printed = capsys.readouterr()
    assert "tokens/s" in printed.out
    assert "tokenising" in printed.err
    assert Corpus.open(out, "valid").n_documents == 15
    run(Info, out)
    printed = capsys.readouterr().out
    assert "tokenizer bytes, 257 ids" in printed
    assert "uint16" in printed
    run(Info, out, "--json")
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["splits"]["train"]["documents"] == 45
    assert manifest["splits"]["train"]["shards"][0]["file"] == "train-00000.bin"
    run(Verify, out)
    assert "330 tokens: good" in capsys.readouterr().out
    run(Verify, out, "--json")
    assert json.loads(capsys.readouterr().out) == {"files": 4, "bytes": 330 * 2 + 60 * 8, "tokens": 330}


def test_prepare_with_held_out_inputs_and_overwrite(
    tmp_path: Path, write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (write_lines([name] * 3, f"{name}.jsonl") for name in "abc")
    arguments = (a, "--valid", b, c, "--out", tmp_path / "out", "--tokenizer", "chars")
    run(Prepare, *arguments)
    assert Corpus.open(tmp_path / "out", "valid").n_documents == 6
    with pytest.raises(UserError, match="already exists"):
        run(Prepare, *arguments)
    capsys.readouterr()
    run(Prepare, *arguments, "--overwrite", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 9
    assert result["tokens_per_second"] > 0


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        run(Prepare, tmp_path / "gone.txt", "--out", tmp_path / "out", "--tokenizer", "bytes")
    with pytest.raises(UserError, match="no input"):
        run(Prepare, "--out", tmp_path / "out", "--tokenizer", "bytes")
    for verb in (Info, Verify):
        with pytest.raises(UserError, match="does not exist"):
            run(verb, tmp_path / "gone")


@pytest.mark.parametrize("verb", [Prepare, Info, Verify])
def test_help_has_an_example(verb: type) -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stopped:
        tyro.cli(verb, args=["--help"])
    assert stopped.value.code == 0
    assert f"Example: hgrn2 data {verb.__name__.lower()} " in text.getvalue()


def test_import_is_light() -> None:
    program = (
        "import sys, hgrn2.cli.data; assert 'numpy' not in sys.modules, 'numpy';"
        "import hgrn2.data.packing, hgrn2.data.samples, hgrn2.data.vocabulary;"
        "assert not {'torch', 'tokenizers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
