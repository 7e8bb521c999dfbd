"""What `hgrn2 bench distributed` measures, as frozen values; no torch here.

Every measurement is a few jobs, each a training in processes of its own, with the trainer that `hgrn2 train lm` has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from hgrn2.bench.settings import PRESETS, Device, Size
from hgrn2.models.config import ModelConfig, Recompute
from hgrn2.models.presets import preset
from hgrn2.parallel.config import ParallelConfig
from hgrn2.settings import refuse, settings, with_overrides
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig

Measurement = Literal["fsdp", "shared", "save", "large", "float8", "weak"]
Shape = Literal["374m", "1.36b", "3b", "tiny"]
TINY = Size(width=32, layers=2, head_size=8, glu_width=48, vocab_size=256)
FLOAT8 = {"cuda": "tensorwise", "cpu": "emulated"}
"""Kinds of float8 products by device; one process has them."""


@settings
class DistributedBench:
    """Training on several processes beside one, each measurement by itself."""

    device: Device = "cuda"
    """Where. On a CPU processes meet by gloo: a test of the measurements, not of their numbers."""
    measure: tuple[Measurement, ...] = ("fsdp", "shared", "save", "large", "float8", "weak")
    """fsdp: the plain trainer beside one process of torchrun; shared: losses of two processes on one GPU beside those
    of one; save: for how long writing a checkpoint stops training; large: a hundred steps of a large model, saved and
    resumed; float8: products in float8 beside bfloat16; weak: 1, 2, 4 and 8 processes, each with as many tokens, by
    data and by context."""
    sizes: tuple[Shape, ...] = ("374m", "1.36b")
    """Of fsdp; the last one is also that of save, float8 and weak, the first one that of shared."""
    large: Shape = "3b"
    """Of large; 2.9 B parameters."""
    length: int = 2048
    """Tokens of a sequence."""
    batch: int = 16
    """Sequences of a step of one process."""
    large_steps: int = 100
    """Of large, half of them before its checkpoint."""
    rounds: int = 5
    """Timed rounds of `queued` steps."""
    queued: int = 4
    """Steps of a round."""
    warmup: int = 5
    """Steps that do not count: they compile and tune."""
    compile: bool = True
    """Blocks are compiled."""
    data: str = "shakespeare"
    """The text: the embedded one, or the folder of a prepared corpus."""
    job_minutes: float = 8.0
    """What one job may take, compiling and starting included, before it is given up."""
    minutes: float = 120.0
    """For everything; jobs that do not begin by then are left for the next call."""

    def __post_init__(self) -> None:
        refuse(not self.measure, "--measure: name at least one")
        refuse(not self.sizes, "--sizes: name at least one")
        for name in ("length", "batch", "rounds", "queued", "warmup"):
            refuse(getattr(self, name) < 1, f"--{name} is {getattr(self, name)}; it must be at least 1")
        refuse(self.large_steps < 4, f"--large-steps is {self.large_steps}; it must be at least 4")
        refuse(self.job_minutes <= 0, "--job-minutes must be positive")
        refuse(self.minutes <= 0, "--minutes must be positive")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training in processes of its own."""

    measurement: Measurement
    subject: str
    """What is measured, beside the others of the measurement: plain, fsdp2, …"""
    kind: Literal["speed", "losses", "save", "long"]
    run: RunConfig
    shape: Shape
    world: int
    """Processes; 0: one, without torchrun."""

    @property
    def case(self) -> dict[str, Any]:
        """What its row says was measured; the same for all that are compared, but for the layout of weak."""
        train, parallel = self.run.train, self.run.parallel
        case = {"measurement": self.measurement, "shape": self.shape, "tokens": train.sequence_length}
        case |= {"batch": train.batch_size, "recompute": train.recompute, "compile": train.compile_blocks}
        layout = {"data": parallel.data, "context": parallel.context} if self.measurement == "weak" else {}
        return case | {"precision": train.precision, "processes": max(1, self.world)} | layout


def jobs(bench: DistributedBench, gpus: int) -> Iterator[Job]:
    """All jobs of the measurements that are asked for, in the order in which they are carried out.

    Args:
        gpus: that this machine has; of weak those sizes are left out that need more.
    """
    first, last = bench.sizes[0], bench.sizes[-1]
    for name in bench.measure:
        if name == "fsdp":
            for shape in bench.sizes:
                yield _job(bench, name, "plain", shape, world=0)
                yield _job(bench, name, "fsdp2", shape, world=1)
        elif name == "shared":
            yield from _shared(bench, first)
        elif name == "save":
            yield _job(bench, name, "fsdp2", last, world=1, kind="save")
        elif name == "large":
            half = replace(bench, batch=max(1, bench.batch // 2))
            yield _job(half, name, "fsdp2", bench.large, world=1, kind="long", recompute="block")
        elif name == "float8":
            yield _job(bench, name, "bfloat16", last, world=0)
            one = _job(bench, name, "float8", last, world=0)
            yield replace(one, run=with_overrides(one.run, (f"train.float8={FLOAT8[bench.device]}",)))
        else:
            yield from _weak(bench, last, gpus)


def _shared(bench: DistributedBench, shape: Shape) -> Iterator[Job]:
    """Small batches: the layouts are what is looked at."""
    small = replace(bench, batch=2 * max(1, bench.batch // 8), compile=False)
    yield _job(small, "shared", "plain", shape, world=0, kind="losses")
    for subject, layout in (
        ("data 2", {"data": 2}), ("data 2, copies", {"data": 2, "shard": 1}), ("tensor 2", {"tensor": 2}),
        ("context 2", {"context": 2}),
    ):  # fmt: skip
        parallel = ParallelConfig(**layout, share_gpu=True, wait_s=120.0)
        yield _job(small, "shared", subject, shape, world=2, kind="losses", parallel=parallel)


def _weak(bench: DistributedBench, shape: Shape, gpus: int) -> Iterator[Job]:
    """As many tokens for each process: more sequences, or longer ones."""
    for world in (one for one in (1, 2, 4, 8) if one <= max(1, gpus)):
        more = replace(bench, batch=bench.batch * world)
        yield _job(more, "weak", "data", shape, world=world, parallel=ParallelConfig(data=world))
        if world > 1:
            longer = replace(bench, length=bench.length * world)
            yield _job(longer, "weak", "context", shape, world=world, parallel=ParallelConfig(context=world))


def _job(
    bench: DistributedBench, measurement: Measurement, subject: str, shape: Shape, *, world: int,
    kind: Literal["speed", "losses", "save", "long"] = "speed", parallel: ParallelConfig | None = None,
    recompute: Recompute = "none",
) -> Job:  # fmt: skip
    """Documents do not reset states: offsets of another number in every step would be compiled anew."""
    train = TrainConfig(
        steps=100_000, sequence_length=bench.length, batch_size=bench.batch, recompute=recompute, spike=0.0,
        precision="bfloat16" if bench.device == "cuda" else "float32", compile_blocks=bench.compile, keep=1,
    )  # fmt: skip
    run = RunConfig(
        model=_model(shape), data=DataConfig(source=bench.data, reset_at_documents=False), train=train,
        optim=OptimConfig(lr=1e-4 if kind == "speed" else 3e-4, schedule="constant", warmup_steps=10),
        parallel=parallel or ParallelConfig(),
    )  # fmt: skip
    return Job(measurement=measurement, subject=subject, kind=kind, run=run, shape=shape, world=world)


def _model(shape: Shape) -> ModelConfig:
    if shape == "3b":
        return preset("hgrn2_3b")
    return (TINY if shape == "tiny" else PRESETS[shape]).config()
