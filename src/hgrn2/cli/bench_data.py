"""`hgrn2 bench data`: how fast text is prepared, by one process and by several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2.bench.data_settings import DataBench
from hgrn2.cli.bench import Folder, flat, run_bench


@flat
@dataclass(frozen=True, kw_only=True)
class BenchData(DataBench):
    """Preparing text with one process and with several: bytes of text a second, both readings and writing included.

    Each preparation is a process of its own; they take turns. Other programs on the machine spoil the numbers.

    Example: hgrn2 bench data articles.jsonl.xz --tokenizer gpt2/ --processes 1 2 4
    """

    inputs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="INPUT [INPUT ...]")]]
    """As of hgrn2 data prepare."""
    out: Folder = Path("results")
    """The folder whose data.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import data

        run_bench(lambda record, progress: data.measure(list(self.inputs), self, record, progress), self.out, self.json)
