"""`hgrn2 serve --static`: what the export has written, under the right types, and nothing else."""

import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))
from browser import served

from hgrn2.cli.main import entry

FILES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "local/worker.js": "text/javascript; charset=utf-8",
    "runtime/ort.min.mjs": "text/javascript; charset=utf-8",
    "runtime/ort.wasm": "application/wasm",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "model.onnx": "application/octet-stream",
    "model.onnx.data": "application/octet-stream",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an export lays it out, beside what it has not written."""
    made = tmp_path_factory.mktemp("static") / "page"
    for name in FILES:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"this is {name}")
    (made / "model.json").write_text(json.dumps({"format": "hgrn2-web-1", "files": {name: {} for name in FILES}}))
    (made / "private.txt").write_text("secret")
    (made.parent / "outside.txt").write_text("secret")
    (made / "link").symlink_to(made.parent)
    return made


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with served(folder) as address:
        yield int(address.rstrip("/").rsplit(":", 1)[1])


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_types_and_policy(port: int) -> None:
    for name, kind in FILES.items():
        status, headers, content = ask(port, f"/{name}")
        assert (status, headers["content-type"], content) == (200, kind, f"this is {name}".encode())
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert ask(port, "/")[2] == b"this is index.html"
    assert ask(port, "/model.json")[1]["content-type"] == "application/json"
    assert ask(port, "/app.js", "HEAD")[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/private.txt", "/../outside.txt", "/%2e%2e/outside.txt", "/..%2foutside.txt", "/local/../../outside.txt",
        "/link/outside.txt", "/local", "/local/", "/runtime", "//etc/passwd", "/%00", "/..\\outside.txt",
        "/absent",
    ],
)  # fmt: skip
def test_nothing_else(port: int, path: str) -> None:
    status, _, content = ask(port, path)
    assert status in (400, 404), content
    assert b"secret" not in content
    assert b"worker.js" not in content


def test_other_methods_and_names(port: int) -> None:
    assert ask(port, "/", "POST")[0] == 405
    assert ask(port, "/", host="evil.example")[0] == 400


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert entry(["serve", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgrn2: error: ")]
    return line


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give a run or model folder, or --static" in refused(capsys)
    assert "give a run or model folder, or --static" in refused(capsys, folder, "--static", folder)
    assert "lacks model.json" in refused(capsys, "--static", tmp_path)
    assert "is for this machine" in refused(capsys, "--static", folder, "--host", "0.0.0.0")
    (tmp_path / "model.json").write_text('{"format": "other", "files": {}}')
    assert "another format" in refused(capsys, "--static", tmp_path)
    (tmp_path / "model.json").write_text('{"format": "hgrn2-web-1", "files": {"app.js": {}}}')
    assert "is not whole: it lacks app.js" in refused(capsys, "--static", tmp_path)
    (tmp_path / "model.json").write_text("[]")
    assert "model.json is damaged" in refused(capsys, "--static", tmp_path)
