"""`hgrn2 data image NAME|PATH`: sets of images as one folder of arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hgrn2 import console
from hgrn2.settings import refuse

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Image:
    """Make the data of an image classifier from published files, class folders or tars.

    cifar10: the binary version (folder or .tar.gz), or image files. mnist, fashion-mnist: the four IDX files, plain or
    .gz. imagenet, or the path of a folder or tar: train/CLASS/..., val/CLASS/... and test/CLASS/..., in folders or in
    tars, or tars of NAME.jpg with the number of its class in NAME.cls. Nothing appears at --out before it is complete.

    Example: hgrn2 data image fashion-mnist --source downloads/fashion --out data/fashion
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME|PATH")]]
    """cifar10, fashion-mnist, mnist, imagenet, or the path of a folder or tar of image files."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Where a named set lies."""
    size: int = 0
    """Side of the images: the shorter side is resized to it, the middle cut out. 0: as they are (imagenet: 224)."""
    channels: Literal[0, 1, 3] = 0
    """1: grey, 3: colour; others are converted and counted. 0: what the set has, colour for image files."""
    valid: int = -1
    """Training images that become `valid` where the set has none; -1: a fifteenth, at most 5,000; 0: none."""
    corrupt: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: end it all, or be left out and counted."""
    workers: int = 1
    """Threads that decode; they change nothing in the result."""
    seed: int = 0
    """Decides which training images become `valid`."""
    json: Flag = False
    """Print the manifest as JSON."""

    def run(self) -> None:
        from hgrn2.cli.progress import progress_shown
        from hgrn2.data.classes import fill
        from hgrn2.data.image_decoding import ImageConfig
        from hgrn2.data.images import image_examples
        from hgrn2.files import atomic_folder

        config = ImageConfig(
            size=self.size, channels=self.channels, valid=self.valid, corrupt=self.corrupt, seed=self.seed,
            workers=self.workers,
        )  # fmt: skip
        name, source = self._named()
        with progress_shown() as progress, atomic_folder(self.out) as folder:
            described, splits = image_examples(name, source, config, scratch=folder, progress=progress)
            progress(f"writing {self.out}", 0, 1)
            manifest = fill(folder, described, splits)
        if self.json:
            return console.print_json(manifest)
        print(f"{self.out}: {described.task}, {described.origin}")
        for split, examples in splits.items():
            _, height, width, channels = examples.a.shape
            print(f"  {split:<6}{len(examples):>10,} images of {width} × {height} × {channels}")
        print(f"  {len(described.classes)} classes: {', '.join(described.classes)[:100]}")
        for word, counts in (("unreadable and left out", "skipped"), ("of other channels, converted", "converted")):
            for split, count in described.settings[counts].items():
                print(f"  {split:<6}{count:>10,} {word}")

    def _named(self) -> tuple[str, Path]:
        from hgrn2.data.images import NAMES

        if self.name in NAMES:
            refuse(self.source is None, f"say with --source where the files of {self.name} lie; nothing is downloaded")
            assert self.source is not None
            return self.name, self.source
        path = Path(self.name)
        refuse(self.source is not None, f"--source is for {', '.join(NAMES)}; {self.name} is a path itself")
        refuse(not path.exists(), f"{self.name} is none of {', '.join(NAMES)}, and no such folder or tar exists")
        return path.absolute().name, path
