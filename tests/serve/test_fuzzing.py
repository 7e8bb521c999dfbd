"""Requests that Schemathesis makes from the server's own schema: never a 5xx, always what the schema says."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from served import PROMPT, Running

schemathesis = pytest.importorskip("schemathesis", reason="a development dependency")
httpx = pytest.importorskip("httpx", reason="a development dependency")
import fuzzing  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance  # noqa: E402

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
EXAMPLES = {"positive": 8, "negative": 3}
ALL = list(HealthCheck)


@pytest.fixture(scope="module")
def server(start: Callable[..., Running]) -> Running:
    return start(engine={"slots": 4, "queue": 8, "max_tokens": 6, "max_prompt": 300}, max_states=40)


@pytest.fixture(scope="module")
def api(server: Running) -> Iterator[Any]:
    made = [httpx.post(f"{server.url}/v1/states", json={"prompt": PROMPT}).json()["id"] for _ in range(2)]
    fuzzing.STATES[:] = made
    yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    fuzzing.STATES.clear()
    assert server.idle()
    assert server.engine.slots.used == 0
    assert not server.service.driver._mailboxes
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 3})
    assert answer.status_code == 200
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * 301, "max_tokens": 3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert server.engine.counts.requests > 6  # they have got as far as the engine


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_generated_requests(api: Any, mode: str) -> None:
    for found in api.get_all_operations():
        operation = found.ok()
        cases = operation.as_strategy(generation_mode=GenerationMode(mode))

        @given(case=cases)
        @settings(
            max_examples=EXAMPLES[mode], deadline=None, derandomize=True, database=None, suppress_health_check=ALL
        )
        def ask(case: Any) -> None:
            answer = case.call(timeout=20)
            case.validate_response(answer, checks=CHECKS)
            if answer.status_code >= 400 and case.path.startswith("/v1"):
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        with contextlib.suppress(Unsatisfiable):  # what takes nothing cannot be asked for wrongly
            ask()
