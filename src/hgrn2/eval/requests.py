"""lm-eval's generation requests as ours: their options by name, and a seed of its own for every repeat."""

import hashlib
import math
import numbers
from collections.abc import Sequence
from typing import Any

from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.settings import refuse

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of one option; the first that is given counts, as in lm-eval."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_return_sequences": (1,), "length_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "early_stopping": (False,), "use_cache": (True, False),
    "return_full_text": (False,),
}  # fmt: skip
"""Options of other backends that are taken as long as they ask for nothing."""


def generation(options: dict[str, Any], default_length: int) -> GenerationConfig:
    """The options of a request as settings.

    do_sample, temperature, top_k, top_p, min_p and seed draw as `hgrn2 generate` does; without do_sample a temperature
    above 0 decides, and a temperature of 0 is greedy. repetition_penalty acts on both. until and the lengths as in
    lm-eval.

    Raises:
        UserError: an option that is not known, or a value that does not fit, by name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = {"until", "do_sample", "repetition_penalty", "seed", *LENGTHS, *SAMPLING}
    for name in sorted(set(given) - known):
        refuse(name not in NEUTRAL, f"generation option {name} is not known; known are {', '.join(sorted(known))}")
        neutral = NEUTRAL[name]
        refuse(given[name] not in neutral, f"generation option {name}={given[name]!r} is not offered")
    length = next((_whole(given, name) for name in LENGTHS if name in given), default_length)
    temperature = _number(given, "temperature", 1.0)
    sampled = _flag(given, "do_sample", "temperature" in given) and temperature > 0
    refuse(temperature < 0, f"generation option temperature is {temperature}; it must not be negative")
    drawing: dict[str, Any] = {"greedy": True}
    if sampled:
        drawing = {
            "temperature": temperature, "top_k": max(_whole(given, "top_k"), 0), "top_p": _number(given, "top_p", 1.0),
            "min_p": _number(given, "min_p", 0.0),
        }  # fmt: skip
    penalty, seed = _number(given, "repetition_penalty", 1.0), _whole(given, "seed")
    return GenerationConfig(
        max_tokens=length, stop=_stops(given.get("until", ())),
        sampling=SamplingConfig(**drawing, repetition_penalty=penalty, seed=seed),
    )  # fmt: skip


def seed_of(context: str, seed: int) -> int:
    """Of the first answer after a context, the next ones having the numbers after it: the same in every evaluation, and
    another one for another context."""
    digest = hashlib.sha256(f"{seed}\n{context}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big")


def repeats(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """Which requests are the same one again: their numbers by key, in the order in which keys come first."""
    found: dict[Any, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return found


def _stops(until: Any) -> tuple[str, ...]:
    stops = (until,) if isinstance(until, str) else until
    good = isinstance(stops, (list, tuple)) and all(isinstance(stop, str) for stop in stops)
    refuse(not good, f"generation option until is {until!r}; it must be a text or a list of texts")
    return tuple(stop for stop in stops if stop)


def _flag(given: dict[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    refuse(not isinstance(value, bool), f"generation option {name} is {value!r}; it must be true or false")
    return value


def _number(given: dict[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    refuse(not good, f"generation option {name} is {value!r}; it must be a finite number")
    return float(value)


def _whole(given: dict[str, Any], name: str, default: int = 0) -> int:
    value = _number(given, name, default)
    refuse(not value.is_integer(), f"generation option {name} is {value}; it must be a whole number")
    return int(value)
