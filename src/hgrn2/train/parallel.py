"""A run on several processes, which torchrun starts: how they find each other, and what the trainer asks of them.

Every process goes through the same steps. The global batch of a step is cut into data · accumulate parts, as one
process would cut it, so that another number of processes sees the same data in the same order; what a step draws at
random is decided by (seed, step, reader). Decisions that depend on a clock, a signal or a measurement are made once and
told to all. The first process prints, and writes what all have alike.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.block import Block
from hgrn2.layers.operators import WHOLE
from hgrn2.models.saved import Model, checkpoints
from hgrn2.parallel import sharding
from hgrn2.parallel.config import ParallelConfig
from hgrn2.parallel.ranks import Ranks
from hgrn2.settings import refuse
from hgrn2.train import checkpoint
from hgrn2.train.alone import Alone
from hgrn2.train.checkpoint import Checkpoint
from hgrn2.train.config import Run
from hgrn2.train.shared_checkpoint import Saver, digest
from hgrn2.train.task import Task


@contextmanager
def started(config: ParallelConfig, device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other processes; in the end, or on an error, leave them.

    Args:
        device: auto, cpu or cuda; of several GPUs each process takes the one of its local rank.

    Raises:
        UserError: torchrun did not start this process, another number of them, or nobody answers.
    """
    world = _started_by_torchrun(config)
    gpu = device != "cpu" and (device != "auto" or torch.cuda.is_available())
    number = 0 if config.share_gpu else int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", number) if gpu else torch.device("cpu")
    if gpu:
        visible = torch.cuda.device_count()
        refuse(place.index >= visible, f"local rank {place.index} has no GPU: {visible} are visible here")
        torch.cuda.set_device(place)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        backend = "cpu:gloo,cuda:nccl" if gpu and not config.share_gpu else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=config.wait_s))
    except (dist.DistError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"the {world} processes did not meet at {where} within {config.wait_s:g} s ({reason}): see that all "
            "of them were started, and that this address can be reached from every machine"
        ) from None
    try:
        yield Ranks(config, place), place
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _started_by_torchrun(config: ParallelConfig) -> int:
    found = os.environ.get("WORLD_SIZE")
    line = f"torchrun --nproc-per-node {config.ranks} -m hgrn2 {' '.join(sys.argv[1:])}".rstrip()
    refuse(
        found is None or "RANK" not in os.environ,
        f"parallel.data {config.data} x context {config.context} x tensor {config.tensor} are {config.ranks} "
        f"processes, which torchrun starts: {line}",
    )
    refuse(
        int(found or 1) != config.ranks,
        f"torchrun started {found} processes, but parallel.data {config.data} x context {config.context} x tensor "
        f"{config.tensor} are {config.ranks}",
    )
    return config.ranks


def refuse_strangers(ranks: Ranks, **what: str) -> None:
    """Refuse to train together where a process has other settings, data or code than the first one: each is a text
    whose hash is compared."""
    mine = torch.tensor([list(digest(text)) for text in what.values()], dtype=torch.uint8)
    everything = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everything, mine)
    for rank, theirs in enumerate(everything):
        wrong = [
            name for name, one, first in zip(what, theirs, everything[0], strict=True) if not torch.equal(one, first)
        ]
        refuse(bool(wrong), f"process {rank} has other {' and '.join(wrong)} than the first one")


class Together(Alone):
    """One of several processes that train one model."""

    def __init__(self, ranks: Ranks, run: Run, model: Model) -> None:
        self.ranks, self.seed = ranks, run.train.seed
        self.random = any(getattr(model.config, name, 0) for name in ("dropout", "drop_path"))
        self.saver = Saver(ranks, timedelta(seconds=ranks.config.wait_s))
        self.first, self.count = ranks.first, ranks.config.ranks
        self._reader = ranks.data * ranks.config.context + ranks.context

    def compile_blocks(self, model: nn.Module) -> None:
        """What the blocks compute between what they exchange."""
        sharding.compile_blocks(model)

    def begin(self, step: int) -> None:
        """What a step draws depends on nothing before it; processes of one tensor group draw the same."""
        if self.random:
            text = digest(str(self.seed), str(step), str(self._reader))
            torch.manual_seed(int.from_bytes(text[:7], "little"))

    def batch(self, task: Task, step: int, part: int, parts: int) -> Any:
        """This reader's share of the global batch, and of each sequence its slice."""
        whole = task.batch(step, self.ranks.data * parts + part, self.ranks.config.data * parts)
        if self.ranks.config.context == 1:
            return whole
        inputs, targets, cu_seqlens = whole
        return self.ranks.slice(inputs), self.ranks.slice(targets), cu_seqlens

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """By the norm of the whole gradient."""
        return self.ranks.clip(model.named_parameters(), limit)

    def parameters(self, model: nn.Module) -> int:
        """Of all processes together, copies counted once."""
        return sum(math.prod(self.ranks.shape(name, parameter)) for name, parameter in model.named_parameters())

    def mean(self, loss: Tensor) -> Tensor:
        """Over all readers; a wait for them."""
        return self.ranks.mean(loss)

    def all_rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put together in the order of the rows of a batch."""
        found = {}
        for name, mine in tensors.items():
            everything = [torch.empty_like(mine) for _ in range(self.ranks.config.data)]
            dist.all_gather(everything, mine)
            found[name] = torch.cat(everything)
        return found

    def own_rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of this process."""
        return {name: whole.chunk(self.ranks.config.data)[self.ranks.data] for name, whole in tensors.items()}

    def agreed(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether anyone wants to stop, and the longest time."""
        said = torch.tensor([float(stop), seconds], dtype=torch.float64)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said[0]), float(said[1])

    def all_of(self, fine: bool) -> bool:
        """Whether it holds in every process."""
        said = torch.tensor(float(fine))
        dist.all_reduce(said, dist.ReduceOp.MIN)
        return bool(said)

    def first_says(self, value: float) -> float:
        """The first process's number, to the bit."""
        said = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said)

    @contextmanager
    def measuring(self, model: nn.Module) -> Iterator[None]:
        """Mixers read whole sequences again, all processes the same ones."""
        mixers: list[Any] = [module.mixer for module in model.modules() if isinstance(module, Block)]
        before = [mixer.operators for mixer in mixers]
        for mixer in mixers:
            mixer.operators = WHOLE
        try:
            yield
        finally:
            for mixer, own in zip(mixers, before, strict=True):
                mixer.operators = own

    def newest(self, folder: Path, model: Model, needs: tuple[str, ...]) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that the first process finds whole; every process reads its pieces."""
        problems: list[str] = []
        step = -1
        if self.first:
            found, problems = checkpoint.newest_verified(folder)
            step = -1 if found is None or found.step is None else found.step
        step = int(self.first_says(step))
        if step < 0:
            return None, problems
        place = next(found.folder for found in checkpoints(folder) if found.step == step)
        return checkpoint.read(place, model, needs, self.ranks), problems

    def save(
        self, folder: Path, step: int, model: Model, optimizer: dict[str, Tensor], values: dict[str, Any], keep: int
    ) -> Path:
        """All processes write, in the background."""
        return self.saver.save(folder, step, model, optimizer, values, keep)

    def wait(self) -> None:
        """Until all processes have written."""
        self.saver.wait()

    def whole(self, model: Model, task: Task, folder: Path) -> Model:
        """A model of its own for the first process, with the weights of the last checkpoint."""
        from hgrn2.models.tensor_files import open_weights

        made, newest = task.model(), checkpoints(folder)[-1].folder
        with open_weights(newest) as file:
            made.load_state_dict({name: file.get(name) for name in made.state_dict()})
        return made


def quiet() -> None:
    """Nothing more on standard output, in a process that has nothing to say."""
    sys.stdout.flush()
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
