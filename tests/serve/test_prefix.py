"""States of prompts that were read before: at their exact place, as copies, bounded, and a reason for each miss."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from served import PROMPT, asked, make_kind, make_model, run, text_of

from hgrn2.generate.compact import Held, StateBytes
from hgrn2.generate.config import SamplingConfig
from hgrn2.layers.state import ModelState
from hgrn2.serve import prefix
from hgrn2.serve.engine import Engine
from hgrn2.serve.prefix import PrefixCache
from hgrn2.serve.request import Delta, Request, Ticket
from hgrn2.serve.rows import PREFIX, spill_folder
from hgrn2.serve.settings import PrefixConfig

Make = Callable[..., Engine]
LIKE = make_model().zeros(1)
SIZE = LIKE.nbytes
KEPT = PrefixConfig(cache_mb=4, cache_least=1)


def state(value: int) -> ModelState:
    return LIKE.map(lambda x: torch.full_like(x, value))


def value(found: prefix.Found) -> int | None:
    return None if found.state is None else int(found.state.layers[0].recurrent.flatten()[0])


def small(monkeypatch: pytest.MonkeyPatch, states: int, **values: int) -> PrefixCache:
    """A cache with room for so many states in memory."""
    monkeypatch.setattr(prefix, "MIB", SIZE)
    config = PrefixConfig(
        **{"cache_mb": states, "cache_least": 1, "cache_least_spilled": 1, "cache_disk_mb": 0, **values}
    )
    cache = PrefixCache(LIKE, config)
    cache._edge_limit = 1 << 20  # tokens are bounded elsewhere
    return cache


def find(cache: PrefixCache, ids: list[int], exact: bool = False, owner: str = "") -> prefix.Found:
    return cache.find(owner, np.array(ids), chunk=4, exact=exact)


def test_the_longest_exact_prefix_and_the_last_token_is_left() -> None:
    cache = PrefixCache(LIKE, KEPT)
    for length in (2, 3, 5):
        cache.keep("", np.arange(length), state(length), plain=True)
    assert value(find(cache, [0, 1, 2, 3, 4, 5])) == 5
    assert value(find(cache, [0, 1, 2, 3, 4])) == 3  # the state after all five would leave nothing to read
    assert value(find(cache, [0, 1, 2, 9])) == 3
    assert value(find(cache, [0, 1, 9, 9])) == 2
    assert find(cache, [0, 1, 9, 9]).shared == 2
    assert find(cache, [0, 9, 9]).why == prefix.NO_STATE
    assert find(cache, [9, 9]).why == prefix.OTHER_BEGINNING
    assert find(cache, [0, 1, 2, 3], owner="other").why == prefix.NOTHING_KEPT


def test_exact_requests_get_plain_states_at_borders_only() -> None:
    cache = PrefixCache(LIKE, KEPT)
    cache.keep("", np.arange(4), state(4), plain=True)
    cache.keep("", np.arange(6), state(6), plain=True)
    cache.keep("", np.arange(8), state(8), plain=False)
    ids = list(range(20))
    assert value(find(cache, ids)) == 8
    assert value(find(cache, ids, exact=True)) == 4
    assert value(find(cache, ids[:7], exact=True)) == 6  # all but the last token: read in the same pieces
    assert find(cache, [0, 1, 2], exact=True).why == prefix.NO_STATE
    cache.keep("", np.arange(8), state(80), plain=True)  # a plain one is better
    assert value(find(cache, ids, exact=True)) == 80


def test_states_are_copies() -> None:
    cache, given_ = PrefixCache(LIKE, KEPT), state(7)
    cache.keep("", np.arange(5), given_, plain=True)
    given_.map(zeroed)
    first = find(cache, list(range(9)))
    assert first.state is not None
    assert value(first) == 7
    first.state.map(zeroed)
    assert value(find(cache, list(range(9)))) == 7


def zeroed(x: torch.Tensor) -> torch.Tensor:
    return x.zero_()


def test_the_least_recently_used_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small(monkeypatch, 2)
    for first in (1, 2):
        cache.keep("", np.array([first, 0, 0]), state(first), plain=True)
    assert value(find(cache, [1, 0, 0, 0])) == 1
    cache.keep("", np.array([3, 0, 0]), state(3), plain=True)
    assert value(find(cache, [1, 0, 0, 0])) == 1
    assert find(cache, [2, 0, 0, 0]).why == prefix.EVICTED
    assert cache.states == (2, 0)


def test_to_disk_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small(monkeypatch, 1, cache_disk_mb=2)
    for first in (1, 2, 3):
        cache.keep("", np.array([first, 0, 0]), state(first), plain=True)
    assert cache.states == (1, 2)
    assert [value(find(cache, [first, 0, 0, 0])) for first in (1, 2, 3)] == [1, 2, 3]
    folder = cache._folder
    assert folder is not None
    (victim, _) = sorted(folder.iterdir())
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    assert find(cache, [1, 0, 0, 0]).why == prefix.DAMAGED
    cache.keep("", np.array([4, 0, 0]), state(4), plain=True)
    cache.keep("", np.array([5, 0, 0]), state(5), plain=True)
    assert cache.states == (1, 2)
    assert len(list(folder.iterdir())) == 2
    cache.close()
    assert not folder.exists()


def test_a_full_disk_costs_nothing_but_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small(monkeypatch, 1, cache_disk_mb=5)

    def full(self: Path, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for first in (1, 2):
        assert cache.keep("", np.array([first, 0]), state(first), plain=True)
    assert find(cache, [1, 0, 0]).why == prefix.EVICTED
    assert value(find(cache, [2, 0, 0])) == 2


def test_files_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / f"{PREFIX}{2**22 + 1}-abc"  # above the largest process number of Linux
    mine = tmp_path / f"{PREFIX}{os.getpid()}-abc"
    dead.mkdir()
    mine.mkdir()
    made = spill_folder()
    assert (dead.exists(), mine.exists(), made.parent) == (False, True, tmp_path)


def test_tokens_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache(LIKE, PrefixConfig(cache_mb=1, cache_least=1, cache_disk_mb=0))
    for n in range(40):
        cache.keep("", np.full(20_000, n), state(n), plain=True)
        assert cache.edge_bytes <= 1 << 18
    assert value(find(cache, [39] * 20_001)) == 39
    assert find(cache, [0] * 20_001).why == prefix.OTHER_BEGINNING


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.booleans()), max_size=30))
def test_against_a_plain_list(asked_for: list[tuple[list[int], bool]]) -> None:
    """The cache finds what a dictionary of all kept texts would, while nothing is evicted."""
    cache, kept = PrefixCache(LIKE, PrefixConfig(cache_mb=1, cache_least=1)), dict[tuple[int, ...], int]()
    for n, (ids, store) in enumerate(asked_for):
        if store:
            kept.setdefault(tuple(ids), n)
            cache.keep("", np.array(ids), state(n), plain=True)
        prefixes = [tuple(ids[:end]) for end in range(1, len(ids)) if tuple(ids[:end]) in kept]
        found = find(cache, ids)
        assert value(found) == (kept[prefixes[-1]] if prefixes else None)
        assert found.tokens == (len(prefixes[-1]) if prefixes else 0)


# In the engine.


def ended(events: list[object]) -> Delta:
    end = events[-1]
    assert isinstance(end, Delta)
    return end


def tell(engine: Engine, request: Request) -> tuple[Ticket, list[object]]:
    ticket = engine.submit(request)
    assert isinstance(ticket, Ticket)
    events: list[object] = []
    while not engine.idle:
        events += [event for _, event in engine.step()]
    return ticket, events


def test_seeded_requests_are_the_same_with_and_without_reuse(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    request = asked(PROMPT * 3, seed=3, seeded=True, logprobs=0)
    (plain,) = run(make_engine(), request)
    first, events = tell(engine, request)
    assert (first.cached, events) == (0, plain)
    again, events = tell(engine, request)
    assert again.cached == len(PROMPT) * 3 - 1
    assert again.why is None
    assert events == plain  # to the last bit
    longer = asked(PROMPT * 3 + "And more.", seed=3, seeded=True, logprobs=0)
    (wanted,) = run(make_engine(), longer)
    third, events = tell(engine, longer)
    assert third.cached == 0  # the state stands within a piece of the longer prompt
    assert third.why == prefix.OTHER_PIECES
    assert events == wanted
    other = asked(PROMPT * 3 + "Something else.", seed=3, seeded=True, logprobs=0)
    fourth, events = tell(engine, other)
    assert fourth.cached == len(PROMPT) * 3 // 16 * 16  # where the third parted, at the border of a piece
    assert events == run(make_engine(), other)[0]


def test_a_shared_beginning_is_found_by_the_third(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    cached = [tell(engine, asked(PROMPT + tail, max_tokens=3))[0].cached for tail in ("one", "two", "3")]
    assert cached == [0, 0, len(PROMPT)]
    assert [tell(engine, asked(PROMPT + "xyz"))[0].cached for _ in range(2)] == [len(PROMPT), len(PROMPT) + 2]


def test_a_conversation_goes_on_from_its_last_answer(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    greedy = SamplingConfig(greedy=True, seed=0)
    _, events = tell(engine, asked(max_tokens=30, sampling=greedy, stop_at_eot=False, logprobs=0))
    new = [token.id for event in events if isinstance(event, Delta) for token in event.tokens]
    ids = [*PROMPT.encode(), *new, *b" And?"]
    ticket, events = tell(engine, asked(ids, sampling=greedy, max_tokens=10))
    assert ticket.cached == len(PROMPT) + 29
    (wanted,) = run(make_engine(), asked(ids, sampling=greedy, max_tokens=10))
    assert text_of(events) == text_of(wanted)  # pyright: ignore[reportArgumentType]


def test_states_of_prompts_read_side_by_side_are_their_own(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    prompts = [f"{n} " + PROMPT[n:] for n in range(8)]
    run(engine, *(asked(prompt, seed=n, max_tokens=4) for n, prompt in enumerate(prompts)))
    for n, prompt in enumerate(prompts):
        ticket, events = tell(engine, asked(prompt, seed=n, seeded=True, logprobs=0))
        assert ticket.cached == len(prompt) - 1
        assert events == run(make_engine(), asked(prompt, seed=n, seeded=True, logprobs=0))[0]


def test_what_was_aborted_leaves_nothing(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    ticket = engine.submit(asked("y" * 500))
    assert isinstance(ticket, Ticket)
    engine.clock = lambda: 0.0
    engine.step()
    ticket.cancelled = True
    engine.step()
    assert engine.idle
    assert engine.cache is not None
    assert engine.cache.states == (0, 0)
    assert tell(engine, asked("y" * 500))[0].why == prefix.NOTHING_KEPT


def test_turned_off(make_engine: Make) -> None:
    engine = make_engine(prefix=KEPT)
    assert [tell(engine, asked(cache=False))[0].why for _ in range(2)] == ["the request asked for none"] * 2
    assert tell(make_engine(), asked())[0].why == "the server keeps none"
    assert tell(engine, asked())[0].why == prefix.NOTHING_KEPT


@pytest.mark.parametrize("kind", ["attention", "window", "hybrid", "mamba"])
def test_reuse_of_other_states_is_exact(make_engine: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in memory and from disk, at the end of a prompt and where prompts part."""
    made = make_kind(kind)
    monkeypatch.setattr(prefix, "MIB", 1)
    size = StateBytes(made.zeros(1)).size(len(PROMPT) * 2)
    config = PrefixConfig(cache_mb=2 * size, cache_disk_mb=9 * size, cache_least=1, cache_least_spilled=1)
    engine = make_engine(made=made, prefix=config)
    assert engine.cache is not None
    engine.cache._edge_limit = 1 << 20
    prompts = [PROMPT + PROMPT[:40] + tail for tail in ("", "one", "two")]
    cached = []
    for prompt in (*prompts, *prompts):
        request = asked(prompt, seed=5, seeded=True, logprobs=0, max_tokens=5)
        ticket, events = tell(engine, request)
        assert events == run(make_engine(made=made), request)[0]
        cached.append(ticket.cached)
    assert cached[2] >= 80
    assert cached[3:] == [len(prompt) - 1 for prompt in prompts]
    assert engine.cache.states[1] > 0
    engine.cache.close()


def test_states_in_eight_bits(make_engine: Make) -> None:
    exact, eight = (
        make_engine(prefix=PrefixConfig(cache_mb=4, cache_least=1, cache_int8=held)) for held in (False, True)
    )
    for engine in (exact, eight):
        assert [tell(engine, asked(cache=True))[0].cached for _ in range(2)] == [0, len(PROMPT) - 1]
    assert exact.cache is not None
    assert eight.cache is not None
    assert eight.cache.rows.size(1) == exact.cache.rows.size(1) * 9 // 32
    ticket, _ = tell(eight, asked(seeded=True))
    assert (ticket.cached, ticket.why) == (0, prefix.ROUNDED)


@pytest.mark.parametrize("kind", ["hgru1", "hgru2 conv", "mamba", "window", "hybrid"])
@pytest.mark.parametrize("held", ["exact", "int8"])
def test_bytes_of_states(kind: str, held: Held) -> None:
    made = make_kind(kind)
    for tokens in (1, 8, 37):
        _, wanted = made(torch.arange(tokens).unsqueeze(0))
        code = StateBytes(made.zeros(1), held)
        packed = code.pack(wanted)
        assert packed.numel() == code.size(tokens)
        found = code.unpack(packed, tokens)
        for name, tensor in wanted.tensors().items():
            error = (found.tensors()[name] - tensor).abs().max().item()
            most = tensor.abs().max().item() / 254 * 1.01 if tensor.dtype != torch.int64 else 0.0
            most = most * 2**0.5 if tensor.is_complex() else most  # of both its parts
            assert error <= (0 if held == "exact" else most)
