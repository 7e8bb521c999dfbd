"""`hgrn2 bench serve`: a server with a saved model under load, over real HTTP on this machine."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2.bench.serve_settings import ServeBench
from hgrn2.cli.bench import Folder, flat, run_bench


@flat
@dataclass(frozen=True, kw_only=True)
class BenchServe(ServeBench):
    """Tokens/s, time to the first token, gaps between tokens and memory of `hgrn2 serve`, beside a plain generate loop.

    The server runs in a process of its own, the clients in this one; both share the machine's cores.

    Example: hgrn2 bench serve runs/demo --streams 1 16 64 --seconds 5
    """

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Folder = Path("results")
    """The folder whose serve.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import serve
        from hgrn2.generate.loading import load

        loaded = load(self.source, "cpu", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
        run_bench(lambda record, progress: serve.measure(loaded, self, record, progress), self.out, self.json)
