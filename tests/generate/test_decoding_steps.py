"""Steps over fixed buffers: the plain model is the reference. What a CUDA graph replays is the code that runs here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.data.tokenizer import CharTokenizer
from hgrn2.errors import UserError
from hgrn2.generate import sampling
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.steps import WORTHWHILE, Steps, choose_graph
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading

GREEDY = SamplingConfig(greedy=True)
DRAWN = SamplingConfig(temperature=0.9, top_k=8, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
ROWS = 3
MIXERS = ["hgru2", "conv", "hgru1", "hgru1_real"]
Prompt = tuple[ModelState, Tensor]


@pytest.fixture
def prompt() -> Callable[[LanguageModel], Prompt]:
    """The states of three sequences, and the last token of each, which they have not read."""

    def read(model: LanguageModel) -> Prompt:
        device = model.embedding.weight.device
        ids = torch.randint(11, (ROWS, 9), generator=torch.Generator().manual_seed(1)).to(device)
        with reading(model):
            _, state = model.hidden(ids[:, :-1])
        assert state is not None
        return state, ids[:, -1:]

    return read


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in range(ROWS)]


def by_definition(model: LanguageModel, start: Prompt, config: SamplingConfig, count: int) -> list[list[int]]:
    """The same choices, one plain call per token."""
    (state, last), randoms, chosen = start, generators(), []
    seen = torch.zeros(ROWS, 11, dtype=torch.bool, device=last.device)
    with reading(model):
        for _ in range(count):
            logits, state = model(last, state)
            ids = sampling.choose(logits[:, -1], config, randoms, seen)
            seen.scatter_(1, ids[:, None], True)
            chosen.append(ids.tolist())
            last = ids[:, None]
    return chosen


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_steps_are_the_plain_calls(make_model: Callable, prompt: Callable, mixer: str, config: SamplingConfig) -> None:
    model = make_model(mixer=mixer)
    start = prompt(model)
    steps = Steps(model, ROWS, config)
    for _ in range(2):  # loading again forgets everything
        steps.load(*start, seen=torch.zeros(11, dtype=torch.bool))
        randoms = generators()
        assert [steps.choose(randoms) for _ in range(12)] == by_definition(model, start, config, 12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_moves(make_model: Callable, prompt: Callable, mixer: str) -> None:
    """A graph knows addresses: no buffer may be replaced, by a step or by loading."""
    model = make_model(mixer=mixer)
    steps = Steps(model, ROWS, DRAWN)

    def places() -> list[int]:
        assert steps.seen is not None
        buffers = (steps.tokens, steps.chosen, steps.uniforms, steps.seen, *steps.state.tensors().values())
        return [x.data_ptr() for x in buffers]

    before = places()
    for _ in range(2):
        steps.load(*prompt(model))
        steps.choose(generators())
    assert places() == before


def test_loading_and_stepping_leave_the_given_state(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    state, last = prompt(model)
    kept = {name: x.clone() for name, x in state.tensors().items()}
    steps = Steps(model, ROWS, GREEDY)
    steps.load(state, last)
    shot = steps.snapshot(1)
    steps.choose()
    for name, x in state.tensors().items():
        assert torch.equal(x, kept[name])
        assert torch.equal(shot.tensors()[name], kept[name][1:2])


def test_one_state_serves_all_rows(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    state, last = prompt(model)
    steps = Steps(model, ROWS, GREEDY)
    steps.load(state.select([0]), int(last[0]))
    first = steps.choose()
    assert len(set(first)) == 1
    steps.load(state, last)
    assert steps.choose()[0] == first[0]


def test_rows_that_stay_go_on(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    start = prompt(model)
    wanted = by_definition(model, start, GREEDY, 6)
    for captured in (False, True):
        steps = Steps(model, ROWS, GREEDY)
        steps.captured = captured  # as a graph would be: the batch stays, the places too
        steps.load(*start)
        found = [steps.choose() for _ in range(3)]
        places = steps.keep([0, 2])
        assert places == ([0, 2] if captured else [0, 1])
        assert steps.rows == (3 if captured else 2)
        rest = [[chosen[n] for n in places] for chosen in (steps.choose() for _ in range(3))]
        assert found == wanted[:3]
        assert rest == [[row[0], row[2]] for row in wanted[3:]]


def test_a_generator_does_the_same_with_idle_rows(make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that end at different steps, over a batch that cannot shrink."""
    config = GenerationConfig(samples=4, max_tokens=40, stop=("a", "b"), sampling=SamplingConfig(seed=2))
    plain = Generator(make_model(), CharTokenizer("abcdefgh .\n")).generate("cd", config)
    monkeypatch.setattr(Steps, "keep", lambda self, rows: rows)
    idle = Generator(make_model(), CharTokenizer("abcdefgh .\n")).generate("cd", config)
    assert len({len(made.ids) for made in plain}) > 1
    assert [made.ids for made in idle] == [made.ids for made in plain]


def test_narrow_states(make_model: Callable, prompt: Callable) -> None:
    """They are kept narrow, saved wide, and near the wide ones."""
    model = make_model()
    start = prompt(model)
    wide, narrow = Steps(model, ROWS, GREEDY), Steps(model, ROWS, GREEDY, state_dtype=torch.bfloat16)
    for steps in (wide, narrow):
        steps.load(*start)
        steps.choose()
    assert narrow.state.layers[0].recurrent.dtype == torch.bfloat16
    assert narrow.state.nbytes * 2 == wide.state.nbytes
    for mine, theirs in zip(narrow.snapshot(0).tensors().values(), wide.snapshot(0).tensors().values(), strict=True):
        assert mine.dtype == torch.float32
        assert not torch.equal(mine, theirs)
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))
    config = GenerationConfig(max_tokens=5, state_dtype="bfloat16", sampling=GREEDY)
    made = Generator(model, CharTokenizer("abcdefgh .\n")).generate("cd", config)[0]
    assert made.snapshot.state.layers[0].recurrent.dtype == torch.float32
    with pytest.raises(UserError, match="states of hgru1 are float32, not bfloat16"):
        Steps(make_model(mixer="hgru1"), 1, GREEDY, state_dtype=torch.bfloat16)


def test_damage_in_one_row_is_told(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    state, last = prompt(model)
    state = state.map(torch.clone)
    state.layers[0].recurrent[1] = torch.nan
    steps = Steps(model, ROWS, GREEDY)
    steps.load(state, last)
    with pytest.raises(UserError, match="not a finite number"):
        steps.choose()
    assert steps.chosen.tolist()[1] == -1
    assert min(steps.chosen.tolist()[::2]) >= 0


def test_ids_beyond_the_vocabulary_are_never_chosen(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    steps = Steps(model, ROWS, DRAWN, vocabulary=2)
    steps.load(*prompt(model))
    randoms = generators()
    assert {id for _ in range(20) for id in steps.choose(randoms)} <= {0, 1}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_chooses_the_same(make_model: Callable, prompt: Callable) -> None:
    model = make_model()
    start = prompt(model)
    steps = Steps(model, ROWS, GREEDY, compile=True)
    steps.load(*start)
    assert [steps.choose() for _ in range(8)] == by_definition(model, start, GREEDY, 8)


def test_graphs_are_explained(make_model: Callable) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_graph(cpu, "auto") == (False, "CUDA graphs need a CUDA device, the model is on cpu")
    assert choose_graph(gpu, "auto") == (True, "the step is captured once and replayed")
    assert choose_graph(gpu, "auto", WORTHWHILE - 1)[0] is False
    assert choose_graph(gpu, "on", 1)[0] is True
    assert choose_graph(gpu, "off") == (False, "turned off")
    generator = Generator(make_model(), CharTokenizer("abcdefgh .\n"))
    several = generator.decoding(GenerationConfig(samples=2))
    assert several.startswith("steps are run call by call: CUDA graphs need a CUDA device")
    with pytest.raises(UserError, match=r"^graph=on: CUDA graphs need a CUDA device, the model is on cpu$"):
        generator.stream("ab", GenerationConfig(graph="on"))


@pytest.mark.parametrize("field", ["graph", "state_dtype"])
def test_bad_settings(field: str) -> None:
    values: dict[str, Any] = {field: "float64"}
    with pytest.raises(UserError, match=f"{field} is 'float64'; choose one of"):
        GenerationConfig(**values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_captured_step_chooses_the_same(
    make_model: Callable, prompt: Callable, mixer: str, config: SamplingConfig, dtype: torch.dtype
) -> None:
    model = make_model(mixer=mixer).to("cuda", dtype)
    start = prompt(model)
    found = []
    for graph in (False, True):
        steps = Steps(model, ROWS, config, graph=graph)
        for _ in range(2):
            steps.load(*start, seen=torch.zeros(11, dtype=torch.bool))
            randoms = generators()
            found.append([steps.choose(randoms) for _ in range(20)])
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_texts_with_and_without_a_graph(make_model: Callable) -> None:
    generator = Generator(make_model().to("cuda"), CharTokenizer("abcdefgh .\n"))
    values: dict[str, Any] = {"samples": 3, "max_tokens": 40, "stop": ("a", "b"), "sampling": SamplingConfig(seed=2)}
    made = [generator.generate("cd", GenerationConfig(graph=use, **values)) for use in ("off", "on")]
    assert [x.ids for x in made[0]] == [x.ids for x in made[1]]
    for mine, theirs in zip(made[1], made[0], strict=True):
        for a, b in zip(mine.snapshot.state.tensors().values(), theirs.snapshot.state.tensors().values(), strict=True):
            torch.testing.assert_close(a, b)
