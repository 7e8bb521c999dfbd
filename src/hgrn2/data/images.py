"""Sets of images become folders of examples: published files, class folders and tars, whatever they are made of.

Images that are decoded one by one go through a file without a name beside the result, so memory stays small; the
result is then written from it, which needs twice the memory until that is done.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from hgrn2.data.classes import Described, Examples
from hgrn2.data.image_decoding import Files, Found, ImageConfig, decoded, image_files
from hgrn2.data.image_sets import CIFAR10, DIGITS, FASHION, Labelled, find_cifar10, read_cifar10, read_idx_set
from hgrn2.progress import Progress
from hgrn2.settings import refuse

NAMES = ("cifar10", "fashion-mnist", "mnist", "imagenet")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's mode L
JPEG_CIFAR = "cifar10-jpeg-*"


def image_examples(
    name: str, source: Path, config: ImageConfig, *, scratch: Path, progress: Progress
) -> tuple[Described, dict[str, Examples]]:
    """Read a set as examples, for `write_examples`.

    Args:
        name: one of `NAMES`, or whatever a folder or tar of image files shall be called.
        source: the folder or file where it lies.
        scratch: a folder on the disk where the result will be.
    """
    refuse(not source.exists(), f"{source} does not exist")
    if name == "imagenet" and not config.size:
        config = replace(config, size=224)
    found = _read(name, source, config, scratch, progress)
    settings = {**asdict(config), "skipped": {k: len(v) for k, v in found.skipped.items()}}
    settings["converted"] = found.converted
    del settings["workers"], settings["valid_share"]  # the first changes nothing; what the second gave is said below
    if "valid" not in found.splits:
        found.splits, settings["valid"] = _with_valid(found, config)
    mean, std = _moments(found.splits["train"].images)
    settings |= {"mean": mean, "std": std}
    order = [split for split in ("train", "valid", "test") if split in found.splits]
    splits = {split: Examples(a=found.splits[split].images, labels=found.splits[split].labels) for split in order}
    described = Described(
        task=found.task, classes=found.classes, vocab_size=256, origin=found.origin, seed=config.seed, settings=settings
    )
    return described, splits


def _read(name: str, source: Path, config: ImageConfig, scratch: Path, progress: Progress) -> Found:
    if name in ("mnist", "fashion-mnist"):
        progress(f"reading {source}", 0, 1)
        title, classes = ("MNIST", DIGITS) if name == "mnist" else ("Fashion-MNIST", FASHION)
        splits = read_idx_set(source)
        return _in_memory(
            Found(task=name, origin=_counted(title, splits, 70_000), classes=classes, splits=splits), config
        )
    place = find_cifar10(source) if name == "cifar10" else None
    if place is not None:
        progress(f"reading {place}", 0, 1)
        splits = read_cifar10(place)
        origin = _counted("CIFAR-10, binary version", splits, 60_000)
        return _in_memory(Found(task=name, origin=origin, classes=CIFAR10, splits=splits), config)
    files = image_files(source, JPEG_CIFAR if name == "cifar10" else "*")
    found = decoded(name, files, config, scratch, progress)
    if name == "cifar10":
        _name_cifar(found, source, files)
    elif name == "imagenet":
        found.origin = f"ImageNet layout, {found.origin}"
    return found


def _name_cifar(found: Found, source: Path, files: Files) -> None:
    """Say what a CIFAR-10 of image files is: a lossy copy must not be taken for the set itself."""
    refuse(found.classes != CIFAR10, f"{source} is not CIFAR-10: its classes are {', '.join(found.classes)[:200]}")
    if files.lossy:
        quality = "lossy quality-75 JPEG" if files.known else "lossy JPEG"
        trained = len(found.splits["train"].labels)
        part = "all training images" if trained == 50_000 else f"{trained:,} of the 50,000 training images"
        found.task = "JPEG CIFAR-10"
        found.origin = f"JPEG CIFAR-10: {quality}, {part}, not comparable with published CIFAR-10"


def _counted(title: str, splits: dict[str, Labelled], published: int) -> str:
    count = sum(len(split.labels) for split in splits.values())
    return title if count == published else f"{title}, {count:,} images instead of {published:,}"


def _in_memory(found: Found, config: ImageConfig) -> Found:
    """Bring a published set to the wished channels; its images have one size already."""
    for split, (images, labels) in found.splits.items():
        side, had = images.shape[1], images.shape[3]
        refuse(
            config.size not in (0, side),
            f"{found.task} has images of {side} × {side}; --size resizes image files only",
        )
        if config.channels not in (0, had):
            found.converted[split] = len(images)
            images = _grey(images) if config.channels == 1 else np.repeat(images, 3, axis=3)
        found.splits[split] = Labelled(images, labels)
    return found


def _grey(images: np.ndarray) -> np.ndarray:
    out = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    for start in range(0, len(images), 4096):
        out[start : start + 4096, ..., 0] = np.rint(images[start : start + 4096] @ LUMA)
    return out


def _with_valid(found: Found, config: ImageConfig) -> tuple[dict[str, Labelled], int]:
    """Cut the split valid from train, of each class its share; both keep their order."""
    images, labels = found.splits["train"]
    count = min(5000, round(len(labels) * config.valid_share)) if config.valid < 0 else config.valid
    if count == 0:
        return found.splits, 0
    refuse(count >= len(labels), f"{count:,} images for valid leave none of {len(labels):,} to train on")
    order = np.random.default_rng(config.seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # Even steps along the classes, one after the other: each gives its share, rounded up or down.
    chosen = np.sort(order[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)])
    keep = np.setdiff1d(np.arange(len(labels)), chosen)
    valid = Labelled(np.array(images[chosen]), labels[chosen])
    return {**found.splits, "train": Labelled(_kept(images, keep), labels[keep]), "valid": valid}, count


def _kept(images: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The rows `keep`, ascending; of a mapped file moved forward in place, so that it never stands in memory."""
    if not isinstance(images, np.memmap):
        return images[keep]
    for start in range(0, len(keep), 1024):
        rows = keep[start : start + 1024]
        images[start : start + len(rows)] = images[rows]
    return images[: len(keep)]


def _moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel in [0,1], of at most 10,000 images evenly taken."""
    total, squares, count = 0.0, 0.0, 0
    for rows in np.array_split(np.unique(np.linspace(0, len(images) - 1, 10_000).astype(np.int64)), 40):
        pixels = images[rows].reshape(-1, images.shape[3]).astype(np.float64) / 255
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return np.round(mean, 6).tolist(), np.round(np.sqrt(squares / count - mean**2), 6).tolist()
