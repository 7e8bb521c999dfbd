"""Generation against the plain loop that it stands for, and its ends: stop texts, end of document, length."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.models.language import LanguageModel

GREEDY = SamplingConfig(greedy=True)
PROMPT = "abc def.\nbad "


def config(**values: object) -> GenerationConfig:
    return GenerationConfig(**{"max_tokens": 24, "sampling": SamplingConfig(seed=5), **values})


def greedy_by_definition(model: LanguageModel, ids: list[int], count: int) -> list[int]:
    """Read everything anew for every token and take the largest logit."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            logits, _ = model(torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("mixer", ["hgru2", "conv", "hgru1", "hgru1_real"])
@pytest.mark.parametrize("segment", [1, 5, 512])
def test_greedy(make_model: Callable[..., LanguageModel], mixer: str, segment: int) -> None:
    model = make_model(mixer=mixer, seed=3)
    generator = Generator(model, CharTokenizer("abcdefgh .\n"))
    made = generator.generate(PROMPT, config(sampling=GREEDY, segment=segment))[0]
    ids = generator.tokenizer.encode(PROMPT).tolist()
    assert list(made.ids) == greedy_by_definition(model, ids, 24)
    assert made.text == generator.tokenizer.decode(made.ids)
    assert made.finished == "length"
    assert made.snapshot.tokens == len(PROMPT) + 24
    assert made.snapshot.last == made.ids[-1]


def test_text_and_ids_are_the_same_prompt(chars: Generator) -> None:
    ids = chars.tokenizer.encode(PROMPT)
    assert chars.generate(PROMPT, config())[0].ids == chars.generate(ids, config())[0].ids
    assert chars.generate(PROMPT, config())[0].ids == chars.generate(ids.tolist(), config())[0].ids


def test_seeds(chars: Generator) -> None:
    def ids(seed: int | None) -> tuple[int, ...]:
        return chars.generate(PROMPT, config(sampling=SamplingConfig(seed=seed)))[0].ids

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert ids(None) != ids(None)


def test_samples_side_by_side_are_those_made_alone(chars: Generator) -> None:
    together = chars.generate(PROMPT, config(samples=5, stop=("a", "b.")))
    assert len({len(made.ids) for made in together}) > 1  # they end at different steps
    for made in together:
        alone = chars.generate(PROMPT, config(stop=("a", "b."), sampling=SamplingConfig(seed=5 + made.sample)))[0]
        assert (made.ids, made.text, made.finished) == (alone.ids, alone.text, alone.finished)
        assert made.snapshot.tokens == alone.snapshot.tokens == len(PROMPT) + len(made.ids)
        for mine, other in zip(
            made.snapshot.state.tensors().values(), alone.snapshot.state.tensors().values(), strict=True
        ):
            torch.testing.assert_close(mine, other)


def test_stop_texts(chars: Generator) -> None:
    whole = chars.generate(PROMPT, config(max_tokens=60))[0].text
    for begin, length in itertools.product((0, 5, 17, 30), (1, 2, 4)):
        stop = whole[begin : begin + length]
        made = chars.generate(PROMPT, config(max_tokens=60, stop=(stop,)))[0]
        assert made.text == whole[: whole.find(stop)]
        assert made.finished == "stop"
        assert len(made.ids) == whole.find(stop) + length
    shown = ""
    for piece in chars.stream(PROMPT, config(max_tokens=60, stop=(whole[17:21],))):
        shown += piece.text
        assert whole[: whole.find(whole[17:21])].startswith(shown)


def test_pieces_of_a_byte_model_are_whole_characters(bytewise: Generator) -> None:
    pieces = list(bytewise.stream("é", config(max_tokens=200, stop_at_eot=False)))
    ids = [piece.token for piece in pieces]
    assert len(pieces) == 200
    unfinished = pieces[-1].snapshot.pending.decode(
        "utf-8", errors="replace"
    )  # begun, and not shown before it is whole
    assert "".join(piece.text for piece in pieces) + unfinished == bytewise.tokenizer.decode(np.array(ids))
    assert [piece.finished for piece in pieces] == [None] * 199 + ["length"]


def test_end_of_document(bytewise: Generator) -> None:
    found = bytewise.generate("x", config(max_tokens=300, samples=8))
    ended = [made for made in found if made.finished == "eot"]
    assert ended
    for made in ended:
        assert made.ids[-1] == 256
        assert 256 not in made.ids[:-1]
        assert made.text == bytewise.tokenizer.decode(made.ids)
    first = min(ended, key=lambda made: len(made.ids))
    longer = config(max_tokens=len(first.ids) + 3, stop_at_eot=False, sampling=SamplingConfig(seed=5 + first.sample))
    going_on = bytewise.generate("x", longer)[0]
    assert going_on.finished == "length"
    assert going_on.ids[:-3] == first.ids


def test_ids_that_the_tokenizer_lacks_are_never_chosen(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model(40)
    assert model.head is not None
    with torch.no_grad():
        model.head.weight[11:] *= 10  # padding of the vocabulary that would win almost always
    generator = Generator(model, CharTokenizer("abcdefgh .\n"))
    for sampling in (GREEDY, SamplingConfig(seed=0, repetition_penalty=1.3)):
        assert max(generator.generate(PROMPT, config(sampling=sampling))[0].ids) < 11


def test_repetition_penalty_counts_prompt_and_output(chars: Generator) -> None:
    strong = SamplingConfig(greedy=True, repetition_penalty=1e6)
    made = chars.generate("a", config(max_tokens=5, sampling=strong))[0]
    with torch.no_grad():
        logits, _ = chars.model(torch.from_numpy(chars.tokenizer.encode("a")).long()[None])
    seen = {int(chars.tokenizer.encode("a")[0])}
    allowed = [n for n in range(11) if logits[0, -1, n] > 0 and n not in seen]
    assert made.ids[0] in allowed
    assert made.ids[0] == max(allowed, key=lambda n: float(logits[0, -1, n]))
    assert made.ids[1] != made.ids[0]


def test_only_reading_the_prompt(chars: Generator) -> None:
    pieces = list(chars.stream(PROMPT, config(max_tokens=0, samples=2)))
    assert [(piece.sample, piece.token, piece.text, piece.finished) for piece in pieces] == [
        (0, None, "", "length"),
        (1, None, "", "length"),
    ]
    assert pieces[0].snapshot is not None
    assert pieces[0].snapshot.tokens == len(PROMPT)
    assert chars.tokenizer.decode([pieces[0].snapshot.last]) == PROMPT[-1]


def test_progress_over_the_prompt(chars: Generator) -> None:
    heard: list[tuple[str, int, int]] = []
    list(chars.stream(PROMPT, config(segment=5), progress=lambda *at: heard.append(at)))
    assert heard == [("reading the prompt", done, 13) for done in (6, 11, 13)]


def test_empty_prompts(chars: Generator, bytewise: Generator) -> None:
    with pytest.raises(UserError, match=r"^empty prompt: give at least one character"):
        chars.stream("")
    with pytest.raises(UserError, match=r"^empty prompt"):
        chars.stream([])
    made = bytewise.generate("", config(sampling=GREEDY, stop_at_eot=False))[0]
    assert list(made.ids) == greedy_by_definition(bytewise.model, [256], 24)


def test_prompts_that_cannot_be_read(chars: Generator, bytewise: Generator) -> None:
    with pytest.raises(UserError, match="character 'z'"):
        chars.stream("abz")
    for ids in ([0, 11], [-1], np.array([3, 99])):
        with pytest.raises(UserError, match="is outside the vocabulary of 11"):
            chars.stream(ids)
    with pytest.raises(UserError, match="whole numbers"):
        chars.stream(np.array([0.5]))
    with pytest.raises(UserError, match="surrogate"):
        bytewise.stream("\ud800")


def test_tokenizer_of_another_model(chars: Generator) -> None:
    with pytest.raises(UserError, match="the tokenizer has 257 ids, the model knows 11"):
        Generator(chars.model, ByteTokenizer())


def test_damaged_weights(chars: Generator) -> None:
    with torch.no_grad():
        chars.model.embedding.weight[2, 3] = torch.nan
    with pytest.raises(UserError, match="not a finite number"):
        chars.generate(PROMPT, config())


def test_the_caller_keeps_modes_and_values(chars: Generator) -> None:
    chars.model.train()
    start = chars.generate(PROMPT, config(max_tokens=3))[0].snapshot
    before = {name: tensor.clone() for name, tensor in start.state.tensors().items()}
    for _ in chars.stream("abc", config(max_tokens=4), start):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert chars.model.training
    for name, tensor in start.state.tensors().items():
        assert torch.equal(tensor, before[name])
    loss = chars.model.loss(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    loss.backward()
