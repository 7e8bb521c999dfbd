"""`hgrn2 data lra TASK`: the data of the Long Range Arena, generated or read, as one folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.settings import refuse, with_overrides

Flag = tyro.conf.FlagCreatePairsOff[bool]
Task = Literal["listops", "text", "retrieval", "image", "pathfinder", "pathx"]


@dataclass(frozen=True, kw_only=True)
class Lra:
    """Make the data of a Long Range Arena task.

    listops, pathfinder and pathx are generated; text, retrieval and image come from files.

    The same seed gives the same data whatever the number of workers. Pathfinder and Path-X come with a sheet of
    samples to look at.

    Example: hgrn2 data lra listops --out data/listops --workers 8
    """

    task: tyro.conf.Positional[Task]
    """Which task."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """text: a folder with imdb-train*.jsonl* and imdb-test*.jsonl*. retrieval: a folder with AAN's *.train.tsv,
    *.eval.tsv, *.test.tsv, or a .jsonl file of articles for a stand-in. listops: a folder with the published
    basic_train.tsv, basic_val.tsv, basic_test.tsv, instead of generating. image: CIFAR-10, as for `data image`."""
    grey: Flag = False
    """image: one grey channel, as published, instead of colour."""
    count: tuple[int, ...] = ()
    """Examples of train, valid and test, or of train alone; the published numbers when absent."""
    easy: int = 0
    """listops, pathfinder, pathx: so many easier examples more (shorter trees, curves of 2 to 9 dashes), as a split of
    their own that runs can begin with: data.curriculum.steps of `hgrn2 train lra`."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Settings of what is generated, such as dashes=6 (pathfinder) or max_length=200 min_length=20 (listops)."""
    workers: int = 1
    """Processes that generate."""
    seed: int = 0
    """Decides what is generated."""
    json: Flag = False
    """Print the manifest as JSON."""

    def run(self) -> None:
        from hgrn2.cli.data_classes import label_lines
        from hgrn2.cli.progress import progress_shown
        from hgrn2.data.class_info import class_info
        from hgrn2.data.classes import fill, open_examples
        from hgrn2.data.lra.pathfinder_settings import PRESETS
        from hgrn2.data.lra.samples import write_sheet
        from hgrn2.files import atomic_folder

        refuse(self.seed < 0, f"seed must not be negative, not {self.seed}")
        with progress_shown() as progress, atomic_folder(self.out) as folder:
            described, splits = self._made(progress, folder)
            manifest = fill(folder, described, splits)
            shown = write_sheet(folder).name if self.task in PRESETS else None
        if self.json:
            return console.print_json(manifest)
        info = class_info(open_examples(self.out))
        counts = ", ".join(f"{split['count']:,} {name}" for name, split in info["splits"].items())
        print(f"{self.out}: {described.task}, {described.origin}; {counts}")
        print(label_lines(info["classes"], {name: split["labels"] for name, split in info["splits"].items()}))
        if shown:
            print(f"{self.out / shown}   samples: left half apart, right half connected")

    def _made(self, progress: Any, scratch: Path) -> Any:
        from hgrn2.data.lra import listops, pathfinder, texts
        from hgrn2.data.lra.pathfinder_settings import PRESETS

        source = self.source
        generated: dict[str, Any] = {"seed": self.seed, "count": self.count or None}
        if self.task not in PRESETS and (self.task != "listops" or source is not None):
            refuse(self.easy != 0, f"--easy is for generated data, not for {self.task} from files")
        drawn = generated | {"easy": self.easy, "workers": self.workers, "progress": progress}
        if self.task in PRESETS:
            refuse(source is not None, f"{self.task} is generated; it takes no --source")
            settings = with_overrides(PRESETS[self.task](), self.set)
            return pathfinder.make_pathfinder(settings, task=self.task, **drawn)
        if self.task == "listops" and source is None:
            settings = with_overrides(listops.ListOps(), self.set)
            return listops.make_listops(settings, **drawn)
        refuse(bool(self.set), f"--set is for generated data, not for {self.task} from files")
        if source is None:
            refuse(True, f"{self.task} is read from files: name them with --source")
        assert source is not None
        if self.task == "image":
            return self._image(source, progress, scratch)
        refuse(self.grey, f"--grey is for image, not for {self.task}")
        progress(f"reading {source}", 0, 1)
        if self.task == "retrieval" and not source.is_dir():
            return texts.make_stand_in(source, **generated)
        refuse(bool(self.count), f"--count is for generated data, not for {self.task} from files")
        refuse(not source.is_dir(), f"{source} is not a folder")
        if self.task == "listops":
            return listops.read_published(source, progress=progress)
        return (texts.make_text if self.task == "text" else texts.make_retrieval)(source, seed=self.seed)

    def _image(self, source: Path, progress: Any, scratch: Path) -> Any:
        from hgrn2.data.lra.images import make_image

        refuse(bool(self.count), "--count is for generated data, not for image from files")
        return make_image(
            source, grey=self.grey, seed=self.seed, scratch=scratch, progress=progress, workers=self.workers
        )
