"""What a trainer asks of the processes that share a run; of one process, and the pattern of what several answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.models.saved import Model
from hgrn2.train import checkpoint
from hgrn2.train.checkpoint import Checkpoint
from hgrn2.train.task import Task


class Alone:
    """One process; `hgrn2.train.parallel.Together` is one of several."""

    first = True
    """Whether this process prints, and writes what all have alike."""

    count = 1
    """Processes, each with a device of its own."""

    def compile_blocks(self, model: nn.Module) -> None:
        """Compile each block of a model's backbone in place; a model without one is a `UserError`."""
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise UserError("compile_blocks needs a model with blocks of ours; use train.compile for others")
        # Texts to be classified come in many lengths; images and language models have one, for which fixed shapes are
        # built sooner, and the number of documents becomes dynamic when another one is seen.
        dynamic = True if getattr(model.config, "vocab_size", 0) and hasattr(model.config, "classes") else None
        for block in backbone.blocks:
            block.compile(dynamic=dynamic)

    def begin(self, step: int) -> None:
        """Before a step: what it draws at random."""

    def batch(self, task: Task, step: int, part: int, parts: int) -> Any:
        """This process's tensors of one of its accumulation parts of a step."""
        return task.batch(step, part, parts)

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """Scale the gradient to a norm of at most `limit`; the norm before."""
        return nn.utils.clip_grad_norm_(model.parameters(), limit)

    def parameters(self, model: nn.Module) -> int:
        """How many the whole model has."""
        return sum(parameter.numel() for parameter in model.parameters())

    def mean(self, loss: Tensor) -> Tensor:
        """The loss of a whole batch from that of this process's part."""
        return loss

    def agreed(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether anyone wants to stop, and the seconds that count."""
        return stop, seconds

    def all_rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors [rows,...] on the CPU that every process has of its own rows, those of all rows."""
        return tensors

    def own_rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The other way round."""
        return tensors

    def all_of(self, fine: bool) -> bool:
        """Whether it holds in every process."""
        return fine

    def first_says(self, value: float) -> float:
        """A number that all processes should have alike: the first one's."""
        return value

    @contextmanager
    def measuring(self, model: nn.Module) -> Iterator[None]:
        """While every process reads the same whole sequences."""
        yield

    def newest(self, folder: Path, model: Model, needs: tuple[str, ...]) -> tuple[Checkpoint | None, list[str]]:
        """As `checkpoint.newest_whole`."""
        return checkpoint.newest_whole(folder, model, needs)

    def save(
        self, folder: Path, step: int, model: Model, optimizer: dict[str, Tensor], values: dict[str, Any], keep: int
    ) -> Path:
        """Write a checkpoint, and drop all but the newest `keep`."""
        path = checkpoint.save(folder, step, model, optimizer, values)
        checkpoint.retain(folder, keep)
        return path

    def wait(self) -> None:
        """Until all that was saved is on disk."""

    def whole(self, model: Model, task: Task, folder: Path) -> Model:
        """The model that was trained, whole, for the process that measures it in the end."""
        return model


ALONE = Alone()
