"""RandAugment for a whole batch at once: which operations each image undergoes, and the operations.

Of `NAMES` each image draws some different ones. Those that move pixels become one matrix per image and one
resampling; the others follow in a fixed order, every one over the whole batch with an amount that leaves the images
alone that did not draw it. So the number of kernels does not depend on how many operations are drawn, and nothing is
read back from the device.

Strengths are those of timm's increasing set (RandAugment `inc1`), except that posterising keeps at least 4 bits, as in
AutoAugment, where timm goes down to none. Amounts are [B,1,1,1], images [B,C,H,W] in [0,1].
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrn2.data.augment_settings import LARGEST_MAGNITUDE, OPERATIONS, AugmentConfig

SPREAD = 0.5
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L


# Amount at full strength, the amount that changes nothing, and whether the sign is random; units are the operations'.
AMOUNTS = {
    "rotate": (math.pi / 6, 0.0, True), "shear_x": (0.3, 0.0, True), "shear_y": (0.3, 0.0, True),
    "translate_x": (0.45, 0.0, True), "translate_y": (0.45, 0.0, True),
    "autocontrast": (0.0, 0.0, False), "equalize": (0.0, 0.0, False), "invert": (0.0, 0.0, False),
    "posterize": (4.0, 0.0, False), "solarize": (-1.0, 1.0, False), "solarize_add": (110 / 255, 0.0, False),
    "brightness": (0.9, 1.0, True), "contrast": (0.9, 1.0, True), "colour": (0.9, 1.0, True),
    "sharpness": (0.9, 1.0, True),
}  # fmt: skip
NAMES = tuple(AMOUNTS)
assert len(NAMES) == OPERATIONS


class Drawn(NamedTuple):
    """What the images of a batch undergo: for each operation whether, and how much."""

    on: dict[str, Tensor]
    """bool [B,1,1,1]."""
    amount: dict[str, Tensor]
    """float [B,1,1,1], as in `AMOUNTS`; the amount that changes nothing where the operation is off."""


def drawn_from(config: AugmentConfig, order: Tensor, applied: Tensor, strength: Tensor, sign: Tensor) -> Drawn:
    """Turn uniform draws in [0,1), each [B,15], into operations."""
    chosen = torch.zeros_like(order).scatter_(1, order.topk(config.rand_augment, dim=1).indices, 1.0)
    on = (chosen > 0) & (applied < config.operation_probability)
    normal = torch.erfinv(2 * strength - 1) * (SPREAD * 2**0.5)  # -inf for a draw of 0: clamped as any other
    level = (config.magnitude + normal).clamp_(0, LARGEST_MAGNITUDE) / LARGEST_MAGNITUDE
    scale, neutral, signed = _amounts(order.device)
    level = torch.where(signed & (sign < 0.5), -level, level)
    amount = torch.where(on, neutral + scale * level, neutral)
    return Drawn(_by_name(on), _by_name(amount))


def _by_name(columns: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, columns[:, :, None, None, None].unbind(1), strict=True))


@lru_cache
def _amounts(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    scale, neutral, signed = torch.tensor(list(AMOUNTS.values()), device=device).unbind(1)
    return scale, neutral, signed > 0


def affine(drawn: Drawn, height: int, width: int) -> tuple[Tensor, ...]:
    """Where in the image the pixels of the result come from: a, b, c, d and shifts e, f in pixels, each [B,1,1], for
    x' = a x + b y + e and y' = c x + d y + f, counted from the middle."""
    keys = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    angle, shear_x, shear_y, shift_x, shift_y = (drawn.amount[key][:, 0] for key in keys)
    cos, sin = angle.cos(), angle.sin()
    first = (cos - sin * shear_y, cos * shear_x - sin, sin + cos * shear_y, sin * shear_x + cos)
    return *first, shift_x * width, shift_y * height


def recolour(x: Tensor, drawn: Drawn) -> Tensor:
    """Every operation that leaves pixels where they are."""
    on, amount = drawn
    x = autocontrast(x, on["autocontrast"])
    x = equalize(x, on["equalize"])
    x = posterize(x, amount["posterize"].round(), on["posterize"])
    threshold = torch.where(on["solarize"], amount["solarize"], 2.0)
    x = solarize(x, threshold.masked_fill_(on["invert"], 0.0))
    x = solarize_add(x, amount["solarize_add"])
    x = brightness(x, amount["brightness"])
    x = contrast(x, amount["contrast"])
    x = colour(x, amount["colour"]) if x.shape[1] == 3 else x
    return sharpness(x, amount["sharpness"])


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Black at 0, the image at 1."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """An even grey of the image's mean brightness at 0, the image at 1."""
    mean = grey(x.mean((2, 3), keepdim=True))
    return torch.lerp(mean.expand_as(x), x, factor).clamp_(0, 1)


def colour(x: Tensor, factor: Tensor) -> Tensor:
    """Grey at 0, the image at 1."""
    return torch.lerp(grey(x).expand_as(x), x, factor).clamp_(0, 1)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Smoothed at 0 (3 × 3, the middle weighing 5, the others 1), the image at 1; the border stays."""
    inner = (9 * F.avg_pool2d(x, 3, stride=1) + 4 * x[:, :, 1:-1, 1:-1]) / 13
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return torch.lerp(smooth, x, factor).clamp_(0, 1)


def autocontrast(x: Tensor, on: Tensor) -> Tensor:
    """Stretch each channel from 0 to 1; an even one stays."""
    low, high = x.flatten(2).aminmax(dim=2)
    low, span = low[..., None, None], (high - low)[..., None, None]
    return torch.where(on & (span > 0), (x - low) / span.clamp_min(1e-6), x)


def equalize(x: Tensor, on: Tensor) -> Tensor:
    """Make every value of each channel (in 256 steps) about equally frequent; an even channel stays."""
    level = (x * 255).round_().long().flatten(2)
    counts = torch.zeros(*level.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, level, torch.ones_like(level))
    top = counts.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - top).float() / 255
    below = (counts.cumsum(2) - counts).float()
    table = (below / step.clamp_min(1e-6)).round_().clamp_(0, 255) / 255
    even = table.gather(2, level).view_as(x)
    return torch.where(on & (step > 0)[..., None], even, x)


def posterize(x: Tensor, bits: Tensor, on: Tensor) -> Tensor:
    """Drop the lowest `bits` of 8."""
    step = torch.exp2(bits)
    return torch.where(on, ((x * 255).round_() / step).floor_() * step / 255, x)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from the threshold on; above 1: none."""
    return torch.where(x >= threshold, 1 - x, x)


def solarize_add(x: Tensor, amount: Tensor) -> Tensor:
    """Brighten the darker half."""
    return torch.where(x < 128 / 255, (x + amount).clamp_max_(1), x)


def grey(x: Tensor) -> Tensor:
    """Brightness [B,1,H,W]; an image that has not three channels gives their mean."""
    if x.shape[1] == 3:
        red, green, blue = x.split(1, dim=1)
        return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return x.mean(1, keepdim=True)
