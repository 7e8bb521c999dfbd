"""Image files become arrays: every entry decoded, in order, by several threads, into files that memory maps."""

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from hgrn2.data.image_files import Entry, class_folders, folder_entries, tar_entries, tars_in
from hgrn2.data.image_sets import Labelled
from hgrn2.data.read_image import BadImage, DecodedImage, pillow, quiet, read_image
from hgrn2.errors import UserError
from hgrn2.progress import Progress
from hgrn2.settings import refuse, settings

LARGEST = 16_384
"""Pixels of a side that images are resized to, at most."""


@settings
class ImageConfig:
    """How a set of images is prepared."""

    size: int = 0
    """Side of the square images: the shorter side is resized, the middle cut out. 0: as they are, all alike."""
    channels: Literal[0, 1, 3] = 0
    """1: grey, 3: colour; 0: what the set has (colour for files of image folders)."""
    valid: int = -1
    """Training images that become the split valid where the set has none; -1: `valid_share` of them; 0: none."""
    valid_share: float = 1 / 15
    """At most 5,000 images."""
    corrupt: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: end it all, or be left out and counted."""
    seed: int = 0
    """Decides which training images become valid."""
    workers: int = 1
    """Threads that decode."""

    def __post_init__(self) -> None:
        refuse(not 0 <= self.size <= LARGEST, f"size must be from 0 to {LARGEST:,}, not {self.size}")
        refuse(self.valid < -1, f"valid must be a number of images, not {self.valid}")
        refuse(not 0.0 <= self.valid_share < 1.0, f"valid_share must lie in [0, 1), not {self.valid_share}")
        refuse(self.workers < 1, f"workers must be at least 1, not {self.workers}")
        refuse(self.seed < 0, f"seed must not be negative, not {self.seed}")


@dataclass(kw_only=True)
class Found:
    """A set that was read, before its validation split is cut."""

    task: str
    origin: str
    classes: tuple[str, ...]
    splits: dict[str, Labelled]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)


class Files(NamedTuple):
    """The image files of a source."""

    source: Path
    folder: list[Entry] | None
    """All of them, where they lie in class folders."""
    tars: list[Path]
    known: bool
    """Whether the tars bear the name that was looked for."""

    @property
    def lossy(self) -> bool:
        """Whether they are JPEG files, as far as names tell; tars are looked into at their first image."""
        first = self.folder[0] if self.folder else next(tar_entries(self.tars), None)
        return first is not None and first.name.lower().endswith((".jpg", ".jpeg"))


def image_files(source: Path, pattern: str) -> Files:
    """Find class folders, or tars whose name fits `pattern`, or any tars; a `UserError` where there are none."""
    if class_folders(source):
        return Files(source, folder_entries(source), [], False)
    tars = tars_in(source, pattern)
    known = pattern != "*" and bool(tars)
    tars = tars or tars_in(source)
    refuse(not tars, f"{source} holds neither train/CLASS/ folders of images nor tars of them")
    return Files(source, None, tars, known)


def decoded(task: str, files: Files, config: ImageConfig, scratch: Path, progress: Progress) -> Found:
    """Decode everything.

    Raises:
        UserError: no training images, classes that another split lacks, sizes that differ, unreadable images where
            they are not to be skipped.
    """
    pillow()  # a missing one is told before the work
    if files.folder is not None:
        class_names(_labels_by_split(files.folder), files.source)
    entries, total = (files.folder, len(files.folder)) if files.folder is not None else (tar_entries(files.tars), 0)
    found = Found(task=task, origin=f"image files of {files.source.name}", classes=(), splits={})
    with quiet(), contextlib.ExitStack() as open_files:
        rows: dict[str, Rows] = {}
        for entry, image in _kept(entries, total, files.source, config, found, progress):
            if entry.split not in rows:
                rows[entry.split] = Rows(open_files.enter_context(tempfile.TemporaryFile(dir=scratch)))
            rows[entry.split].add(image.pixels, entry.label)
        found.classes = class_names({split: set(some.labels) for split, some in rows.items()}, files.source)
        number = {name: n for n, name in enumerate(found.classes)}
        found.splits = {split: some.mapped(number) for split, some in rows.items()}
    return found


def _kept(
    entries: Iterable[Entry], total: int, source: Path, config: ImageConfig, found: Found, progress: Progress
) -> Iterator[tuple[Entry, DecodedImage]]:
    """Decode and check; what is left out or converted is counted in `found`."""
    shape: tuple[int, ...] | None = None
    wanted = config.channels or 3
    for done, (entry, image) in enumerate(_images(entries, config.size, wanted, config.workers)):
        if done % 64 == 0:
            progress(f"decoding {source}", done, max(total, done))
        if isinstance(image, BadImage):
            hint = "; --corrupt skip leaves such images out"
            refuse(config.corrupt == "stop", f"{entry.name} cannot be read: {image}{hint}")
            found.skipped.setdefault(entry.split, []).append(entry.name)
            continue
        shape = shape or image.pixels.shape
        if image.pixels.shape != shape:
            height, width = image.pixels.shape[:2]
            raise UserError(
                f"{entry.name} is {width} × {height}, images before it are {shape[1]} × {shape[0]}: "
                "give them one size with --size"
            )
        if image.channels != wanted:
            found.converted[entry.split] = found.converted.get(entry.split, 0) + 1
        yield entry, image


def _labels_by_split(entries: list[Entry]) -> dict[str, set[str | int]]:
    found: dict[str, set[str | int]] = {}
    for entry in entries:
        found.setdefault(entry.split, set()).add(entry.label)
    return found


def class_names(labels: dict[str, set[str | int]], source: Path) -> tuple[str, ...]:
    """The classes, sorted, from the labels that each split has; every split must have those of train.

    Numbers name the classes 0 to the largest of train; another split may lack some, but not go beyond.
    """
    refuse(not labels.get("train"), f"{source} has no training images (train/CLASS/... or train*.tar)")
    train = labels["train"]
    numbers = [label for label in train if isinstance(label, int)]
    if numbers:
        refuse(len(numbers) != len(train), f"{source} mixes class folders and numbered classes")
        for split, found in labels.items():
            wrong = next((label for label in sorted(found, key=str) if label not in range(max(numbers) + 1)), None)
            refuse(wrong is not None, f"{source}: {split} has the label {wrong}, outside 0 to {max(numbers)} of train")
        return tuple(str(n) for n in range(max(numbers) + 1))
    for split, found in labels.items():
        missing, beyond = sorted(map(str, train - found)), sorted(map(str, found - train))
        refuse(bool(missing), f"{source}: {split} has no images of class {', '.join(missing[:3])}, which train has")
        refuse(bool(beyond), f"{source}: {split} has the class {', '.join(beyond[:3])}, which train lacks")
    return tuple(sorted(map(str, train)))


class Rows:
    """Images of one split as they come, in a file without a name that vanishes with them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.labels: list[str | int] = []
        self.shape: tuple[int, ...] = ()

    def add(self, pixels: np.ndarray, label: str | int) -> None:
        """One image more, of the same shape as those before."""
        self.shape = pixels.shape
        self.stream.write(pixels.tobytes())
        self.labels.append(label)

    def mapped(self, number: dict[str, int]) -> Labelled:
        """All images, mapped, and their labels as numbers; the mapping outlives the stream."""
        self.stream.flush()
        images = np.memmap(self.stream, dtype=np.uint8, mode="r+", shape=(len(self.labels), *self.shape))
        return Labelled(images, np.array([number[str(label)] for label in self.labels], dtype=np.int64))


def _images(
    entries: Iterable[Entry], size: int, channels: int, workers: int
) -> Iterator[tuple[Entry, DecodedImage | BadImage]]:
    """Decode in threads (Pillow frees the interpreter while it does), a few ahead; order is kept."""

    def one(entry: Entry) -> DecodedImage | BadImage:
        try:
            return read_image(entry.data, size, channels)
        except BadImage as error:
            return error

    ahead: deque[tuple[Entry, Future[DecodedImage | BadImage]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for entry in entries:
                ahead.append((entry, pool.submit(one, entry)))
                if len(ahead) > 8 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
