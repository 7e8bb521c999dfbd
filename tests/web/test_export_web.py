"""`hgrn2 export web`: what is in the folder, which runtime files are taken, and mistakes in one line."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from small_page import LETTERS, Exported, save

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import CharTokenizer
from hgrn2.export import web_runtime
from hgrn2.files import sha256
from hgrn2.inspect import trace
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "src" / "hgrn2" / "serve" / "static"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files pass for the runtime, for tests that run no page."""
    folder = tmp_path / "fake" / "package" / "dist"
    folder.mkdir(parents=True)
    known = {}
    for name in web_runtime.FILES:
        (folder / name).write_bytes(name.encode())
        known[name] = sha256(folder / name)
    monkeypatch.setattr(web_runtime, "FILES", known)
    monkeypatch.setenv("HGRN2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "fake"


@pytest.fixture(autouse=True)
def libraries() -> None:
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"the export needs {name}: pip install 'hgrn2[onnx]'")


def test_the_folder(tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert entry(["export", "web", str(save(tmp_path / "small")), str(out), "--runtime", str(fake), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert said["files"] == {name: path.stat().st_size for name, path in found.items()}
    listed = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert set(listed["files"]) == set(found) - {"model.json"}
    for name, known in listed["files"].items():
        if name != "sw.js":  # it holds the hash of model.json
            assert sha256(found[name]) == known["sha256"]
    assert listed["tokenizer"]["characters"] == CharTokenizer(LETTERS).characters
    page = (out / "index.html").read_text(encoding="utf-8")
    assert '<meta name="hgrn2-engine" content="browser">' in page
    assert "default-src 'none'" in page
    assert sha256(out / "model.json")[:16] in (out / "sw.js").read_text(encoding="utf-8")


def test_the_page_asks_nobody_else_and_has_no_inline_script() -> None:
    for path in STATIC.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            text = path.read_text(encoding="utf-8")
            assert not re.findall(r"https?://", text), path.name
            assert "innerHTML" not in text
            assert "eval(" not in text
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))
    assert not re.findall(r"<[^>]* (?:on\w+|style)=", page)


def test_the_gates_of_the_graph_are_those_of_the_model(tmp_path: Path, fake: Path) -> None:
    import onnxruntime

    model, out = save(tmp_path / "small"), tmp_path / "out"
    assert entry(["export", "web", str(model), str(out), "--runtime", str(fake)]) == 0
    from hgrn2.generate.loading import load

    ids = np.arange(1, 12)[None]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    shapes = json.loads((out / "model.json").read_text(encoding="utf-8"))["states"]
    feed = {f"past.{name}": np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    feed |= {"tokens": ids, "logits_to_keep": np.array([1])}
    found = trace(load(model, "cpu").model, torch.from_numpy(ids[0]))
    names = [f"gates.{layer.layer}" for layer in found.layers]
    for layer, got in zip(found.layers, session.run(names, feed), strict=True):
        want = layer.terms.log_forget.sum(0).mean(-1)
        np.testing.assert_allclose(got[0], want.numpy(), rtol=1e-4)


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert entry([str(word) for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_bad_input(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save(tmp_path / "small"), tmp_path / "out"
    command = ["export", "web", model, out]
    refused(["export", "web", model, model], capsys, "already exists")
    refused([*command, "--runtime", tmp_path / "absent"], capsys, "absent is no folder")
    refused([*command, "--runtime", model], capsys, "lacks", "npm pack onnxruntime-web@1.30.0", "--runtime")
    next((fake / "package" / "dist").iterdir()).write_bytes(b"another")
    refused([*command, "--runtime", fake], capsys, "is not the file of onnxruntime-web 1.30.0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused(command, capsys, "npm is missing", "--runtime")
    vector = tmp_path / "vector"
    tokenizer = CharTokenizer(LETTERS)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=1, glu_width=16, mixer=MixerConfig(kind="hgru1_real")
    )
    save_model(vector, LanguageModel(config), tokenizer)
    refused(["export", "web", vector, out, "--runtime", fake], capsys, "hgru1_real")
    assert not out.exists()


def test_vocabularies_that_the_page_does_not_have(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'hgrn2[text]'")
    from hgrn2.data.vocabulary import JsonTokenizer

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    model = save(tmp_path / "words", JsonTokenizer(words.to_str()))
    refused(["export", "web", model, tmp_path / "out", "--runtime", fake], capsys, "splits text in another way")


def test_npm_that_fails(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\nmore")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(web_runtime.subprocess, "run", fails)
    refused(
        ["export", "web", save(tmp_path / "small"), tmp_path / "out"], capsys, "ENOTFOUND", "--runtime", "npm pack"
    )  # fmt: skip


def test_what_npm_fetched_is_kept(tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    def pack(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        with tarfile.open(Path(command[-1]) / "onnxruntime-web-1.30.0.tgz", "w:gz") as tar:
            tar.add(fake / "package", "package")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(web_runtime.subprocess, "run", pack)
    (tmp_path / "one").mkdir()
    web_runtime.fetch_runtime(tmp_path / "one", None)
    monkeypatch.setattr(web_runtime.subprocess, "run", lambda *_, **__: pytest.fail("npm is asked again"))
    (tmp_path / "two").mkdir()
    web_runtime.fetch_runtime(tmp_path / "two", None)
    for folder in ("one", "two"):
        assert {path.name: sha256(path) for path in (tmp_path / folder).iterdir()} == web_runtime.FILES


def test_help_loads_no_torch() -> None:
    code = "import sys; from hgrn2.cli.main import entry; assert entry(['export', 'web', '--help']) == 0"
    code += "; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set()"


def test_commands_of_the_page_of_the_docs(
    tmp_path: Path, exported: Exported, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of docs/browser.md in its order, with a small model in place of the demo."""
    import shlex

    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported.model, "runs/demo")
    text = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    ran = [shlex.split(line, comments=True) for line in lines]
    assert [words[:2] for words in ran].count(["hgrn2", "export"]) == 3
    for words in ran:
        if words[:2] == ["hgrn2", "export"]:
            given = [str(runtime) if word == "package" else word for word in words[1:]]
            assert entry(given if "--runtime" in given else [*given, "--runtime", str(runtime)]) == 0
        elif words[0] == "hgrn2":
            with serving(*words[1:], "--port", "0") as address, urllib.request.urlopen(address) as answer:
                assert b'content="browser"' in answer.read()


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The address that the command line serves at, which ends cleanly at SIGTERM."""
    command = [sys.executable, "-m", "hgrn2", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
