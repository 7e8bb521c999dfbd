"""A sheet of images beside their arrays, so that a person can look."""

from pathlib import Path

import numpy as np

from hgrn2.data.classes import open_examples
from hgrn2.data.png import sheet, write_png


def write_sheet(folder: Path) -> Path:
    """Write samples.png into a folder of grey images: four rows of eight, those with label 0 in the left half."""
    examples = open_examples(folder).split("train")
    chosen = np.full((4, 8), -1)
    for label in range(2):
        found = np.flatnonzero(examples.labels == label)[:16]
        chosen[:, 4 * label : 4 * label + 4].flat[: len(found)] = found
    picked = chosen.reshape(-1)  # -1: there are fewer of that label
    images = np.where(picked[:, None, None] < 0, 0, examples.a[picked.clip(0), :, :, 0]).astype(np.uint8)
    path = Path(folder) / "samples.png"
    write_png(path, sheet(images, columns=8, scale=max(1, 128 // images.shape[1])))
    return path
