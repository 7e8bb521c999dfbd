"""`hgrn2 bench parity`: does a model of flash-linear-attention compute here what it computes there?"""

from dataclasses import dataclass
from pathlib import Path

from hgrn2.bench.parity_settings import ParityBench
from hgrn2.cli.bench import Folder, flat, run_bench


@flat
@dataclass(frozen=True, kw_only=True)
class BenchParity(ParityBench):
    """Build HGRN2 of flash-linear-attention with random weights, read what it saves, and compare logits and tokens.

    Needs a GPU and hgrn2[bench] with flash-linear-attention.

    Example: hgrn2 bench parity --layers 2 --tokens 64
    """

    out: Folder = Path("results")
    """The folder whose parity.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import parity

        run_bench(lambda record, progress: parity.measure(self, record, progress), self.out, self.json)
