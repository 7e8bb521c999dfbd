"""Tensors of a published folder: one safetensors file, or shards with an index. Pickled weights are not opened."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgrn2.files import read_json
from hgrn2.models.tensor_files import LIMIT, Weights
from hgrn2.settings import refuse

CONFIG = "config.json"
_KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class InMemory(Weights):
    """The same of a state dict."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(Path("state_dict"), dict(tensors))

    def shape(self, name: str) -> list[int]:
        """As in files."""
        return list(self.files[name].shape)

    def dtype(self, name: str) -> str:
        """As in files."""
        dtype = self.files[name].dtype
        return _KINDS.get(dtype, str(dtype))

    def get(self, name: str) -> Tensor:
        """The tensor itself."""
        return self.files[name]


def read_settings(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The object in a folder's config.json, or another file of such a kind."""
    refuse(not folder.exists(), f"{folder} does not exist")
    refuse(not folder.is_dir(), f"{folder} is not a folder; give the folder that holds {CONFIG} and the weights")
    return read_json(folder / name, dict, limit=LIMIT)
