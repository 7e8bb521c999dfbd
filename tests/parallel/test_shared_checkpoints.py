"""Checkpoints that several processes write: any other layout and one process go on from them; damage is told."""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import load_model
from hgrn2.parallel.config import ParallelConfig
from hgrn2.parallel.ranks import Ranks
from hgrn2.train import checkpoint
from hgrn2.train.best import BestWeights
from hgrn2.train.config import OptimConfig
from hgrn2.train.optim import Optimizers
from hgrn2.train.shared_checkpoint import Saver, staged

CONFIG = ModelConfig(
    vocab_size=17, width=12, layers=2, glu_width=24, mixer=MixerConfig(head_size=2, conv_width=3), tie_embeddings=True,
)  # fmt: skip
STEPS, SAVED = 6, 3
TRAINER: dict[str, Any] = {"elapsed_s": 1.0, "guard": {"accepted": [], "high": 0}, "data": "x"}
LAYOUTS = {
    "sharded": ParallelConfig(data=2), "copies": ParallelConfig(data=2, shard=1), "tensor": ParallelConfig(tensor=2),
    "context": ParallelConfig(context=2),
}  # fmt: skip


class Training:
    """A model with its optimiser, in one process or in one of several."""

    def __init__(self, layout: ParallelConfig | None, optimizer: str) -> None:
        torch.manual_seed(3)
        self.model = LanguageModel(CONFIG).double()
        self.ranks = None if layout is None else ranks_of(layout)
        if self.ranks is not None:
            self.ranks.spread(self.model)
        self.optimizers = Optimizers(self.model, OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]
        self.best = BestWeights(self.model)

    def step(self, number: int) -> Tensor:
        """One update; the loss of the whole batch before it."""
        torch.manual_seed(100 + number)
        tokens, targets = torch.randint(17, (2, 4, 8))
        ranks = self.ranks
        if ranks is not None:
            rows = 4 // ranks.config.data
            tokens, targets = (ranks.slice(x[ranks.data * rows :][:rows]) for x in (tokens, targets))
        loss = self.model.loss(tokens, targets)
        loss.backward()
        self.optimizers.step()
        return loss.detach() if ranks is None else ranks.mean(loss)

    def read(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        found = checkpoint.read(folder, self.model, ranks=self.ranks)
        checkpoint.apply(found, self.model)
        self.optimizers.load_tensors(self.best.load(found.optimizer))

    def losses(self) -> list[float]:
        return [float(self.step(number)) for number in range(SAVED, STEPS)]


@functools.cache
def ranks_of(layout: ParallelConfig) -> Ranks:
    return Ranks(layout, torch.device("cpu"))


@functools.cache
def saver_of(layout: ParallelConfig) -> Saver:
    return Saver(ranks_of(layout), timedelta(seconds=30))


def folder() -> Path:
    """Alike in all processes: the parent's."""
    return Path(os.environ["HGRN2_TEST"])


def save(optimizer: str, name: str, steps: int = SAVED) -> Training:
    """Train, save, and spoil weights and optimiser states at once: what is written is of the moment of saving."""
    training, saver = Training(LAYOUTS[name], optimizer), saver_of(LAYOUTS[name])
    for number in range(steps):
        training.step(number)
    training.best.measured(steps, 1.0)
    with torch.no_grad():
        for value in training.best.values.values():
            value += 1
    with training.best.in_place() as behind:
        tensors = training.optimizers.tensors() | behind
        best = TRAINER | {"best": training.best.state()}
        saver.save(folder() / f"{optimizer}-{name}", steps, training.model, tensors, best, keep=2)
    for value in (*training.best.own.values(), *tensors.values()):  # what is written was copied before this
        value.detach().fill_(float("nan"))
    saver.wait()
    return training


PAIRS: tuple[tuple[str, str, tuple[str | None, ...]], ...] = (
    ("adamw", "sharded", ("tensor", None)),
    ("adamw", "tensor", ("context", None)),
    ("adamw", "copies", ("sharded",)),
    ("muon", "sharded", ("copies", None)),
)
"""Optimiser, who writes, who reads; None is one process."""


def every_layout_reads_others() -> None:
    for optimizer, name, readers in PAIRS:
        alone = Training(None, optimizer)
        for number in range(SAVED):
            alone.step(number)
        wanted = alone.losses()
        save(optimizer, name)
        for other in readers:
            training = Training(None if other is None else LAYOUTS[other], optimizer)
            training.read(folder() / f"{optimizer}-{name}" / "checkpoints" / f"step-{SAVED:08d}")
            found = training.losses()
            # AdamW's first steps divide by the gradient's own size: sums in another order show.
            assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-9, (name, other, found, wanted)


def a_failed_write_is_told_everywhere() -> None:
    training, saver = save("adamw", "sharded", steps=2), saver_of(LAYOUTS["sharded"])
    own = saver._files
    if dist.get_rank() == 1:
        saver._files = lambda *_: OSError(28, "No space left on device")  # type: ignore[method-assign]
    saver.save(folder() / "failed", 5, training.model, training.optimizers.tensors(), TRAINER, keep=2)
    said = "process 1 could not write its part" if dist.get_rank() == 0 else "No space left on device"
    with pytest.raises(UserError, match=said):
        saver.wait()
    saver._files = own  # type: ignore[method-assign]
    saver.wait()


def test_memory_of_a_snapshot_is_used_again() -> None:
    kept: dict[str, Tensor] = {}
    first = staged(torch.ones(2, 3).T, "a", kept, pin=False)
    assert first.is_contiguous()
    again = staged(torch.full((3, 2), 2.0), "a", kept, pin=False)
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, torch.full((3, 2), 2.0))
    other = staged(torch.zeros(3, 2, dtype=torch.int64), "a", kept, pin=False)
    assert other.dtype == torch.int64
    assert kept["a"] is other


def test_checkpoints(ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGRN2_TEST", str(tmp_path))
    ranks(2, every_layout_reads_others, a_failed_write_is_told_everywhere, timeout_s=120)
    assert not list((tmp_path / "failed" / "checkpoints").glob("*"))
    run = tmp_path / "adamw-sharded"
    newest = run / "checkpoints" / f"step-{SAVED:08d}"

    alone = Training(None, "adamw")
    for number in range(SAVED):
        alone.step(number)
    plain = load_model(run)  # as hgrn2 generate, eval and convert do
    best = {name: value + 1 for name, value in alone.model.state_dict().items()}
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, best[name], rtol=0, atol=1e-9), name

    shard = newest / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for data, said in (
        (whole[:-3], "bytes instead of"),
        (whole[:-1] + b"\1", "its checksum differs"),
        (None, "missing"),
    ):
        shard.unlink()
        if data is not None:
            shard.write_bytes(data)
        with pytest.raises(UserError, match=said) as told:
            load_model(run)
        assert f"the newest whole checkpoint is {run / 'checkpoints' / 'step-00000002'}" in str(told.value)
        assert "\n" not in str(told.value)
        found, problems = checkpoint.newest_verified(run)
        assert found is not None
        assert found.step == 2
        assert len(problems) == 1
    shard.write_bytes(whole)
    optimizer = newest / "optimizer-00001-of-00002.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"optimizer-00001-of-00002\.safetensors is damaged"):
        checkpoint.verify(newest)
