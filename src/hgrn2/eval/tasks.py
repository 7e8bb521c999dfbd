"""Zero-shot tasks on local files, asked and counted as lm-eval's own tasks of the same names do.

A folder holds one file per task, JSON lines, plain or compressed (.xz, .gz), found by the task's name in the file's
name (`eval-arc-easy-test.jsonl.xz` is arc_easy). Three kinds of lines:

    choices    query, choices, gold                     which of the choices follows the query?
    schema     context_options, continuation, gold      after which of the contexts is the continuation more probable?
    cloze      context, continuation                    is the continuation the most probable one?

`gold` counts from 0. The texts are those that lm-eval makes of the original data before it adds its prompt: ARC and
PIQA begin with "Question: ", HellaSwag's brackets are gone and its activity stands in front.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hgrn2.data.reading import COMPRESSED, open_binary, plain_name
from hgrn2.errors import unknown
from hgrn2.files import parse_json
from hgrn2.settings import refuse

Kind = Literal["choices", "schema", "cloze"]
FIELDS: dict[Kind, dict[str, str]] = {
    "choices": {"query": "text", "choices": "texts", "gold": "index"},
    "schema": {"context_options": "texts", "continuation": "text", "gold": "index"},
    "cloze": {"context": "text", "continuation": "text"},
}
ACCURACY = ("acc", "acc_norm")
ANSWER = r"{{query}}{{'' if query.endswith('\n') else '\n'}}Answer:"
"""PIQA's queries end with their line, those of ARC do not; both are asked as "Question: ...", a new line, "Answer:"."""


@dataclass(frozen=True)
class LocalTask:
    """How lm-eval asks one task, on lines of a file."""

    name: str
    """As on the command line."""
    title: str
    """As in tables."""
    kind: Kind
    prompt: str = ""
    """lm-eval's template of the text before a choice (choices)."""
    metrics: tuple[str, ...] = ACCURACY
    items: int = 0
    """Size of the whole set, by which a part of it is told."""
    hub: str = ""
    """lm-eval's name where it is another."""
    folder: str = ""
    """Where lm-eval keeps its own definition, if not in a folder of that name."""

    @property
    def hub_name(self) -> str:
        """The name of lm-eval's own task."""
        return self.hub or self.name


TASKS = {
    task.name: task
    for task in (
        LocalTask("piqa", "PIQA", "choices", ANSWER, items=1_838),
        LocalTask("hellaswag", "HellaSwag", "choices", "{{query}}", items=10_042),
        LocalTask("winogrande", "WinoGrande", "schema", metrics=("acc",), items=1_267),
        LocalTask("arc_easy", "ARC-easy", "choices", ANSWER, items=2_376, folder="arc"),
        LocalTask("arc_challenge", "ARC-challenge", "choices", ANSWER, items=1_172, folder="arc"),
        LocalTask("openbookqa", "OpenBookQA", "choices", "{{query}}", items=500),
        LocalTask("lambada", "LAMBADA", "cloze", metrics=("perplexity", "acc"), items=5_153, hub="lambada_openai"),
    )
}


def chosen(names: str) -> list[LocalTask]:
    """The tasks of a comma-separated list, or of `all`; an unknown or repeated name is a `UserError`."""
    if names.strip() == "all":
        return list(TASKS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    refuse(not wanted, f"--tasks names no task; choose from {', '.join(TASKS)}, or all")
    wanted = ["lambada" if name == "lambada_openai" else name for name in wanted]
    for name in wanted:
        if name not in TASKS:
            raise unknown("task", name, (*TASKS, "all"))
        refuse(wanted.count(name) > 1, f"task {name} is named twice")
    return [TASKS[name] for name in wanted]


def find_file(folder: Path, task: LocalTask) -> Path:
    """The one file of a task in a folder; none or several is a `UserError`."""
    refuse(not folder.is_dir(), f"{folder} is not a folder; --task-data names the folder of the task files")
    spelt = task.name.replace("_", "-")
    found = [
        path
        for path in sorted(folder.iterdir())
        if plain_name(path).endswith(".jsonl") and spelt in plain_name(path).replace("_", "-")
    ]
    endings = ", ".join(("", *COMPRESSED)).strip(", ")
    refuse(not found, f"{folder} has no file for {task.name}: its name holds {spelt!r} and ends in .jsonl ({endings})")
    names = ", ".join(path.name for path in found)
    refuse(len(found) > 1, f"{folder} has several files for {task.name}: {names}; leave one there")
    return found[0]


def read_lines(path: Path, task: LocalTask, limit: int | None = None) -> list[dict[str, Any]]:
    """The items of a file (the first `limit`); a line of another form is a `UserError` that says where."""
    rows: list[dict[str, Any]] = []
    with open_binary(path) as opened:
        for number, line in enumerate(opened.stream, start=1):
            if not line.strip():
                continue
            rows.append(_checked(line, task, f"{path}, line {number}"))
            if limit is not None and len(rows) == limit:
                break
    refuse(not rows, f"{path} is empty")
    return rows


def _checked(line: bytes, task: LocalTask, where: str) -> dict[str, Any]:
    """One line as an item with the fields of its kind only."""
    values = parse_json(line, f"{where} of {task.name}", dict)
    fields = FIELDS[task.kind]
    has_all = all(name in values for name in fields)
    refuse(not has_all, f"{where} is not an item of {task.name}: it needs the fields {', '.join(fields)}")
    for name, form in fields.items():
        value = values[name]
        if form == "text":
            refuse(not isinstance(value, str) or not value.strip(), f"{where}: {name} must be text, not {value!r:.60}")
        elif form == "texts":
            fits = isinstance(value, list) and len(value) > 1 and all(isinstance(x, str) and x.strip() for x in value)
            refuse(not fits, f"{where}: {name} must be a list of two or more texts, not {value!r:.60}")
    if "gold" in fields:
        count = len(values["choices" if task.kind == "choices" else "context_options"])
        gold = values["gold"]
        fits = isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < count
        refuse(not fits, f"{where}: gold is {gold!r}; it must be a number from 0 to {count - 1}")
    return {name: values[name] for name in fields}


def task_config(task: LocalTask, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """lm-eval's configuration of a task over items in memory."""
    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": _dataset(rows),
        "test_split": "test",
        "metric_list": [{"metric": name} for name in task.metrics],
        "metadata": {"version": 1.0},
    }
    if task.kind == "choices":
        asked = {"doc_to_text": task.prompt, "doc_to_target": "gold", "doc_to_choice": "choices"}
        return config | {"output_type": "multiple_choice"} | asked
    if task.kind == "schema":
        # Contexts compete, so they are lm-eval's choices, and the index of the right one is its text (its `doc_to_text`
        # of a task with several inputs).
        asked = {"doc_to_text": _gold, "doc_to_target": "continuation", "doc_to_choice": "context_options"}
        return config | {"output_type": "multiple_choice"} | asked
    return config | {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{continuation}}"}


def _gold(doc: dict[str, Any]) -> int:
    return doc["gold"]


def _dataset(rows: list[dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def made(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return made
