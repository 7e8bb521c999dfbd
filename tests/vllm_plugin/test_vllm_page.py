"""The commands of docs/vllm.md serve a run over HTTP, and its texts are those of `hgrn2 generate`."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import CharTokenizer
from hgrn2.models.language import LanguageModel
from hgrn2.models.presets import preset
from hgrn2.models.saved import save_model
from hgrn2.testing.processes import free_port

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
CHARACTERS = "".join(chr(n) for n in range(32, 96)) + "\n"
START = 240.0
"""Seconds that a server may take to start."""


def asked(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Until it answers."""
    until = time.monotonic() + START
    while True:
        assert server.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        try:
            asked(port, "/v1/models")
            return
        except OSError:
            time.sleep(0.5)


def test_a_run_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    convert, serve, on_cpu = (next(line for line in LINES if line.startswith(word)) for word in
                              ("hgrn2 convert", "vllm serve", "python -m vllm"))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    model = LanguageModel(preset("hgrn2_demo"))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(tmp_path / "runs" / "demo", model, CharTokenizer(CHARACTERS))
    assert entry(shlex.split(convert)[1:]) == 0
    port, log = free_port(), tmp_path / "log"
    more = ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4"]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [str(Path(sys.executable).with_name("vllm")), *shlex.split(serve)[1:], *more]
    if not any(one.name == "vllm" for one in importlib.metadata.distributions()):  # vllm-cpu, whose command fails
        command = [sys.executable, *shlex.split(on_cpu)[1:], *more]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | offline)
        try:
            wait(server, port, log)
            for prompt in ("ROMEO:", "A", "TO BE, OR NOT TO BE, THAT IS THE QUESTION: " * 5):
                body = {"model": "demo-hf", "prompt": prompt, "max_tokens": 30, "temperature": 0}
                got = asked(port, "/v1/completions", body)["choices"][0]["text"]
                capsys.readouterr()
                words = ["generate", "runs/demo", "--prompt", prompt, "--max-tokens", "30", "--greedy"]
                assert entry([*words, "--device", "cpu", "--json"]) == 0
                assert got == json.loads(capsys.readouterr().out)["samples"][0]["text"]
                assert len(set(got)) > 5, "a text that could be another's"
        finally:
            server.terminate()
            server.wait(30)
