"""States on disk: through restarts, uploads and kills, exactly where they stood or refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import PROMPT, Running, make_kind, make_model, spaced

from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.generate.loading import load
from hgrn2.generate.snapshots import load_snapshot
from hgrn2.models.saved import save_model

httpx = pytest.importorskip("httpx", reason="a development dependency")
COMMAND = [sys.executable, "-c", "import sys; from hgrn2.cli.main import entry; sys.exit(entry())", "serve"]


def client(server: Running) -> Any:
    return httpx.Client(base_url=server.url, timeout=20)


def text(http: Any, **body: Any) -> str:
    answer = http.post("/v1/completions", json={"temperature": 0, "max_tokens": 20, "ignore_eos": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("kind", ["bytes", "spaced"])
def test_a_restart(start: Callable[..., Running], tmp_path: Path, kind: str) -> None:
    if kind == "spaced":
        pytest.importorskip("tokenizers")
    tokenizer = spaced() if kind == "spaced" else ByteTokenizer()
    save_model(tmp_path / "model", make_model(tokenizer.vocab_size), tokenizer)
    prompt, middle = "the dog is", " not a fox"
    first = start(model=tmp_path / "model", states=tmp_path / "states")
    with client(first) as http:
        wanted = {"prompt": prompt, "temperature": 0, "max_tokens": 7, "save_state": True, "ignore_eos": True}
        (made,) = http.post("/v1/completions", json=wanted).json()["choices"]
        here = text(http, prompt=middle, state=made["state"])
        empty = text(http, prompt="", state=made["state"])
        whole = text(http, prompt=prompt, max_tokens=27)
    first.stop()
    second = start(model=tmp_path / "model", states=tmp_path / "states")
    with client(second) as http:
        assert [state["id"] for state in http.get("/v1/states").json()["data"]] == [made["state"]]
        assert text(http, prompt=middle, state=made["state"]) == here
        assert text(http, prompt="", state=made["state"]) == empty
    assert made["text"] + empty == whole


def test_download_and_upload(start: Callable[..., Running], tmp_path: Path) -> None:
    server = start(states=tmp_path / "states")
    with client(server) as http:
        key = http.post("/v1/states", json={"prompt": PROMPT, "name": "one"}).json()["id"]
        data = http.get(f"/v1/states/{key}/file").content
        (tmp_path / "got.safetensors").write_bytes(data)
        snapshot = load_snapshot(tmp_path / "got.safetensors", server.service.generator.model, ByteTokenizer())
        assert snapshot.tokens == len(PROMPT)
        loaded = http.post("/v1/states/load", params={"name": "two"}, content=data)
        assert (loaded.status_code, loaded.json()["name"], loaded.json()["tokens"]) == (201, "two", len(PROMPT))
        assert text(http, prompt="", state=loaded.json()["id"]) == text(http, prompt="", state=key)
        for place in range(0, len(data), len(data) // 25):
            changed = bytearray(data)
            changed[place] ^= 4
            answer = http.post("/v1/states/load", content=bytes(changed))
            assert answer.status_code in (400, 409), place
            assert str(tmp_path) not in answer.text
            assert "/tmp" not in answer.text
        for junk in (b"", b"x", data[:-1], data + b"x", b"\x80\x04pickle", b"\xff" * 100):
            assert http.post("/v1/states/load", content=junk).status_code == 400
        assert len(http.get("/v1/states").json()["data"]) == 2


def test_of_another_model(start: Callable[..., Running], tmp_path: Path) -> None:
    save_model(tmp_path / "other", make_model(seed=1), ByteTokenizer())
    states = tmp_path / "states"
    one, other = start(states=states), start(model=tmp_path / "other", states=tmp_path / "more")
    with client(one) as http, client(other) as elsewhere:
        key = http.post("/v1/states", json={"prompt": PROMPT}).json()["id"]
        data = http.get(f"/v1/states/{key}/file").content
        answer = elsewhere.post("/v1/states/load", content=data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "other_model")
        assert answer.json()["error"]["message"] == "the file is a state of another model"
    one.stop()
    with client(start(model=tmp_path / "other", states=states)) as http:
        (listed,) = http.get("/v1/states").json()["data"]
        assert (listed["id"], listed["usable"], listed["model"]) == (key, False, None)
        answer = http.post("/v1/completions", json={"prompt": "x", "state": key})
        assert (answer.status_code, answer.json()["error"]["message"]) == (409, f"{key} is a state of another model")


def test_room_for_states(start: Callable[..., Running], tmp_path: Path) -> None:
    server = start(states=tmp_path / "states", max_states=2)
    with client(server) as http:
        answers = [http.post("/v1/states", json={"prompt": PROMPT}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 409]
        assert "2 states of 0 MB are saved already" in answers[2].json()["error"]["message"]
        answer = http.post("/v1/states", json={"prompt": PROMPT, "name": "a\nb"})
        assert answer.json()["error"]["message"] == "name must be at most 100 printable characters"
        assert http.delete(f"/v1/states/{answers[0].json()['id']}").status_code == 200
        assert http.post("/v1/states", json={"prompt": PROMPT}).status_code == 201


def test_files_that_are_no_states_are_left_alone(start: Callable[..., Running], tmp_path: Path) -> None:
    states = tmp_path / "states"
    states.mkdir()
    (states / "st-0123456789abcdef.safetensors").write_bytes(b"half a file")
    (states / "notes.txt").write_text("mine")
    with client(start(states=states)) as http:
        assert http.get("/v1/states").json()["data"] == []
        assert http.post("/v1/completions", json={"prompt": "", "state": "st-0123456789abcdef"}).status_code == 404
    assert (states / "notes.txt").read_text() == "mine"


@contextmanager
def process(folder: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own and its address."""
    command = [*COMMAND, str(folder), "--port", "0", "--slots", "4", "--device", "cpu", "--threads", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as running:
        try:
            assert running.stdout is not None
            found = re.search(r"at (http://\S+)", running.stdout.readline())
            assert found is not None
            yield running, found[1]
        finally:
            running.kill()


def test_streams_end_cleanly_at_sigterm(folder: Path) -> None:
    with process(folder, "--grace-seconds", "0.3") as (running, url):
        body = {"prompt": PROMPT, "max_tokens": 100_000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            for _ in range(6):
                next(lines)
            running.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert running.wait(20) == 0


def test_killed_while_saving(folder: Path, tmp_path: Path) -> None:
    """Whatever is in the folder afterwards is whole; nothing half-written is ever taken for a state."""
    states, loaded = tmp_path / "states", load(folder, "cpu")
    for round_ in range(1):
        with process(folder, "--states", str(states)) as (running, url), httpx.Client(base_url=url) as http:
            key = http.post("/v1/states", json={"prompt": PROMPT}).json()["id"]
            deadline = time.monotonic() + 0.3 + 0.2 * round_
            while time.monotonic() < deadline:
                http.post(f"/v1/states/{key}/fork")
            running.kill()
    for path in states.glob("*.safetensors"):
        assert load_snapshot(path, loaded.model, ByteTokenizer()).tokens == len(PROMPT)


def test_not_for_other_machines_without_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hgrn2.cli.main import entry

    assert entry(["serve", str(folder), "--host", "0.0.0.0"]) == 2
    assert "--host 0.0.0.0 is heard by other machines: give --keys FILE" in capsys.readouterr().err
    (folder.parent / "keys").write_text("short\n")
    assert entry(["serve", str(folder), "--keys", str(folder.parent / "keys")]) == 2
    assert "a key must have at least 16" in capsys.readouterr().err


@pytest.mark.parametrize("int8", [False, True])
def test_states_that_grow(start: Callable[..., Running], tmp_path: Path, int8: bool) -> None:
    """Saved, forked, looked at, compared, downloaded and gone on from; a text that does not fit is refused."""
    save_model(tmp_path / "model", make_kind("hybrid"), ByteTokenizer())
    server = start(
        model=tmp_path / "model", states=tmp_path / "states", engine={"context": 100, "slots": 4}, states_int8=int8
    )  # fmt: skip
    with client(server) as http:
        state = http.post("/v1/states", json={"prompt": PROMPT}).json()
        fork = http.post(f"/v1/states/{state['id']}/fork").json()
        assert (fork["tokens"], fork["parent"]) == (len(PROMPT), state["id"])
        texts = [text(http, prompt="", state=key, max_tokens=9) for key in (state["id"], fork["id"])]
        assert texts[0] == texts[1]
        assert int8 or texts[0] == text(http, prompt=PROMPT, max_tokens=9)
        held = http.get(f"/v1/states/{state['id']}/memory").json()["layers"]
        assert held[1]["shape"] == [len(PROMPT) - 1, 2, 4, 8]
        compared = http.post("/v1/states/compare", json={"a": state["id"], "b": fork["id"]}).json()["layers"]
        assert compared[0]["heads"][0]["distance"] < 0.02
        data = http.get(f"/v1/states/{state['id']}/file").content
        assert http.post("/v1/states/load", content=data).json()["tokens"] == len(PROMPT)
        numbers = 4 * 8 * 8 + (len(PROMPT) - 1) * 2 * 32
        assert state["bytes"] // numbers == (1 if int8 else 4)
        for asked in ({"prompt": PROMPT, "max_tokens": 41}, {"prompt": "x", "state": state["id"], "max_tokens": 41}):
            error = http.post("/v1/completions", json=asked).json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert "this server holds 100 of a text" in error["message"]
        chat = {"messages": [{"role": "user", "content": "Who?"}], "ignore_eos": True}
        usage = http.post("/v1/chat/completions", json=chat).json()["usage"]
        assert usage["total_tokens"] <= 100
        assert http.get("/health").json()["token_bytes"] == 2 * 32 * 4
