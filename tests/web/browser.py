"""Chromium without a window, driven through its DevTools pipe: no driver program, no further package, no port."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip
WAIT_S = 60.0


class Page:
    """One tab. Raises what the page's scripts raise where they are asked something."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Any, into: Any) -> None:
        self.process, self.out, self.into = process, out, into
        self.count, self.session, self.held = 0, "", b""
        self.requests: list[str] = []
        """Every address that was asked for."""
        self.problems: list[str] = []
        """What the console said in red."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.into.write(json.dumps(message).encode() + b"\0")
        self.into.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.held:
            more = os.read(self.out.fileno(), 1 << 16)
            assert more, "Chromium ended"
            self.held += more
        data, _, self.held = self.held.partition(b"\0")
        message = json.loads(data)
        what, values = message.get("method"), message.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif what == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.problems.append(values["entry"]["text"])
        elif what == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"].get("exception", {}).get("description")))
        return message

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = WAIT_S) -> Any:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            if time.monotonic() > end:
                said = self.ask("document.body?.innerText") or ""
                raise AssertionError(f"{expression} did not come; the page says {said[:500]!r}, {self.problems}")
            time.sleep(0.02)
        return value

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def look(self, width: int = 1200, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """How large the screen is, and which colours its user prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip
        self.send("Emulation.setScrollbarsHidden", hidden=True)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        """The page as a PNG file: all of it, or what the screen shows."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def press(self, key: str, *, code: int, control: bool = False, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=2 if control else 0, **more,
            )  # fmt: skip

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        """As if the user had chosen a file."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def downloads(self, folder: Path) -> None:
        """Let downloads go to a folder."""
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def offline(self, on: bool) -> None:
        self.send("Network.emulateNetworkConditions", offline=on, latency=0, downloadThroughput=-1, uploadThroughput=-1)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with a new empty profile in `folder`; skips where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("the page is tested in Chromium, which is not installed (apt-get install chromium)")
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()

    def connect() -> None:  # the pipe is file 3 (read) and 4 (write) of the browser
        keep_in, keep_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(keep_in, 3)
        os.dup2(keep_out, 4)

    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(
        command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    into, out = os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb")
    try:
        yield Page(process, out, into)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        into.close()
        out.close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which `hgrn2 serve --static` shows a folder."""
    pytest.importorskip("starlette", reason="pip install 'hgrn2[serve]'")
    import uvicorn

    from hgrn2.serve.folder import Server, make_app

    server = Server(uvicorn.Config(make_app(folder), ws="none", lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
