"""Matrices [N,K] in eight or four bits, and products with them: x [M,K] -> x Wᵀ [M,N].

    int8   W = s_n q           |q| <= 127, s a row's
    int4   W = s (q - 8) + z   q in 0 … 15, s and z a group's (some inputs of a row)

Scales and zeros are bfloat16 *before* weights are rounded to levels, so the dequantised matrix is one definite float32
matrix, which every path multiplies by. Two paths: PyTorch's weight-only kernels, which read the small weights once but
round x and the result to bfloat16, for few rows (decoding is limited by reading weights); and dequantising parts of the
matrix for an ordinary product in x's own precision, for many rows (prompts), where the kernels are slower than that.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

aten = torch.ops.aten
FEW_ROWS = {"int8": 32, "int4": 64}
"""M up to which the kernels are quicker than dequantising, measured on an Xeon with AVX-512."""
TILE = 32  # inputs that the int8 kernel takes at a time
PART = 1 << 18  # weights dequantised at a time: a megabyte, which stays in the processor's cache


class Store(Protocol):
    """A quantised matrix."""

    rows: int
    """N."""
    why: str
    """Why the kernel does not serve it; empty where it does."""

    def dense(self, dtype: torch.dtype) -> Tensor: ...
    def product(self, x: Tensor) -> Tensor: ...
    def content(self) -> list[Tensor]: ...


class Int8(nn.Module):
    """A matrix in eight bits, one scale per row."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = weight.shape[0]
        weight = pad(weight.detach().float(), (0, 0, 0, -self.rows % 16))  # the kernel's tile
        scale = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
        codes = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("codes", codes.contiguous(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        # The kernel reads beyond the end of other rows, so these are not even tried.
        odd = weight.shape[1] % TILE
        self.why = f"{weight.shape[1]} inputs are no multiple of {TILE}" if odd else _fault(self)

    def content(self) -> list[Tensor]:
        """What defines the matrix, however it is packed."""
        return [self.codes, self.scale]

    def take(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows [...] of the matrix: [...,K]."""
        return (self.codes[rows].float() * self.scale[rows].float().unsqueeze(-1)).to(dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[N,K]."""
        return (self.codes.float() * self.scale.float().unsqueeze(1))[: self.rows].to(dtype)

    def kernel(self, x: Tensor) -> Tensor:
        """x [M,K] bfloat16 -> [M,N] bfloat16."""
        return aten._weight_int8pack_mm(x.contiguous(), self.codes, self.scale)[:, : self.rows]

    def product(self, x: Tensor) -> Tensor:
        """x [M,K] -> [M,N] in x's dtype."""
        if _few(self.why, x, "int8"):
            return self.kernel(x.bfloat16()).to(x.dtype)
        step = max(1, PART // self.codes.shape[1])
        y = torch.cat([x @ part.to(x.dtype).T for part in self.codes.split(step)], 1)
        return (y * self.scale.to(x.dtype))[:, : self.rows]


class Int4(nn.Module):
    """A matrix in four bits, packed as the kernel of its device wants it. `why` tells where that cannot be."""

    packed: Tensor
    scale_zero: Tensor

    def __init__(self, weight: Tensor, group: int) -> None:
        super().__init__()
        self.rows, self.inputs, self.group = *weight.shape, group
        self.block = 0
        self.why = f"{self.inputs} inputs do not divide into groups of {group}" if self.inputs % group else ""
        if self.why:
            return
        codes, scale_zero = _levels(pad(weight.detach().float(), (0, 0, 0, -self.rows % 64)), group)
        try:
            packed = self._pack(codes)
        except RuntimeError as error:
            self.why = str(error).splitlines()[0]
            return
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scale_zero", scale_zero, persistent=False)
        self._content = [codes.to(torch.uint8), scale_zero]
        self.block = self._find_block(codes) if packed.device.type == "cpu" else 0
        self.why = _fault(self)

    def content(self) -> list[Tensor]:
        """What defines the matrix, however it is packed; it can be asked for once, as it is as large as the matrix."""
        content, self._content = self._content, []
        return content

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[N,K]; where the packing is not known by the kernel's own account of it, times the identity."""
        if self.block:
            return self._part(self._blocks()).transpose(1, 2).flatten(0, 1)[: self.rows].to(dtype)
        eye = torch.eye(self.inputs, dtype=torch.bfloat16, device=self.packed.device)
        return self.kernel(eye).T.to(dtype)

    def kernel(self, x: Tensor) -> Tensor:
        """x [M,K] bfloat16 -> [M,N] bfloat16."""
        on_cpu = x.device.type == "cpu"
        call = aten._weight_int4pack_mm_for_cpu if on_cpu else aten._weight_int4pack_mm
        return call(x.contiguous(), self.packed, self.group, self.scale_zero)[:, : self.rows]

    def product(self, x: Tensor) -> Tensor:
        """x [M,K] -> [M,N] in x's dtype."""
        if not self.block or _few(self.why, x, "int4"):
            return self.kernel(x.bfloat16()).to(x.dtype)
        step, parts, at = max(1, PART // (self.inputs * self.block)), [], 0
        for blocks in self._blocks().split(step):
            y = x @ self._part(blocks, at).to(x.dtype)
            parts.append(y.permute(1, 0, 2).flatten(1))
            at += len(blocks)
        return torch.cat(parts, 1)[:, : self.rows]

    def _pack(self, codes: Tensor) -> Tensor:
        if codes.device.type == "cpu":
            return aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        pairs = codes.to(torch.uint8)
        return aten._convert_weight_to_int4pack((pairs[:, ::2] << 4 | pairs[:, 1::2]).contiguous(), 8)

    def _blocks(self) -> Tensor:
        """[N/block, K, block/2]: the first half of a block's rows in the low four bits, the second in the high ones."""
        return self.packed.view(-1, self.inputs, self.block // 2)

    def _find_block(self, codes: Tensor) -> int:
        """Rows that this processor's packing keeps together, found by unpacking; 0 where it packs in another way."""
        for self.block in (64, 32):
            if torch.equal(_unpacked(self._blocks()).transpose(1, 2).flatten(0, 1), codes.to(torch.uint8)):
                return self.block
        return 0

    def _part(self, blocks: Tensor, first: int = 0) -> Tensor:
        """Some blocks, dequantised and transposed: [blocks, K, block] float32."""
        scale_zero = self.scale_zero.view(-1, self.packed.shape[0] // self.block, self.block, 2)
        scale, zero = scale_zero[:, first : first + len(blocks)].float().permute(3, 1, 0, 2).unsqueeze(3)
        levels = _unpacked(blocks).unflatten(1, (-1, self.group)).float()
        return ((levels - 8) * scale + zero).flatten(1, 2)


def _levels(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes [N,K] int32 in 0 … 15, and [K/group,N,2] bfloat16: equal steps between the extremes of each group."""
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    codes = ((grouped - zero.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round() + 8
    return codes.clamp(0, 15).flatten(1).int(), torch.stack([scale.T, zero.T], -1).contiguous()


def _unpacked(blocks: Tensor) -> Tensor:
    return torch.cat([blocks & 15, blocks >> 4], -1)


def _few(why: str, x: Tensor, kind: str) -> bool:
    """Whether the kernel is the quicker way; it has no derivative."""
    return not why and x.shape[0] <= FEW_ROWS[kind] and not x.requires_grad


def _fault(store: Int8 | Int4) -> str:
    """Try the kernel, as no list of what a device and version serve is kept: why it cannot be used, or nothing."""
    device = next(store.buffers()).device
    if device.type == "meta":
        return "a model without weights cannot be quantised"
    try:
        weight = store.dense(torch.float32)
        x = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
        wanted, found = x.float() @ weight.T, store.kernel(x).float()
    except (RuntimeError, NotImplementedError) as error:
        return f"PyTorch on {device.type}: {str(error).splitlines()[0]}"
    wrong = not bool((found - wanted).norm() <= 0.02 * wanted.norm())  # NaN is wrong
    return f"PyTorch's kernel on {device.type} computes something else" if wrong else ""
