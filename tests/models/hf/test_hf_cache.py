"""The cache as a value: counted, reordered, forked, taken back, saved, and refused where it does not belong."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.models.hf import HGRN2Cache

NAMES = ["hgru2 conv", "hgru1", "hgru1_real"]
every = pytest.mark.parametrize("name", NAMES)


def read(model: Any, ids: Tensor, cache: HGRN2Cache, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, **options).logits


def refused(message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


@every
def test_what_the_library_asks(name: str, twin: Callable, tokens: Callable) -> None:
    _, model = twin(name)
    cache = HGRN2Cache()
    assert (cache.get_seq_length(), cache.batch_size, cache.nbytes, cache.is_initialized) == (0, -1, 0, False)
    read(model, tokens(2, 5), cache)
    once = cache.nbytes
    read(model, tokens(2, 50), cache)
    assert (cache.get_seq_length(), cache.batch_size, cache.nbytes) == (55, 2, once)
    assert (len(cache), cache.get_max_length(), cache.get_max_cache_shape()) == (3, -1, -1)
    assert cache.get_mask_sizes(4) == (59, 0)
    assert not cache.is_compileable
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size) == (0, -1)


@every
def test_states_are_float32_whatever_the_model_is(name: str, twin: Callable, tokens: Callable) -> None:
    _, model = twin(name, torch.bfloat16)
    cache = HGRN2Cache()
    for length in (6, 1):
        read(model, tokens(2, length), cache)
        assert cache.state is not None
        assert {x.dtype.to_real() for x in cache.state.tensors().values()} == {torch.float32}


@every
def test_rows_are_reordered_selected_and_repeated(name: str, twin: Callable, tokens: Callable, same: Callable) -> None:
    _, model = twin(name)
    ids, more = tokens(3, 9), tokens(4, 2, seed=2)
    for change, order in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        cache = HGRN2Cache()
        read(model, ids, cache)
        change(cache)
        after = more[:1].expand(len(order), -1)
        with torch.no_grad():
            same(read(model, after, cache), model(torch.cat((ids[order], after), 1)).logits[:, 9:])


@every
def test_a_fork_goes_its_own_way(name: str, twin: Callable, tokens: Callable) -> None:
    _, model = twin(name)
    cache = HGRN2Cache()
    read(model, tokens(1, 9), cache)
    other, third = cache.fork(), copy.deepcopy(cache)
    first = read(model, tokens(1, 1), cache)
    read(model, tokens(1, 1, seed=6), other)
    for one in (third, third.to("cpu")):
        assert one.get_seq_length() == 9
        assert torch.equal(read(model, tokens(1, 1), one.fork()), first)


@every
@pytest.mark.parametrize("back", [1, 4, 5])
@pytest.mark.parametrize("before", [0, 7])
def test_recorded_tokens_are_taken_back(
    name: str, back: int, before: int, twin: Callable, tokens: Callable, same: Callable
) -> None:
    """One call or several since recording began; with padding among them; and twice over."""
    _, model = twin(name)
    ids, new = tokens(2, 12), tokens(2, 3, seed=9)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, : before + 1] = 0
    cache = HGRN2Cache()
    if before:
        read(model, ids[:, :before], cache, attention_mask=mask[:, :before])
    cache.activate_past_recording()
    middle = before + 2
    read(model, ids[:, before:middle], cache, attention_mask=mask[:, :middle])
    read(model, ids[:, middle:], cache, attention_mask=mask)
    for _ in range(2):
        cache.crop(-back)
        assert cache.get_seq_length() == 12 - back
        left = ids[:, : 12 - back]
        whole = torch.cat((mask[:, : 12 - back], torch.ones(2, 3, dtype=torch.long)), 1)
        found = read(model, new, cache, attention_mask=whole)
        with torch.no_grad():
            same(found, model(torch.cat((left, new), 1), attention_mask=whole).logits[:, -3:])
        cache.crop(-3)  # and now the rest again
        read(model, ids[:, 12 - back :], cache, attention_mask=torch.cat((whole[:, :-3], mask[:, 12 - back :]), 1))
    cache.crop(0)
    refused("cannot forget its last 1 tokens: 0 were recorded", cache.crop, -1)


def test_taking_back_is_refused_without_a_recording(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2")
    cache = HGRN2Cache()
    read(model, tokens(1, 9), cache)
    cache.crop(0)
    refused("a recurrent state cannot forget its last 2 tokens: 0 were recorded", cache.crop, -2)
    refused("as a negative number, not 3", cache.crop, 3)
    cache.activate_past_recording()
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens(1, 2))
        refused("needs ids, not embeddings", model, inputs_embeds=embedded, past_key_values=cache)


@every
def test_saved_and_loaded(name: str, twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    _, model = twin(name)
    cache = HGRN2Cache()
    read(model, tokens(2, 9), cache)
    cache.save(tmp_path / "c.safetensors", model)
    again = HGRN2Cache.load(tmp_path / "c.safetensors", model)
    assert again.get_seq_length() == 9
    assert torch.equal(read(model, tokens(2, 1), again), read(model, tokens(2, 1), cache))
    _, other = twin(name, seed=4)
    refused("is a cache of another model", HGRN2Cache.load, tmp_path / "c.safetensors", other)
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:-5])
    refused("is damaged", HGRN2Cache.load, tmp_path / "half.safetensors", model)
    save_file(load_file(tmp_path / "c.safetensors"), tmp_path / "other.safetensors")
    refused("is not a saved cache", HGRN2Cache.load, tmp_path / "other.safetensors", model)
    refused("does not exist", HGRN2Cache.load, tmp_path / "none.safetensors", model)
    refused("has read something", HGRN2Cache().save, tmp_path / "d.safetensors", model)
    refused("the model with its head", cache.save, tmp_path / "d.safetensors", model.model)
    assert not (tmp_path / "d.safetensors").exists()


def test_refused_where_it_does_not_belong(twin: Callable, tokens: Callable, padded: Callable) -> None:
    _, model = twin("hgru2")
    _, other = twin("hgru2", seed=3)
    cache = HGRN2Cache()
    read(model, tokens(2, 4), cache)
    before = copy.deepcopy(cache)
    refused("this cache was filled by another model", other, tokens(2, 1), past_key_values=cache)
    refused("this cache holds 2 sequences, the input 3", model, tokens(3, 1), past_key_values=cache)
    refused("is a tuple; this model needs an HGRN2Cache", model, tokens(2, 1), past_key_values=((),))
    ids, mask = padded([tokens(1, 5)[0], tokens(1, 3)[0]], "right")
    longer = torch.cat((torch.ones(2, 4, dtype=torch.long), mask), 1)
    for options in ({"attention_mask": mask}, {"attention_mask": longer}):
        refused("row 1 ends in padding: with a cache, pad on the left", model, ids, past_key_values=cache, **options)
    refused("row 1 ends in padding", model.generate, ids, attention_mask=mask, max_new_tokens=2)
    refused("attention_mask must be", model, ids, attention_mask=mask[:, 1:])
    refused("attention_mask must be", model, ids, attention_mask=mask[:1])
    refused("either input_ids or inputs_embeds", model)
    refused("is for keys and values", model.generate, ids, cache_implementation="quantized", max_new_tokens=2)
    assert cache.get_seq_length() == 4
    assert torch.equal(read(model, tokens(2, 1), cache), read(model, tokens(2, 1), before))


@every
def test_states_of_ones_own_begin_a_text_and_stay_as_they_are(
    name: str, twin: Callable, tokens: Callable, same: Callable
) -> None:
    """Learned ones, with gradients; and those of our own model, which a text in progress is copied from."""
    own, model = twin(name)
    with torch.no_grad():
        _, state = own(tokens(1, 9))
        before = state.map(Tensor.clone)
        expected = model.generate(tokens(1, 9), max_new_tokens=4, do_sample=False, eos_token_id=None)[0, 10:]
        first = own(tokens(1, 9))[0][:, -1:].argmax(-1)
        found = [read(model, first, cache := HGRN2Cache(state))]
        for _ in range(2):
            found.append(read(model, found[-1].argmax(-1), cache))
        assert torch.equal(torch.cat(found, 1).argmax(-1)[0], expected)
        same(state, before, 0)
    start = state.map(lambda x: x.clone().requires_grad_())
    model(tokens(1, 5), past_key_values=HGRN2Cache(start), labels=tokens(1, 5)).loss.backward()
    assert all(float(x.grad.abs().max()) > 0 for key, x in start.tensors().items() if "recurrent" in key)


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad])
def test_a_cache_goes_from_mode_to_mode(
    first: Any, then: Any, twin: Callable, tokens: Callable, same: Callable
) -> None:
    own, model = twin("hgru2")
    cache, ids = HGRN2Cache(), tokens(2, 6)
    with first():
        model(ids[:, :4], past_key_values=cache)
    with then():
        found = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in (4, 5)]
        same(torch.cat(found, 1), own(ids)[0][:, 4:])


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, HGRN2Cache.fork, lambda c: c.to("cpu"), "state", "set"])
def test_no_step_of_one_holder_reaches_another(
    take: Any, recording: bool, twin: Callable, tokens: Callable, same: Callable
) -> None:
    """Whoever goes on first; with steps written in place, tokens taken back, rows reordered, a cache emptied."""
    own, model = twin("hgru2 conv")
    ids, step = tokens(2, 6), tokens(2, 1, seed=5)
    expected = own(torch.cat((ids, step), 1))[0][:, -1:]

    def taken(cache: HGRN2Cache) -> HGRN2Cache:
        if take == "set":
            made = HGRN2Cache()
            made.state = cache.state
            return made
        return HGRN2Cache(cache.state) if take == "state" else take(cache)

    for swapped in (False, True):
        first = HGRN2Cache()
        read(model, ids[:, :5], first)
        read(model, ids[:, 5:], first)
        second = taken(first)
        mover, keeper = (second, first) if swapped else (first, second)
        if recording:
            mover.activate_past_recording()
        read(model, step, mover)
        read(model, step, mover)
        if recording:
            mover.crop(-1)
        mover.reorder_cache(torch.tensor([1, 1]))
        mover.reset()
        same(read(model, step, keeper), expected)


def test_a_state_that_was_handed_out_stays_and_changes_nothing(
    twin: Callable, tokens: Callable, same: Callable
) -> None:
    own, model = twin("hgru2")
    cache, step = HGRN2Cache(), tokens(1, 1, seed=5)
    read(model, tokens(1, 6), cache)
    state = cache.state
    before = state.copy()
    read(model, step, cache.fork())
    with torch.no_grad():
        own(step, cache.state, inplace=True)
        same(read(model, step, cache.fork()), own(step, before)[0])
        made = HGRN2Cache(state)
        own(step, state, inplace=True)  # its holder may, and the cache made of it before does not see it
        same(read(model, step, made), own(step, before)[0])
    buffer = tokens(1, 3)
    recorded = HGRN2Cache()
    recorded.activate_past_recording()
    read(model, buffer, recorded)
    buffer.zero_()  # as static buffers are overwritten; the recording has its own
    recorded.crop(-1)
    same(read(model, step, recorded), own(torch.cat((tokens(1, 3)[:, :2], step), 1))[0][:, -1:])


def test_a_state_of_inference_mode_is_trained_from(twin: Callable, tokens: Callable) -> None:
    own, model = twin("hgru2 conv", tie_embeddings=False)
    cache = HGRN2Cache()
    with torch.inference_mode():
        model(tokens(1, 6), past_key_values=cache)
        _, state = own(tokens(1, 6))
    model.train()(tokens(1, 5), past_key_values=cache, labels=tokens(1, 5)).loss.backward()
    one = model.lm_head.weight.grad.clone()
    model.zero_grad()
    logits = own.train()(tokens(1, 5), state)[0]
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens(1, 5)[:, 1:].flatten()).backward()
    torch.testing.assert_close(own.head.weight.grad, one, rtol=1e-5, atol=1e-7)


def test_a_damaged_number_of_tokens(twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    _, model = twin("hgru2")
    cache = HGRN2Cache()
    read(model, tokens(1, 6), cache)
    cache.save(tmp_path / "c", model)
    with safe_open(tmp_path / "c", "pt") as file:
        metadata = file.metadata()
    for text in ("many", "-1", "9" * 5000):
        save_file(load_file(tmp_path / "c"), tmp_path / "d", metadata | {"tokens": text})
        refused("is damaged: its number of tokens is", HGRN2Cache.load, tmp_path / "d", model)
