"""Each filter against a plain statement of what it means, row by row in Python floats."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.sampling import choose, draw, filtered, min_p, penalise_repetition, top_k, top_p


def rows(seed: int, count: int = 20, size: int = 17) -> torch.Tensor:
    return 3 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def kept(logits: torch.Tensor) -> list[set[int]]:
    """The ids of each row that are still possible."""
    return [{n for n, value in enumerate(row) if value > -math.inf} for row in logits.tolist()]


def probabilities(row: list[float]) -> list[float]:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def best(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda n: -row[n])


def nucleus(row: list[float], p: float) -> set[int]:
    """Taken from the top until their sum reaches p."""
    taken: set[int] = set()
    total = 0.0
    for n in best(row):
        taken.add(n)
        total += probabilities(row)[n]
        if total >= p:
            break
    return taken


@pytest.mark.parametrize("k", [1, 2, 5, 16, 17, 40])
def test_top_k(k: int) -> None:
    logits = rows(k)
    assert kept(top_k(logits, k)) == [set(best(row)[:k]) for row in logits.tolist()]


def test_top_k_keeps_equals() -> None:
    assert kept(top_k(torch.tensor([[1.0, 5.0, 2.0, 2.0, 0.0]]), 2)) == [{1, 2, 3}]


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p: float) -> None:
    logits = rows(7)
    assert kept(top_p(logits, p)) == [nucleus(row, p) for row in logits.tolist()]


def test_top_p_of_equals_is_a_smallest_set() -> None:
    found = kept(top_p(torch.zeros(1, 8), 0.5))[0]
    assert len(found) == 4


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7, 1.0])
def test_min_p(p: float) -> None:
    logits = rows(9)
    wanted = []
    for row in logits.tolist():
        chances = probabilities(row)
        wanted.append({n for n, chance in enumerate(chances) if chance >= p * max(chances) * (1 - 1e-6)})
    assert kept(min_p(logits, p)) == wanted


@pytest.mark.parametrize("keep", [lambda x: top_k(x, 4), lambda x: top_p(x, 0.8), lambda x: min_p(x, 0.1)])
def test_filters_change_nothing_that_they_keep(keep: Callable[[torch.Tensor], torch.Tensor]) -> None:
    logits = rows(3)
    before = logits.clone()
    result = keep(logits)
    assert torch.equal(logits, before)
    assert torch.equal(result[result > -math.inf], logits[result > -math.inf])


def test_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_filters_see_what_the_ones_before_left() -> None:
    """Top-p counts probabilities after top-k, at the set temperature."""
    logits = rows(11)
    config = SamplingConfig(temperature=2.5, top_k=6, top_p=0.7, min_p=0.3)
    wanted = []
    for row in logits.tolist():
        warm = [value / 2.5 for value in row]
        top = best(warm)[:6]
        inside = [top[n] for n in nucleus([warm[n] for n in top], 0.7)]
        most = max(warm[n] for n in inside)
        wanted.append({n for n in inside if math.exp(warm[n] - most) >= 0.3})
    assert kept(filtered(logits, config)) == wanted


def test_draw_is_the_inverse_of_the_distribution() -> None:
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    for uniform, wanted in ((0.0, 0), (0.2499, 0), (0.2501, 2), (0.7499, 2), (0.7501, 3), (1 - 2**-53, 3)):
        assert draw(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [wanted]


def test_draw_never_takes_what_is_impossible() -> None:
    logits = torch.full((3, 50), -math.inf)
    logits[:, 20:23] = rows(1, 3, 3)
    for uniform in (0.0, 0.3, 1 - 2**-53):
        assert set(draw(logits, torch.full((3,), uniform, dtype=torch.float64)).tolist()) <= {20, 21, 22}


def test_frequencies_follow_the_distribution() -> None:
    row = torch.tensor([1.0, 0.0, -1.0, 2.0, -3.0])
    count = 20_000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]  # neighbouring seeds are independent
    config = SamplingConfig(temperature=0.7)
    found = choose(row.expand(count, -1), config, generators).bincount(minlength=5) / count
    wanted = torch.tensor(probabilities((row / 0.7).tolist()))
    spread = (wanted * (1 - wanted) / count).sqrt()
    assert bool(((found - wanted).abs() < 5 * spread).all())


def test_same_seed_same_choice_whatever_stands_beside_it() -> None:
    logits = rows(2, 8)
    config = SamplingConfig()
    together = choose(logits, config, [torch.Generator().manual_seed(n) for n in range(8)])
    alone = [choose(logits[n : n + 1], config, [torch.Generator().manual_seed(n)]).item() for n in range(8)]
    assert together.tolist() == alone


def test_greedy() -> None:
    logits = rows(4)
    config = SamplingConfig(greedy=True, temperature=5.0, top_k=3)
    assert choose(logits, config).tolist() == [best(row)[0] for row in logits.tolist()]
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[torch.arange(20), logits.argmax(-1)] = True
    penalised = choose(logits, SamplingConfig(greedy=True, repetition_penalty=1e9), seen=seen)
    positive = (logits > 0).sum(-1) > 1  # where another positive logit is there to be chosen
    assert positive.any()
    assert bool((penalised != logits.argmax(-1))[positive].all())


def test_narrow_types_are_widened() -> None:
    logits = rows(5).bfloat16()
    generators = [torch.Generator().manual_seed(n) for n in range(20)]
    again = [torch.Generator().manual_seed(n) for n in range(20)]
    assert torch.equal(choose(logits, SamplingConfig(), generators), choose(logits.float(), SamplingConfig(), again))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_output_that_is_not_finite(bad: float, greedy: bool) -> None:
    logits = rows(6)
    logits[3, 4] = bad
    with pytest.raises(UserError, match="not a finite number"):
        choose(logits, SamplingConfig(greedy=greedy), [torch.Generator()] * 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"samples": 0}, "samples is 0"),
        ({"segment": 0}, "segment is 0"),
        ({"stop": ("a", "")}, "a stop text is empty"),
    ],
)
def test_generation_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationConfig(**settings)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    row=st.lists(FINITE, min_size=1, max_size=9),
    temperature=st.floats(min_value=5e-324, max_value=sys.float_info.max) | st.just(5e-324),
    penalty=st.floats(min_value=1e-9, max_value=1e9),
    k=st.sampled_from([0, 1, 3, 2**62]),
    p=st.floats(min_value=5e-324, max_value=1.0),
    least=st.floats(min_value=0.0, max_value=1.0),
    greedy=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_allowed_setting_draws_an_id_of_the_vocabulary(
    row: list[float], temperature: float, penalty: float, k: int, p: float, least: float, greedy: bool, seed: int
) -> None:
    logits = torch.tensor([row])
    seen = torch.arange(len(row))[None] % 2 == seed % 2
    config = SamplingConfig(
        temperature=temperature, repetition_penalty=penalty, top_k=k, top_p=p, min_p=least, greedy=greedy
    )
    chosen = choose(logits, config, [torch.Generator().manual_seed(seed)], seen=seen)
    assert 0 <= int(chosen) < len(row)
    assert kept(filtered(logits, config, seen))[0] >= {int(chosen)}


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e-300, 5e-324])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_a_temperature_towards_zero_is_greedy(temperature: float, scale: float) -> None:
    logits = rows(6) * scale
    generators = [torch.Generator().manual_seed(n) for n in range(20)]
    cold = SamplingConfig(temperature=temperature, repetition_penalty=1.3)
    greedy = SamplingConfig(greedy=True, repetition_penalty=1.3)
    seen = torch.arange(17)[None].expand(20, 17) % 3 == 0
    assert choose(logits, cold, generators, seen=seen).tolist() == choose(logits, greedy, seen=seen).tolist()


def test_an_endless_temperature_is_uniform_over_what_is_left() -> None:
    hot = filtered(rows(7), SamplingConfig(temperature=sys.float_info.max, top_k=4))
    assert [len(ids) for ids in kept(hot)] == [4] * 20
    assert float(hot.softmax(-1).amax()) == pytest.approx(1 / 4, rel=1e-12)
