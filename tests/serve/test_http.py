"""What comes over the wire and is no proper request: always an error in OpenAI's shape, never a slot lost."""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from served import PROMPT, Running

JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(start: Callable[..., Running]) -> Running:
    return start(
        send_seconds=1.0, max_body_mb=1, max_connections=40, engine={"slots": 4, "queue": 8}, streams_per_key=7
    )


def ask(
    server: Running, body: bytes | dict[str, Any] | None, path: str = "/v1/completions", method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any], dict[str, str]]:  # fmt: skip
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, data, {**JSON, **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content or b"null"), dict(answer.getheaders())


def refused(server: Running, status: int, message: str, *given: Any, **more: Any) -> dict[str, str]:
    found, body, headers = ask(server, *given, **more)
    assert (found, set(body)) == (status, {"error"}), body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert message in body["error"]["message"]
    assert "\n" not in body["error"]["message"]
    return headers


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be a JSON object"),
        (b'{"prompt": "x"', "the body is not valid JSON"),
        (b'{"prompt": "\xff\xfe"}', "body"),
        (b'["prompt"]', "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b'{"a":' * 100_000, "body"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "body"),
        (b'{"temperature": 1e999}', "temperature is inf"),
        (b'{"temperature": NaN}', "temperature is nan"),
        (b'{"max_tokens": 1e30}', "max_tokens is 1e+30"),
        (b'{"max_tokens": true}', "max_tokens is True"),
        (b'{"prompt": {"a": 1}}', "prompt"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"model": "\\ud800"}', "model"),
        (b'{"stream": "yes"}', "stream is 'yes'"),
        (b'{"stream_options": {"include_usage": true}}', "stream_options need stream"),
        (b'{"seed": -1}', "seed is -1"),
        (b'{"logprobs": 21}', "logprobs is 21"),
        (b'{"n": 0}', "n is 0"),
        (b'{"prompt": [[1, -1]]}', "prompt"),
        (b'{"gates": true}', "gates are told in streams only"),
        (b'{"state": "st-0123456789abcdef/../../x"}', "there is no state"),
    ],
)
def test_bodies(server: Running, body: bytes, message: str) -> None:
    status = 404 if "there is no" in message else 400
    refused(server, status, message, body)


def test_routes_and_methods(server: Running) -> None:
    refused(server, 404, "there is no route '/v2/completions'", {}, "/v2/completions")
    refused(server, 405, "GET does not go with", None, method="GET")
    refused(server, 404, "there is no route", None, "/v1/states/st-0123456789abcdef/%2e%2e/x", "GET")
    refused(server, 404, "there is no state", None, "/v1/states/..%5c..%5cetc", "GET")
    refused(server, 404, "", None, "/../../etc/passwd", "GET")
    refused(server, 404, "", None, "/..%2f..%2f..%2fetc/passwd", "GET")


def test_a_page_elsewhere_cannot_use_it(server: Running, start: Callable[..., Running]) -> None:
    refused(server, 403, "this server is not named 'evil.example'", {}, headers={"host": "evil.example:80"})
    refused(server, 400, "body", {"prompt": "x"}, headers={"content-type": "text/plain"})
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    _, _, headers = ask(server, None, method="OPTIONS", headers=asking)
    assert not [name for name in headers if name.startswith("access-control")]
    opened = start(cors=("https://good.example",))
    headers = ask_options(opened, {**asking, "origin": "https://good.example"})
    assert headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in ask_options(opened, asking)


def ask_options(server: Running, headers: dict[str, str]) -> dict[str, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("OPTIONS", "/v1/completions", None, headers)
        return dict(connection.getresponse().getheaders())


def test_sizes(server: Running) -> None:
    refused(server, 413, "the body has more than 1 MiB", b" " * (1 << 20) + b"{}")
    many = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        raw.sendall(f"{len(many):x}\r\n".encode() + many + b"\r\n0\r\n\r\n")
        assert b" 413 " in raw.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 20_000)
        answer = everything(raw)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"type":"invalid_request_error"' in answer


def test_no_http_at_all(server: Running) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\nconnection: close\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            raw.sendall(junk + b"\r\n\r\n")
            answer = everything(raw)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))
            assert b'"type":"' in answer


def test_slow_clients(server: Running) -> None:
    began = time.monotonic()
    half = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as headers,
        socket.create_connection(("127.0.0.1", server.port), 10) as body,
        socket.create_connection(("127.0.0.1", server.port), 10) as nothing,
    ):
        headers.sendall(half)
        body.sendall(half + b"\r\n{")
        assert b" 408 " in body.recv(1000)
        assert headers.recv(1000) == b""
        assert nothing.recv(1000) == b""
    assert time.monotonic() - began < 8


def test_too_many_connections(server: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(60)]
    try:
        time.sleep(0.2)
        assert len(server.server.server_state.connections) <= 40
    finally:
        for one in held:
            one.close()
    time.sleep(0.2)
    assert ask(server, None, "/health", "GET")[0] == 200


def test_too_many_requests(server: Running) -> None:
    """Four are written and eight may wait, but only seven are answered at the same time."""
    held = [stream(server, max_tokens=5000) for _ in range(7)]
    try:
        wait_for(lambda: server.engine.writing + server.engine.waiting == 7)
        headers = refused(server, 429, "7 requests are being answered already", {"prompt": "x"})
        assert headers["retry-after"] == "1"
    finally:
        for one in held:
            one.close()
    assert server.idle()
    assert ask(server, {"prompt": "x", "max_tokens": 1})[0] == 200


def test_a_full_queue(start: Callable[..., Running]) -> None:
    server = start(engine={"slots": 1, "queue": 1})
    with stream(server, max_tokens=5000):
        wait_for(lambda: server.engine.writing == 1)
        with stream(server, max_tokens=5000):
            wait_for(lambda: server.engine.waiting == 1)
            assert refused(server, 429, "1 requests wait already", {"prompt": "x"})["retry-after"] == "1"
    assert server.idle()


def stream(server: Running, **more: Any) -> socket.socket:
    """A connection over which a stream has been asked for."""
    body = json.dumps({"prompt": PROMPT, "stream": True, "ignore_eos": True, **more}).encode()
    raw = socket.create_connection(("127.0.0.1", server.port), 10)
    raw.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    return raw


def everything(raw: socket.socket) -> bytes:
    """All that comes until the server closes."""
    answer = b""
    try:
        while piece := raw.recv(65536):
            answer += piece
    except ConnectionError:
        pass
    return answer


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_leaves_frees_the_slot(server: Running) -> None:
    for more in ({}, {"stream": False}):
        raw = stream(server, max_tokens=50_000, **more)
        wait_for(lambda: server.engine.writing == 1)
        raw.close()
        wait_for(lambda: server.engine.writing == 0)
    assert server.engine.counts.failed == 0


def test_who_does_not_read_is_let_go(start: Callable[..., Running]) -> None:
    server = start(send_seconds=0.5, send_buffer=8192)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        wanted = {"prompt": PROMPT, "stream": True, "max_tokens": 100_000, "logprobs": 5, "n": 8, "ignore_eos": True}
        body = json.dumps(wanted).encode()
        raw.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: server.engine.writing == 8)
        assert server.idle(30)


def test_the_engine_computes_with_the_threads_of_its_process(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A new thread has a number of its own for matrix products, and their last bits depend on it."""
    called: list[tuple[str, int]] = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: called.append((threading.current_thread().name, n)))
    start()
    assert ("hgrn2-engine", torch.get_num_threads()) in called


def test_health_and_metrics(server: Running) -> None:
    status, body, _ = ask(server, None, "/health", "GET")
    assert (status, body["status"], body["slots"], body["model"]) == (200, "ok", 4, "small")
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    for name in ("hgrn2_new_tokens_total", "hgrn2_slots 4.0", "hgrn2_prefix_misses_total", "hgrn2_http_answers_total"):
        assert name in text


VALUES: list[Any] = [
    None, True, -1, 0, 1, 10**20, -(10**400), 0.5, 1e308, float("nan"), "", "x", "\ud83d", "\0", "x" * 5000, [], [[]],
    [1, "a"], {}, {"a": {}}, ["a"] * 20, [[1] * 3] * 3, "st-0123456789abcdef", [{"role": "user", "content": "x"}],
]  # fmt: skip
FIELDS = """
    model prompt messages max_tokens temperature top_p n stop seed stream stream_options logprobs top_logprobs
    logit_bias state save_state top_k min_p repetition_penalty gates echo name a b cache_prompt ignore_eos unknown
""".split()  # noqa: SIM905
ROUTES = [
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/states"),
    ("POST", "/v1/states/load"),
    ("POST", "/v1/states/compare"),
    ("POST", "/v1/states/st-0123456789abcdef/fork"),
    ("GET", "/v1/states/%00"),
    ("DELETE", "/v1/states/st-0123456789abcdef"),
    ("GET", "/v1/models/%ff"),
    ("PUT", "/v1/models"),
    ("GET", "/v1/states"),
]


def malformed(chance: random.Random) -> Iterator[tuple[bytes, bool]]:
    """Requests that are wrong in one of many ways, or almost right; and whether they are as long as they say."""
    while True:
        method, path = chance.choice(ROUTES)
        fields = {"max_tokens": 2, **{chance.choice(FIELDS): chance.choice(VALUES) for _ in range(chance.randrange(4))}}
        body = json.dumps(fields).encode()
        if chance.random() < 0.3:
            place = chance.randrange(len(body))
            body = body[:place] + bytes(chance.randrange(256) for _ in range(chance.randrange(4))) + body[place + 1 :]
        stated = len(body) if chance.random() < 0.8 else chance.choice([0, len(body) + 7, 10**12, len(body) // 2])
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        yield f"{head}content-length: {stated}\r\n\r\n".encode() + body, stated <= len(body)


def torture(server: Running, count: int, seed: int) -> dict[int, int]:
    """Statuses of so many malformed requests, some of whose clients leave before the answer; 0 where there is none."""
    chance = random.Random(seed)
    statuses: dict[int, int] = {}
    for (request, whole), _ in zip(malformed(chance), range(count), strict=False):
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            cut = chance.randrange(len(request)) if chance.random() < 0.2 else len(request)
            raw.sendall(request[:cut])
            if chance.random() < 0.1:
                continue
            if not whole or cut < len(request):  # nothing more comes
                raw.shutdown(socket.SHUT_WR)
            answer = everything(raw)
            status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 400:
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"], request
            assert status < 500, (request, answer)
    return statuses


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_malformed_requests(start: Callable[..., Running], count: int) -> None:
    server = start(engine={"slots": 4}, send_seconds=2.0)
    statuses = torture(server, count, seed=count)
    assert statuses[400] > count // 4
    assert server.idle(10)
    assert server.engine.slots.used == 0
    assert not server.service.driver._mailboxes
    assert ask(server, {"prompt": PROMPT, "max_tokens": 3})[0] == 200
