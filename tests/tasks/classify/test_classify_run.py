"""Runs of classification: what is learned, resumed, averaged and measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hgrn2.errors import UserError
from hgrn2.layers import block
from hgrn2.models.saved import build_classifier
from hgrn2.settings import with_overrides
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.recipes import recipe
from hgrn2.tasks.classify.run import fit_to_data, train_classifier

TINY = (
    "train.steps=6", "train.batch_size=12", "train.log_every=1", "train.eval_every=0", "train.save_every=3",
    "train.keep=2", "model.width=16", "model.glu_width=16", "model.layers=1", "optim.lr=1e-2", "optim.warmup_steps=1",
)  # fmt: skip


def run_on(folder: Path, *more: str, task: str = "listops", model: str = "hgrn2") -> ClassifyRun:
    """The small recipe, tiny."""
    images = folder.name == "images"
    run = recipe("cifar10" if images else task, model, "small")
    own = ("data.augment.crop_padding=1",) if images else ("data.multiple=8",)
    run = replace(run, data=replace(run.data, folder=str(folder)))
    return fit_to_data(with_overrides(run, (*TINY, *own, *more)))


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("data", ["sequences", "images"])
def test_it_learns_what_is_easy(data: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Three classes; a third of all guesses would be right."""
    run = run_on(request.getfixturevalue(data), "train.steps=40", "train.save_every=0", "optim.lr=2e-2")
    summary = train_classifier(run, tmp_path / "run", quiet=True).summary
    assert summary["held_out"]["test"]["accuracy"] > 0.9
    assert summary["classes"] == ["low", "middle", "high"]
    assert summary["epochs"] == 5.0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ("of these 24 held-out images are named right" in page) == (data == "images")


def test_recomputation_is_read_and_changes_no_loss(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    inner = block.recomputed
    monkeypatch.setattr(block, "recomputed", lambda *a, **k: calls.append(a) or inner(*a, **k))
    found = []
    for what in ("none", "glu"):
        run = run_on(images, f"train.recompute={what}", "model.norm=layer", "train.steps=2", "train.save_every=0")
        train_classifier(run, tmp_path / what, quiet=True)
        found.append(losses(tmp_path / what))
        assert len(calls) == (2 if what == "glu" else 0)
    assert found[0] == found[1]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("data", ["sequences", "images"])
def test_a_resumed_run_ends_with_the_same_bits(
    data: str, average: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    run = run_on(request.getfixturevalue(data), f"train.average={average}", "model.dropout=0.1")
    whole = train_classifier(run, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    last = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)  # as if it had been killed after step 3
    parts = train_classifier(run, tmp_path / "parts", quiet=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert parts.summary["held_out"] == whole.summary["held_out"]
    ours, theirs = (load_file(tmp_path / name / "checkpoints" / last.name / "model.safetensors")
                    for name in ("parts", "whole"))  # fmt: skip
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_averaged_weights_are_what_is_saved(sequences: Path, tmp_path: Path) -> None:
    """Saved are means; training goes on with the weights themselves, so losses do not depend on the mean."""
    torch.set_num_threads(1)
    found: dict[float, Any] = {}
    for average in (0.0, 0.9):
        folder = tmp_path / str(average)
        train_classifier(run_on(sequences, f"train.average={average}", "train.save_every=1", "train.keep=6"), folder,
                         quiet=True)  # fmt: skip
        found[average] = folder
    assert losses(found[0.0]) == losses(found[0.9])
    names = sorted(path.name for path in (found[0.0] / "checkpoints").iterdir())
    assert len(names) == 6
    first = load_file(found[0.0] / "checkpoints" / names[0] / "model.safetensors")
    torch.manual_seed(0)
    start = build_classifier(run_on(sequences).model).state_dict()
    mean = {name: value.double() for name, value in start.items()}
    assert set(mean) == set(first)
    for step, name in enumerate(names, start=1):
        share = min(0.9, (1 + step) / (10 + step))
        now = load_file(found[0.0] / "checkpoints" / name / "model.safetensors")
        mean = {key: share * old + (1 - share) * now[key].double() for key, old in mean.items()}
        saved = load_file(found[0.9] / "checkpoints" / name / "model.safetensors")
        for key, value in mean.items():
            assert saved[key].double() == pytest.approx(value, rel=1e-5, abs=1e-7), (name, key)


def test_accumulated_parts_are_the_whole_batch(sequences: Path, tmp_path: Path) -> None:
    whole = run_on(sequences, "data.pool=1", "data.multiple=64")
    train_classifier(whole, tmp_path / "whole", quiet=True)
    train_classifier(with_overrides(whole, ("train.accumulate=3",)), tmp_path / "parts", quiet=True)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_graphs_change_nothing_without_a_gpu(sequences: Path, tmp_path: Path) -> None:
    for name in ("true", "false"):
        train_classifier(run_on(sequences, f"train.graphs={name}"), tmp_path / name, device="cpu", quiet=True)
    assert losses(tmp_path / "true") == losses(tmp_path / "false")


def test_models_without_blocks_of_ours_cannot_be_compiled_block_by_block(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is an extra")
    run = recipe("cifar10", "deit", "small")
    run = replace(run, data=replace(run.data, folder=str(images)))
    run = fit_to_data(with_overrides(run, ("train.compile_blocks=true", "train.steps=1", "train.batch_size=4")))
    with pytest.raises(UserError, match="compile_blocks needs a model with blocks of ours"):
        train_classifier(run, tmp_path / "run", quiet=True)


def test_another_run_is_refused(sequences: Path, tmp_path: Path) -> None:
    train_classifier(run_on(sequences, "train.steps=1"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"other settings: optim.lr is .* there and 0.5 here; give the same settings"):
        train_classifier(run_on(sequences, "train.steps=1", "optim.lr=0.5"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("data.train_split=all",), "no split 'all'"),
        (("train.batch_size=97",), "96 examples are fewer than one batch of 97"),
        (("data.too_long=stop", "train.sequence_length=8"), r"example \d+ has \d+ tokens, the model has 8 positions"),
    ],
)
def test_data_that_does_not_fit(more: tuple[str, ...], words: str, sequences: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        train_classifier(run_on(sequences, *more), tmp_path / "run", quiet=True)
