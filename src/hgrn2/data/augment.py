"""Random changes of training images, a batch at a time on any device, as a function of a torch.Generator alone.

Crop and flip are one gather of bytes; resized crops, rotations, shears and shifts one resampling; RandAugment's
colours, erasing, mixup and cutmix are element-wise over the batch. There is no loop over images and nothing is read
back from the device, so that a training step on a GPU does not wait.

All of a step's decisions are one block of uniform numbers [B,76] (and one image of noise), drawn on the generator's
own device and moved to the images': with a CPU generator the same seed gives the same decisions on every device, with
one of the GPU nothing is copied. Images of two kinds of devices agree to rounding.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hgrn2.data.augment_ops import affine, drawn_from, recolour
from hgrn2.data.augment_settings import OPERATIONS, AugmentConfig

COLUMNS = {
    "crop": 4, "flip": 1, "order": OPERATIONS, "applied": OPERATIONS, "strength": OPERATIONS, "sign": OPERATIONS,
    "erase": 5, "mix": 5, "partner": 1,
}  # fmt: skip
ERASED_AREA = (0.02, 1 / 3)
NOISE = (0.5, 0.25)  # mean and deviation of what fills an erased rectangle


def augment(
    images: Tensor, labels: Tensor, config: AugmentConfig, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented images and their targets.

    Args:
        images: uint8 [B,H,W,C] or [B,C,H,W], C being 1 or 3.
        labels: int64 [B] on the images' device.
        classes: K; only mixed targets need it.
        generator: on the images' device or on the CPU.

    Returns:
        Images float32 [B,C,H,W] in [0,1], not yet normalised, and `labels`, or where `config.mixes` distributions
        float32 [B,K]. Label smoothing is left to the loss.
    """
    source = _channels_last(images)
    if not config.changes_images:
        return as_float(images), labels
    drawn = _draw(len(source), generator, source.device)
    x = _cropped(source, config, drawn)
    operations = None
    if config.rand_augment > 0 and config.operation_probability > 0:
        operations = drawn_from(config, *(drawn[name] for name in ("order", "applied", "strength", "sign")))
    if operations is not None or config.crop_area < 1.0:
        x = _resampled(x, affine(operations, *x.shape[2:]) if operations else None, config, drawn["crop"])
    if operations is not None:
        x = recolour(x, operations)
    if config.erasing > 0:
        x = _erased(x, config, drawn["erase"], generator)
    if not config.mixes:
        return x, labels
    return _mixed(x, labels, config, classes, drawn["mix"], drawn["partner"])


def as_float(images: Tensor) -> Tensor:
    """Bytes [B,H,W,C] or [B,C,H,W] as float32 [B,C,H,W] in [0,1]: what images undergo in evaluation."""
    return _channels_last(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std for each channel; images [B,C,H,W]."""
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(f"{images.shape[1]} channels, but {len(mean)} means and {len(std)} deviations")
    centre, scale = _constants(tuple(mean), tuple(std), images.device)
    return (images - centre) * scale


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: a copy from the host in every step would cost more than the arithmetic.
    both = torch.tensor([mean, [1 / s for s in std]], device=device)[:, None, :, None, None]
    return both[0], both[1]


def _channels_last(images: Tensor) -> Tensor:
    """A view [B,H,W,C]; where both ends could be channels, the last dimension is taken, as in data folders."""
    if images.dtype != torch.uint8 or images.ndim != 4 or not {images.shape[1], images.shape[3]} & {1, 3}:
        raise ValueError(f"images must be uint8 [B,H,W,C] or [B,C,H,W], not {images.dtype} {list(images.shape)}")
    return images if images.shape[3] in (1, 3) else images.permute(0, 2, 3, 1)


def _draw(batch: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    numbers = torch.rand(batch, sum(COLUMNS.values()), generator=generator, device=generator.device)
    return dict(zip(COLUMNS, _moved(numbers, device).split(list(COLUMNS.values()), dim=1), strict=True))


def _moved(drawn: Tensor, device: torch.device) -> Tensor:
    if drawn.device.type == "cpu" and device.type == "cuda":
        # From ordinary memory a copy of more than 64 KiB waits until the GPU has done all that was asked of it before.
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)


def _cropped(source: Tensor, config: AugmentConfig, drawn: dict[str, Tensor]) -> Tensor:
    """Shift by up to the padding and mirror, exactly, from bytes [B,H,W,C]; float [B,C,H,W]."""
    batch, height, width, _ = source.shape
    device, padding = source.device, config.crop_padding
    if padding == 0 and not config.flip:
        return as_float(source)
    shift = (drawn["crop"][:, :2] * (2 * padding + 1)).floor().long() - padding
    rows = torch.arange(height, device=device) + shift[:, :1]
    columns = torch.arange(width, device=device).expand(batch, width)
    if config.flip:
        columns = torch.where(drawn["flip"] < 0.5, columns.flip(1), columns)
    columns = columns + shift[:, 1:]
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    which = torch.arange(batch, device=device)[:, None, None]
    taken = source[which, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(inside, as_float(taken), config.fill)


def _resampled(x: Tensor, matrix: tuple[Tensor, ...] | None, config: AugmentConfig, crop: Tensor) -> Tensor:
    """Bilinear samples at an affine image of the pixel grid, within a random rectangle where resized crops are on.

    The grid is written out: a matrix product would run in lower precision under autocast, and pixels would wander.
    """
    _, _, height, width = x.shape
    down = (torch.arange(height, device=x.device) + 0.5 - height / 2)[None, :, None]
    right = (torch.arange(width, device=x.device) + 0.5 - width / 2)[None, None, :]
    across, along = right, down
    if matrix is not None:
        a, b, c, d, e, f = matrix
        across, along = a * right + b * down + e, c * right + d * down + f
    across, along = across / (width / 2), along / (height / 2)
    if config.crop_area < 1.0:
        area = config.crop_area + (1 - config.crop_area) * crop[:, 0]
        ratio = ((2 * crop[:, 1] - 1) * log(4 / 3)).exp()
        part_across, part_along = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        across = across * part_across[:, None, None] + ((2 * crop[:, 2] - 1) * (1 - part_across))[:, None, None]
        along = along * part_along[:, None, None] + ((2 * crop[:, 3] - 1) * (1 - part_along))[:, None, None]
    shape = (len(x), height, width)
    grid = torch.stack((across.expand(shape), along.expand(shape)), dim=3)
    # Outside is what lies beyond the border's pixels, not beyond their middles: an enlarged crop at the border must not
    # fade into the ground.
    outside = (grid.abs() > 1).any(3)[:, None]
    out = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return out.masked_fill_(outside, config.fill)


def _erased(x: Tensor, config: AugmentConfig, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in a random rectangle, its sides at most as 1 to 3 or 3 to 1; the noise is one image for the batch."""
    noise = torch.randn(1, *x.shape[1:], generator=generator, device=generator.device)
    noise = _moved(noise * NOISE[1] + NOISE[0], x.device).clamp_(0, 1)
    least, most = ERASED_AREA
    area = least + (most - least) * drawn[:, 1]
    ratio = ((2 * drawn[:, 2] - 1) * log(3)).exp()
    sides = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), 1).clamp_max(1)
    erased = _rectangle(x, drawn[:, 3:] * (1 - sides), sides) & (drawn[:, 0] < config.erasing)[:, None, None, None]
    return torch.where(erased, noise, x)


def _mixed(
    x: Tensor, labels: Tensor, config: AugmentConfig, classes: int, drawn: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """Each image with another of the batch: evenly (mixup), or a rectangle of it (cutmix)."""
    other = partner[:, 0].argsort()
    mixed = drawn[:, 0] < config.mix_probability
    half = 0.5 if config.mixup > 0 and config.cutmix > 0 else float(config.cutmix > 0)  # of the mixed ones are cut
    cut = drawn[:, 4] < half
    kept = torch.ones_like(drawn[:, 1])
    if config.mixup > 0:
        kept = _beta(drawn[:, 1], config.mixup)
    weight = torch.where(mixed, kept, 1.0)[:, None, None, None]
    if config.cutmix > 0:
        sides = (1 - _beta(drawn[:, 1], config.cutmix)).sqrt()[:, None].expand(-1, 2)
        inside = _rectangle(x, drawn[:, 2:4] - sides / 2, sides)  # may reach over the border: the rest counts
        patch = torch.where(inside & mixed[:, None, None, None], 0.0, 1.0)
        weight = torch.where(cut[:, None, None, None], patch, weight)
    share = weight.mean((1, 2, 3))[:, None]
    target = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return torch.lerp(x[other], x, weight), torch.lerp(target[other], target, share)


def _rectangle(x: Tensor, corner: Tensor, sides: Tensor) -> Tensor:
    """Where pixel centres lie in rectangles given as shares of height and width [B,2]: bool [B,1,H,W]."""
    within = []
    for axis, length in enumerate(x.shape[2:]):
        place = (torch.arange(length, device=x.device) + 0.5) / length
        first = corner[:, axis, None]
        within.append((place >= first) & (place < first + sides[:, axis, None]))
    return within[0][:, None, :, None] & within[1][:, None, None, :]


def _beta(uniform: Tensor, alpha: float) -> Tensor:
    """Beta(α, α) by its quantiles: the value that a share `uniform` of the distribution lies below."""
    lower = torch.minimum(uniform, 1 - uniform) * 2
    table = _beta_table(alpha, uniform.device)
    place = lower * (len(table) - 1)
    index = place.long().clamp_max(len(table) - 2)
    value = torch.lerp(table[index], table[index + 1], place - index)
    return torch.where(uniform < 0.5, value, 1 - value)


@lru_cache
def _beta_table(alpha: float, device: torch.device, entries: int = 4097) -> Tensor:
    """Quantiles of the half below 1/2. In s = t^α the density is (1 - s^(1/α))^(α-1): finite where t's is not."""
    s = np.linspace(0, 0.5**alpha, 1 << 16)
    density = (1 - s ** (1 / alpha)) ** (alpha - 1)
    total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    quantiles = np.interp(np.linspace(0, 1, entries), total / total[-1], s) ** (1 / alpha)
    return torch.tensor(quantiles, dtype=torch.float32, device=device)
