"""A plan names its runs before anything is trained."""

from pathlib import Path

import pytest

from hgrn2.errors import UserError
from hgrn2.models.config import DeiTConfig
from hgrn2.reproduce.data import find, prepare
from hgrn2.reproduce.plan import MODELS, TASKS, Plan
from hgrn2.reproduce.published import RECIPES, RESULTS
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.mqar.config import MQARRun


def test_default_plan_has_every_task_and_model_with_more_seeds_where_runs_are_short() -> None:
    specs = Plan(table="lra").specs()
    assert {(spec.task, spec.model) for spec in specs} == {(t, m) for t in TASKS["lra"] for m in MODELS["lra"]}
    assert sorted({spec.seed for spec in specs if spec.task == "listops"}) == [0, 1, 2]
    assert {spec.seed for spec in specs if spec.task != "listops"} == {0}
    assert len({spec.name for spec in specs}) == len(specs)
    assert "pathx" not in {spec.task for spec in Plan(table="lra", size="small").specs()}
    assert len(Plan(table="lra", size="small", tasks=("pathx",), models=("hgrn2",)).specs()) == 1


def test_small_and_full_runs_have_folders_of_their_own() -> None:
    names = [Plan(table="lra", tasks=("text",), models=("hgrn2",), size=size).specs()[0].name
             for size in ("full", "small")]  # fmt: skip
    assert len(set(names)) == 2


def test_runs_take_seed_budget_settings_and_data() -> None:
    plan = Plan(table="lra", tasks=("listops",), models=("hgrn1",), seeds=(7,), minutes=0.5, set=("optim.lr=0.25",))
    (spec,) = plan.specs()
    run = plan.run_of(spec, "somewhere")
    assert isinstance(run, ClassifyRun)
    assert (run.train.seed, run.train.budget_s, run.optim.lr, run.data.folder) == (7, 30.0, 0.25, "somewhere")
    assert run.model.mixer.kind == "hgru1"


def test_transformer_of_images_is_deit() -> None:
    plan = Plan(table="image", tasks=("cifar10",), models=("transformer",))
    assert isinstance(plan.run_of(plan.specs()[0]).model, DeiTConfig)


def test_recall_has_a_run_for_every_size_of_state() -> None:
    plan = Plan(table="mqar", models=("hgrn2-conv", "hgrn1"), seeds=(3,), size="small")
    assert [(spec.model, spec.n) for spec in plan.specs()] == [
        ("hgrn2-conv", 4), ("hgrn2-conv", 16), ("hgrn2-conv", 64), ("hgrn1", None),
    ]  # fmt: skip
    for spec in plan.specs():
        run = plan.run_of(spec)
        assert isinstance(run, MQARRun)
        assert run.train.seed == 3
        assert spec.n is None or run.model.mixer.head_size == spec.n


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ("listop",)}, "did you mean listops"),
        ({"models": ("mamba",)}, "choose from hgrn2, hgrn1, transformer"),
        ({"seeds": (1, 1)}, "repeated"),
        ({"minutes": -1.0}, "must not be negative"),
        ({"size": "tiny"}, "choose one of: full, fast, small"),
    ],
)
def test_nonsense_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan(table="lra", **settings)


def test_published_numbers_belong_to_tasks_and_models_of_a_table() -> None:
    tasks = {task: table for table, names in TASKS.items() for task in names}
    for task, by_model in RESULTS.items():
        assert set(by_model) <= set(MODELS[tasks[task]])
        assert all(0 < one.per_cent < 100 and one.source for one in by_model.values())
    assert set(RECIPES) == set(TASKS["lra"])


def test_data_is_found_generated_or_missed(data: Path, tmp_path: Path) -> None:
    plan = Plan(table="lra", models=("hgrn2",), seeds=(0,))
    by_task = {spec.task: spec for spec in plan.specs()}
    assert find(by_task["listops"], tmp_path, data).state == f"ready: {data / 'listops'}"
    assert find(by_task["listops"], tmp_path, None).make is not None
    source = find(by_task["text"], tmp_path, None)
    assert "imdb-train" in source.missing
    with pytest.raises(UserError, match="imdb-train"):
        prepare(source, lambda *_: None)
    (tmp_path / "files").mkdir()
    for name in ("imdb-train.jsonl", "imdb-test.jsonl"):
        lines = [f'{{"text": "review {n}", "label": {n % 2}}}\n' for n in range(40)]
        (tmp_path / "files" / name).write_text("".join(lines))
    source = find(by_task["text"], tmp_path, tmp_path / "files")
    folder = prepare(source, lambda *_: None)
    assert find(by_task["text"], tmp_path, None).folder == folder  # what an earlier call made is taken
    assert "cifar10-jpeg" in find(by_task["image"], tmp_path, tmp_path / "files").missing
