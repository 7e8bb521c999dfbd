"""Sweeps go on until the best rate is between two others; what is run next follows from rows alone."""

from typing import Any

import pytest

from hgrn2.errors import UserError
from hgrn2.models.comparison import COMPARED, comparison_config
from hgrn2.models.count import parameters, state_bytes
from hgrn2.study.arms import ABLATIONS, NOT_SETTINGS, arms, model_of, not_offered, run_of, subjects
from hgrn2.study.protocol import EXTENSIONS, Arm, Case, Study, best_rate, bracketed, next_cases, next_rates

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
HGRN2 = Arm(subject="hgrn2", architecture="hgrn2")


def losses(best: float, rates: tuple[float, ...] = RATES) -> dict[float, float]:
    """A valley whose floor is at `best`."""
    return {rate: abs(rate / best - best / rate) for rate in rates}


def test_a_sweep_begins_in_the_middle_and_ends_between_two_rates() -> None:
    assert next_rates({}, RATES) == (2e-3, 4e-3)
    assert next_rates({}, RATES[:3]) == (2e-3,)
    assert next_rates({}, RATES[:2]) == (1e-3, 2e-3)
    assert next_rates({2e-3: 1.0}, RATES) == (4e-3,)
    assert next_rates(losses(2e-3, (2e-3, 4e-3)), RATES) == (1e-3,)
    assert next_rates(losses(4e-3, (2e-3, 4e-3)), RATES) == (8e-3,)
    assert next_rates(losses(4e-3), RATES) == ()
    assert next_rates(losses(2e-3, RATES[:3]), RATES) == ()
    # What lies between rates that were run, and between them and the middle, is run too.
    assert next_rates(losses(4e-3, (1e-3, 8e-3)), RATES) == (2e-3, 4e-3)
    assert next_rates(losses(4e-3, (1e-3,)), RATES) == (2e-3, 4e-3)
    assert bracketed(losses(4e-3))


@pytest.mark.parametrize(("best", "runs"), [(2.5e-4, 6), (2e-3, 3), (4e-3, 3), (3.2e-2, 6)])
def test_a_sweep_goes_on_at_the_edge_where_the_best_rate_is(best: float, runs: int) -> None:
    values: dict[float, float] = {}
    while rates := next_rates(values, RATES):
        values |= losses(best, rates)
    assert best_rate(values) == best
    assert bracketed(values)
    assert len(values) == runs


def test_a_sweep_without_a_valley_ends_and_is_not_bracketed() -> None:
    values = {rate: rate for rate in RATES}
    for _ in range(EXTENSIONS):
        (rate,) = next_rates(values, RATES)
        values[rate] = rate
    assert next_rates(values, RATES) == ()
    assert not bracketed(values)


def test_rates_then_seeds_at_the_best_one() -> None:
    study = Study(seeds=(3, 4), sweep_tokens=2048, final_tokens=4096)
    assert [case.lr for case in next_cases(study, HGRN2, {})] == [2e-3, 4e-3]
    assert {(case.seed, case.tokens) for case in next_cases(study, HGRN2, {})} == {(3, 2048)}
    swept = {(lr, 3, 2048): loss for lr, loss in losses(2e-3).items()}
    # Runs of other seeds on as many tokens say nothing about the sweep.
    finals = next_cases(study, HGRN2, swept | {(8e-3, 4, 2048): 0.0})
    assert [(case.lr, case.seed, case.tokens) for case in finals] == [(2e-3, 3, 4096), (2e-3, 4, 4096)]
    left = next_cases(study, HGRN2, swept | {(2e-3, 3, 4096): 1.0})
    assert [(case.lr, case.seed) for case in left] == [(2e-3, 4)]
    assert next_cases(study, HGRN2, swept | {(2e-3, 3, 4096): 1.0, (2e-3, 4, 4096): 1.0}) == []


def test_a_sweep_alone_and_seeds_alone() -> None:
    swept = {(lr, 0, 1024): loss for lr, loss in losses(2e-3).items()}
    assert next_cases(Study(sweep_tokens=1024, final_tokens=0), HGRN2, swept) == []
    same = next_cases(Study(sweep_tokens=1024, final_tokens=1024, seeds=(0, 1)), HGRN2, swept)
    assert [(case.lr, case.seed) for case in same] == [(2e-3, 1)]
    single = next_cases(Study(lrs=(3e-3,), final_tokens=1024, seeds=(0, 1)), HGRN2, {})
    assert [(case.lr, case.seed, case.tokens) for case in single] == [(3e-3, 0, 1024), (3e-3, 1, 1024)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": "44m"}, "choose one of: small, 45m, 125m, 350m; did you mean 45m"),
        ({"lrs": ()}, "at least one rate"),
        ({"lrs": (1e-3, -1e-3)}, "rates are positive"),
        ({"seeds": (1, 1)}, "a value is repeated"),
        ({"seeds": (-1,)}, "not negative"),
        ({"sequence_length": 100}, "--sequence-length 100 does not divide the 1,024 tokens of a step"),
        ({"final_tokens": -2}, "must not be negative"),
    ],
)
def test_nonsense_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Study(**settings)


def test_every_study_has_its_sides_at_equal_parameters() -> None:
    compared = subjects(Study(size="45m"))
    assert set(COMPARED) <= set(compared)
    assert {"hgrn2-conv", "llama-qknorm"} <= set(compared)
    expansion = Study(study="expansion", size="45m")
    names = list(subjects(expansion))
    assert names == ["n1", "n2", "n4", "n8", "n16", "n32", "n64", "n128", "n256"]
    counts = {parameters(model_of(expansion, arm)).total for arm in arms(expansion)}
    assert len(counts) == 1
    changed = subjects(Study(study="ablation"))
    assert next(iter(changed)) == "hgrn2"
    models = [model_of(Study(study="ablation"), arm) for arm in changed.values()]
    assert all(one != models[0] for one in models[1:])


@pytest.mark.parametrize("size", ["small", "45m"])
def test_expanded_and_structured_models_have_equal_parameters_and_states(size: Any) -> None:
    """Parameters within 1 %; states as HGRN2's of the size where a cell is expanded, of 4 D numbers in every map."""
    for name, states in (("others", {True: {1}, False: {1, 2}}), ("structured", {True: {1}, False: {1}})):
        study = Study(study=name, size=size)  # pyright: ignore[reportArgumentType]
        models = {arm.subject: model_of(study, arm) for arm in arms(study)}
        counts = [parameters(model) for model in models.values()]
        assert max(one.total for one in counts) <= 1.005 * min(one.total for one in counts)
        assert max(one.non_embedding for one in counts) <= 1.01 * min(one.non_embedding for one in counts)
        reference = comparison_config("hgrn2", size)
        whole = state_bytes(reference) if name == "others" else 4 * 4 * reference.width * reference.layers
        least = 4 * reference.width * reference.layers
        for subject, model in models.items():
            large = "expanded" in subject if name == "others" else subject != "none"
            assert state_bytes(model) / (whole if large else least) in states[large], subject
    assert {arm.subject.removesuffix("-expanded") for arm in subjects(Study(study="others")).values()} == {
        "hgrn1", "mingru", "rglru", "lru",
    }  # fmt: skip


def test_what_settings_do_not_offer_is_named_with_the_reason() -> None:
    study = Study(study="ablation")
    reasons = not_offered(study)
    assert set(NOT_SETTINGS) <= set(reasons)
    assert set(reasons) | set(subjects(study)) == set(ABLATIONS) | set(NOT_SETTINGS)
    assert not set(reasons) & set(subjects(study))
    with pytest.raises(UserError, match="untied-key is not offered: hgru2 ties"):
        arms(study, ("untied-key",))


def test_optimisers_and_names_of_arms() -> None:
    study = Study()
    usual = arms(study)
    muon = [arm.subject for arm in usual if arm.optimizer == "muon"]
    assert "hgrn2" in muon
    assert not any(arm.set for arm in usual if arm.optimizer == "muon")
    assert [arm.name for arm in arms(study, ("hgrn2",), ("adamw", "muon"))] == ["hgrn2", "hgrn2, muon"]
    with pytest.raises(UserError, match="no model of this study 'hgrn3'; did you mean hgrn2"):
        arms(study, ("hgrn3",))
    with pytest.raises(UserError, match="repeated"):
        arms(study, ("hgrn2", "hgrn2"))
    with pytest.raises(UserError, match="a head size of 48 does not divide the width 128 of size small"):
        arms(Study(study="expansion"), ("n48",))


def test_runs_of_two_arms_differ_in_model_and_rate_alone() -> None:
    study = Study(size="45m", source="corpus", set=("optim.weight_decay=0.01",))
    runs = [
        run_of(study, Case(arm=arm, lr=2e-3, seed=1, tokens=study.sweep), vocab_size=50_257, precision="bfloat16",
               on_gpu=True)
        for arm in arms(study, ("hgrn2", "llama"), ("adamw",))
    ]  # fmt: skip
    first, second = runs
    assert (first.train, first.optim, first.data) == (second.train, second.optim, second.data)
    assert first.model.mixer.kind != second.model.mixer.kind
    assert first.model.vocab_size == second.model.vocab_size == 50_257
    assert first.train.compile_blocks
    assert first.optim.weight_decay == 0.01
    assert (first.optim.warmup_steps, first.train.tokens_per_step) == (100, 32_768)
