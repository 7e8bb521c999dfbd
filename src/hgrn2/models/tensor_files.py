"""Files of tensors: one safetensors file, or several with an index. Pickled weights are not opened."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.files import check_utf8, listed_name, read_json, refuse_special
from hgrn2.settings import refuse

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LIMIT = 1 << 26
"""Bytes of JSON that are read at most; an index of a hundred thousand tensors has a tenth of it."""


class Weights:
    """Open files of one model: names, shapes and dtypes at once, values when they are asked for."""

    def __init__(self, folder: Path, files: dict[str, Any]) -> None:
        self.folder = folder
        self.files = files
        """Tensor name -> the open file that holds it."""

    def shape(self, name: str) -> list[int]:
        """The shape of one tensor, without reading it."""
        return list(self.files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """safetensors' name of its dtype, as in F32."""
        return self.files[name].get_slice(name).get_dtype()

    def get(self, name: str) -> Tensor:
        """Its values."""
        return self.files[name].get_tensor(name)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file open for reading; what is missing, truncated or of another kind is a `UserError`."""
    refuse_special(path)
    check_utf8(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


@contextmanager
def open_weights(folder: Path, variant: str = "", stem: str = "model") -> Iterator[Weights]:
    """The tensors of a folder; a missing, truncated or unlisted one is a `UserError` that names the file.

    Args:
        variant: as in transformers: read model.VARIANT.safetensors, or the shards of such an index.
        stem: what the files' names begin with.
    """
    refuse(Path(variant).name != variant, f"variant {variant!r} is no part of a file's name")
    more = f".{variant}" if variant else ""
    single = folder / SINGLE.replace("model.", f"{stem}{more}.")
    index = folder / INDEX.replace("model.", f"{stem}.").replace(".json", f"{more}.json")
    if not single.exists() and not index.exists():
        refuse(bool(variant), f"{folder} holds no weights of variant {variant}: neither {single.name} nor {index.name}")
        _refuse_others(folder)
    with ExitStack() as stack:
        if single.exists():
            file = stack.enter_context(opened(single))
            yield Weights(folder, dict.fromkeys(file.keys(), file))
            return
        placed = places(index)
        missing = sorted({shard for shard in placed.values() if not (folder / shard).is_file()})
        refuse(bool(missing), f"{folder} is incomplete: {', '.join(missing[:3])} named by {index.name} is missing")
        shards = {shard: stack.enter_context(opened(folder / shard)) for shard in sorted(set(placed.values()))}
        held = {shard: set(file.keys()) for shard, file in shards.items()}
        for name, shard in sorted(placed.items()):
            refuse(name not in held[shard], f"{folder / shard} lacks {name}, which {index.name} places there")
        for shard, names in held.items():
            strange = sorted(name for name in names if placed.get(name) != shard)
            some = ", ".join(strange[:3])
            refuse(bool(strange), f"{folder / shard} holds {some}, which {index.name} does not place there")
        yield Weights(folder, {name: shards[shard] for name, shard in placed.items()})


def places(index: Path) -> dict[str, str]:
    """Tensor name -> name of its shard, as an index says; anything else is a `UserError`."""
    found = read_json(index, dict, limit=LIMIT).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{index} is damaged: it has no weight_map")
    for name, shard in found.items():
        listed = listed_name(shard, f"{index} is damaged at {name!r:.80}")
        plain = listed.endswith(".safetensors")
        refuse(not plain, f"{index} is damaged at {name!r:.80}: {shard!r:.80} is no safetensors file of this folder")
    return found


def _refuse_others(folder: Path) -> None:
    """Say what lies there instead of safetensors."""
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    refuse(
        bool(pickles),
        f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which can run code when they are opened; write "
        f"them as {SINGLE} first (docs/convert.md says how)",
    )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    refuse(bool(shards), f"{folder} is incomplete: {', '.join(shards[:3])} without {INDEX}")
    raise UserError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}")
