"""One rule for all settings: no number that is not finite, none beyond 64 bits, no value of another type."""

import ast
import dataclasses
import math
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import hgrn2
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig, SequenceConfig
from hgrn2.models.presets import preset
from hgrn2.settings import from_dict, with_overrides
from hgrn2.train.config import OptimConfig, RunConfig, TrainConfig

ROOT = Path(hgrn2.__file__).parent
NOT_SETTINGS = {"BatchPlan", "ClassPlan"}
"""Made by the program from settings that were checked; their seeds have all 64 bits."""
STACK = {"width": 32, "layers": 1, "glu_width": 32, "mixer": MixerConfig(head_size=16)}
REQUIRED: dict[str, dict[str, Any]] = {
    "ModelConfig": STACK | {"vocab_size": 11},
    "StackConfig": STACK,
    "ClassifierConfig": STACK | {"classes": 3},
    "SequenceConfig": STACK | {"classes": 3, "vocab_size": 11},
    "VisionConfig": STACK | {"classes": 3},
    "DeiTConfig": {"classes": 3},
    "RunConfig": {"model": preset("hgrn2_demo")},
    "MQARRun": {"model": ModelConfig(**STACK, vocab_size=8192), "train": TrainConfig(sequence_length=256)},
    "ClassifyRun": {"task": "t", "model": SequenceConfig(**STACK, classes=3, vocab_size=11)},
    "TuneConfig": {"base": "b", "base_hash": "h", "model": preset("hgrn2_demo")},
    "Segment": {"length": 64, "pairs": 4, "examples": 10},
    "Plan": {"table": "lra"},
}


def decorated(name: str) -> list[tuple[Path, ast.ClassDef]]:
    """Every class of the package under this decorator."""
    found = []
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if f"@{name}" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and any(name in ast.unparse(d) for d in node.decorator_list):
                    found.append((path, node))
    return found


def kinds() -> list[type]:
    found = []
    for path, node in decorated("settings"):
        module = ".".join(("hgrn2", *path.relative_to(ROOT).with_suffix("").parts))
        found.append(getattr(import_module(module), node.name))
    return sorted(found, key=lambda kind: kind.__name__)


def example(kind: type) -> Any:
    given = dict(REQUIRED.get(kind.__name__, {}))
    if kind.__name__ == "TuneConfig":
        from hgrn2.tasks.tune.config import TuneSettings

        given["settings"] = TuneSettings()
    return kind(**given)


def numbers_of(kind: type) -> list[tuple[str, type, bool]]:
    """Fields that are numbers: name, type, whether they are lists."""
    found = []
    for name, hint in get_type_hints(kind).items():
        text = str(hint)
        for number in (float, int):
            if hint in (number, number | None) or text == f"tuple[{number.__name__}, ...]":
                found.append((name, number, text.startswith("tuple")))
    return found


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_no_number_of_any_settings_is_infinite_huge_or_of_another_type(kind: type) -> None:
    good = example(kind)
    for name, number, many in numbers_of(kind):
        for bad in (math.nan, math.inf, -math.inf, True, "1", 10**400, *((2**63, 2.5) if number is int else ())):
            with pytest.raises(UserError, match=name):
                dataclasses.replace(good, **{name: (bad,) if many else bad})
    for name, hint in get_type_hints(kind).items():
        for bad in (1, 0, "true", None) if hint is bool else (3, None) if hint is str else ():
            with pytest.raises(UserError, match=name):
                dataclasses.replace(good, **{name: bad})


def test_whatever_refuses_values_is_settings() -> None:
    known = {kind.__name__ for kind in kinds()}
    plain = {
        node.name
        for _, node in decorated("dataclass")
        for method in node.body
        if not known & {ast.unparse(base) for base in node.bases}
        and isinstance(method, ast.FunctionDef)
        and method.name == "__post_init__"
        and "refuse(" in ast.unparse(method)
    }
    assert plain <= NOT_SETTINGS
    assert len(kinds()) > 30


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    made = TrainConfig(steps=np.int64(7), budget_s=np.float32(0.5), batch_size=8.0)  # type: ignore[arg-type]
    assert (made.steps, made.budget_s, made.batch_size) == (7, 0.5, 8)
    assert [type(x) for x in (made.steps, made.budget_s, made.batch_size)] == [int, float, int]
    assert type(OptimConfig(lr=1).lr) is float


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.lr=nan", "optim.lr is nan; it must be a finite number"),
        ("optim.lr=-inf", "optim.lr is -inf; it must be a finite number"),
        ("optim.lr=1e999", "optim.lr is 1e999; it must be a finite number"),
        ("train.steps=1e308", "train.steps is 1e308; it must be below 2^63"),
        ("train.steps=9223372036854775808", "train.steps is 9223372036854775808; it must be below 2^63"),
        ("train.steps=1.5", "train.steps must be a whole number, not '1.5'"),
        ("train.steps=", "train.steps must be a whole number, not ''"),
        ("train.stepz=3", "there is no setting train.stepz; did you mean train.steps?"),
        ("lr=3", "there is no setting lr; did you mean optim.lr?"),
        ("norm_eps=3", "there is no setting norm_eps; did you mean model.mixer.norm_eps or model.norm_eps?"),
        (
            "optim.optimizer=adam",
            "optim.optimizer is 'adam'; choose one of: adamw, muon; did you mean adamw?",
        ),
    ],
)
def test_what_the_command_line_says(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(RunConfig(model=preset("hgrn2_demo")), (text,))
    assert str(caught.value) == said


def test_large_whole_numbers_keep_every_digit() -> None:
    assert with_overrides(TrainConfig(), ("seed=9007199254740993",)).seed == 2**53 + 1
    assert with_overrides(TrainConfig(), ("steps=1e6",)).steps == 1_000_000
    digits = {"seed": int("1" * 4000) ** 2}  # more digits than Python writes
    with pytest.raises(UserError, match=r"seed is a number of thousands of digits; it must be below 2\^63"):
        from_dict(TrainConfig, digits)
