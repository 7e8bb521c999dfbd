"""The examples of a table: found ready, generated, or made from files of the user's; once for all runs of a task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrn2.data.classes import Described, Examples, ImageStream, fill, open_examples
from hgrn2.data.lra.parallel import EASY
from hgrn2.errors import UserError
from hgrn2.files import atomic_folder
from hgrn2.progress import Progress
from hgrn2.reproduce.plan import RunSpec

Made = tuple[Described, Mapping[str, Examples | ImageStream]]
SMALL_COUNTS: dict[str, tuple[int, int, int]] = {
    "listops": (8000, 500, 500),
    "pathfinder": (20_000, 500, 2000),
    "pathx": (200, 50, 50),
    "retrieval": (2000, 200, 200),
}
"""Examples of the small tables' generated data; published numbers in the full ones."""
EASY_COUNTS = {
    "fast": {"listops": 400_000, "pathfinder": 200_000, "pathx": 60_000},
    "small": {"pathfinder": 6000},
}
"""Easier examples, which runs of these tables begin with."""
FILES = {
    "cifar10": "CIFAR-10's binary version (cifar-10-binary.tar.gz) or JPEG files (cifar10-jpeg-*)",
    "fashion-mnist": "fashion-mnist/train-images-idx3-ubyte.gz and its three companions",
    "imagenet": "imagenet/train and imagenet/val, folders by class or tars",
}
"""What sets of images are read from."""


@dataclass(frozen=True)
class Source:
    """Where the examples of a task come from."""

    folder: Path
    """Where they lie, or will."""
    make: Callable[[Progress], Made] | None = None
    """None where they are there."""
    missing: str = ""
    """Why there are none; empty where there are, or can be."""

    @property
    def state(self) -> str:
        """For people."""
        if self.missing:
            return f"no data: {self.missing}"
        return f"{'to be made' if self.make else 'ready'}: {self.folder}"


def find(spec: RunSpec, out: Path, data: Path | None, workers: int = 1) -> Source:
    """The source of a run's examples: a prepared folder of the task's name in `data`, what an earlier call made in
    `out`, the generator, or files in `data`, in this order."""
    name = f"{spec.task}-{spec.size}" if spec.size == "small" or _easy(spec) else spec.task
    for ready in ([] if data is None else [data / name, data / spec.task]) + [out / "data" / name]:
        if (ready / "manifest.json").is_file() and (not _easy(spec) or EASY in open_examples(ready).manifest["splits"]):
            return Source(ready)
    made = out / "data" / name
    if spec.task in ("listops", "pathfinder", "pathx"):
        return Source(made, lambda progress: _generated(spec, workers, progress))
    reader, wanted = _reader(spec, data, out)
    if data is None:
        return Source(made, missing=f"give --data with a folder that holds {wanted}")
    return Source(made, reader, "" if reader else f"{data} holds no {wanted}")


def _easy(spec: RunSpec) -> int:
    """How many easier examples the runs need."""
    return EASY_COUNTS.get(spec.size, {}).get(spec.task, 0)


def prepare(source: Source, progress: Progress) -> Path:
    """Make the examples where they are not there yet; the folder appears when it is complete."""
    if source.missing:
        raise UserError(source.missing)
    if source.make is not None and not (source.folder / "manifest.json").is_file():
        with atomic_folder(source.folder) as folder:
            fill(folder, *source.make(progress))
    return source.folder


def difference(folder: Path) -> str:
    """How the examples differ from the published ones, as their manifest says it."""
    opened = open_examples(folder)
    counts = " / ".join(f"{split['count']:,}" for split in opened.manifest["splits"].values())
    return f"{opened.described.origin}; {counts} examples"


def _generated(spec: RunSpec, workers: int, progress: Progress) -> Made:
    from hgrn2.data.lra import listops, pathfinder, pathfinder_settings

    small = spec.size == "small"
    count = SMALL_COUNTS[spec.task] if small else None
    options: dict[str, Any] = {"count": count, "workers": workers, "easy": _easy(spec)}
    if spec.task == "listops":
        # Short expressions: whoever knows that a list's kind decides its value is right far more often than by chance.
        settings = listops.ListOps(min_length=4, max_length=60, max_depth=4) if small else listops.ListOps()
        return listops.make_listops(settings, **options, progress=progress)
    settings = pathfinder_settings.pathx() if spec.task == "pathx" else (
        pathfinder_settings.small() if small else pathfinder_settings.pathfinder())  # fmt: skip
    return pathfinder.make_pathfinder(settings, task=spec.task, **options, progress=progress)


def _reader(spec: RunSpec, data: Path | None, out: Path) -> tuple[Callable[[Progress], Made] | None, str]:
    """What reads a task's files in `data`, None where they are not there; and which files it needs."""
    if spec.task == "text":
        return _text(data), "imdb-train*.jsonl* and imdb-test*.jsonl*"
    if spec.task == "retrieval":
        files = "AAN's *.train.tsv, *.eval.tsv, *.test.tsv, or wiki-en-train.jsonl* for a stand-in"
        return _retrieval(data, spec.size), files
    name = {"image": "cifar10"}.get(spec.task, spec.task)
    return _images(name, data, out), FILES[name]


def _images(name: str, data: Path | None, out: Path) -> Callable[[Progress], Made] | None:
    """A folder of the set's name in `data`; CIFAR-10's files, which cannot be taken for another set's, also there."""
    places = [] if data is None else [data / name, data]
    patterns = {
        "cifar10": ("cifar-10-binary.tar*", "cifar-10-batches-bin", "data_batch_1.bin", "cifar10-jpeg-*"),
        "fashion-mnist": ("train-images*",),
        "imagenet": ("train*",),
    }[name]
    found = [place for place in places[: 2 if name == "cifar10" else 1] if any(map(any, map(place.glob, patterns)))]
    if not found:
        return None

    def read(progress: Progress) -> Made:
        from hgrn2.data.images import ImageConfig, image_examples

        scratch = out / "data"
        scratch.mkdir(parents=True, exist_ok=True)
        return image_examples(name, found[0], ImageConfig(), scratch=scratch, progress=progress)

    return read


def _text(data: Path | None) -> Callable[[Progress], Made] | None:
    if not _all(data, "imdb-train*.jsonl*", "imdb-test*.jsonl*"):
        return None
    assert data is not None

    def read(progress: Progress) -> Made:
        from hgrn2.data.lra import texts

        progress(f"reading {data}", 0, 1)
        return texts.make_text(data)

    return read


def _retrieval(data: Path | None, size: str) -> Callable[[Progress], Made] | None:
    pairs = _all(data, "*.train.tsv", "*.eval.tsv", "*.test.tsv")
    articles = [] if data is None else sorted(data.glob("wiki-en-train.jsonl*"))
    if not pairs and not articles:
        return None
    assert data is not None

    def read(progress: Progress) -> Made:
        from hgrn2.data.lra import texts

        progress(f"reading {data}", 0, 1)
        if pairs:
            return texts.make_retrieval(data)
        return texts.make_stand_in(articles[0], count=SMALL_COUNTS["retrieval"] if size == "small" else None)

    return read


def _all(data: Path | None, *patterns: str) -> bool:
    return data is not None and all(any(data.glob(pattern)) for pattern in patterns)
