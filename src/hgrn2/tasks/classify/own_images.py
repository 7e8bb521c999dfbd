"""A run for one's own folder of images: what a recipe takes for granted of its data set is taken from the folder."""

from dataclasses import replace
from math import gcd
from pathlib import Path

from hgrn2.data.classes import open_examples
from hgrn2.settings import refuse
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.recipes import Size, recipe

MOST_PATCHES, LEAST_PATCHES = 256, 16
"""Of an image: more are slow on a CPU, fewer see too little."""


def own_image_run(folder: Path, model: str, size: Size) -> ClassifyRun:
    """The recipe of small images for the images of a folder that `hgrn2 data image` made.

    Patches divide the images into at most 256 parts where their sides allow it. A batch has at most a quarter of the
    training examples. Where there is no test split the last measurement is on valid.
    """
    opened = open_examples(folder)
    splits = opened.manifest["splits"]
    refuse("valid" not in splits, f"{folder} has no split 'valid'; make it anew with hgrn2 data image ... --valid N")
    train = opened.split("train")
    refuse(train.a_offsets is not None, f"{folder} holds sequences, not images; see hgrn2 train classify or lra")
    height, width = train.a.shape[1:3]
    run = recipe("cifar10", model, size)
    patch = patch_of(height, width)
    batch = max(1, min(run.train.batch_size, len(train) // 4))
    return replace(
        run,
        task=folder.name,
        model=replace(run.model, image_size=max(height, width), patch=patch),
        data=replace(run.data, test_split="test" if "test" in splits else "valid"),
        train=replace(
            run.train, batch_size=batch, sequence_length=(height // patch) * (width // patch),
            keep_best=size == "small",
        ),
    )  # fmt: skip


def patch_of(height: int, width: int) -> int:
    """Side of the patches of such images: the smallest that divides both sides into at most 256 patches together,
    or a smaller one where these would be fewer than 16."""
    common = gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    patches = {side: (height // side) * (width // side) for side in sides}
    few = [side for side in sides if patches[side] <= MOST_PATCHES]
    if few and patches[few[0]] >= LEAST_PATCHES:
        return few[0]
    more = [side for side in sides if patches[side] >= LEAST_PATCHES]
    return more[-1] if more else sides[0]
