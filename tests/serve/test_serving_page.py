"""What docs/serving.md tells people to type works, and it names every route, field and code that there is."""

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Running, make_model

from hgrn2.cli.main import VERBS, entry
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.models.saved import save_model

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    save_model(folder / "runs" / "demo", make_model(), ByteTokenizer())
    return folder


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], place: Path) -> Running:
    return start(model=place / "runs" / "demo", name="demo")


def test_the_python_block(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="OpenAI's client is a development dependency")
    (block,) = blocks("python")
    block = block.replace("http://127.0.0.1:8000", server.url)
    exec(compile(block, "serving.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_commands(
    server: Running, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/undo\n"))
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert {line.split()[1] for line in lines if line.startswith("hgrn2")} == {"serve", "chat", "bench"}
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000", server.url))
        if words[0] == "curl":
            done = subprocess.run(["curl", "-s", *words[1:]], capture_output=True, check=True, timeout=30)
            assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
        elif words[:2] == ["hgrn2", "chat"]:
            assert entry([*words[1:], "--device", "cpu"]) == 0
        else:  # pip is not for tests; serve and bench serve run elsewhere
            assert words[0] == "pip" or words[1] in VERBS


def test_routes_fields_and_options_are_all_there(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    from hgrn2.serve.app import make_app
    from hgrn2.serve.schema import Wanted

    for path in make_app(server.service, server.config).openapi()["paths"]:
        assert path.replace("{key}", "{id}").replace("/{name}", "") in PAGE
    ours = list(Wanted.model_fields)[list(Wanted.model_fields).index("state") :]
    for name in ours:
        assert f"`{name}`" in PAGE
    entry(["serve", "--help"])
    text = capsys.readouterr().out
    for option in re.findall(r"`(--[a-z-]+)", PAGE):
        assert option in text or option in ("--state", "--save-state", "--scenarios", "--streams", "--temperature")


def test_the_plain_template() -> None:
    from hgrn2.serve.templates import plain

    (shown,) = re.findall(r"```\n(system:.*?)\n```", PAGE, re.DOTALL)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    assert plain(messages) == shown
