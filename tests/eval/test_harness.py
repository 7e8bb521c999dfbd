"""The adapter to lm-eval: how texts become tokens, what it answers, and that the local tasks are lm-eval's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hgrn2[eval]'")

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.errors import UserError
from hgrn2.eval.tasks import TASKS, task_config
from hgrn2.eval.zero_shot import need_harness
from hgrn2.generate.loading import Loaded
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import Found

HARNESS = need_harness()

PAIRS = [
    ("Question: a b", " yes"),
    ("Question: a b", " no, never"),
    ("ends in spaces  ", "word"),
    ("x", "ab"),
    ("a", "b"),  # with the vocabulary below "ab" is one token: nothing is left after the context's
    ("", "begins with nothing"),
    ("   ", "only spaces before"),
]


class Asked:
    """A request as lm-eval makes it, as far as a model sees it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def bpe(word_bpe: str) -> Tokenizer:
    """A byte-level BPE with an end of document, in which a and b make one token."""
    from hgrn2.data.vocabulary import JsonTokenizer

    return JsonTokenizer(word_bpe)


@pytest.fixture
def adapter(make_model: Callable[..., LanguageModel]) -> Callable[..., Any]:
    def make(tokenizer: Tokenizer, **options: Any) -> Any:
        model = make_model(tokenizer.vocab_size)
        return HARNESS.HGRN2LM(Loaded(model, Found(Path("made here")), tokenizer), **options)

    return make


def test_pairs_are_encoded_as_by_lm_eval(adapter: Callable[..., Any], bpe: Tokenizer) -> None:
    lm = adapter(bpe)
    for (context, continuation), request in zip(PAIRS, lm.encode_pairs(PAIRS), strict=True):
        if not context.strip():
            assert request.context == (bpe.eot,)
            assert bpe.decode(request.continuation) == context + continuation
            continue
        before, after = lm._encode_pair(context, continuation)  # lm-eval's own, one pair at a time
        assert list(request.context) == before
        assert list(request.continuation) == (after or [bpe.encode("b")[0]])


@pytest.mark.parametrize("rescore", [False, True])
def test_answers(adapter: Callable[..., Any], bpe: Tokenizer, rescore: bool) -> None:
    lm = adapter(bpe, rescore=rescore, batch_size=2)
    found = lm.loglikelihood([Asked(*pair) for pair in PAIRS])
    for request, (value, greedy) in zip(lm.encode_pairs(PAIRS), found, strict=True):
        with torch.no_grad():
            logits, _ = lm.model(torch.tensor([request.input]))
        rows = logits[0, len(request.context) - 1 :].log_softmax(-1)
        wanted = torch.tensor(request.continuation)
        assert value == pytest.approx(rows.gather(1, wanted[:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((rows.argmax(-1) == wanted).all())


def test_whole_documents(adapter: Callable[..., Any]) -> None:
    lm = adapter(ByteTokenizer())
    text = "A document. " * 9
    ids = [256, *text.encode()]
    with torch.no_grad():
        logits, _ = lm.model(torch.tensor([ids[:-1]]))
    wanted = -torch.nn.functional.cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="sum").item()
    assert lm.loglikelihood_rolling([Asked(text)])[0] == pytest.approx(wanted, rel=1e-5)


def test_repeats_of_a_sampled_request_are_different_answers(adapter: Callable[..., Any]) -> None:
    """In the same order in every evaluation, beside other requests, and however many are made at a time."""
    drawn = Asked("Question: 1 + 1?", {"until": ["\n\n"], "do_sample": True, "max_gen_toks": 12})
    greedy = Asked("Question: 1 + 1?", {"until": ["\n\n"], "max_gen_toks": 12})
    answers = adapter(ByteTokenizer()).generate_until([drawn, greedy, drawn, drawn, greedy, drawn])
    assert len({answers[n] for n in (0, 2, 3, 5)}) == 4
    assert answers[1] == answers[4]
    assert adapter(ByteTokenizer(), batch_size=3).generate_until([greedy, *[drawn] * 4]) == [
        answers[n] for n in (1, 0, 2, 3, 5)
    ]
    with pytest.raises(UserError, match="num_beams=4 is not offered"):
        adapter(ByteTokenizer()).generate_until([Asked("a", {"num_beams": 4})])


def test_generation_stops_where_it_is_told(adapter: Callable[..., Any]) -> None:
    lm = adapter(ByteTokenizer(), max_gen_toks=12)
    (whole,) = lm.generate_until([Asked("once", {"until": []})])
    assert 0 < len(whole) <= 12
    (limited,) = lm.generate_until([Asked("once", {"until": None, "max_gen_toks": 3})])
    assert whole.startswith(limited)
    stop = whole[1]
    (cut,) = lm.generate_until([Asked("once", {"until": [stop], "do_sample": False, "temperature": 0.0})])
    assert cut == whole[: whole.index(stop)]
    (drawn,) = lm.generate_until([Asked("", {"until": "never", "do_sample": True, "temperature": 2.0, "top_k": 5})])
    assert isinstance(drawn, str)


def test_no_id_to_begin_an_empty_context_with(adapter: Callable[..., Any]) -> None:
    lm = adapter(CharTokenizer("abc "))
    assert lm.loglikelihood([Asked("a", " b")])[0][0] < 0
    for context in ("", " "):
        with pytest.raises(UserError, match="no end-of-document id to begin with"):
            lm.loglikelihood([Asked(context, "b")])


def test_registered_by_name_and_by_arguments(saved: Callable[..., Path]) -> None:
    from lm_eval.api.registry import get_model

    kind = get_model("hgrn2")
    assert kind is HARNESS.HGRN2LM
    lm = kind.create_from_arg_string(f"pretrained={saved()},rescore=True", {"batch_size": "auto", "device": "cpu"})
    assert (lm.rescore, lm.batch_size) == (True, 32)
    other = saved("other")
    for options, message in (
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pretrain": 1}, "no argument pretrain"),
    ):
        with pytest.raises(UserError, match=message):
            kind(other, device="cpu", **options)


def official(name: str, document: dict[str, Any]) -> list[tuple[str, str]]:
    """What lm-eval's own task asks of a document of the original data."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    place = Path(lm_eval.tasks.__file__).parent
    file = {"winogrande": "winogrande/default", "lambada": "lambada/lambada_openai"}.get(name)
    file = file or f"{'arc' if name.startswith('arc') else name}/{name}"
    return questions(load_yaml(place / f"{file}.yaml"), document)


def questions(config: dict[str, Any], document: dict[str, Any]) -> list[tuple[str, str]]:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    from hgrn2.eval.zero_shot import _quiet

    rows = Dataset.from_list([document])
    config = {key: value for key, value in config.items() if key not in ("tag", "dataset_path", "dataset_name")}
    if config.get("test_split") is None:
        config["test_split"] = "validation"
    config["custom_dataset"] = lambda **_: dict.fromkeys(("train", "validation", "test"), rows)
    with _quiet():
        task = ConfigurableTask(config=config)
        task.build_all_requests()
    return [request.args for request in task.instances]


CASES = {
    "piqa": (
        {"goal": "dry a cup ", "sol1": "towel", "sol2": "water", "label": 0},
        {"query": "Question: dry a cup \n", "choices": ["towel", "water"], "gold": 0},
    ),
    "arc_easy": (
        {"question": "What is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
        {"query": "Question: What is hot?", "choices": ["ice", "fire"], "gold": 1},
    ),
    "openbookqa": (
        {"question_stem": "Fire is", "choices": {"text": ["ice", "hot"], "label": ["A", "B"]}, "answerKey": "B"},
        {"query": "Fire is", "choices": ["ice", "hot"], "gold": 1},
    ),
    "hellaswag": (
        {"activity_label": "Tea", "ctx_a": "She boils.", "ctx_b": "then she", "endings": ["drinks. [x] ", "sings."],
         "label": "0"},
        {"query": "Tea: She boils. Then she", "choices": ["drinks. ", "sings."], "gold": 0},
    ),
    "winogrande": (
        {"sentence": "Ann met Bea so _ smiled.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        {"context_options": ["Ann met Bea so Ann", "Ann met Bea so Bea"], "continuation": "smiled.", "gold": 1},
    ),
    "lambada": (
        {"text": "He said no and she said no"},
        {"context": "He said no and she said", "continuation": "no"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_local_tasks_ask_what_lm_eval_asks(name: str) -> None:
    original, local = CASES[name]
    asked = questions(task_config(TASKS[name], [local]), local)
    assert asked == official(name, original)
    assert asked


def test_metrics_are_those_of_lm_eval() -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    place = Path(lm_eval.tasks.__file__).parent
    for name in TASKS:
        file = {"winogrande": "winogrande/default", "lambada": "lambada/lambada_openai"}.get(name)
        file = file or f"{'arc' if name.startswith('arc') else name}/{'arc_easy' if name.startswith('arc') else name}"
        stated = load_yaml(place / f"{file}.yaml", resolve_func=False)["metric_list"]
        assert [one["metric"] for one in stated] == list(TASKS[name].metrics)
