"""Mixers that read in several directions: bidirectional, and two forms for images. HGRN2 and HGRN1 alike.

    bidirectional  y = norm(Σ_{→,←} o S) W        one projection, one scan from each end
    parallel_2d    y = norm(Σ_{→,←,↓,↑} o S) W    rows and columns, each from both ends
    series_2d      the bidirectional mixer along every column, then, with the same weights, along every row

Outputs are linear in the state, so the published "sum the states of the four scans, read once" is the sum of four
outputs; no state is ever kept for more than a chunk. HGRN1 sums its vectors h instead, before gate and norm.

Every scan holds the token at which it stands, so the sum counts it once a scan, as published. With `separate_scans`
every scan has its own projections.

Scans that share their weights mirror with their input. Followed by a mean over the tokens, a stack of them cannot tell
a sequence from its reverse, nor, in `parallel_2d`, an image from its mirror images and its transpose: a gift where
the label does not change, a wall where order decides. Positions, `separate_scans` or `local_width` end it.

With `local_width` a short convolution, centred and so blind to direction, is added to the input of all projections: a
scan that starts out forgetting within a few tokens else has to learn what neighbours make together, letters of a
word or the dashes of a stroke, through its gates.

Which backend a head size takes, and why, stands in `ops.hgru2.elementwise`, for all
directions alike. An image's columns are read as H·W tokens laid out column by column, each column a sequence of
its own: B·W sequences of H tokens.
"""

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.hgru1 import HGRU1
from hgrn2.layers.hgru2 import HGRU2
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.state import LayerState
from hgrn2.ops.backend import work_dtype

Shape = tuple[int, int]
"""Height and width of an image; T = height · width tokens, row by row."""
Scan = tuple[str, bool]
"""One scan: along `line`, `columns` or `rows`, and whether from the end."""

_BOTH = (False, True)
_PASSES: dict[str, tuple[tuple[Scan, ...], ...]] = {
    "bidirectional": (tuple(("line", reverse) for reverse in _BOTH),),
    "parallel_2d": (tuple((axis, reverse) for axis in ("columns", "rows") for reverse in _BOTH),),
    "series_2d": tuple(tuple((axis, reverse) for reverse in _BOTH) for axis in ("columns", "rows")),
}


class Directional(nn.Module):
    """D -> D over whole sequences or images, without a state; the weights of one HGRU2 or HGRU1 (`unit`), and with
    `separate_scans` one more input projection for every further scan (`more`)."""

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.unit = HGRU2(width, config) if config.kind == "hgru2" else HGRU1(width, config)
        extra = config.scans - 1 if config.separate_scans else 0
        self.more = nn.ModuleList(nn.Linear(width, sum(self.unit.scanned), bias=config.bias) for _ in range(extra))
        taps = config.local_width ** (2 if config.is_2d else 1)
        self.local = nn.Parameter(torch.empty(width, taps)) if taps else None

    def start(self) -> None:
        """Taps of the local convolution and what the unit has."""
        if self.local is not None:
            edge = self.local.shape[1] ** -0.5
            nn.init.uniform_(self.local, -edge, edge)
        self.unit.start()

    @property
    def out_proj(self) -> nn.Linear:
        """The projection that writes to the residual stream."""
        return self.unit.out_proj

    @accepts_keep
    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        shape: Shape | None = None,
        output_state: bool = False,
        inplace: bool = False,
    ) -> tuple[Tensor, None]:
        """x [B,T,D], lower bound [D] -> (y [B,T,D], None).

        Args:
            cu_seqlens: offsets [N+1] of packed sequences (B = 1); bidirectional only.
            padding_mask: [B,T] bool; tokens that are False do nothing, in every direction; their y means nothing.
            shape: (height, width) with height · width = T; needed by the 2-D directions, refused by the other.

        Raises:
            UserError: a state given or asked for, a shape that does not fit.
        """
        check_shape(self.config, x.shape[1], shape)
        if state is not None or output_state:
            raise UserError(no_state(self.config))
        if cu_seqlens is not None and self.config.is_2d:
            raise UserError(f"direction {self.config.direction} takes batches of images, not cu_seqlens")
        if self.local is not None:
            x = x + local_conv(x, self.local, padding_mask, cu_seqlens, shape)
        for scans in _PASSES[self.config.direction]:
            x = self._read(x, lower_bound, scans, cu_seqlens, padding_mask, shape)
        return x, None

    def _read(
        self, x: Tensor, lower_bound: Tensor | None, scans: tuple[Scan, ...], cu_seqlens: Tensor | None,
        padding_mask: Tensor | None, shape: Shape | None,
    ) -> Tensor:  # fmt: skip
        """One pass: project, scan in each direction, sum, norm, project."""
        unit = self.unit
        raw, gate = unit.split(unit.in_proj(x))
        dtype = raw[0].dtype
        parts = [unit.masked(raw, padding_mask, lower_bound)]
        parts += [unit.masked(more(x).split(unit.scanned, -1), padding_mask, lower_bound) for more in self.more]
        total: Tensor | None = None
        for n, (axis, reverse) in enumerate(scans):
            lines = tuple(to_lines(part, axis, shape) for part in parts[n % len(parts)])
            y, _ = unit.scan(lines, lower_bound, cu_seqlens=cu_seqlens, reverse=reverse, output_final_state=False)
            y = from_lines(y, axis, shape, x.shape[0])
            y = y.to(work_dtype(y.dtype))  # a sum of rounded numbers is rounded once, at the end
            total = y if total is None else total + y
        assert total is not None
        return unit.finish(total if total.is_complex() else total.to(dtype), gate)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """Refused: there is no state."""
        raise UserError(no_state(self.config))

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Of sums inside: float32, float64 for float64."""
        return work_dtype(weights)

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: None = None) -> Tensor:
        """ln f [B,T,D] of the first scan, float32."""
        return self.unit.log_forget(x, lower_bound)

    def forget_logits(self, x: Tensor) -> Tensor:
        """x_f [B,T,D] of the first scan, the forget gates before bound and sigmoid."""
        return self.unit.forget_logits(x)


def local_conv(
    x: Tensor,
    weight: Tensor,
    padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    shape: Shape | None = None,
) -> Tensor:
    """y_t = Σ_j w_j x_{t+j}, j from -h to h, of every channel by itself; zeros beyond the ends. x [B,T,D] -> [B,T,D].

    Args:
        weight: [D,W], W = 2 h + 1, of a line; [D,W·W], row by row, of an image of `shape`.
        padding_mask: [B,T] bool; what is False counts as zero, so padding at either end changes nothing.
        cu_seqlens: offsets of packed sequences (B = 1), each with its own ends.
    """
    x = x if padding_mask is None else x.masked_fill(~padding_mask.unsqueeze(-1), 0)
    if shape is not None:
        side = round(weight.shape[1] ** 0.5)
        kernel = weight.to(x.dtype).unflatten(1, (1, side, side))
        grid = x.unflatten(1, shape).permute(0, 3, 1, 2)
        return (
            nn.functional.conv2d(grid, kernel, padding=side // 2, groups=x.shape[-1]).permute(0, 2, 3, 1).flatten(1, 2)
        )
    half = weight.shape[1] // 2
    if cu_seqlens is None:  # a causal convolution that reads `half` tokens further
        padded = nn.functional.pad(x, (0, 0, 0, half))
        return ops.causal_conv(padded, weight.flip(1), output_final_state=False)[0][:, half:]
    behind, _ = ops.causal_conv(x, weight[:, : half + 1].flip(1), cu_seqlens=cu_seqlens)
    beyond = nn.functional.pad(weight[:, half + 1 :], (1, 0))  # the token itself is in the other half
    ahead, _ = ops.causal_conv(x.flip(1), beyond, cu_seqlens=x.shape[1] - cu_seqlens.flip(0))
    return behind + ahead.flip(1)


def to_lines(x: Tensor, axis: str, shape: Shape | None) -> Tensor:
    """[B,H*W,D] -> every row or column a sequence: [B*H,W,D] or [B*W,H,D]; a `line` stays as it is."""
    if axis == "line" or shape is None:
        return x
    grid = x.unflatten(1, shape)
    return (grid if axis == "rows" else grid.transpose(1, 2)).flatten(0, 1)


def from_lines(y: Tensor, axis: str, shape: Shape | None, batch: int) -> Tensor:
    """The inverse of `to_lines`."""
    if axis == "line" or shape is None:
        return y
    grid = y.unflatten(0, (batch, -1))
    return (grid if axis == "rows" else grid.transpose(1, 2)).flatten(1, 2)


def check_shape(config: MixerConfig, tokens: int, shape: Shape | None) -> None:
    """Refuse a shape where none is read, a missing one, and one of another number of tokens."""
    if not config.is_2d:
        if shape is not None:
            raise UserError(f"shape {shape} is given, but direction {config.direction} reads a line of tokens")
        return
    if shape is None:
        raise UserError(f"direction {config.direction} needs shape=(height, width) of its {tokens} tokens")
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] != tokens:
        raise UserError(f"shape {tuple(shape)} does not hold {tokens} tokens")


def no_state(config: MixerConfig) -> str:
    """Why there is nothing to carry."""
    return (
        f"direction {config.direction} reads whole sequences: it has no state to carry, and cannot generate; "
        "use direction causal"
    )
