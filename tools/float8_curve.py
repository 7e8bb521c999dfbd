"""The loss of one run in bfloat16 and in float8, step by step, with the speed of both: for one GPU that has float8.

python tools/float8_curve.py CORPUS --out runs/float8 [--model hgrn2_1.3b] [--steps 300] [--results results] [--set ...]

Both runs see the same data from the same first weights. Rows go to RESULTS/float8.jsonl; an interrupted call goes on.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from hgrn2.console import Columns, show
from hgrn2.models.presets import preset
from hgrn2.rows import append, measurement, prepare_folder
from hgrn2.settings import with_overrides
from hgrn2.tasks.lm.run import fit_vocabulary, train_language
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from hgrn2.train.metrics import read_metrics

POINTS = 10


def main() -> None:
    """Train twice, in bfloat16 and with linear maps in float8; print both curves and append a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", help="folder of a prepared corpus, or shakespeare")
    parser.add_argument("--out", type=Path, default=Path("runs/float8"))
    parser.add_argument("--model", default="hgrn2_1.3b")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--float8", default="tensorwise", choices=("tensorwise", "emulated"))
    parser.add_argument("--results", type=Path, help="folder of rows")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    chosen = parser.parse_args()
    if chosen.results is not None:
        prepare_folder(chosen.results)
    found = {kind: trained(chosen, kind) for kind in ("none", chosen.float8)}
    plain, rounded = (curve(metrics) for metrics in found.values())
    steps = [list(plain)[n * (len(plain) - 1) // (POINTS - 1)] for n in range(POINTS)]
    rows = [
        (f"{n}", f"{plain[n]:.4f}", f"{rounded[n]:.4f}", f"{rounded[n] - plain[n]:+.4f}") for n in dict.fromkeys(steps)
    ]
    show(Columns(("step", "bfloat16", "float8", "difference"), rows, title="training loss, mean of ten records"))
    for kind, metrics in found.items():
        values = [r for r in metrics if r["kind"] == "step"][1:]
        print(f"{kind}: {statistics.median(r['tokens_per_s'] for r in values):,.0f} tokens/s, MFU {values[-1]['mfu']}")


def trained(chosen: argparse.Namespace, kind: Any) -> list[dict[str, Any]]:
    """The log of one of the two runs."""
    train = TrainConfig(
        steps=chosen.steps, sequence_length=2048, batch_size=16, accumulate=2, precision="bfloat16",
        compile_blocks=True, log_every=1, eval_every=100, save_every=0, keep=1, float8=kind,
    )  # fmt: skip
    optim = OptimConfig(lr=3e-4, warmup_steps=50, schedule="wsd", decay_share=0.2)
    run = RunConfig(model=preset(chosen.model), data=DataConfig(source=chosen.corpus), train=train, optim=optim)
    run = fit_vocabulary(with_overrides(run, tuple(chosen.set)))
    folder = chosen.out / kind
    result = train_language(run, folder)
    metrics = read_metrics(folder / "metrics.jsonl")
    if chosen.results is not None and result.summary:
        case = {"model": chosen.model, "steps": result.step, "tokens": run.train.tokens_per_step, "float8": kind}
        steps = [r for r in metrics if r["kind"] == "step"][1:]
        details = {
            "loss": list(curve(metrics).values())[-1], "mfu": steps[-1]["mfu"], "peak_bytes": steps[-1]["memory_bytes"],
            "held_out": result.summary["held_out"]["carried state"]["nats_per_token"],
        }  # fmt: skip
        speeds = [r["tokens_per_s"] for r in steps]
        append(chosen.results, measurement("float8", case, "hgrn2", kind, speeds, "tokens/s", details))
    return metrics


def curve(metrics: list[dict[str, Any]]) -> dict[int, float]:
    """Training loss by step, each the mean of the last ten records."""
    steps = [r for r in metrics if r["kind"] == "step" and r["loss"] is not None]
    return {
        one["step"]: statistics.mean(r["loss"] for r in steps[max(0, n - 9) : n + 1]) for n, one in enumerate(steps)
    }


if __name__ == "__main__":
    main()
