"""State as a value: made, picked, put back, moved and saved, with nothing shared and nothing lost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.block import token_mixer
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.state import LayerState, ModelState

WIDTH = 8
CONFIGS = {
    "hgru2": MixerConfig(head_size=4),
    "hgru2 with conv": MixerConfig(head_size=4, conv_width=4),
    "hgru1": MixerConfig(kind="hgru1"),
    "hgru1_real": MixerConfig(kind="hgru1_real"),
}
NUMBERS = {"hgru2": 8 * 4, "hgru2 with conv": 8 * 4 + 3 * 24, "hgru1": 2 * 8, "hgru1_real": 8}


def zeros(name: str, batch: int = 3, dtype: torch.dtype = torch.float32) -> ModelState:
    mixers = [token_mixer(WIDTH, CONFIGS[name]) for _ in range(2)]
    return ModelState(tuple(mixer.zeros(batch, None, dtype) for mixer in mixers))


def filled(name: str, batch: int = 3, seed: int = 0) -> ModelState:
    generator = torch.Generator().manual_seed(seed)
    return zeros(name, batch).map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


def each(states: list[ModelState], check: Callable[..., None]) -> None:
    """Compare the tensors of states name by name."""
    named = [state.tensors() for state in states]
    assert all(set(other) == set(named[0]) for other in named)
    for key in named[0]:
        check(*(tensors[key] for tensors in named))


def equal(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_zeros_and_size(name: str) -> None:
    state = zeros(name)
    assert state.batch == 3
    assert all((x == 0).all() for x in state.tensors().values())
    assert state.nbytes == 2 * 3 * NUMBERS[name] * 4
    assert zeros(name, dtype=torch.float64).nbytes == 2 * state.nbytes
    assert zeros(name, batch=5).nbytes * 3 == state.nbytes * 5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [[2, 0, 0], slice(1, 3), torch.tensor([1])], ids=["list", "slice", "tensor"])
def test_select_copies_the_rows_asked_for(name: str, rows: list[int] | slice | Tensor) -> None:
    state = filled(name)
    kept = state.map(torch.clone)
    chosen = state.select(rows)
    each([chosen, state], lambda a, b: equal(a, b[rows]))
    for tensor in chosen.tensors().values():
        tensor.zero_()
    each([state, kept], equal)


@pytest.mark.parametrize("name", CONFIGS)
def test_insert_changes_those_rows_alone(name: str) -> None:
    state, other = filled(name), filled(name, batch=2, seed=1)
    kept = state.map(torch.clone)
    made = state.insert([2, 0], other)
    each([state, kept], equal)
    each([made.select([1]), state.select([1])], equal)
    each([made.select([2, 0]), other], equal)
    each([state.insert(slice(0, 2), other).select(slice(0, 2)), other], equal)
    for tensor in made.tensors().values():
        tensor.zero_()
    each([state, kept], equal)
    each([other, filled(name, batch=2, seed=1)], equal)


@pytest.mark.parametrize("name", CONFIGS)
def test_to_and_detach(name: str) -> None:
    state = filled(name)
    moved = state.to("meta")
    each([moved, state], lambda a, b: check_meta(a, b))
    each([state.to("cpu"), state], equal)
    grown = state.map(lambda x: x.clone().requires_grad_() * 2)
    assert all(x.requires_grad for x in grown.tensors().values())
    assert not any(x.requires_grad for x in grown.detach().tensors().values())
    each([grown.detach(), state.map(lambda x: x * 2)], equal)


def check_meta(moved: Tensor, original: Tensor) -> None:
    assert moved.device.type == "meta"
    assert (moved.shape, moved.dtype) == (original.shape, original.dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_flat_names_round_trip(name: str) -> None:
    state = filled(name)
    named = state.tensors()
    parts = ("recurrent", "conv") if "conv" in name else ("recurrent",)
    assert set(named) == {f"{layer}.{part}" for layer in range(2) for part in parts}
    back = ModelState.from_tensors(dict(reversed(named.items())), zeros(name, batch=1))
    assert back.batch == 3
    each([back, state], equal)


def test_foreign_tensors_are_refused() -> None:
    named, like = filled("hgru2 with conv").tensors(), zeros("hgru2 with conv", batch=1)
    with pytest.raises(UserError, match="do not match this model's layers"):
        ModelState.from_tensors(named, zeros("hgru2", batch=1))
    with pytest.raises(UserError, match="do not match this model's layers"):
        ModelState.from_tensors({key: x for key, x in named.items() if key != "1.conv"}, like)
    wide = named | {"1.recurrent": torch.zeros(3, 2, 4, 5)}
    with pytest.raises(UserError, match=r"1.recurrent is float32 \[B,2,4,5\], this model needs float32 \[B,2,4,4\]"):
        ModelState.from_tensors(wide, like)
    double = named | {"0.recurrent": named["0.recurrent"].double()}
    with pytest.raises(UserError, match=r"0.recurrent is float64 \[B,2,4,4\], this model needs float32"):
        ModelState.from_tensors(double, like)
    with pytest.raises(UserError, match="disagree about the number of sequences"):
        ModelState.from_tensors(named | {"1.conv": named["1.conv"][:2]}, like)


def test_states_are_frozen_values() -> None:
    state = LayerState(torch.zeros(1, 4))
    with pytest.raises(AttributeError):
        state.recurrent = torch.ones(1, 4)  # type: ignore[misc]


@pytest.mark.parametrize("tokens", [1, 5])
@torch.no_grad()
def test_a_state_updated_in_place_is_the_new_one(tokens: int) -> None:
    """Of every mixer, for one token and for more."""
    torch.manual_seed(0)
    for config in (
        MixerConfig(head_size=8), MixerConfig(head_size=8, conv_width=4), MixerConfig(kind="hgru1"),
        MixerConfig(kind="hgru1_real"),
    ):  # fmt: skip
        mixer = token_mixer(16, config)
        for parameter in mixer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x, past = torch.randn(2, tokens, 16), mixer(torch.randn(2, 7, 16))[1]
        assert past is not None
        y, new = mixer(x, None, past)
        own = past.map(torch.clone)
        places = own.recurrent.data_ptr()
        mine, state = mixer(x, None, own, inplace=True)
        assert state is own
        assert own.recurrent.data_ptr() == places
        torch.testing.assert_close(mine, y, rtol=0, atol=0)
        torch.testing.assert_close(own.recurrent, new.recurrent, rtol=0, atol=0)
        if new.conv is not None:
            assert torch.equal(own.conv, new.conv)


@torch.no_grad()
def test_a_narrow_state_stays_narrow() -> None:
    mixer = token_mixer(16, MixerConfig(head_size=8, conv_width=4))
    torch.nn.init.normal_(mixer.conv)
    state = mixer.zeros(2, dtype=torch.bfloat16)
    assert (state.recurrent.dtype, state.conv.dtype) == (torch.bfloat16, torch.float32)
    for tokens in (1, 3):
        _, state = mixer(torch.randn(2, tokens, 16), None, state, inplace=True)
        assert state.recurrent.dtype == torch.bfloat16
