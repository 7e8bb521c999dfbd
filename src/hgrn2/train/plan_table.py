"""Plans of the large presets on 8, 64 and 512 GPUs, as a table in Markdown: `hgrn2 train lm --plan-table` prints it."""

from collections.abc import Iterator, Sequence

from hgrn2.memory import readable
from hgrn2.models.presets import preset
from hgrn2.parallel.config import ParallelConfig
from hgrn2.train.config import RunConfig, TrainConfig
from hgrn2.train.plan import HIDDEN, Plan, that_fits
from hgrn2.units import short

PRESETS = ("hgrn2_1.3b", "hgrn2_3b", "hgrn2_7b")
SEQUENCES = {8: 16, 64: 16, 512: 4}
"""Of one GPU in a step, by the number of GPUs: the batch of the whole step stays one that people train with."""
TOKENS = 2048
HEAD = ("model", "GPUs", "batch", "recompute", "weights and states", "peak", "NVLink", "network", "step", "tokens/s")


def run_of(name: str, gpus: int) -> RunConfig:
    """Weights are cut inside of a machine, and machines hold copies."""
    parallel = ParallelConfig(data=gpus, shard=8)
    train = TrainConfig(
        sequence_length=TOKENS, batch_size=gpus * SEQUENCES[gpus], precision="bfloat16", compile_blocks=True
    )
    return RunConfig(model=preset(name), train=train, parallel=parallel)


def plans(names: Sequence[str] = PRESETS, gpus: Sequence[int] = tuple(SEQUENCES)) -> Iterator[Plan]:
    """Each with the least recomputation that fits."""
    return (that_fits(run_of(name, number)) for name in names for number in gpus)


def row(found: Plan, name: str) -> str:
    """A line of the table."""
    run, machine = found.run, found.machine
    states = sum(found.memory[one] for one in ("weights", "gradients", "optimiser states"))
    near, far = (sum(one.sent for one in found.traffic if (one.span > machine.gpus) is flag) for flag in (False, True))
    behind = " (exchanges)" if found.seconds[HIDDEN] >= found.step_s else ""
    cells = (
        name, run.parallel.ranks, f"{run.train.batch_size:,} x {run.train.sequence_length:,}", run.train.recompute,
        readable(round(states)), readable(round(found.peak)) + ("" if found.fits else " (too much)"),
        readable(round(near)), readable(round(far)) if far else "–", f"{1e3 * found.step_s:.0f} ms{behind}",
        short(found.tokens_per_s),
    )  # fmt: skip
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def markdown(names: Sequence[str] = PRESETS, gpus: Sequence[int] = tuple(SEQUENCES)) -> str:
    """The whole table."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    shown = iter(plans(names, gpus))
    lines += [row(next(shown), name) for name in names for _ in gpus]
    return "\n".join(lines) + "\n"
