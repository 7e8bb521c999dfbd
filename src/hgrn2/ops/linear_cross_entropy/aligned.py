"""Products with a head whose number of classes is no multiple of 64, on a GPU.

cuBLAS has fast kernels for operands whose rows begin at multiples of 16 bytes. A vocabulary of 50,257 leaves all three
products of a head (logits, and both gradients) to kernels without: on an H200, with D = 512 in bfloat16, 32,768 tokens
take 49.4 ms instead of 15.4. A leading dimension that is a multiple, with as odd a size, does not help (43.7 ms): the
size itself must be one. The weight is therefore copied with rows of zeros behind it, which costs 0.04 ms and is often
needed anyway, to cast it. Parameters stay as they are; what the zeros make is cut off before anyone sees it.
"""

import torch
from torch import Tensor
from torch.nn import functional

MULTIPLE = {"cuda": 64}
"""Of what the number of classes is made a multiple, by kind of device; others leave it as it is."""
FEWEST = 256
"""Tokens from which on logits are worth a copy of the weight."""


def missing(classes: int, device: torch.device) -> int:
    """Rows of zeros to be added."""
    return -classes % MULTIPLE.get(device.type, 1)


def padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [V,D] -> [V',D] in this dtype, zeros behind V; a multiple stays as it is."""
    weight = weight.to(dtype)
    more = missing(weight.shape[0], weight.device)
    return functional.pad(weight, (0, 0, 0, more)) if more else weight


def pays(features: Tensor, classes: int) -> bool:
    """Whether `logits` of these features [...,D] are worth a copy of the weight; not where a compiled graph would be
    made anew whenever the number of tokens crosses the lower bound."""
    if torch.compiler.is_compiling() or not missing(classes, features.device):
        return False
    return features.numel() >= FEWEST * features.shape[-1]


def logits(features: Tensor, weight: Tensor) -> Tensor:
    """features [...,D] · weightᵀ -> [...,V], a view of a wider tensor; differentiable."""
    narrowed = torch.is_autocast_enabled(features.device.type) and features.dtype != torch.float64
    dtype = torch.get_autocast_dtype(features.device.type) if narrowed else weight.dtype
    return functional.linear(features, padded(weight, dtype))[..., : weight.shape[0]]
