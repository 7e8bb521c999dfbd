"""What Schemathesis is told beside the schema, so that its requests get as far as the engine.

SCHEMATHESIS_HOOKS=fuzzing PYTHONPATH=tests/serve schemathesis run http://127.0.0.1:8000/openapi.json
"""

import os
from typing import Any

import schemathesis

UNSUPPORTED = ("frequency_penalty", "presence_penalty", "logit_bias", "best_of", "echo", "metadata")
"""Fields of OpenAI's that the schema knows and that are refused for most of their values."""
STATES = list(filter(None, os.environ.get("HGRN2_STATES", "").split(",")))
"""Ids of saved states that requests may name."""


def _often(value: Any) -> bool:
    """Three times in four, always the same for the same value."""
    return len(repr(value)) % 4 != 0


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Without what is refused anyway, three times in four."""
    if not isinstance(body, dict) or not _often(body):
        return body
    kept = {name: value for name, value in body.items() if name not in UNSUPPORTED}
    for name in ("state", "a", "b"):
        if isinstance(kept.get(name), str) and STATES:
            kept[name] = STATES[0]
    if not kept.get("stream"):
        kept = {name: value for name, value in kept.items() if name not in ("stream_options", "gates")}
    return kept


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """A state that there is, three times in four."""
    if isinstance(path_parameters, dict) and "key" in path_parameters and STATES and _often(path_parameters):
        return {**path_parameters, "key": STATES[len(repr(path_parameters)) % len(STATES)]}
    return path_parameters
