"""How many processes share a run, and what each of them has; no torch here, so that the command line starts quickly."""

from typing import Any

from hgrn2.layers.config import KINDS
from hgrn2.settings import refuse, settings

CONTEXT_KINDS = ("hgru2", "hgru1", "hgru1_real", "gla", "mamba2", "attention")
"""Kinds of mixers whose whole way along the sequence goes through `layers.operators`."""
TENSOR_KINDS = ("hgru2", "hgru1", "hgru1_real", "gla", "attention")
"""Kinds of mixers that `parallel.tensor` knows how to cut."""


@settings
class ParallelConfig:
    """One model on data · context · tensor processes, which torchrun starts; 1 each is one process alone."""

    data: int = 1
    """Parts of a batch: so many groups of processes read different sequences."""
    shard: int = 0
    """Processes over which weights, gradients and optimiser states are cut (FSDP); the others hold copies of that. It
    divides data · context; 0: over all of those; 1: every process has all (but for what `tensor` cuts)."""
    tensor: int = 1
    """Processes that share the heads of each mixer and the hidden width of each gated linear unit."""
    context: int = 1
    """Processes that share each sequence, a slice of it each."""
    wait_s: float = 600.0
    """Seconds to wait for another process, at the start and in any step, before it counts as lost."""
    share_gpu: bool = False
    """All processes of a machine compute on its first GPU and exchange by way of the CPU (gloo): slow, to try a layout
    where there is one GPU."""

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "context"):
            refuse(getattr(self, name) < 1, f"parallel.{name} is {getattr(self, name)}; it must be at least 1")
        refuse(self.wait_s <= 0, f"parallel.wait_s is {self.wait_s}; it must be positive")
        refuse(self.shard < 0, f"parallel.shard is {self.shard}; it must not be negative")
        readers = self.data * self.context
        refuse(
            self.shard > 0 and readers % self.shard != 0,
            f"parallel.shard {self.shard} does not divide data · context, {self.data} · {self.context}",
        )

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.data * self.context * self.tensor

    @property
    def sharded(self) -> int:
        """Processes over which weights are cut."""
        return self.shard or self.data * self.context


def check_parallel(parallel: ParallelConfig, model: Any, *, batch: int, parts: int, tokens: int) -> None:
    """Refuse a model and a batch that do not divide among the processes, before anything starts.

    Args:
        model: settings of a stack (`hgrn2.models.config.StackConfig`).
        batch, parts: sequences of a step, and accumulation parts into which each process cuts its own.
        tokens: of one sequence.

    Raises:
        UserError: names the setting that does not divide, or the kind of mixer that is not offered.
    """
    rows, cuts = divmod(batch, parallel.data * parts)
    refuse(
        cuts != 0,
        f"batch_size {batch} does not divide into parallel.data {parallel.data} times accumulate {parts} parts",
    )
    refuse(
        tokens % parallel.context != 0,
        f"sequence_length {tokens} does not divide into parallel.context {parallel.context} slices of {rows} sequences",
    )
    for mixer in model.kinds.values():
        if parallel.context > 1:
            refuse_context(mixer)
        if parallel.tensor > 1:
            refuse_tensor(mixer, model.width, parallel.tensor)
    width = model.glu_width
    refuse(width % parallel.tensor != 0, f"glu_width {width} does not divide by parallel.tensor {parallel.tensor}")
    refuse(
        model.norm == "batch" and parallel.ranks > 1,
        "norm batch takes its statistics over a whole batch, of which a process has a part: choose another norm",
    )


def refuse_context(mixer: Any) -> None:
    """Refuse settings of a mixer that cannot work on slices of a sequence, by name."""
    offered = ", ".join(CONTEXT_KINDS)
    refuse(mixer.kind not in CONTEXT_KINDS, f"parallel.context is offered for {offered}, not for {mixer.kind}")
    refuse(mixer.direction != "causal", f"parallel.context needs direction causal, not {mixer.direction}")


def refuse_tensor(mixer: Any, width: int, ranks: int) -> None:
    """Refuse settings of a mixer whose channels or heads cannot be shared by so many processes, by name."""
    offered = ", ".join(TENSOR_KINDS)
    refuse(mixer.kind not in TENSOR_KINDS, f"parallel.tensor is offered for {offered}, not for {mixer.kind}")
    refuse(mixer.direction != "causal", f"parallel.tensor needs direction causal, not {mixer.direction}")
    heads = width // mixer.head_size
    what, number = (f"{heads} heads", heads) if KINDS[mixer.kind].heads else (f"width {width}", width)
    refuse(number % ranks != 0, f"{what} of {mixer.kind} do not divide by parallel.tensor {ranks}")
