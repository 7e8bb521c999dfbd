"""Checkpoints that several processes write together, in the background; as whole, checked and readable as any other.

step-00001000/  config.json  trainer.json  manifest.json
                model-00001-of-00002.safetensors …      model.safetensors.index.json
                optimizer-00001-of-00002.safetensors …  optimizer.safetensors.index.json

Each file holds whole tensors: every tensor is put together once, in the order of its name, and one process, chosen so
that all write about as much, copies it to its CPU. Then training goes on, and threads write. The first process makes
the folder under a temporary name, writes manifest.json last, from the checksums of all, and renames it: whatever stops
a process before that leaves the last good checkpoint as it was. A folder of whole tensors does not depend on how many
processes wrote it or will read it; `hgrn2 generate`, `eval` and `convert` read it too.

PyTorch's own storage of slices (`torch.distributed.checkpoint` with safetensors) is not used: without another pass its
files are no checkpoint for others, it has no mark of completion, a missing last file goes unnoticed
(pytorch/pytorch#189945), and a number among its values leaves it unreadable without an error.
"""

import hashlib
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, sha256, write_json
from hgrn2.models.saved import CONFIG, FORMAT, Model, kind_of, reported
from hgrn2.parallel.ranks import Ranks
from hgrn2.settings import to_dict
from hgrn2.train import checkpoint

SETS: tuple[str, ...] = ("model", "optimizer")
_NAME = 4096  # bytes of a folder's name, at most
_KEPT = "="  # instead of a name: a whole checkpoint of this step is there already


class Snapshot(NamedTuple):
    """What one process writes, and where everything is."""

    tensors: dict[str, dict[str, Tensor]]
    """This process's, by set and name, on the CPU."""
    places: dict[str, dict[str, int]]
    """The process that has each tensor."""
    total: dict[str, int]
    """Bytes of each set."""


class Saver:
    """Writes the checkpoints of a run from all its processes, one at a time."""

    def __init__(self, ranks: Ranks, wait: timedelta) -> None:
        self.ranks, self.world = ranks, dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=wait)  # of its own: threads wait in it
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._kept: dict[str, Tensor] = {}  # what a GPU's tensors are copied into, again and again

    def save(
        self, run: Path, step: int, model: Model, optimizer: dict[str, Tensor], trainer: dict[str, Any], keep: int
    ) -> Path:
        """Copy all that is to be written, and write it in the background; then drop all but the newest `keep`.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        self.wait()
        target = run / "checkpoints" / f"step-{step:08d}"
        taken = snapshot(self.ranks, model, optimizer, self._kept)
        arguments = (target, taken, model, trainer | {"format": checkpoint.FORMAT, "step": step}, keep)
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()
        return target

    def wait(self) -> None:
        """Until the checkpoint that is being written is complete; a failure is raised here, in every process."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, target: Path, taken: Snapshot, model: Model, trainer: dict[str, Any], keep: int) -> None:
        try:
            if self.ranks.first:
                self._lead(target, taken, model, trainer)
                checkpoint.retain(target.parent.parent, keep)
            else:
                self._follow(target, taken)
        except BaseException as error:  # told by `wait`, in the thread that trains
            self._error = error

    def _lead(self, target: Path, taken: Snapshot, model: Model, trainer: dict[str, Any]) -> None:
        """The first process: make the folder, wait for all, and give it its name."""
        told, whole = False, False
        try:
            if _kept(target):
                told = bool(self._tell(_KEPT))
            else:
                with reported(target), atomic_folder(target, replace=True) as folder:
                    told = bool(self._tell(str(folder)))
                    self._finish(folder, self._meet(self._files(folder, taken)), taken, model, trainer)
            whole = True
        finally:
            if not told:
                self._tell("")
            self._tell("whole" if whole else "")

    def _finish(
        self, folder: Path, sums: dict[str, dict[str, Any]], taken: Snapshot, model: Model, trainer: dict[str, Any]
    ) -> None:
        """Write what is no tensor; manifest.json last."""
        for name in SETS:
            write_json(folder / f"{name}.safetensors.index.json", self._index(name, taken))
        write_json(folder / "trainer.json", trainer)
        write_json(folder / CONFIG, {"format": FORMAT, "kind": kind_of(model), "model": to_dict(model.config)})
        own = {path.name: path for path in folder.iterdir() if path.suffix == ".json"}
        sums |= {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in own.items()}
        write_json(folder / "manifest.json", dict(sorted(sums.items())))

    def _follow(self, target: Path, taken: Snapshot) -> None:
        """Another process: write where the first one says, and wait until the folder has its name."""
        name, whole = self._tell(None), ""
        try:
            if name and name != _KEPT:
                with reported(target):
                    self._meet(self._files(Path(name), taken))
        finally:
            whole = self._tell(None)
        if not whole:
            raise UserError(f"{target} cannot be written: see what the first process says")

    def _files(self, folder: Path, taken: Snapshot) -> list[Path] | Exception:
        """Write this process's files; what went wrong is told after the others have been met."""
        paths = []
        try:
            for name in SETS:
                if taken.tensors[name]:
                    path = folder / self._file(name, self.ranks.rank)
                    save_file(taken.tensors[name], path)
                    paths.append(path)
        except Exception as error:
            return error
        return paths

    def _file(self, name: str, rank: int) -> str:
        return f"{name}-{rank + 1:05d}-of-{self.world:05d}.safetensors"

    def _index(self, name: str, taken: Snapshot) -> dict[str, Any]:
        places = {key: self._file(name, rank) for key, rank in taken.places[name].items()}
        return {"metadata": {"total_size": taken.total[name]}, "weight_map": dict(sorted(places.items()))}

    def _tell(self, name: str | None) -> str:
        """The first process's word to all."""
        text = torch.zeros(_NAME, dtype=torch.uint8)
        if name is not None:
            raw = name.encode()
            text[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else text[:0]
        dist.broadcast(text, 0, group=self.group)
        return bytes(text.tolist()).rstrip(b"\0").decode()

    def _meet(self, written: list[Path] | Exception) -> dict[str, dict[str, Any]]:
        """Wait for all; bytes and checksum of every file that they wrote."""
        facts = torch.zeros(1 + len(SETS) * 40, dtype=torch.uint8)
        failed = isinstance(written, Exception)
        if isinstance(written, Exception):
            facts[0] = 1
        else:
            for path in written:
                begin = 1 + 40 * next(n for n, name in enumerate(SETS) if path.name.startswith(f"{name}-"))
                raw = path.stat().st_size.to_bytes(8, "little") + bytes.fromhex(sha256(path))
                facts[begin : begin + 40] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        everything = [torch.empty_like(facts) for _ in range(self.world)]
        dist.all_gather(everything, facts, group=self.group)
        if failed:
            raise written  # type: ignore[misc]
        found = {}
        for rank, theirs in enumerate(bytes(one.tolist()) for one in everything):
            if theirs[0]:
                raise UserError(f"process {rank} could not write its part of the checkpoint: see what it says")
            for n, name in enumerate(SETS):
                one = theirs[1 + 40 * n : 41 + 40 * n]
                if size := int.from_bytes(one[:8], "little"):
                    found[self._file(name, rank)] = {"bytes": size, "sha256": one[8:].hex()}
        return found


def _kept(target: Path) -> bool:
    """Whether a whole checkpoint is there already; a damaged one makes way."""
    try:
        if os.path.lexists(target):
            checkpoint.verify(target)
            return True
    except UserError:
        pass
    return False


def staged(x: Tensor, key: str, kept: dict[str, Tensor], *, pin: bool = True) -> Tensor:
    """x on the CPU, in the memory that `kept` has for it: pinned memory, which takes long to get, is filled by a GPU at
    several times the speed of other memory. The copy may be under way still: synchronise."""
    found = kept.get(key)
    if found is None or found.shape != x.shape or found.dtype != x.dtype:
        found = kept[key] = torch.empty(x.shape, dtype=x.dtype, pin_memory=pin)
    return found.copy_(x, non_blocking=True)


def snapshot(ranks: Ranks, model: Model, optimizer: dict[str, Tensor], kept: dict[str, Tensor]) -> Snapshot:
    """Put every tensor together, and keep on the CPU those that are this process's to write; a call of all.

    Args:
        kept: memory of the snapshot before, which is used again; nobody reads it any more.
    """
    own, world = model.state_dict(), dist.get_world_size()
    numbers = {f"{checkpoint.RANDOM}{name}": value for name, value in checkpoint.random_states().items()}
    loads, places = [0] * world, {name: dict[str, int]() for name in SETS}
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in SETS}
    total = dict.fromkeys(SETS, 0)
    for name, values in (("model", own), ("optimizer", optimizer)):
        for key in sorted(values):
            if key.startswith(checkpoint.CARRIED):
                whole = values[key]  # of all rows, in every process
            else:
                parameter = key if name == "model" else checkpoint.owner(key)
                whole = ranks.whole(parameter, values[key], own[parameter])
            rank = loads.index(min(loads))
            loads[rank] += whole.nbytes
            total[name] += whole.nbytes
            places[name][key] = rank
            if rank == ranks.rank:
                on_gpu = whole.device.type == "cuda"
                tensors[name][key] = (
                    staged(whole, f"{name}/{key}", kept) if on_gpu else whole.to("cpu", copy=True).contiguous()
                )
    for key, value in numbers.items():
        places["optimizer"][key] = 0
        total["optimizer"] += value.nbytes
        if ranks.first:
            tensors["optimizer"][key] = value.clone()
    if kept:
        torch.cuda.synchronize()
    return Snapshot(tensors, places, total)


def digest(*parts: str) -> bytes:
    """A hash of texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}:{part}".encode())
    return found.digest()
