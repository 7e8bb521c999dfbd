"""A process's piece of a sharded tensor: plain numbers in memory of its own. Imports nothing that takes long.

Optimisers, running means and checks of numbers compute with pieces, element by element; a sharded tensor (PyTorch's
`DTensor`) says of which whole its piece is a part.
"""

from typing import Any

from torch import Tensor


def local(x: Tensor) -> Tensor:
    """The piece of a sharded tensor, in its memory; any other tensor itself."""
    place: Any = getattr(x, "to_local", None)
    return x if place is None else place()


def sharded_as(piece: Tensor, like: Tensor) -> Tensor:
    """A piece of the shape of `like`'s as a tensor sharded as `like` is; numbers and pieces of plain tensors stay."""
    if not hasattr(like, "to_local") or piece.dim() == 0 or hasattr(piece, "to_local"):
        return piece
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    return DTensor.from_local(
        piece, sharded.device_mesh, sharded.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def joined(piece: Tensor, like: Tensor) -> Tensor:
    """The whole of which `piece` is this process's, as `like` is sharded; every process must call it."""
    whole: Any = sharded_as(piece, like)
    return whole.full_tensor() if hasattr(whole, "full_tensor") else whole


def piece_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a whole tensor, as `like` is sharded; talks to nobody."""
    if not hasattr(like, "to_local") or whole.dim() == 0:
        return whole
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return local(distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None))
