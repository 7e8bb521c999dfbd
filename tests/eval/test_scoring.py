"""Scoring with shared contexts against a plain loop that reads every request by itself."""

import random
from collections.abc import Callable

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.eval import scoring
from hgrn2.eval.scoring import Group, Request, Score, plan, score, tokens_read
from hgrn2.models.language import LanguageModel

VOCABULARY = 23


def requests(seed: int = 0) -> list[Request]:
    """Questions of 1 to 4 answers, answers of 0 to 9 tokens, some contexts that only begin alike, in random order."""
    draw = random.Random(seed)
    made = []
    for _ in range(8):
        context = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 20)))
        for _ in range(draw.randrange(1, 5)):
            made.append(Request(context, tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(7)))))
        if len(context) > 3:
            made.append(Request((*context[:-2], draw.randrange(VOCABULARY)), (4, 5, 6)))
    draw.shuffle(made)
    return made


def by_hand(model: LanguageModel, request: Request) -> Score:
    """One token at a time in float64, from the definition."""
    total, greedy = 0.0, True
    state = None
    read = list(request.context)
    with torch.no_grad():
        for token in request.continuation:
            for one in read:
                logits, state = model(torch.tensor([[one]]), state)
            row = logits[0, -1].double().log_softmax(-1)
            total += row[token].item()
            greedy &= int(row.argmax()) == token
            read = [token]
    return Score(total, greedy)


@pytest.mark.parametrize("mixer", ["hgru2", "conv", "hgru1"])
def test_every_way_equals_the_definition(make_model: Callable[..., LanguageModel], mixer: str) -> None:
    model = make_model(VOCABULARY, mixer).double()
    asked = requests()
    wanted = [by_hand(model, request) for request in asked]
    assert len({one.log_probability for one in wanted}) > 15
    for share in (True, False):
        for batch_size in (1, 3, 64):
            found = score(model, asked, share=share, batch_size=batch_size)
            for mine, theirs in zip(found, wanted, strict=True):
                assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-9)
                assert mine.greedy == theirs.greedy


@pytest.mark.parametrize("size", [3, 16])
def test_long_sequences_are_read_in_segments(
    make_model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    model, asked = make_model(VOCABULARY, "conv").double(), requests(1)
    wanted = {share: score(model, asked, share=share) for share in (True, False)}
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", size)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 2 * VOCABULARY)  # logits of two tokens at a time
    for share, before in wanted.items():
        for mine, theirs in zip(score(model, asked, share=share), before, strict=True):
            assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-9)
            assert mine.greedy == theirs.greedy


def test_a_greedy_continuation_is_told(make_model: Callable[..., LanguageModel]) -> None:
    model, context = make_model(VOCABULARY), (3, 1, 4, 1, 5)
    best: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            logits, _ = model(torch.tensor([[*context, *best]]))
            best.append(int(logits[0, -1].argmax()))
    other = (*best[:-1], (best[-1] + 1) % VOCABULARY)
    found = score(model, [Request(context, tuple(best)), Request(context, other), Request(context, tuple(best[:1]))])
    assert [one.greedy for one in found] == [True, False, True]


def test_contexts_are_read_once() -> None:
    context = tuple(range(20))
    asked = [Request(context, (1, 2)), Request((9,), (1,)), Request(context, (3,)), Request(context[:19], (4, 5, 6))]
    groups = plan(asked, range(4))
    assert Group((9,), (1,)) in groups
    (shared,) = (group for group in groups if len(group.members) > 1)
    assert sorted(shared.members) == [0, 2, 3]
    assert shared.prefix == context[:19]
    # 19 once; then token 19 and 1; token 19; tokens 4 and 5; and the single one's context
    assert tokens_read(asked, share=True) == 19 + 2 + 1 + 2 + 1
    assert tokens_read(asked, share=False) == 21 + 1 + 20 + 21


def test_few_common_tokens_are_not_shared() -> None:
    asked = [Request((1, 2, *range(50, 80)), (1,)), Request((1, 2, *range(80, 110)), (1,))]
    assert all(len(group.members) == 1 for group in plan(asked, range(2)))


def test_sharing_never_reads_more() -> None:
    for seed in range(20):
        assert tokens_read(requests(seed), share=True) <= tokens_read(requests(seed), share=False)


def test_a_model_in_training_comes_back_so(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model(VOCABULARY).train()
    told: list[tuple[int, int]] = []
    asked = requests()
    score(model, asked, progress=lambda _, done, total: told.append((done, total)))
    assert model.training
    assert told[-1] == (len(asked), len(asked))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert score(model, []) == []
    assert score(model, [Request((1,), ())]) == [Score(0.0, True)]


def test_refusals(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model(VOCABULARY)
    with pytest.raises(UserError, match="an empty context"):
        score(model, [Request((), (1,))])
    with pytest.raises(UserError, match=f"token id {VOCABULARY} is outside"):
        score(model, [Request((1,), (VOCABULARY,))])
    with pytest.raises(UserError, match="batch_size is 0"):
        score(model, [Request((1,), (1,))], batch_size=0)
