"""Small versions of the tasks are learned on a CPU, better than by always naming the most frequent class."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.data.classes import write_examples
from hgrn2.data.lra.listops import ListOps, make_listops
from hgrn2.data.lra.pathfinder import make_pathfinder
from hgrn2.data.lra.pathfinder_settings import Pathfinder, small
from hgrn2.settings import with_overrides
from hgrn2.tasks.classify.recipes import recipe
from hgrn2.tasks.classify.run import fit_to_data, train_classifier


@pytest.fixture(scope="module")
def short_listops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """6,000 expressions of 4 to 30 tokens, and the share of the most frequent value among those of the test."""
    folder = tmp_path_factory.mktemp("listops") / "listops"
    described, splits = make_listops(ListOps(min_length=4, max_length=30, max_depth=3), count=(6000, 400, 400))
    write_examples(folder, described, splits)
    return folder, float(np.bincount(splits["test"].labels).max() / 400)


@pytest.fixture(scope="module")
def some_images(real: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 of the JPEG subset of CIFAR-10 for training, 500 of its test set."""
    pytest.importorskip("PIL.Image", reason="Pillow is the extra vision")
    place = tmp_path_factory.mktemp("jpeg")
    for name, every in (("train30k", 20), ("test6k", 12)):
        with tarfile.open(real(f"cifar10-jpeg-{name}.tar.xz")) as tar:
            for number, member in enumerate(one for one in tar if one.isfile()):
                if number % every == 0:
                    tar.extract(member, place / "raw", filter="data")
    assert entry(["data", "image", str(place / "raw"), "--valid", "100", "--out", str(place / "cifar")]) == 0
    return place / "cifar"


def accuracy(folder: Path, out: Path, task: str, model: str, *settings: str) -> float:
    torch.set_num_threads(1)
    run = recipe(task, model, "small")
    run = replace(run, data=replace(run.data, folder=str(folder)))
    run = fit_to_data(with_overrides(run, ("train.eval_every=0", "train.save_every=0", *settings)))
    summary: dict[str, Any] = train_classifier(run, out, quiet=True).summary
    return summary["held_out"]["test"]["accuracy"]


@pytest.mark.parametrize("model", ["hgrn2", "hgrn1", "transformer"])
def test_listops(model: str, short_listops: tuple[Path, float], tmp_path: Path) -> None:
    folder, chance = short_listops
    settings = ("train.steps=200", "data.multiple=8", "train.sequence_length=32")
    assert accuracy(folder, tmp_path / "run", "listops", model, *settings) > chance + 0.12


@pytest.mark.parametrize("model", ["hgrn2", pytest.param("hgrn1", marks=pytest.mark.full)])
def test_images(model: str, some_images: Path, tmp_path: Path) -> None:
    """Ten classes; JPEG CIFAR-10, a twentieth of it."""
    settings = (
        "train.steps=60",
        "train.batch_size=32",
        "optim.lr=3e-3",
        "model.layers=2",
        "data.augment.label_smoothing=0",
    )
    assert accuracy(some_images, tmp_path / "run", "cifar10", model, *settings) > 0.2


@pytest.fixture(scope="module")
def short_curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dots and curves of two dashes in 16 x 16 pixels: on one of them? 56 % are not."""
    folder = tmp_path_factory.mktemp("curves") / "curves"
    drawn = Pathfinder(size=16, dashes=2, start_distance=3, distractors=0)
    write_examples(folder, *make_pathfinder(drawn, count=(5000, 100, 600)))
    return folder


CURVES = ("train.steps=150", "model.layers=2", "train.average=0.9", "data.curriculum.steps=0", "optim.lr=3e-3")


@pytest.mark.parametrize("task", ["pathfinder", pytest.param("pathx", marks=pytest.mark.full)])
def test_short_curves(task: str, short_curves: Path, tmp_path: Path) -> None:
    """In both recipes for curves."""
    assert accuracy(short_curves, tmp_path / "run", task, "hgrn2", *CURVES) > 0.85


# The others take one to three minutes each.


@pytest.mark.full
def test_text(real: Callable[[str], Path], tmp_path: Path) -> None:
    """Good or bad, by the first 256 bytes of a review."""
    for name, size in (("train", "15k"), ("test", "5k")):
        (tmp_path / f"imdb-{name}.jsonl.xz").symlink_to(real(f"imdb-{name}{size}.jsonl.xz").resolve())
    assert entry(["data", "lra", "text", "--source", str(tmp_path), "--out", str(tmp_path / "text")]) == 0
    settings = ("train.steps=600", "train.sequence_length=256")
    found = accuracy(tmp_path / "text", tmp_path / "run", "text", "hgrn2", *settings)
    assert found > 0.57  # half would be chance; the standard error of 5,000 reviews is 0.007


@pytest.mark.full
def test_retrieval(tmp_path: Path) -> None:
    """Two passages of one article or of two; every article here has words of its own."""
    random = np.random.default_rng(0)
    articles = []
    for number in range(60):
        own = ["".join(map(chr, random.integers(97, 123, 4))) for _ in range(6)]
        words = random.choice([*own, "the", "of", "and"], 3000)
        articles.append(json.dumps({"title": str(number), "text": " ".join(words)}))
    (tmp_path / "articles.jsonl").write_text("\n".join(articles))
    command = ["data", "lra", "retrieval", "--source", str(tmp_path / "articles.jsonl"), "--count", "800", "50", "200"]
    assert entry([*command, "--out", str(tmp_path / "pairs")]) == 0
    settings = ("train.steps=300", "train.batch_size=16", "train.sequence_length=128")
    assert accuracy(tmp_path / "pairs", tmp_path / "run", "retrieval", "hgrn2", *settings) > 0.6


@pytest.mark.full
def test_pixels(some_images: Path, tmp_path: Path) -> None:
    """Ten classes, each image 1,024 steps."""
    settings = ("train.steps=80", "train.batch_size=16")
    assert accuracy(some_images, tmp_path / "run", "image", "hgrn2", *settings) > 0.17


@pytest.mark.full
def test_short_curves_by_hgrn1(short_curves: Path, tmp_path: Path) -> None:
    assert accuracy(short_curves, tmp_path / "run", "pathfinder", "hgrn1", *CURVES) > 0.85


@pytest.mark.full
def test_longer_curves_after_shorter_ones(tmp_path: Path) -> None:
    """The small form of the table: five dashes and distractors, learned by way of two, three and four."""
    write_examples(tmp_path / "curves", *make_pathfinder(small(), count=(20_000, 500, 2000), easy=6000))
    assert accuracy(tmp_path / "curves", tmp_path / "run", "pathfinder", "hgrn2") > 0.7
