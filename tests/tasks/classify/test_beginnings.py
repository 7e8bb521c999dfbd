"""What a run sees at its beginning, and what a step leaves out: easier examples bit by bit, tokens that are dropped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import drawn_sequences, write

from hgrn2.errors import UserError
from hgrn2.models.saved import build_classifier
from hgrn2.settings import with_overrides
from hgrn2.tasks.classify.config import ClassifyData, ClassifyRun, Curriculum
from hgrn2.tasks.classify.recipes import recipe
from hgrn2.tasks.classify.run import fit_to_data, open_splits
from hgrn2.tasks.classify.task import ClassifyTask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences with an easier split."""
    counts = {"train": 60, "valid": 12, "test": 12, "easy": 48}
    splits = {name: drawn_sequences(count, seed) for seed, (name, count) in enumerate(counts.items())}
    return write(tmp_path_factory.mktemp("beginnings") / "sequences", splits, 20)


def task_on(folder: Path, *settings: str) -> ClassifyTask:
    run = recipe("listops", "hgrn2", "small")
    run = replace(run, data=replace(run.data, folder=str(folder)), train=replace(run.train, batch_size=6))
    run: ClassifyRun = fit_to_data(with_overrides(run, ("data.multiple=8", *settings)))
    return ClassifyTask(run, *open_splits(run), CPU)


def test_the_easiest_examples_come_first(folder: Path) -> None:
    task = task_on(folder, "data.curriculum.steps=8", "data.curriculum.rising=true")
    seen = [task._examples(step)[0] for step in range(8)]
    for step, rows in enumerate(seen):
        assert rows.max() < max(6, 48 * (step + 1) // 8)
    assert max(rows.max() for rows in seen) >= 40
    assert all(np.array_equal(task._examples(step)[0], rows) for step, rows in enumerate(seen))
    ordinary = task_on(folder)  # afterwards it is a run without them
    for step in range(8, 12):
        assert np.array_equal(task._examples(step)[0], ordinary._examples(step - 8)[0])


def test_dropped_tokens_are_as_if_they_were_padding(folder: Path) -> None:
    whole, thin = task_on(folder), task_on(folder, "data.drop_tokens=0.3")
    kept = lost = 0
    for step in range(10):
        inputs, labels, padding_mask = thin.batch(step, 0, 1)
        others, same_labels, everything = whole.batch(step, 0, 1)
        assert padding_mask is not None
        assert everything is not None
        assert torch.equal(inputs, others)
        assert torch.equal(labels, same_labels)
        assert not (padding_mask & ~everything).any()
        kept, lost = kept + int(padding_mask.sum()), lost + int((everything & ~padding_mask).sum())
        again = thin.batch(step, 0, 1)[2]
        assert again is not None
        assert torch.equal(padding_mask, again)
    assert lost / (kept + lost) == pytest.approx(0.3, abs=0.05)
    first, later = (
        thin._thinned(torch.ones(6, 40, dtype=torch.bool), 0),
        thin._thinned(torch.ones(6, 40, dtype=torch.bool), 1),
    )
    assert not torch.equal(first, later)


def test_measuring_leaves_nothing_out(folder: Path) -> None:
    whole, thin = (task_on(folder, f"data.drop_tokens={share}") for share in (0.0, 0.9))
    torch.manual_seed(0)
    model = build_classifier(whole.run.model)
    assert whole.evaluate(model) == thin.evaluate(model)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.drop_tokens is 1(\.0)?; it must be in \[0, 1\)"):
        ClassifyData(drop_tokens=1)
    with pytest.raises(UserError, match=r"data\.curriculum\.steps must not be negative"):
        Curriculum(steps=-1)
