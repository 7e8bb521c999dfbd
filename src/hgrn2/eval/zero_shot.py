"""Zero-shot tasks through lm-eval, and the table of the paper beside their results."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrn2.errors import UserError
from hgrn2.eval.tasks import LocalTask, find_file, read_lines, task_config
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from hgrn2.eval.harness import HGRN2LM


@dataclass(frozen=True)
class TaskResult:
    """What came of one task."""

    task: str
    title: str
    items: int
    of: int
    """Items of the whole set; a part of it is another measurement."""
    metrics: dict[str, float]
    """By lm-eval's names; acc and acc_norm are fractions."""
    stderr: dict[str, float]
    """Standard errors of the accuracies."""
    seconds: float
    source: str
    """The file, or lm-eval's data set on the hub."""


def need_harness() -> Any:
    """The module `hgrn2.eval.harness`; a `UserError` where lm-eval is missing."""
    try:
        import datasets  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("--tasks and --wikitext need lm-eval: pip install 'hgrn2[eval]'") from None
    return import_module("hgrn2.eval.harness")


def run_task(lm: "HGRN2LM", task: LocalTask, folder: Path | None, limit: int | None = None) -> TaskResult:
    """Measure one task with lm-eval: on a local file, or without a folder on lm-eval's own data from the hub.

    Args:
        lm: the model.
        task: which task.
        folder: of the task files (`hgrn2.eval.tasks`).
        limit: only the first so many items.

    Raises:
        UserError: for files that do not fit, and where the hub cannot be reached.
    """
    need_harness()
    refuse(limit is not None and limit < 1, f"--limit is {limit}; it must be at least 1")
    began = time.perf_counter()
    if folder is None:
        loaded, source = _from_hub(task), f"hub: {task.hub_name}"
    else:
        path = find_file(folder, task)
        loaded, source = _from_file(task_config(task, read_lines(path, task, limit))), str(path)
    found, items = _evaluate(lm, loaded, limit)
    metrics = {name: float(found[f"{name},none"]) for name in task.metrics}
    stderr = {name: _stderr(metrics[name], items) for name in task.metrics if name.startswith("acc")}
    seconds = time.perf_counter() - began
    return TaskResult(task.name, task.title, items, task.items, metrics, stderr, seconds, source)


def _evaluate(lm: "HGRN2LM", task: "Task", limit: int | None) -> tuple[dict[str, Any], int]:
    """lm-eval's results of one task, and how many items they are of."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    task.set_config("num_fewshot", 0)
    with _quiet():
        loaded: Any = TaskManager(include_defaults=False).load([task])
        # What simple_evaluate adds to this call is a list of the installed packages, a second a task. Bootstrapped
        # standard errors would start processes; those of accuracies have a formula.
        results: Any = evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=False)
    if results is None:
        raise AssertionError("lm-eval returns nothing on ranks other than 0 only")
    (name,) = results["results"]
    return results["results"][name], int(results["n-samples"][name]["effective"])


def _from_file(config: dict[str, Any]) -> "Task":
    from lm_eval.api.task import ConfigurableTask

    with _quiet():
        return ConfigurableTask(config=config)


def _from_hub(task: LocalTask) -> "Task":
    """lm-eval's own task with its data."""
    import lm_eval.tasks

    # Only the folder of this task: reading the definitions of all thousands takes many seconds.
    place = Path(lm_eval.tasks.__file__).parent / (task.folder or task.name)
    manager = lm_eval.tasks.TaskManager(include_path=place, include_defaults=False)
    try:
        with _quiet():
            return manager.load([task.hub_name])["tasks"][task.hub_name]
    except Exception as error:  # the libraries below raise their own kinds, by the dozen
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"lm-eval's own {task.hub_name} could not be loaded: its data come from the Hugging Face hub, which "
            f"needs a network; give --task-data for local files ({why:.160})"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval without its notes and bars: the verb shows progress itself."""
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    task: Any = lm_eval.api.task
    bar, task.tqdm = task.tqdm, lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar


def _stderr(accuracy: float, items: int) -> float:
    """Of a mean of zeros and ones."""
    return math.sqrt(accuracy * (1 - accuracy) / (items - 1)) if items > 1 else math.nan


@cache
def published() -> dict[str, Any]:
    """The paper's zero-shot table: source, columns (task, metric), rows (model, parameters, tokens, scores)."""
    text = resources.files("hgrn2.eval").joinpath("zero_shot.json").read_text(encoding="utf-8")
    return json.loads(text)


def table_scores(results: Sequence[TaskResult]) -> list[float | None]:
    """Our results in the columns of the published table, in per cent; None where a task was not run."""
    by_name = {result.task: result for result in results}
    scores: list[float | None] = []
    for column in published()["columns"]:
        result = by_name.get(column["task"])
        scores.append(None if result is None else 100 * result.metrics[column["metric"]])
    return scores


def average(scores: Sequence[float | None]) -> float | None:
    """The mean over all columns, which exists only where all of them were measured."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None
