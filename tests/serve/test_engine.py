"""The engine: texts do not depend on each other, prompts hold nobody up, whatever ends frees its slot."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from served import KINDS, PROMPT, asked, make_kind, make_model, run, spaced, text_of

from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.models.language import LanguageModel
from hgrn2.serve.engine import Engine
from hgrn2.serve.request import Delta, Failure, Ticket
from hgrn2.serve.settings import EngineConfig, PrefixConfig
from hgrn2.serve.slots import Slots, agreeing_widths

Make = Callable[..., Engine]


def test_the_text_is_that_of_the_generator(make_engine: Make, model: LanguageModel) -> None:
    sampling = SamplingConfig(seed=3, top_p=0.9, temperature=0.8, top_k=40, repetition_penalty=1.1)
    config = GenerationConfig(max_tokens=40, sampling=sampling, samples=3, segment=16)
    wanted = Generator(model, ByteTokenizer()).generate(PROMPT, config)
    (events,) = run(make_engine(), asked(sampling=sampling, max_tokens=40, samples=3))
    for made in wanted:
        assert text_of(events, made.sample) == made.text


def test_alone_and_beside_others_to_the_last_bit(make_engine: Make) -> None:
    """Log probabilities show every bit of the logits."""
    requests = [asked(PROMPT[n % 7 :] * (1 + n % 3), seed=n, max_tokens=6 + n % 9, logprobs=2) for n in range(64)]
    together = run(make_engine(slots=64), *requests)
    for n in (0, 63):
        (alone,) = run(make_engine(slots=64), requests[n])
        assert alone == together[n]


def test_widths_that_agree_do_so_in_every_place(model: LanguageModel) -> None:
    widths, exact = agreeing_widths(model, 32)
    assert exact
    assert widths[-1] == 32
    assert len(widths) > 1


def test_a_text_keeps_its_bits_when_its_slot_moves(make_engine: Make) -> None:
    long = asked(seed=5, max_tokens=60, logprobs=0)
    (alone,) = run(make_engine(), long)
    short = [asked(seed=n, max_tokens=3 + n) for n in range(6)]
    assert run(make_engine(), *short, long)[-1] == alone


def test_a_long_prompt_does_not_hold_others_up(make_engine: Make) -> None:
    engine = make_engine(chunk=16)
    writing = engine.submit(asked(max_tokens=500))
    while not engine.writing:
        engine.step()
    engine.clock = lambda: 0.0  # no time passes: one piece per step
    engine.submit(asked("x" * 2000, max_tokens=1))
    engine.submit(asked("short", max_tokens=1))
    told = [event for _ in range(8) for event in engine.step()]
    assert sum(ticket is writing for ticket, _ in told) >= 4  # texts of bytes: some tokens show nothing
    assert any(isinstance(e, Delta) and e.ended for t, e in told if t.request.ids.size == 5)  # the short one is done
    assert engine.reading == 1
    done = engine._readings[0].done
    assert 16 * 6 <= done <= 16 * 8


def test_stop_texts_across_tokens(make_engine: Make) -> None:
    request = {"max_tokens": 120, "stop_at_eot": False}
    whole = text_of(run(make_engine(), asked(**request))[0])
    for begin, length in ((20, 3), (70, 6)):
        stop = whole[begin : begin + length]
        (events,) = run(make_engine(), asked(**request, stop=("never there", stop)))
        assert text_of(events) == whole[: whole.find(stop)]
        assert isinstance(events[-1], Delta)
        assert events[-1].ended == "stop"
        texts = [event.text for event in events if isinstance(event, Delta)]
        assert all(whole.startswith(text) for text in itertools.accumulate(texts))


def test_characters_are_whole_and_spaces_are_those_of_the_whole(make_engine: Make) -> None:
    """The first word after a prompt has its space; the bytes of 日 are three tokens and show together."""
    pytest.importorskip("tokenizers")
    tokenizer = spaced()
    engine = make_engine(tokenizer, make_model(tokenizer.vocab_size))
    (events,) = run(engine, asked(tokenizer.encode("the dog"), max_tokens=80, stop_at_eot=False))
    config = GenerationConfig(max_tokens=80, sampling=SamplingConfig(seed=1), stop_at_eot=False, segment=16)
    wanted = Generator(engine.model, tokenizer).generate("the dog", config)[0]
    assert text_of(events) == wanted.text
    assert " " in wanted.text


def test_cancelling_frees_the_slot_at_once(make_engine: Make) -> None:
    engine = make_engine(slots=1)
    first, second = (engine.submit(asked(seed=n, max_tokens=1000)) for n in range(2))
    for _ in range(10):
        engine.step()
    assert isinstance(first, Ticket)
    assert (engine.writing, engine.waiting) == (1, 1)
    first.cancelled = True
    told = [engine.step() for _ in range(6)]
    assert all(ticket is second for events in told for ticket, _ in events)
    assert (engine.writing, engine.waiting) == (1, 0)
    assert torch.equal(
        engine.slots.state.layers[0].recurrent[1:], torch.zeros_like(engine.slots.state.layers[0].recurrent[1:])
    )


def test_a_full_queue_refuses(make_engine: Make) -> None:
    engine = make_engine(slots=1, queue=2)
    tickets = [engine.submit(asked()) for _ in range(3)]
    assert isinstance(tickets[2], Failure)
    assert tickets[2].trouble == "busy"
    while not engine.idle:
        engine.step()
    assert isinstance(engine.submit(asked()), Ticket)


def test_owners_take_turns(make_engine: Make) -> None:
    engine = make_engine(slots=1, queue=50)
    order: list[str] = []
    for owner in ["a"] * 5 + ["b"] * 2:
        assert isinstance(engine.submit(asked(max_tokens=2, owner=owner)), Ticket)
    while not engine.idle:
        order += [t.request.owner for t, e in engine.step() if isinstance(e, Delta) and e.ended]
    assert order == ["a", "b", "a", "b", "a", "a", "a"]


def test_what_takes_too_long_is_told(make_engine: Make) -> None:
    engine = make_engine(slots=1, queue_seconds=5.0, request_seconds=50.0)
    now = 0.0
    engine.clock = lambda: now
    engine.submit(asked(max_tokens=10_000))
    engine.submit(asked())
    engine.step()
    now = 6.0
    (told,) = [e for _, e in engine.step() if isinstance(e, Failure)]
    assert (told.trouble, "waited longer than 5 seconds" in told.message) == ("late", True)
    now = 51.0
    (told,) = [e for _, e in engine.step() if isinstance(e, Failure)]
    assert "longer than 50 seconds" in told.message
    assert engine.idle


def test_a_fault_ends_the_texts_at_hand_only(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    whole = engine.slots.step

    def broken() -> torch.Tensor:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(engine.slots, "step", broken)
    (events,) = run(engine, asked())
    assert events == [Failure("broken", "the model could not go on: out of luck")]
    monkeypatch.setattr(engine.slots, "step", lambda: torch.full_like(whole(), torch.nan))
    (events,) = run(engine, asked(), steps=20)
    assert isinstance(events[0], Failure)
    assert "not a finite number" in events[0].message
    monkeypatch.setattr(engine.slots, "step", whole)
    assert text_of(run(engine, asked())[0]) == text_of(run(make_engine(), asked())[0])


def test_snapshots_go_on_where_texts_end(make_engine: Make) -> None:
    (whole,) = run(make_engine(), asked(max_tokens=30, sampling=SamplingConfig(greedy=True, seed=0), stop_at_eot=False))
    greedy = SamplingConfig(greedy=True, seed=0)
    (events,) = run(make_engine(), asked(max_tokens=12, sampling=greedy, snapshot=True, stop_at_eot=False))
    end = events[-1]
    assert isinstance(end, Delta)
    assert end.snapshot is not None
    assert end.snapshot.tokens == len(PROMPT) + 12
    more = asked([end.snapshot.last], start=end.snapshot, max_tokens=18, sampling=greedy, stop_at_eot=False)
    (rest,) = run(make_engine(), more)
    assert text_of(events) + text_of(rest) == text_of(whole)


def test_only_reading(make_engine: Make) -> None:
    (events,) = run(make_engine(), asked(max_tokens=0, snapshot=True))
    (end,) = events
    assert isinstance(end, Delta)
    assert end.snapshot is not None
    assert (end.ended, end.snapshot.tokens, end.snapshot.last) == ("length", len(PROMPT), ord(" "))


@pytest.mark.parametrize("taps", [0, 3])
def test_gates(make_engine: Make, taps: int) -> None:
    """Those of the whole text, a short convolution before them included."""
    model = make_model(conv_width=taps)
    (events,) = run(make_engine(made=model), asked(max_tokens=5, gates=True))
    (plain,) = run(make_engine(made=model), asked(max_tokens=5))
    assert text_of(events) == text_of(plain)
    tokens = [token for event in events if isinstance(event, Delta) for token in event.tokens]
    assert len(tokens) == 5
    ids = [*PROMPT.encode(), *(token.id for token in tokens)]
    entered: list[torch.Tensor] = []
    with torch.inference_mode():
        model.hidden(torch.tensor([ids]), trace=entered)
        for n, block in enumerate(model.backbone.blocks):
            logs = block.mixer.log_forget(block.mixer_norm(entered[n]), model.backbone.layer_lower_bounds()[n])[0]
            wanted = -1 / logs[len(PROMPT) - 1 : -1].unflatten(-1, (4, 8)).mean(-1)
            mine = torch.tensor([token.gates[n] for token in tokens if token.gates])
            torch.testing.assert_close(mine, wanted, rtol=2e-3, atol=0)


def test_the_server_ends(make_engine: Make) -> None:
    engine = make_engine(slots=1)
    tickets = [engine.submit(asked(max_tokens=1000)) for _ in range(2)]
    for _ in range(10):
        engine.step()
    engine.close()
    assert isinstance(engine.submit(asked()), Failure)
    told = [pair for _ in range(3) for pair in engine.step()]
    assert [(t, e.trouble) for t, e in told if isinstance(e, Failure)] == [(tickets[1], "closing")]
    ((ticket, end),) = engine.cut()
    assert ticket is tickets[0]
    assert isinstance(end, Delta)
    assert end.ended == "cut"
    assert engine.idle


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_alone_beside_others_and_in_the_generator(make_engine: Make, kind: str) -> None:
    made = make_kind(kind)
    requests = [asked(PROMPT[n:], seed=n, max_tokens=7 + 2 * n, logprobs=0, gates=n == 2) for n in range(5)]
    together = run(make_engine(made=made), *requests)
    for n in (2, 4):
        assert run(make_engine(made=made), requests[n])[0] == together[n]
    config = GenerationConfig(max_tokens=15, sampling=SamplingConfig(seed=4), segment=16)
    assert text_of(together[4]) == Generator(made, ByteTokenizer()).generate(PROMPT[4:], config)[0].text


def test_memory_of_states_that_grow(make_engine: Make) -> None:
    """A text begins once all that it may need is free, and what it needed is free when it ends."""
    made = make_kind("attention")
    engine = make_engine(made=made, state_mb=1)
    assert (engine.budget.token_bytes, engine.budget.context) == (2 * 2 * 32 * 4, 2048)
    too_long = engine.submit(asked(max_tokens=2000))
    assert isinstance(too_long, Failure)
    assert too_long.trouble == "large"
    assert f"{len(PROMPT)} tokens and 2,000 new ones are wanted; this server holds 2,048" in too_long.message
    several = engine.submit(asked(max_tokens=800, samples=3))
    assert isinstance(several, Failure)
    assert "3 texts of 860 tokens do not fit" in several.message
    tickets = [engine.submit(asked(seed=n, max_tokens=700, stop_at_eot=False)) for n in range(3)]
    engine.step()
    assert (engine.writing + engine.reading, engine.waiting) == (2, 1)
    assert engine.reserved == 2 * 768 * 512
    assert isinstance(tickets[0], Ticket)
    tickets[0].cancelled = True
    engine.step()
    assert (engine.writing + engine.reading, engine.waiting) == (2, 0)
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.cancelled = True
    engine.step()
    assert (engine.idle, engine.reserved) == (True, 0)
    assert all(row is None for layer in engine.slots.state.layers for row in layer.rows)


def test_slots_are_copies(model: LanguageModel) -> None:
    slots = Slots(model, 3, vocabulary=257)
    begun = model.zeros(1).map(lambda x: x + 1)
    slots.enter(begun, 5)
    slots.step()
    assert torch.equal(begun.layers[0].recurrent, torch.ones_like(begun.layers[0].recurrent))
    held = slots.snapshot(0)
    before = held.layers[0].recurrent.clone()
    slots.step()
    assert torch.equal(held.layers[0].recurrent, before)
    assert np.isfinite(before.numpy()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_on_a_gpu() -> None:
    """Captured steps make the tokens that steps run call by call make, and states go in and out of them."""
    made = make_model(width=64, head_size=16).cuda()
    greedy = SamplingConfig(greedy=True, seed=0)
    requests = [
        asked(PROMPT[n:], max_tokens=20 + n, sampling=greedy, stop_at_eot=False, logprobs=0) for n in range(6)
    ]  # fmt: skip
    texts = []
    for graph in ("on", "off"):
        config = EngineConfig(slots=6, chunk=16, graph=graph, prefix=PrefixConfig(cache_mb=2))
        engine = Engine(made, ByteTokenizer(), config)
        texts.append([[token.id for event in events for token in event.tokens] for events in run(engine, *requests)])
        again = run(engine, *requests)  # every prompt goes on from its kept state
        assert [[token.id for event in events for token in event.tokens] for events in again] == texts[-1]
        assert engine.counts.hits == 6
    assert texts[0] == texts[1]
