"""What every token mixer promises: any way of cutting the tokens gives the same outputs and the same states."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hgrn2.layers.block import token_mixer
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.kinds import KINDS
from hgrn2.layers.mixer import Mixer
from hgrn2.layers.state import MixerState

WIDTH, TOKENS = 16, 37
CONFIGS = {
    "hgru2": MixerConfig(head_size=8, bias=True),
    "hgru2 silu scaled": MixerConfig(head_size=4, input_activation="silu", scale_scores=True, norm="head_rms"),
    "hgru2 n=1": MixerConfig(head_size=1, norm="layer"),
    "hgru2 n=2 conv": MixerConfig(head_size=2, conv_width=3, bias=True),
    "hgru2 conv 4": MixerConfig(head_size=8, conv_width=4),
    "hgru2 conv 2": MixerConfig(head_size=8, conv_width=2),
    "hgru1": MixerConfig(kind="hgru1", input_activation="silu", norm="layer", bias=True),
    "hgru1_real": MixerConfig(kind="hgru1_real", input_activation="silu"),
    "gla": MixerConfig(kind="gla", head_size=8, scale_scores=True, bias=True),
    "gla conv": MixerConfig(kind="gla", head_size=4, conv_width=4),
    "gla with short keys": MixerConfig(kind="gla", head_size=8, key_size=4, conv_width=3, norm="head_rms", bias=True),
    "mamba": MixerConfig(kind="mamba", state_size=3, bias=True),
    "mamba conv": MixerConfig(kind="mamba", expand=1, conv_width=4, output_activation="sigmoid"),
    "mamba2": MixerConfig(kind="mamba2", head_size=8, state_size=4, bias=True),
    "mamba2 conv": MixerConfig(kind="mamba2", head_size=4, state_size=3, groups=4, conv_width=4, norm="head_rms"),
    "mamba2 groups": MixerConfig(kind="mamba2", head_size=8, state_size=5, groups=2, conv_width=3),
    "wide dense": MixerConfig(kind="wide_hgru1", expansion=2, input_activation="silu", bias=True),
    "wide grouped": MixerConfig(kind="wide_hgru1", expansion=3, expansion_map="grouped_mixed", groups=4, norm="layer"),
    "mingru": MixerConfig(kind="mingru", bias=True),
    "mingru expanded": MixerConfig(kind="mingru", expansion=4, norm="none"),
    "rglru": MixerConfig(kind="rglru", groups=4, conv_width=4, norm="none", bias=True),
    "rglru expanded": MixerConfig(kind="rglru", expansion=8, output_activation="sigmoid"),
    "lru": MixerConfig(kind="lru", norm="none", bias=True),
    "lru expanded": MixerConfig(kind="lru", expansion=4),
    "attention": MixerConfig(kind="attention", head_size=8, bias=True),
    "attention conv": MixerConfig(kind="attention", head_size=4, conv_width=3),
    "attention without rotation": MixerConfig(kind="attention", head_size=16, rotary=False),
    "attention with normed keys": MixerConfig(kind="attention", head_size=8, qk_norm=True),
    "attention window": MixerConfig(kind="attention", head_size=8, window=4),
    "attention window conv": MixerConfig(kind="attention", head_size=8, window=9, conv_width=3),
}
every = pytest.mark.parametrize("name", CONFIGS)
bounded = pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("hgru")])


@pytest.fixture
def mixer(name: str, randomised: Callable) -> Any:
    return randomised(token_mixer(WIDTH, CONFIGS[name]))


def inputs(name: str, batch: int = 2, tokens: int = TOKENS) -> tuple[Tensor, Tensor | None]:
    """Tokens, and the lower bound of kinds that have one."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, tokens, WIDTH, generator=generator, dtype=torch.float64)
    bounded = KINDS[CONFIGS[name].kind].lower_bounds
    return x, torch.rand(WIDTH, generator=generator, dtype=torch.float64) if bounded else None


def tensors(state: MixerState) -> list[Tensor]:
    return list(state.tensors().values())


def stored(state: MixerState) -> list[Tensor]:
    """The tensors that gradients flow from."""
    first = state.buffer if isinstance(state, KeyValues) else state.recurrent  # type: ignore[attr-defined]
    return [first] if state.conv is None else [first, state.conv]


def start(mixer: nn.Module, batch: int) -> Any:
    """A state that is nowhere zero, as after earlier tokens; of attention with 5 tokens, 4, 3 and so on."""
    generator = torch.Generator().manual_seed(8)
    zeros = mixer.zeros(batch, None, torch.float64)
    if isinstance(zeros, KeyValues):
        shape = (batch, max(5, batch), *zeros.buffer.shape[2:])
        lengths = tuple(max(0, 5 - row) for row in range(batch))
        zeros = replace(zeros, buffer=zeros.buffer.new_zeros(shape)[:, :5], lengths=lengths)
    return zeros.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


def both(found: MixerState, expected: MixerState, same: Callable) -> None:
    """Two states are the same."""
    assert type(found) is type(expected)
    for mine, theirs in zip(tensors(found), tensors(expected), strict=True):
        same(mine, theirs)


def test_no_kind_is_forgotten() -> None:
    assert {config.kind for config in CONFIGS.values()} == set(KINDS)


@every
def test_meets_the_protocol(name: str, mixer: Any) -> None:
    assert isinstance(mixer, Mixer)
    assert mixer.state_dtype(torch.float64) == torch.float64
    x, lower_bound = inputs(name)
    found = mixer.log_forget(x, lower_bound)
    assert (found is None) == name.startswith("attention")
    if found is not None:
        assert found.shape[:2] == x.shape[:2]
        assert (found < 0).all()


@every
@pytest.mark.parametrize("begun", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_step_by_step_is_the_whole(name: str, grad: bool, begun: bool, mixer: Any, same: Callable) -> None:
    """One token at a time: the step operators without gradients, scans of one token with them."""
    x, lower_bound = inputs(name)
    state = start(mixer, 2) if begun else None
    expected, final = mixer(x, lower_bound, state)
    outputs = []
    with torch.set_grad_enabled(grad):
        state = state or mixer.zeros(2, None, torch.float64)
        for token in x.split(1, 1):
            y, state = mixer(token, lower_bound, state)
            outputs.append(y)
    same(torch.cat(outputs, 1), expected)
    both(state, final, same)


@every
@pytest.mark.parametrize("at", [1, 2, 3, 17, 36])
def test_split_anywhere_is_the_whole(name: str, at: int, mixer: Any, same: Callable) -> None:
    x, lower_bound = inputs(name)
    expected, final = mixer(x, lower_bound, start(mixer, 2))
    left, middle = mixer(x[:, :at], lower_bound, start(mixer, 2))
    right, state = mixer(x[:, at:], lower_bound, middle)
    same(torch.cat((left, right), 1), expected)
    both(state, final, same)


@every
def test_gradients_flow_through_the_state_between_parts(name: str, mixer: Any, same: Callable) -> None:
    x, lower_bound = inputs(name)
    leaves = [x.requires_grad_(), *([] if lower_bound is None else [lower_bound.requires_grad_()]), *mixer.parameters()]
    begin = start(mixer, 2).map(lambda y: y.requires_grad_())
    leaves += stored(begin)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = torch.autograd.grad((mixer(x, lower_bound, begin)[0] * weights).sum(), leaves)
    left, middle = mixer(x[:, :15], lower_bound, begin)
    right, _ = mixer(x[:, 15:], lower_bound, middle)
    for mine, theirs in zip(
        torch.autograd.grad((torch.cat((left, right), 1) * weights).sum(), leaves), expected, strict=True
    ):
        same(mine, theirs, 3000)


@every
def test_packed_documents_are_separate_ones(name: str, mixer: Any, same: Callable) -> None:
    """Documents shorter than the convolution, of one token and of none; each begins with a state of its own."""
    x, lower_bound = inputs(name, batch=1)
    ends = [0, 9, 9, 10, 12, 30, 37]
    begin = start(mixer, len(ends) - 1)
    packed, finals = mixer(x, lower_bound, begin, cu_seqlens=torch.tensor(ends))
    for n, (a, b) in enumerate(pairwise(ends)):
        own = begin.select([n])
        alone, final = mixer(x[:, a:b], lower_bound, own) if b > a else (packed[:, a:b], own)
        same(packed[:, a:b], alone)
        both(finals.select([n]), final, same)


@every
def test_states_given_are_left_alone(name: str, mixer: Any) -> None:
    x, lower_bound = inputs(name)
    begin = start(mixer, 2)
    for tokens in (1, TOKENS):
        with torch.no_grad():
            mixer(x[:, :tokens], lower_bound, begin)
        assert all(torch.equal(a, b) for a, b in zip(tensors(begin), tensors(start(mixer, 2)), strict=True))


@every
def test_no_state_when_none_is_asked_for(name: str, mixer: Any, same: Callable) -> None:
    x, lower_bound = inputs(name)
    y, state = mixer(x, lower_bound, output_state=False)
    assert state is None
    same(y, mixer(x, lower_bound)[0])
    with torch.no_grad():
        assert mixer(x[:, :1], lower_bound, start(mixer, 2), output_state=False)[1] is None


@bounded
def test_a_gate_held_open_remembers_and_one_held_shut_forgets(name: str, mixer: Any, same: Callable) -> None:
    """γ near 1 keeps the state whatever the input; weights that shut the gate leave only the last token's trace."""
    x, lower_bound = inputs(name)
    begin = start(mixer, 2)
    kept = mixer(x, torch.ones_like(lower_bound), begin)[1].recurrent
    if name == "hgru1":
        same(kept, begin.recurrent * torch.polar(torch.ones_like(lower_bound), TOKENS * mixer.theta))
    else:
        same(kept, begin.recurrent)
    with torch.no_grad():
        weight = mixer.in_proj.weight
        weight[-WIDTH:] = 0
        weight[-WIDTH:, 0] = -1e4
        if getattr(mixer, "conv", None) is not None:
            mixer.conv[-WIDTH:] = 1
    shut = x.clone()
    shut[..., 0] = 1
    whole = mixer(shut, None, begin)[1].recurrent
    same(whole, mixer(shut[:, -4:], None, None)[1].recurrent)


@bounded
def test_float32_keeps_what_a_nearly_open_gate_lets_in(name: str, mixer: Any) -> None:
    """At a gate of 1 - 1e-11, 1 - f is zero in float32; the complement (1-γ)σ(-x) keeps all its digits."""
    x, _ = inputs(name, tokens=6)
    lower_bound = torch.full((WIDTH,), 0.25, dtype=torch.float64)
    with torch.no_grad():
        mixer.in_proj.weight[-WIDTH:] = 0
        mixer.in_proj.weight[-WIDTH:, 0] = 25
        if getattr(mixer, "conv", None) is not None:
            mixer.conv[-WIDTH:] = 1
        if mixer.in_proj.bias is not None:
            mixer.in_proj.bias.zero_()
        x[..., 0] = 1
        expected = mixer(x, lower_bound)[1].recurrent
        single = mixer.float()(x.float(), lower_bound.float())[1].recurrent
    assert 1e-12 < float(expected.abs().max()) < 1e-8
    assert float((single - expected).abs().max()) <= 300 * torch.finfo(torch.float32).eps * float(expected.abs().max())
