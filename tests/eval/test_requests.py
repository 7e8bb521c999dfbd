"""lm-eval's generation options: what each does, and what is refused; repeats that are answers of their own."""

from typing import Any

import pytest

from hgrn2.errors import UserError
from hgrn2.eval.requests import generation, repeats, seed_of
from hgrn2.generate.config import GenerationConfig, SamplingConfig


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, GenerationConfig(max_tokens=9, sampling=SamplingConfig(greedy=True, seed=0))),
        ({"until": "a", "max_tokens": 3, "max_gen_toks": 2}, GenerationConfig(
            max_tokens=2, stop=("a",), sampling=SamplingConfig(greedy=True, seed=0))),
        ({"until": ["a", "", "b"], "do_sample": False, "temperature": 0.7}, GenerationConfig(
            max_tokens=9, stop=("a", "b"), sampling=SamplingConfig(greedy=True, seed=0))),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 3},
         GenerationConfig(max_tokens=9, sampling=SamplingConfig(
            temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=3))),
        ({"do_sample": True}, GenerationConfig(max_tokens=9, sampling=SamplingConfig(seed=0))),
        ({"do_sample": True, "temperature": 0.0}, GenerationConfig(
            max_tokens=9, sampling=SamplingConfig(greedy=True, seed=0))),
        ({"repetition_penalty": 2.0, "num_beams": 1, "top_k": None, "until": None}, GenerationConfig(
            max_tokens=9, sampling=SamplingConfig(greedy=True, repetition_penalty=2.0, seed=0))),
    ],
)  # fmt: skip
def test_options_as_settings(options: dict[str, Any], wanted: GenerationConfig) -> None:
    assert generation(options, 9) == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 4}, "generation option num_beams=4 is not offered"),
        ({"typical_p": 0.9}, "generation option typical_p is not known; known are do_sample, "),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it must be true or false"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a finite number"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"temperature": -1.0}, "temperature is -1.0; it must not be negative"),
        ({"max_gen_toks": 2.5}, "max_gen_toks is 2.5; it must be a whole number"),
        ({"max_gen_toks": -1}, "max_tokens is -1"),
        ({"until": 3}, "until is 3; it must be a text or a list of texts"),
        ({"do_sample": True, "top_p": 2.0}, "top_p is 2.0"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        generation(options, 9)
    assert said in str(error.value)


def test_seeds_and_repeats() -> None:
    assert repeats(["a", "b", "a", "a"]) == {"a": [0, 2, 3], "b": [1]}
    seeds = {seed_of(context, seed) for context in ("", "a", "b\ud800") for seed in (0, 1)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**56 for seed in seeds)
    assert seed_of("a", 0) == seed_of("a", 0)
