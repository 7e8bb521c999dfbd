"""What a run would take, found before anything starts and without a GPU: memory and traffic of one process, step time.

Memory: sizes of weights, gradients, optimiser states and of what blocks keep come from the code of the run itself, on
tensors without memory in a process group that only claims to have members (`hgrn2.parallel.rehearsal`); what is in use
for a moment is arithmetic. Traffic and time are arithmetic (`hgrn2.parallel.traffic`).

    step = max(products / matrix + bytes / copied + exchanges that are waited for,   gathering and summing of weights)

is a roofline: products at the rate of a large one, all other work at the speed of a copy, gathering behind it. The
bytes are those of blocks that are not compiled; others need less: an estimate of what is possible, no strict bound.
What a measured step loses against it is said in docs/distributed.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hgrn2.models.count import flops_per_token
from hgrn2.models.fitting import parameter_bytes
from hgrn2.ops.linear_cross_entropy.chunked import CHUNK_BYTES, chunk_tokens
from hgrn2.parallel import rehearsal
from hgrn2.parallel.machine import H200, Machine
from hgrn2.parallel.ranks import Ranks
from hgrn2.parallel.rehearsal import Kept
from hgrn2.parallel.traffic import Traffic, Weights, traffic
from hgrn2.train.config import RunConfig
from hgrn2.train.fitting import whole_logits
from hgrn2.train.optim import Optimizers

ADAMW_PASSES = 28
"""Bytes of a step of AdamW for each parameter: weight, gradient and two states read, all but the gradient written."""
FITS = 0.9
"""Of a GPU's memory that a plan may take; the rest is for what the allocator and libraries hold."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of the first process; others have as much or a little less."""

    run: RunConfig
    machine: Machine
    parameters: int
    """Of the whole model."""
    memory: dict[str, float]
    """Bytes by what holds them; all of them together are the peak."""
    traffic: tuple[Traffic, ...]
    seconds: dict[str, float]
    """Of a step by what takes them."""

    @property
    def peak(self) -> float:
        """Bytes of all at once."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the GPU has so much, with some left for the allocator."""
        return self.peak <= FITS * self.machine.memory

    @property
    def step_s(self) -> float:
        """Seconds of a step by the roofline."""
        own = {name: value for name, value in self.seconds.items() if name != HIDDEN}
        return max(sum(own.values()), self.seconds[HIDDEN])

    @property
    def tokens_per_s(self) -> float:
        """Of all processes together."""
        return self.run.train.tokens_per_step / self.step_s

    @property
    def mfu(self) -> float:
        """Share of the measured matrix rate that the model's operations would be at that speed."""
        flops = flops_per_token(self.run.model, training=True, tokens=self.run.train.sequence_length // 2)
        return flops * self.tokens_per_s / self.run.parallel.ranks / self.machine.matrix


HIDDEN = "weights and gradients exchanged, behind the rest"


def plan(run: RunConfig, machine: Machine = H200) -> Plan:
    """What `run` would take on so many GPUs as its `parallel` settings say."""
    train, parallel, bfloat16 = run.train, run.parallel, run.train.precision == "bfloat16"
    rows = train.batch_size // (train.accumulate * parallel.data)
    length = train.sequence_length // parallel.context
    with rehearsal.rehearsed(parallel) as ranks:
        model = rehearsal.spread_model(run.model, ranks, bfloat16=bfloat16)
        weights, largest = rehearsal.weights_of(model, bfloat16=bfloat16)
        pieces, states = rehearsal.bytes_of(model), Optimizers(model, run.optim).planned_bytes()
        kept = _kept(run, ranks, rows, length)
    memory = {"weights": pieces, "gradients": pieces, "optimiser states": states}
    sets = bool(train.average) + train.keep_best
    memory |= {"averaged and best weights": sets * pieces} if sets else {}
    memory |= {"activations that blocks keep": kept.kept, "backward of one block": kept.largest}
    memory |= _passing(run, weights, largest) | {"logits and loss": _loss_bytes(run, rows * length)}
    sent = traffic(run.model, parallel, weights, rows=rows, length=length, parts=train.accumulate, bfloat16=bfloat16)
    moved = ADAMW_PASSES * pieces / 4 + train.accumulate * 4 * (kept.kept + (kept.largest if _again(run) else 0))
    waits, hidden = (
        sum(one.sent / _speed(one, machine) for one in sent if one.hidden is flag) for flag in (False, True)
    )
    seconds = {
        "products": _operations(run, rows * length * train.accumulate) / machine.matrix,
        "memory traffic": moved / machine.copied, "exchanges that are waited for": waits, HIDDEN: hidden,
    }  # fmt: skip
    return Plan(
        run=run, machine=machine, parameters=parameter_bytes(run.model, 1), traffic=tuple(sent), seconds=seconds,
        memory={name: float(count) for name, count in memory.items()},
    )  # fmt: skip


def _kept(run: RunConfig, ranks: Ranks, rows: int, length: int) -> Kept:
    bfloat16 = run.train.precision == "bfloat16"
    return rehearsal.activations(
        run.model, ranks, rows=rows, length=length, bfloat16=bfloat16, recompute=run.train.recompute
    )


def _again(run: RunConfig) -> bool:
    return run.train.recompute == "block"


def _passing(run: RunConfig, weights: Weights, largest: int) -> dict[str, float]:
    """Weights that are gathered for a while, and gradients before they are cut: of the block at work and the next one,
    and of what stands around blocks from the forward to the end. Autocast of one process keeps copies of all matrices
    instead."""
    if run.parallel.ranks == 1:
        return {"copies of matrices in bfloat16": weights.blocks / 2 if run.train.precision == "bfloat16" else 0.0}
    blocks = weights.gathered if run.parallel.sharded == 1 else 3 * largest
    return {
        "weights while gathered": blocks + weights.around,
        "gradients before they are cut": 2 * 2 * largest + 2 * weights.around,
    }


def _loss_bytes(run: RunConfig, tokens: int) -> float:
    """Logits whole, in float32 and with their gradient; or those of a chunk, and the gradient of the head."""
    model, width = run.model, 2 if run.train.precision == "bfloat16" else 4
    classes = _classes(run)
    if whole_logits(run.train, model.vocab_size) and classes == model.vocab_size:
        return tokens * classes * (width + 8.0)
    import torch

    dtype = torch.bfloat16 if width == 2 else torch.float32
    chunk = min(tokens, chunk_tokens(classes, dtype, 2 * CHUNK_BYTES))
    return 2.0 * chunk * classes * width + classes * model.width * (4 + width) + 4 * tokens * model.width


def _classes(run: RunConfig) -> int:
    """Of the vocabulary that one process computes: `tensor` cuts it where it divides."""
    classes, tensor = run.model.vocab_size, run.parallel.tensor
    return classes if classes % tensor else classes // tensor


def _operations(run: RunConfig, tokens: int) -> float:
    """Of this process for so many tokens: those of the model, what is computed again, and of slices of sequences the
    state of each (`hgrn2.parallel.scan`)."""
    model, train, parallel = run.model, run.train, run.parallel
    head = 3 * 2 * model.vocab_size * model.width
    blocks = flops_per_token(model, training=True, tokens=train.sequence_length // 2) - head
    if train.recompute == "block":
        blocks += blocks // 3
    elif train.recompute == "glu":
        blocks += 2 * 3 * model.width * model.glu_width * model.layers
    if parallel.context > 1:
        blocks += 2 * 2 * model.width * model.mixer.head_size * model.layers
    return tokens * (head * _classes(run) / model.vocab_size + blocks / parallel.tensor)


def _speed(one: Traffic, machine: Machine) -> float:
    return machine.link if one.span <= machine.gpus else machine.network


def that_fits(run: RunConfig, machine: Machine = H200) -> Plan:
    """The plan that computes least again among those that fit, else the one that needs least memory."""
    found = None
    for recompute in ("none", "glu", "block"):
        found = plan(replace(run, train=replace(run.train, recompute=recompute)), machine)
        if found.fits:
            break
    assert found is not None
    return found


def lines(found: Plan) -> Iterator[tuple[str, str, str]]:
    """(heading, what, value) of a plan, for a table."""
    from hgrn2.memory import readable
    from hgrn2.units import rate

    for what, count in found.memory.items():
        yield "memory of one process", what, readable(round(count))
    limit = readable(round(found.machine.memory))
    yield "memory of one process", f"peak ({found.machine.name} has {limit})", readable(round(found.peak))
    for one in found.traffic:
        where = "NVLink" if one.span <= found.machine.gpus else "network"
        yield "sent by one process per step", f"{one.what} ({where})", readable(round(one.sent))
    for what, seconds in found.seconds.items():
        yield "step, by the roofline", what, f"{1e3 * seconds:.1f} ms"
    yield "step, by the roofline", "together", f"{1e3 * found.step_s:.1f} ms"
    yield "step, by the roofline", "speed of all processes", rate(found.tokens_per_s)
    yield "step, by the roofline", "share of the measured matrix rate", f"{100 * found.mfu:.0f} %"
