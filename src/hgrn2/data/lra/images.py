"""The Image task of the Long Range Arena: CIFAR-10 read pixel by pixel, in grey as published, or in colour.

Examples stay images: a classifier of sequences reads their pixels row by row (1,024 tokens).
"""

from dataclasses import replace
from pathlib import Path

from hgrn2.data.classes import Described, Examples
from hgrn2.data.image_decoding import ImageConfig
from hgrn2.data.images import image_examples
from hgrn2.progress import Progress


def make_image(
    source: Path,
    *,
    grey: bool = False,
    seed: int = 0,
    scratch: Path,
    progress: Progress,
    workers: int = 1,
) -> tuple[Described, dict[str, Examples]]:
    """CIFAR-10 as `hgrn2 data image cifar10` reads it; a tenth of the training images becomes valid (5,000 of 50,000
    in the published task, 3,000 of 30,000 of the JPEG subset).

    Args:
        source: where CIFAR-10 lies: its binary version, or image files.
        grey: one channel (ITU-R 601 weights) instead of three.
        scratch: a folder on the disk where the result will be.
    """
    config = ImageConfig(channels=1 if grey else 3, valid_share=0.1, seed=seed, workers=workers)
    described, splits = image_examples("cifar10", source, config, scratch=scratch, progress=progress)
    task = "image-grey" if grey else "image"
    return replace(described, task=task, origin=f"LRA Image of {described.origin}"), splits
