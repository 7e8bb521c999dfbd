"""State as a value: made, picked, put back, moved and saved, with nothing shared and nothing lost."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.block import token_mixer
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.key_values import SMALLEST, KeyValues, with_conv
from hgrn2.layers.state import LayerState, ModelState
from hgrn2.models.config import ModelConfig
from hgrn2.models.count import state_bytes
from hgrn2.models.language import LanguageModel

WIDTH = 8
CONFIGS = {
    "hgru2": MixerConfig(head_size=4),
    "hgru2 with conv": MixerConfig(head_size=4, conv_width=4),
    "hgru1": MixerConfig(kind="hgru1"),
    "hgru1_real": MixerConfig(kind="hgru1_real"),
    "gla": MixerConfig(kind="gla", head_size=4),
    "mamba with conv": MixerConfig(kind="mamba", state_size=3, conv_width=4),
    "mamba2 with conv": MixerConfig(kind="mamba2", head_size=4, state_size=6, groups=2, conv_width=3),
    "wide_hgru1": MixerConfig(kind="wide_hgru1"),
    "rglru with conv": MixerConfig(kind="rglru", conv_width=4),
    "mingru expanded": MixerConfig(kind="mingru", expansion=4),
    "lru": MixerConfig(kind="lru"),
    "lru expanded": MixerConfig(kind="lru", expansion=2),
    "attention": MixerConfig(kind="attention", head_size=4),
    "attention with conv": MixerConfig(kind="attention", head_size=4, conv_width=4),
    "attention with window": MixerConfig(kind="attention", head_size=4, window=4),
}
NUMBERS = {
    "hgru2": 8 * 4, "hgru2 with conv": 8 * 4 + 3 * 24, "hgru1": 2 * 8, "hgru1_real": 8, "gla": 8 * 4,
    "mamba with conv": 16 * 3 + 3 * 16, "mamba2 with conv": 16 * 6 + 2 * (16 + 2 * 2 * 6),
    "wide_hgru1": 4 * 8, "rglru with conv": 8 + 3 * 8, "mingru expanded": 8 * 4, "lru": 2 * 8,
    "lru expanded": 2 * 8 * 2,
    "attention": 0, "attention with conv": 3 * 24, "attention with window": 0,
}  # fmt: skip


def zeros(name: str, batch: int = 3, dtype: torch.dtype = torch.float32) -> ModelState:
    mixers = [token_mixer(WIDTH, CONFIGS[name]) for _ in range(2)]
    return ModelState(tuple(mixer.zeros(batch, None, dtype) for mixer in mixers))


def filled(name: str, batch: int = 3, seed: int = 0) -> ModelState:
    generator = torch.Generator().manual_seed(seed)
    state = zeros(name, batch)
    if name.startswith("attention"):
        state = ModelState(tuple(read(layer, 5) for layer in state.layers))
    return state.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


def read(state: KeyValues, tokens: int) -> KeyValues:
    """The state after so many zeros more."""
    new = state.buffer.new_zeros(state.batch, tokens, *state.buffer.shape[2:])
    return with_conv(state.append(new, state.places(tokens, None), None), state.conv)


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
    counters = 2 * 3 * 8 if "window" in name else 0
    assert state.nbytes == 2 * 3 * NUMBERS[name] * 4 + counters
    assert zeros(name, dtype=torch.float64).nbytes == 2 * state.nbytes - counters
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
    assert all(x.requires_grad for x in grown.tensors().values() if x.dtype != torch.int64)
    assert not any(x.requires_grad for x in grown.detach().tensors().values())
    each([grown.detach(), state.map(lambda x: x * 2)], equal)


def check_meta(moved: Tensor, original: Tensor) -> None:
    assert moved.device.type == "meta"
    assert (moved.shape, moved.dtype) == (original.shape, original.dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_flat_names_round_trip(name: str) -> None:
    state = filled(name)
    named = state.tensors()
    first = "keys_values" if name.startswith("attention") else "recurrent"
    parts = (first, "conv") if "conv" in name else (first,)
    parts += ("dropped",) if "window" in name else ()
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
        MixerConfig(kind="hgru1_real"), MixerConfig(kind="gla", head_size=8, conv_width=3),
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


# --- keys and values, which grow


def test_keys_and_values_take_the_bytes_that_the_count_says() -> None:
    config = ModelConfig(vocab_size=7, width=8, layers=2, glu_width=8, mixer=CONFIGS["attention"], lower_bound="none")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = LanguageModel(config).to(dtype)
        _, state = model(torch.zeros(3, 5, dtype=torch.long))
        assert state.nbytes == 3 * state_bytes(config, str(dtype), tokens=5)
        assert model(torch.zeros(3, 1, dtype=torch.long), state)[1].nbytes == 3 * state_bytes(
            config, str(dtype), tokens=6
        )


@torch.no_grad()
def test_a_buffer_is_made_seldom_and_earlier_states_stay() -> None:
    state = token_mixer(WIDTH, CONFIGS["attention"]).zeros(2)
    kept, places = [], set()
    for t in range(3 * SMALLEST):
        new = torch.full((2, 1, 2, 2, 4), float(t))
        state = state.append(new, state.places(1, None), None)
        kept.append(state)
        places.add(state.buffer.data_ptr())
    assert len(places) == 3  # 64, 128 and 256 tokens
    for t, old in enumerate(kept):
        assert old.lengths == (t + 1, t + 1)
        assert torch.equal(old.seen[:, :, 0, 0, 0], torch.arange(t + 1.0).expand(2, -1))


@torch.no_grad()
@pytest.mark.parametrize("how", [lambda s: s, copy.copy, copy.deepcopy, lambda s: s.map(lambda x: x)])
def test_forks_do_not_overwrite_each_other(how: Callable) -> None:
    state = filled("attention", batch=2).layers[0]
    state = read(state, 1)  # now with space left in the buffer
    one, two = (go_on(each, value) for each, value in ((state, 1.0), (how(state), 2.0)))
    for found, value in ((one, 1.0), (two, 2.0)):
        assert (found.seen[:, -1] == value).all()
        assert torch.equal(found.seen[:, :-1], state.seen)
        assert (go_on(found, 3.0).seen[:, -2] == value).all()


def go_on(state: KeyValues, value: float) -> KeyValues:
    new = state.buffer.new_full((state.batch, 1, *state.buffer.shape[2:]), value)
    return state.append(new, state.places(1, None), None)


def test_one_of_many_threads_appends_in_place() -> None:
    state = read(zeros("attention").layers[0], 1)
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        found = list(pool.map(lambda n: go_on(state, float(n)), range(32)))
    assert sum(one.buffer.data_ptr() == state.buffer.data_ptr() for one in found) <= 1
    assert all((one.seen[:, -1] == n).all() for n, one in enumerate(found))


def test_a_state_made_while_reading_goes_on_in_training() -> None:
    with torch.inference_mode():
        state = read(zeros("attention").layers[0], 3)
    new = torch.ones(3, 1, 2, 2, 4, requires_grad=True)
    after = state.append(new, state.places(1, None), None)
    after.seen.sum().backward()
    assert after.lengths == (4, 4, 4)
    assert torch.equal(new.grad, torch.ones_like(new))
    with torch.no_grad():
        assert go_on(state, 1.0).lengths == (4, 4, 4)


def test_what_a_window_dropped_is_saved_and_checked() -> None:
    like, state = zeros("attention with window"), filled("attention with window", batch=2)
    named = state.tensors()
    assert named["0.dropped"].tolist() == [2, 2]
    assert named["0.keys_values"].shape[1] == 3
    back = ModelState.from_tensors(named, like)
    assert back.layers[0].positions(back.layers[0].places(2, None)).tolist() == [[5, 6], [5, 6]]
    for wrong in (torch.tensor([2, -1]), torch.tensor([2]), torch.zeros(2), torch.tensor([0, 2**62])):
        with pytest.raises(UserError, match=r"1.dropped does not fit 1.keys_values"):
            ModelState.from_tensors(named | {"1.dropped": wrong}, like)
    with pytest.raises(UserError, match=r"0.keys_values holds 4 tokens, the window 4"):
        ModelState.from_tensors(named | {"0.keys_values": torch.zeros(2, 4, 2, 2, 4)}, like)


def test_lengths_are_saved_where_they_differ() -> None:
    like, state = zeros("attention"), filled("attention")
    layers = [KeyValues(layer.buffer, (2, 5, 0)) for layer in state.layers]
    named = ModelState(tuple(layers)).tensors()
    assert named["1.lengths"].tolist() == [2, 5, 0]
    assert not named["0.keys_values"][0, 2:].any()
    back = ModelState.from_tensors(named, like)
    assert [layer.lengths for layer in back.layers] == [(2, 5, 0)] * 2
    each([back, ModelState(tuple(layers))], equal)
    chosen = back.select([1, 0]).insert([0], back.select([2]))
    assert chosen.layers[1].lengths == (0, 2)
    for wrong in (torch.tensor([2, 6, 0]), torch.tensor([2, -1, 0]), torch.tensor([2, 5]), torch.zeros(3)):
        with pytest.raises(UserError, match=r"1.lengths does not fit 1.keys_values"):
            ModelState.from_tensors(named | {"1.lengths": wrong}, like)
    with pytest.raises(UserError, match=r"0.keys_values is float32 \[B,5,2,2,3\], this model needs"):
        ModelState.from_tensors(named | {"0.keys_values": torch.zeros(3, 5, 2, 2, 3)}, like)
