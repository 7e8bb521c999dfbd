"""`hgrn2 data lra TASK`: the data of the Long Range Arena, generated or read, as one folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hgrn2.settings import refuse

Flag = tyro.conf.FlagCreatePairsOff[bool]
Task = Literal["listops", "pathfinder", "pathx", "text", "retrieval"]


@dataclass(frozen=True, kw_only=True)
class Lra:
    """Make the data of a Long Range Arena task: listops, pathfinder, pathx (generated), text, retrieval (from files).

    The same seed gives the same data whatever the number of workers.

    Example: hgrn2 data lra listops --out data/listops --workers 8
    """

    task: tyro.conf.Positional[Task]
    """Which task."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """text: a folder with imdb-train*.jsonl* and imdb-test*.jsonl*. retrieval: a folder with AAN's *.train.tsv,
    *.eval.tsv, *.test.tsv, or a .jsonl file of articles for a stand-in."""
    count: tuple[int, ...] = ()
    """Examples of train, valid and test, or of train alone; the published numbers when absent."""
    workers: int = 1
    """Processes that generate."""
    seed: int = 0
    """Decides what is generated."""
    json: Flag = False
    """Print the manifest as JSON."""

    def run(self) -> None:
        from hgrn2.cli.progress import progress_shown
        from hgrn2.data.classes import write_examples

        refuse(self.out.exists(), f"{self.out} already exists; it is not overwritten")
        refuse(self.seed < 0, f"seed must not be negative, not {self.seed}")
        with progress_shown() as progress:
            described, splits = self._made(progress)
            manifest = write_examples(self.out, described, splits)
        if self.json:
            print(json.dumps(manifest, indent=2, ensure_ascii=False))
            return
        print(f"{self.out}: {described.task}, {described.origin}")
        for name, examples in splits.items():
            shares = " ".join(
                f"{label} {(examples.labels == n).mean():.1%}" for n, label in enumerate(described.classes)
            )
            print(f"  {name:<6}{len(examples):>8,} examples   {shares}")

    def _made(self, progress: Any) -> Any:
        from hgrn2.tasks.lra import listops, pathfinder, texts

        generated: dict[str, Any] = {"seed": self.seed, "count": self.count or None}
        if self.task == "listops":
            return listops.make_listops(listops.ListOps(), **generated, workers=self.workers, progress=progress)
        if self.task in ("pathfinder", "pathx"):
            settings = pathfinder.pathx() if self.task == "pathx" else pathfinder.pathfinder()
            return pathfinder.make_pathfinder(
                settings, task=self.task, **generated, workers=self.workers, progress=progress
            )
        source = self.source
        if source is None:
            refuse(True, f"{self.task} is read from files: name them with --source")
        assert source is not None
        progress(f"reading {source}", 0, 1)
        if self.task == "retrieval" and not source.is_dir():
            return texts.make_stand_in(source, **generated)
        refuse(bool(self.count), f"--count is for generated data, not for {self.task} from files")
        refuse(not source.is_dir(), f"{source} is not a folder")
        return (texts.make_text if self.task == "text" else texts.make_retrieval)(source, seed=self.seed)
