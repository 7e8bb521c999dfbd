"""The models that are compared: equal sizes, and decoding that continues what the whole sequence says."""

import sys

import pytest
import torch

from hgrn2.bench.baselines import cache_bytes, llama_glu_width, mamba_layers
from hgrn2.bench.models import build
from hgrn2.bench.settings import Size
from hgrn2.errors import UserError
from hgrn2.models.modes import reading

TINY = Size(width=64, layers=2, head_size=16, glu_width=320, vocab_size=32)
NAMES = ("hgrn2", "llama-hf", "llama-hf-static", "mamba-hf")
needs_transformers = pytest.mark.usefixtures("baselines")


@needs_transformers
@pytest.mark.parametrize("name", NAMES)
def test_steps_after_a_prompt_continue_it_and_leave_the_state_as_it_was(name: str) -> None:
    subject = build(name, TINY, seed=0)
    prompt, following = torch.randint(32, (1, 9)), torch.randint(32, (1, 3))
    with reading(subject.model):
        whole = subject.logits(torch.cat((prompt, following), 1))
        logits, state = subject.prefill(prompt, 3)
        torch.testing.assert_close(logits, whole[:, 8], rtol=1e-4, atol=1e-5)
        current = state
        for _ in range(2):  # the second time from the same state again
            current = subject.fork(state)
            for place in range(3):
                logits, current = subject.step(following[:, place : place + 1], current)
            torch.testing.assert_close(logits, whole[:, -1], rtol=1e-4, atol=1e-5)
        grown = subject.state_bytes(current) - subject.state_bytes(state)
    assert grown == (2 * 2 * 64 * 3 * 4 if name == "llama-hf" else 0)  # keys and values, layers, channels, tokens


@needs_transformers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [TINY, Size(width=128, layers=4, glu_width=352)], ids=["tiny", "usual shape"])
def test_parameters_lie_within_five_percent(name: str, size: Size) -> None:
    subject = build(name, size, seed=0)
    assert subject.parameters == pytest.approx(size.parameters, rel=0.05)
    assert sum(p.numel() for p in subject.model.parameters() if not p.requires_grad) == 0


def test_the_default_sizes_are_ten_million() -> None:
    assert Size().parameters == pytest.approx(10.1e6, rel=0.01)
    assert llama_glu_width(Size()) == 1280
    assert mamba_layers(Size()) == 23


@needs_transformers
def test_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (build("mamba-hf", TINY, seed) for seed in (1, 1, 2))
    tokens = torch.randint(32, (1, 5))
    with torch.no_grad():
        assert torch.equal(one.logits(tokens), same.logits(tokens))
        assert not torch.equal(one.logits(tokens), other.logits(tokens))


@needs_transformers
def test_sizes_too_far_apart_are_refused() -> None:
    with pytest.raises(UserError, match=r"mamba-hf has .* more than 5% apart"):
        build("mamba-hf", Size(width=64, layers=1, head_size=16, glu_width=200), seed=0)


def test_without_transformers_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'hgrn2\[bench\]'"):
        build("llama-hf", TINY, seed=0)
    assert build("hgrn2", TINY, seed=0).parameters == TINY.parameters


def test_cache_bytes_count_every_tensor() -> None:
    class Cache:
        layers = ({"states": [torch.zeros(3), torch.zeros(2, dtype=torch.int64)], "length": 7}, (torch.zeros(1),))

    assert cache_bytes(Cache()) == 12 + 16 + 4
