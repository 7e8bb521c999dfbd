"""`hgrn2 export onnx` and the example: what docs/onnx.md shows works, without PyTorch; mistakes are one line."""

import json
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from hgrn2.files import sha256
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.layers.config import MixerConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_stream.py"
PAGE = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
LETTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
BLOCKED = """\
import runpy, sys
sys.modules.update(torch=None, hgrn2=None, onnx=None)  # importing any of them is an ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def example(*arguments: object, python: Path | str = sys.executable) -> str:
    """What the example prints where PyTorch and hgrn2 cannot be imported."""
    command = [str(python), "-c", BLOCKED, str(EXAMPLE), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout.decode()


def test_what_the_page_shows(
    tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("runs/demo"), CharTokenizer(LETTERS), layers=1)
    Path("held-out.txt").write_text("To be, or not to be, that is the question.\n" * 20)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    ran = []
    for words in (shlex.split(line) for line in lines):
        ran.append(words[0])
        if words[:2] == ["python", "examples/onnx_stream.py"]:
            assert len(example(*words[2:], "--seed", 1)) == len("ROMEO:") + 200 + 1
        elif words[0] == "hgrn2":
            short = ["--tokens", "2", "--repeats", "1", "--context", "4"] if words[1] == "bench" else []
            assert entry([*words[1:], *short]) == 0, capsys.readouterr().err
    assert ran.count("hgrn2") == 4
    assert ran.count("python") == 1
    assert "perplexity" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("results/onnx.jsonl").read_text().splitlines()]
    assert [row["subject"] for row in rows] == [
        "hgrn2",
        *(f"onnx-{name}" for name in ("float32", "int8", "int4") for _ in "ab"),
    ] * 2
    assert [row["case"]["threads"] for row in rows] == [1] * 7 + [2] * 7
    assert rows[1]["details"]["same_tokens_as_torch"] == 2
    assert [row["backend"] for row in rows[:3]] == ["torch", "standard", "onnxruntime"]
    sizes = [row["details"]["model_bytes"] for row in rows[1:7:2]]
    assert sizes == sorted(sizes, reverse=True)


def vocabulary(folder: Path) -> Tokenizer:
    """A byte-level tokenizer.json of single bytes."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizer of the test needs tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("kind", ["bytes", "chars", "tokenizer.json"])
def test_the_example_streams_what_pytorch_would(tmp_path: Path, made: Any, kind: str) -> None:
    """Greedy text of the same weights, from the example and from our own generator, character by character."""
    tokenizer = {"bytes": ByteTokenizer, "chars": lambda: CharTokenizer(LETTERS + "é")}.get(
        kind, lambda: vocabulary(tmp_path)
    )()
    folder = made(tmp_path / "model", tokenizer)
    assert entry(["export", "onnx", str(folder), str(tmp_path / "out")]) == 0
    loaded = load(folder, "cpu")
    config = GenerationConfig(max_tokens=30, sampling=SamplingConfig(greedy=True))
    want = Generator(loaded.model, loaded.need_tokenizer()).generate("Caf\u00e9 ", config)[0].text
    got = example(tmp_path / "out", "--prompt", "Caf\u00e9 ", "--tokens", 30, "--temperature", 0)
    shown = got.removesuffix("\n").removeprefix("Caf\u00e9 ")
    if kind == "tokenizer.json":  # random bytes: what is no text may be held back at the end
        assert want.startswith(shown)
        assert len(want) - len(shown) < 5
    else:
        assert shown == want
        assert len(shown) == 30


def test_seed_and_temperature(tmp_path: Path, made: Any) -> None:
    out = tmp_path / "out"
    assert entry(["export", "onnx", str(made(tmp_path / "model")), str(out)]) == 0
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        import onnx_stream  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(EXAMPLE.parent))

    def text(seed: int, temperature: float = 1.0) -> str:
        return "".join(onnx_stream.stream(out, "a", 20, temperature, seed, 1))

    assert text(1) == text(1) != text(2)
    assert text(1, 1e-4) == text(2, 0)


def test_the_manifest_tells_what_is_there(tmp_path: Path, made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    out = tmp_path / "out"
    mixer = MixerConfig(head_size=8, conv_width=3)
    folder = made(tmp_path / "model", mixer=mixer, tie_embeddings=True)
    assert entry(["export", "onnx", str(folder), str(out), "--weights", "int4", "--head", "int8", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files == {"model.onnx", "model.onnx.data", "tokenizer/hgrn2_tokenizer.json"}
    for name, known in manifest["files"].items():
        assert sha256(out / name) == known["sha256"]
        assert (out / name).stat().st_size == known["bytes"]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        stated = {name: (value["shape"], f"tensor({value['dtype']})") for name, value in manifest[side].items()}
        real = {value.name: (value.shape, value.type.replace("(float)", "(float32)")) for value in values}
        assert stated == real
    assert manifest["vocab_size"] == 257
    assert manifest["versions"]["opset"] == 27
    assert manifest["tokenizer"]["kind"] == "bytes"
    assert all(check["error"] <= check["allowed"] for check in manifest["checks"])


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert entry([str(word) for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_bad_input(
    tmp_path: Path, made: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = made(tmp_path / "model"), tmp_path / "new" / "out"
    real = made(tmp_path / "real", mixer=MixerConfig(kind="hgru1_real"))
    text = tmp_path / "text.txt"
    text.write_text("")
    export = ["export", "onnx"]
    refused([*export, model, model], capsys, "already exists")
    refused([*export, tmp_path / "absent", out], capsys, "does not exist")
    refused([*export, real, out], capsys, "cannot express the vector states of hgru1_real")
    refused([*export, model, text / "out"], capsys, str(text))
    refused([*export, model, out, "--block-size", 24], capsys, "block_size is 24")
    refused([*export, model, out, "--data", tmp_path / "absent.txt"], capsys, "absent.txt does not exist")
    refused([*export, model, out, "--data", text], capsys, "text.txt")
    refused([*export, model, out, "--limit-tokens", 1], capsys, "--limit-tokens is 1")
    refused(["bench", "onnx", model, "--threads", 0], capsys, "--threads has 0")
    refused(["bench", "onnx", model, "--weights", "int8", "int8"], capsys, "repeated")
    refused(["bench", "onnx", real, "--out", tmp_path / "rows"], capsys, "hgru1_real")
    for missing in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            refused([*export, model, out], capsys, "pip install 'hgrn2[onnx]'")
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.rglob("*.onnx*")) == []


def test_help_loads_no_torch() -> None:
    for arguments in (["export"], ["export", "onnx", "--help"], ["bench", "onnx", "--help"]):
        code = f"import sys; from hgrn2.cli.main import entry; assert entry({arguments!r}) == 0"
        code += "; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "set()"


@pytest.mark.full
def test_the_example_in_an_environment_of_its_own(tmp_path: Path, made: Any) -> None:
    """A fresh virtual environment with numpy and onnxruntime, and nothing else."""
    assert entry(["export", "onnx", str(made(tmp_path / "model")), str(tmp_path / "out"), "--weights", "int8"]) == 0
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "numpy",
        "onnxruntime>=1.32",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip could not install onnxruntime: {installed.stderr.strip().splitlines()[-1]}")
    listed = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime" in listed
    assert "torch" not in listed
    text = example(tmp_path / "out", "--prompt", "Clean", "--tokens", 20, "--temperature", 0, python=python)
    assert text.startswith("Clean")
    assert len(text) == len("Clean") + 20 + 1
