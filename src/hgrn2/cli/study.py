"""`hgrn2 study`: controlled comparisons, each with its rows, its table and its figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2 import console
from hgrn2.cli.bench import Folder, flat
from hgrn2.cli.progress import progress_shown
from hgrn2.reproduce.recall_settings import MQARStudy

if TYPE_CHECKING:
    from hgrn2.reproduce.recall import Point


@flat
@dataclass(frozen=True, kw_only=True)
class StudyMQAR(MQARStudy):
    """Recall against the size of the state: every model, size, learning rate and seed is a run of its own.

    The same command goes on where it stopped, and finished runs are skipped; more values on the same folder add runs.
    Writes cells/ with the runs, table.md and recall.png.

    Example: hgrn2 study mqar --out runs/recall --models hgrn2-conv gla-conv --head-sizes 4 16 64
    Example: hgrn2 study mqar --out runs/zoology --recipe zoology --models hgrn2 hgrn2-conv hgrn1 gla attention
      --head-sizes 16 32 64 128 --widths 128 256 --lrs 1e-3 3.2e-3 1e-2 --seeds 0 1 2 --device cuda
    Example: hgrn2 study mqar --out runs/recall-h100 --recipe h100 --collect runs/mqar/*
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the study, new or of this one."""
    results: Folder = Path("results")
    """The folder whose mqar.jsonl gets the rows."""
    device: str = "auto"
    """auto, cpu or cuda."""
    collect: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")] = ()
    """Train nothing: make rows, table and figure of these finished folders of `hgrn2 train mqar`, wherever they were
    trained. Of the settings above only --recipe is read, the name that the rows get."""
    json: bool = False
    """Print the best run of every model and size as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C."""
        from hgrn2.files import write_text
        from hgrn2.reproduce import recall as mqar
        from hgrn2.reproduce.recall_collect import collect
        from hgrn2.reproduce.recall_plot import draw
        from hgrn2.rows import append, prepare_folder
        from hgrn2.settings import to_dict

        prepare_folder(self.results)
        if self.collect:
            collect(self.collect, self.out, self.recipe, lambda row: append(self.results, row))
            complete = True
        else:
            with progress_shown() as progress:
                complete = mqar.run_study(
                    self, self.out, lambda row: append(self.results, row), device=self.device, progress=progress
                )
        points = mqar.best(mqar.finished(self.out))
        write_text(self.out / "table.md", mqar.markdown(points))
        figure = draw(points, self.out)
        if self.json:
            console.print_json({"complete": complete, "points": [to_dict(point) for point in points]}, indent=None)
            return 0 if complete else 130
        _show(points)
        hint = "" if figure else " (figures need matplotlib: pip install 'hgrn2[plot]')"
        print(f"{self.out / 'table.md'}{f', {figure}' if figure else hint}")
        if not complete:
            print("stopped; the same command goes on from there")
        return 0 if complete else 130


def _show(points: "list[Point]") -> None:
    from hgrn2.reproduce.recall import columns

    head = ("model", "D", "n", "state", "weights", "lr", "seeds", *(points[0].accuracy if points else ()))
    title = "Accuracy by tokens x pairs, mean over seeds"
    console.show(console.Columns(head, [columns(point) for point in points], title=title, frame=False))
