"""`hgrn2 generate` from the outside."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from hgrn2.cli.generate import Generate
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.models.saved import load_model


def run(*arguments: object) -> None:
    verb = tyro.cli(Generate, args=["--device", "cpu", *map(str, arguments)])
    verb.run()


def expected(folder: Path, prompt: str, max_tokens: int, seed: int, **sampling: object) -> str:
    generator = Generator(load_model(folder), CharTokenizer("abcdefgh .\n"))
    config = GenerationConfig(max_tokens=max_tokens, sampling=SamplingConfig(seed=seed, **sampling))
    return generator.generate(prompt, config)[0].text


def test_text_on_standard_output_and_figures_on_standard_error(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved()
    run(model, "--prompt", "abc", "--max-tokens", 40, "--seed", 3, "--temperature", 0.7, "--top-k", 6, "--top-p", 0.9)
    printed = capsys.readouterr()
    assert printed.out == expected(model, "abc", 40, 3, temperature=0.7, top_k=6, top_p=0.9)
    assert printed.err.startswith("3 prompt tokens in ")
    assert "40 new tokens, " in printed.err
    assert printed.err.endswith("tokens/s, seed 3\n")


def test_a_random_seed_is_told_and_reproduces(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = saved()
    run(model, "--prompt", "abc")
    printed = capsys.readouterr()
    assert printed.out == expected(model, "abc", 200, int(printed.err.rsplit("seed ", 1)[1]))


def test_json_samples_and_stop(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = saved()
    whole = [expected(model, "abc", 50, seed) for seed in (7, 8)]
    arguments = (model, "--prompt", "abc", "--max-tokens", 50, "--seed", 7, "--samples", 2, "--stop", "a", "fe")
    run(*arguments, "--json")
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert (result["seed"], result["prompt_tokens"]) == (7, 3)
    for sample, text in zip(result["samples"], whole, strict=True):
        assert text.startswith(sample["text"])
        assert sample["finished"] == "stop"
        assert text[len(sample["text"]) :].startswith(("a", "fe"))
    run(*arguments)
    shown = capsys.readouterr().out
    for number, sample in enumerate(result["samples"]):
        assert f"--- sample {number} ---\n{sample['text']}\n" in shown


def test_prompts_from_files_and_standard_input(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved()
    (tmp_path / "prompt.txt").write_text("bad\ncab\n")
    wanted = expected(model, "bad\ncab\n", 20, 1)
    for arguments in (("--prompt-file", tmp_path / "prompt.txt"), ("--prompt-file", "-"), ("--prompt", "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bad\ncab\n")))
        run(model, *arguments, "--max-tokens", 20, "--seed", 1)
        assert capsys.readouterr().out == wanted


def test_saved_state_goes_on(saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, state = saved(), tmp_path / "state.safetensors"
    run(model, "--prompt", "abc dab", "--greedy", "--max-tokens", 30)
    whole = capsys.readouterr().out
    run(model, "--prompt", "abc ", "--max-tokens", 0, "--save-state", state)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"0 new tokens, state saved to {state}\n")
    run(model, "--state", state, "--prompt", "dab", "--greedy", "--max-tokens", 12, "--save-state", tmp_path / "next")
    first = capsys.readouterr().out
    run(model, "--state", tmp_path / "next", "--greedy", "--max-tokens", 18)
    printed = capsys.readouterr()
    assert first + printed.out == whole
    assert printed.err.startswith("0 prompt tokens in ")
    before = state.read_bytes()
    with pytest.raises(UserError, match="already exists; add --overwrite"):
        run(model, "--prompt", "a", "--save-state", state)
    assert state.read_bytes() == before
    run(model, "--prompt", "a", "--save-state", state, "--overwrite")
    assert state.read_bytes() != before


def test_end_of_document_and_bytes(saved: Callable[..., Path], capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    model = saved(tokenizer=ByteTokenizer())
    run(model, "--prompt", "", "--max-tokens", 30, "--seed", 1)
    text = capsysbinary.readouterr().out.decode("utf-8")  # whole characters, whatever bytes the model chose
    assert text


def test_a_damaged_checkpoint_is_told(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = saved("run")
    for step in (1, 2):
        saved(f"run/checkpoints/step-{step:08d}", seed=step)
    (run_folder / "checkpoints" / "step-00000002" / "model.safetensors").unlink()
    run(run_folder, "--prompt", "abc", "--max-tokens", 20, "--seed", 3)
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: ")
    assert "model.safetensors is missing; taking step-00000001" in printed.err
    assert printed.out == expected(run_folder / "checkpoints" / "step-00000001", "abc", 20, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --prompt, --prompt-file or --state"),
        (("--prompt", "a", "--prompt-file", "b"), "give --prompt or --prompt-file, not both"),
        (("--prompt", ""), "empty prompt: give at least one character"),
        (("--prompt", "xyz"), "character 'x'"),
        (("--prompt-file", "/nowhere/at/all"), "/nowhere/at/all does not exist"),
        (("--prompt", "a", "--temperature", "0"), "temperature is 0.0"),
        (("--prompt", "a", "--samples", "0"), "samples is 0"),
        (("--prompt", "a", "--stop", ""), "a stop text is empty"),
        (("--prompt", "a", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("--prompt", "a", "--state", "/nowhere/at/all"), "/nowhere/at/all does not exist"),
        (("--prompt", "a", "--samples", "2", "--save-state", "x"), "--save-state keeps one text"),
    ],
)
def test_refusals(saved: Callable[..., Path], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        run(saved(), *arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_prompt_that_is_no_text(saved: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="latin is not UTF-8 at byte 3"):
        run(saved(), "--prompt-file", tmp_path / "latin")


def test_folders_that_do_not_serve(saved: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", "--prompt", "a")
    model = saved()
    (model / "tokenizer" / "hgrn2_tokenizer.json").unlink()
    (model / "tokenizer").rmdir()
    with pytest.raises(UserError, match=r"model has no tokenizer/ folder"):
        run(model, "--prompt", "a")
    ByteTokenizer().save(model / "tokenizer")
    with pytest.raises(UserError, match="tokenizer has 257 ids, the model knows 11"):
        run(model, "--prompt", "a")


def test_a_long_prompt_shows_a_bar(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # takes standard error for a terminal
    (tmp_path / "long").write_text("abc " * 4_100)
    run(saved(), "--prompt-file", tmp_path / "long", "--max-tokens", 1)
    printed = capsys.readouterr()
    assert "reading the prompt" in printed.err
    assert len(printed.out) == 1
    assert "16,400 prompt tokens" in printed.err


def test_how_tokens_are_made_is_told(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = saved()
    run(model, "--prompt", "abc", "--max-tokens", 3, "--state-dtype", "bfloat16", "--json")
    decoding = json.loads(capsys.readouterr().out)["decoding"]
    assert decoding == "steps are run call by call: CUDA graphs need a CUDA device, the model is on cpu"
    with pytest.raises(UserError, match="graph=on: CUDA graphs need a CUDA device"):
        run(model, "--prompt", "abc", "--graph", "on")
