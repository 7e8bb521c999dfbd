"""What `hgrn2 eval` shows of classifiers: accuracy, top five, loss, each class, and the confusion table."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from hgrn2 import console
from hgrn2.settings import refuse

if TYPE_CHECKING:
    import numpy as np

    from hgrn2.cli.eval_options import EvalOptions
    from hgrn2.tasks.classify.task import Measured

COMMON = ("model", "data", "split", "json", "device")
"""Options that classifiers have, too."""
TABLE_CLASSES = 12
"""More classes than these do not fit side by side into a terminal."""
JSON_CLASSES = 200
SHOWN = 20


def show_classes(verb: "EvalOptions") -> None:
    """Measure a classifier and print what came out."""
    from hgrn2.cli.progress import progress_shown
    from hgrn2.eval.classifier import load_run, measure_on

    for field in dataclasses.fields(verb):
        other = field.name not in COMMON and getattr(verb, field.name) != field.default
        refuse(other, f"--{field.name.replace('_', '-')} is for language models; {verb.model} is a classifier")
    loaded = load_run(verb.model, verb.device, lambda message: print(f"warning: {message}", file=sys.stderr))
    names = loaded.classes(verb.data)
    with progress_shown() as progress:
        split, found = measure_on(loaded, verb.data, verb.split, progress)
    data = str(verb.data or loaded.examples())
    if verb.json:
        return console.print_json(_values(loaded.name, data, split, found, names))
    print(f"{loaded.name} on {data}, split {split}: {found.examples:,} examples")
    _print(found, names)


def _values(model: str, data: str, split: str, found: "Measured", names: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {"model": model, "data": data, "split": split, "examples": found.examples}
    values |= {"accuracy": found.accuracy, "top5": found.top5 if len(names) > 5 else None, "loss": found.loss}
    counts, rights = found.confusion.sum(1).tolist(), found.confusion.diagonal().tolist()
    values["classes"] = [
        {"name": name, "examples": count, "accuracy": right / count if count else None}
        for name, count, right in zip(names, counts, rights, strict=True)
    ]
    return values | ({"confusion": found.confusion.tolist()} if len(names) <= JSON_CLASSES else {})


def _print(found: "Measured", names: tuple[str, ...]) -> None:
    marks = [f"{found.accuracy:.2%} right"] + ([f"{found.top5:.2%} among the first five"] if len(names) > 5 else [])
    print(", ".join([*marks, f"{found.loss:.4f} nats/example"]))
    console.show(_by_class(found.confusion, names))
    if len(names) <= TABLE_CLASSES:
        print("\nRows: the class of the examples; columns: what they were taken for.")
        console.show(_confusion(found.confusion, names))
    elif len(names) > SHOWN:
        print(f"The {SHOWN} classes that are right least often; --json has all.")


def _by_class(confusion: "np.ndarray", names: tuple[str, ...]) -> console.Columns:
    counts, rights = confusion.sum(1), confusion.diagonal()
    shares = rights / counts.clip(1)
    order = range(len(names)) if len(names) <= SHOWN else shares.argsort(kind="stable")[:SHOWN].tolist()
    rows = []
    for n in order:
        wrong = confusion[n].copy()
        wrong[n] = 0
        other = int(wrong.argmax())
        taken = f"{names[other]} ({wrong[other] / counts[n]:.1%})" if wrong[other] else "–"
        rows.append((names[n], f"{counts[n]:,}", f"{shares[n]:.1%}" if counts[n] else "–", taken))
    head = ("class", "examples", "accuracy", "taken most often for")
    return console.Columns(head, rows, text=(0, 3), frame=False)


def _confusion(confusion: "np.ndarray", names: tuple[str, ...]) -> console.Columns:
    """Rows are the classes that examples have, columns those that they were taken for."""
    rows = [
        (name, *(str(count) if count else "·" for count in row))
        for name, row in zip(names, confusion.tolist(), strict=True)
    ]
    return console.Columns(("", *(name[:5] for name in names)), rows, frame=False)
