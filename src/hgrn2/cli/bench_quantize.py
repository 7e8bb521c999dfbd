"""`hgrn2 bench quantize`: what weights in eight or four bits cost and give."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2.bench.quantize_settings import QuantizeBench
from hgrn2.cli.bench import Folder, flat, run_bench


@flat
@dataclass(frozen=True, kw_only=True)
class BenchQuantize(QuantizeBench):
    """A trained model in float32, bfloat16, int8 and int4: nats/token on held-out text, decoding speed, bytes.

    One sequence, greedy; all precisions take turns. The text is the held-out part of the run's own data unless given.

    Example: hgrn2 bench quantize runs/demo
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: that of the run)")] = None
    """The folder of a prepared corpus, or a text or JSONL file (also .xz, .gz, .zst)."""
    out: Folder = Path("results")
    """The folder whose quantize.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import quantize
        from hgrn2.cli.eval_options import EvalOptions
        from hgrn2.generate.loading import load

        loaded = load(self.model, "cpu", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
        corpus = EvalOptions(model=self.model, data=self.data).corpus(loaded)
        run_bench(
            lambda record, progress: quantize.measure(self.model, corpus, self, record, progress), self.out, self.json
        )
