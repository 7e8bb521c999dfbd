"""The three numbers against their definitions, written out token by token."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hgrn2.data.corpus import Corpus
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.perplexity import Beginning, Perplexity, carried, strided, windows

V = 13


class Row:
    """Random tokens with documents, which remembers how it was read."""

    def __init__(self, n_tokens: int, starts: tuple[int, ...] = (0,), text_bytes: int | None = None) -> None:
        self.n_tokens, self.text_bytes = n_tokens, text_bytes
        self.tokens = np.random.default_rng(n_tokens).integers(0, V, n_tokens)
        self.starts = np.array(starts)
        self.longest = 0

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= self.n_tokens
        self.longest = max(self.longest, length)
        return self.tokens[start : start + length].astype(np.int64)

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        return self.starts[(self.starts >= start) & (self.starts < stop)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    mixer = MixerConfig(head_size=4, conv_width=3)
    config = ModelConfig(vocab_size=V, width=8, layers=2, glu_width=12, mixer=mixer, init=InitConfig(std=0.4))
    return LanguageModel(config).double().eval()


def nats(model: LanguageModel, context: np.ndarray, target: int) -> float:
    """-ln p(target | context) by a pass over this context alone."""
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(context.astype(np.int64)).unsqueeze(0))
    return -logits[0, -1].log_softmax(-1)[target].item()


def by_definition(model: LanguageModel, row: Row, begin: Callable[[int], int]) -> float:
    """Mean over targets t of -ln p(token t | tokens begin(t) .. t-1)."""
    found = [nats(model, row.tokens[begin(t) : t], row.tokens[t]) for t in range(1, row.n_tokens)]
    return sum(found) / len(found)


def window_of(target: int, window: int, stride: int) -> int:
    """Where the first window begins that has this target: windows begin at multiples of the stride."""
    return next(begin for begin in range(0, target, stride) if begin < target <= begin + window)


@pytest.mark.parametrize("segment", [1, 7, 16, 1000])
def test_carried(model: LanguageModel, segment: int) -> None:
    row = Row(41)
    result = carried(model, row, segment=segment)
    assert result.name == "carried"
    assert result.tokens == 40
    assert result.nats_per_token == pytest.approx(by_definition(model, row, lambda t: 0), rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    assert row.longest <= segment + 1


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (10, 5), (1, 1), (40, 7), (39, 39), (64, 32)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_strided(model: LanguageModel, window: int, stride: int, batch_size: int) -> None:
    row = Row(41)
    expected = by_definition(model, row, lambda t: window_of(t, window, stride))
    result = strided(model, row, window=window, stride=stride, batch_size=batch_size)
    assert result.tokens == 40
    assert result.nats_per_token == pytest.approx(expected, rel=1e-12)
    if stride == window:
        disjoint = windows(model, row, window=window, batch_size=batch_size)
        assert disjoint == Perplexity("windows", *list(vars(result).values())[1:])


def test_the_three_are_different_numbers(model: LanguageModel) -> None:
    row = Row(200)
    results = [carried(model, row), strided(model, row, window=16, stride=4), windows(model, row, window=16)]
    assert [result.name for result in results] == ["carried", "strided", "windows"]
    assert len({round(result.nats_per_token, 6) for result in results}) == 3


# One document after another, some of one token, some at borders of segments, more than one call takes.
MANY = (0, 1, 2, 5, 8, 9, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 40)


@pytest.mark.parametrize("starts", [(0,), (0, 20), MANY])
@pytest.mark.parametrize("segment", [1, 8, 24, 100])
def test_carried_with_resets(model: LanguageModel, starts: tuple[int, ...], segment: int) -> None:
    row = Row(45, starts)
    expected = by_definition(model, row, lambda t: max(start for start in starts if start < t))
    result = carried(model, row, segment=segment, reset_documents=True)
    assert result.nats_per_token == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte(model: LanguageModel) -> None:
    row = Row(41, text_bytes=60)
    for result in (carried(model, row), windows(model, row, window=8)):
        assert result.bits_per_byte == pytest.approx(result.nats_per_token * 41 / 60 / math.log(2))
    assert carried(model, Row(41)).bits_per_byte is None


def test_beginning_of_a_real_corpus() -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=257, width=8, layers=1, glu_width=12, mixer=MixerConfig(head_size=4))
    model = LanguageModel(config)
    tokenizer = ByteTokenizer()
    corpus = Corpus.from_documents(["wörter " * 9, "and words " * 5], tokenizer)
    part = Beginning(corpus, 90, tokenizer)
    assert part.text_bytes == 89  # 90 tokens, one of them the separator after 72 bytes
    alone = Corpus.from_documents(["wörter " * 9, "and words " * 5], tokenizer)
    alone.n_tokens, alone.text_bytes = 90, 89
    assert carried(model, part, reset_documents=True) == carried(model, alone, reset_documents=True)
    with pytest.raises(IndexError):
        part.read(85, 6)
    whole = Beginning(corpus, 10**6, tokenizer)
    assert (whole.n_tokens, whole.text_bytes) == (corpus.n_tokens, corpus.text_bytes)
    assert Beginning(corpus, 90).text_bytes is None


def test_a_constant_model_is_the_size_of_its_vocabulary() -> None:
    config = ModelConfig(vocab_size=V, width=8, layers=1, glu_width=12, mixer=MixerConfig(head_size=4))
    model = LanguageModel(config)
    assert model.head is not None
    torch.nn.init.zeros_(model.head.weight)
    assert carried(model, Row(50)).perplexity == pytest.approx(V, rel=1e-6)


def test_modes_come_back_and_progress_ends_full(model: LanguageModel) -> None:
    config = ModelConfig(vocab_size=V, width=8, layers=1, glu_width=12, dropout=0.5, mixer=MixerConfig(head_size=4))
    dropping = LanguageModel(config).train()
    heard: list[tuple[str, int, int]] = []
    runs = [
        lambda: carried(dropping, Row(41), segment=8, progress=lambda *at: heard.append(at)),
        lambda: strided(dropping, Row(41), window=8, stride=3, progress=lambda *at: heard.append(at)),
    ]
    for run in runs:
        heard.clear()
        assert run() == run()  # dropout is off
        assert heard[-1][1:] == (40, 40)
        assert [done for _, done, _ in heard[: len(heard) // 2]] == sorted({done for _, done, _ in heard})
    assert dropping.training
    assert not torch.is_inference_mode_enabled()


def test_many_logits_are_taken_in_parts(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = carried(model, Row(41)).nats_per_token
    monkeypatch.setattr("hgrn2.perplexity.LOGITS_AT_ONCE", 5 * V)
    sizes = []
    original = LanguageModel.logits
    monkeypatch.setattr(LanguageModel, "logits", lambda self, x: sizes.append(x.shape[0]) or original(self, x))
    assert carried(model, Row(41)).nats_per_token == pytest.approx(whole, rel=1e-12)
    assert max(sizes) == 5
    assert sum(sizes) == 40


def test_a_diverged_model_gives_nan_and_no_crash(model: LanguageModel) -> None:
    config = ModelConfig(vocab_size=V, width=8, layers=1, glu_width=12, mixer=MixerConfig(head_size=4))
    broken = LanguageModel(config)
    torch.nn.init.constant_(broken.embedding.weight, math.nan)
    assert math.isnan(carried(broken, Row(20)).perplexity)


def test_refusals(model: LanguageModel) -> None:
    row = Row(41)
    for call, message in (
        (lambda: carried(model, Row(1)), "nothing to predict"),
        (lambda: windows(model, Row(0), window=4), "nothing to predict"),
        (lambda: carried(model, row, segment=0), "segment is 0"),
        (lambda: windows(model, row, window=0), "window is 0"),
        (lambda: strided(model, row, window=4, stride=5), "stride is 5"),
        (lambda: strided(model, row, window=4, stride=0), "stride is 0"),
        (lambda: windows(model, row, window=4, batch_size=0), "batch_size is 0"),
        (lambda: Beginning(row, 1), "leaves nothing to predict"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    row.tokens[30] = V
    for call in (lambda: carried(model, row), lambda: windows(model, row, window=8)):
        with pytest.raises(UserError, match=f"token id {V} is outside the vocabulary of {V}"):
            call()
