"""Augmentation: each operation beside Pillow's, exact crops, honest mixtures, the same images for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hgrn2.data import augment_ops as ops
from hgrn2.data.augment import _beta, as_float, augment, normalise
from hgrn2.data.augment_settings import AugmentConfig, deit, small_images
from hgrn2.errors import UserError
from hgrn2.settings import from_dict, to_dict


def sample_images(count: int = 6, channels: int = 3, size: int = 20) -> Tensor:
    """Smooth images with edges and noise, of many levels: uint8 [B,H,W,C]."""
    random = np.random.default_rng(0)
    ramp = np.linspace(20, 200, size)[None, :, None, None] + random.uniform(-20, 20, (count, 1, 1, channels))
    out = ramp + random.normal(0, 12, (count, size, size, channels))
    out[:, 5:9, 3:12] += 50
    return torch.from_numpy(out.clip(0, 255).astype(np.uint8))


def run(images: Tensor, config: AugmentConfig, seed: int = 0, classes: int = 10) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(images)) % classes
    return augment(images, labels, config, classes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_padding": -1}, {"crop_area": 0.0}, {"crop_area": 1.5}, {"crop_area": 0.5, "crop_padding": 4},
        {"rand_augment": 16}, {"rand_augment": -1}, {"magnitude": 10.5}, {"erasing": 1.1}, {"mixup": -0.1},
        {"cutmix": float("nan")}, {"cutmix": float("inf")}, {"mix_probability": 2.0}, {"label_smoothing": 1.0},
        {"fill": -0.1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_refuse_nonsense(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("config", [AugmentConfig(), deit(), small_images(), small_images(mix=False)])
def test_settings_survive_json(config: AugmentConfig) -> None:
    assert from_dict(AugmentConfig, to_dict(config)) == config


def test_by_default_nothing_changes() -> None:
    images = sample_images()
    out, targets = run(images, AugmentConfig())
    assert torch.equal(out, images.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(targets, torch.arange(6))
    assert not AugmentConfig().changes_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [deit(), small_images(), small_images(mix=False)])
def test_same_seed_same_images_in_either_layout(config: AugmentConfig, channels: int) -> None:
    images = sample_images(12, channels)
    before = images.clone()
    out, targets = run(images, config)
    again, same = run(images.permute(0, 3, 1, 2).contiguous(), config)
    assert torch.equal(out, again)
    assert torch.equal(targets, same)
    assert torch.equal(images, before)
    other, _ = run(images, config, seed=1)
    assert not torch.equal(out, other)
    assert out.shape == (12, channels, 20, 20)
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1


def test_crops_and_flips_are_exact_and_all_occur() -> None:
    image = sample_images(1, 3, 8)
    padded = torch.nn.functional.pad(as_float(image)[0], (2, 2, 2, 2), value=0.25)
    known = {}
    for flip in (False, True):
        whole = padded.flip(2) if flip else padded
        known |= {(flip, y, x): whole[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    out, _ = run(image.expand(600, -1, -1, -1), AugmentConfig(crop_padding=2, flip=True, fill=0.25))
    found = [next(key for key, value in known.items() if torch.equal(value, image)) for image in out]
    assert set(found) == set(known)


def test_a_resized_crop_is_a_part_of_the_image() -> None:
    ramp = torch.arange(40, dtype=torch.uint8).mul(6).expand(500, 40, 40)[..., None]  # brighter to the right
    out, _ = run(ramp, AugmentConfig(crop_area=0.25, fill=1.0))
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)  # columns stay columns
    slope = (out[:, 0, 0, 30] - out[:, 0, 0, 10]) / 20 / (6 / 255)  # the width of the crop, as a share
    assert 0.43 < slope.min() < 0.5
    assert 0.9 < slope.max() < 1.001
    left, right = out[:, 0, 0, 2] - 2 * slope * 6 / 255, out[:, 0, 0, 37] + 2 * slope * 6 / 255
    assert left.min() > -0.02  # nothing from outside, which would be white
    assert right.max() < 1.0
    assert left.max() > 0.3


def _pillow(name: str, image: np.ndarray, amount: float) -> np.ndarray:
    pil = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageOps

    image = pil.fromarray(image)
    kinds = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "colour": ImageEnhance.Color,
             "sharpness": ImageEnhance.Sharpness}  # fmt: skip
    if name in kinds:
        return np.asarray(kinds[name](image).enhance(amount))
    if name == "autocontrast":
        return np.asarray(ImageOps.autocontrast(image))
    if name == "equalize":
        return np.asarray(ImageOps.equalize(image))
    if name == "posterize":
        return np.asarray(ImageOps.posterize(image, 8 - int(amount)))
    return np.asarray(ImageOps.invert(image) if name == "invert" else ImageOps.solarize(image, int(amount * 255)))


@pytest.mark.parametrize(
    ("name", "amount", "tolerance"),
    [
        ("brightness", 0.4, 1), ("brightness", 1.7, 1), ("contrast", 0.3, 2), ("contrast", 1.8, 2), ("colour", 0.2, 2),
        ("colour", 1.9, 2), ("sharpness", 0.1, 2), ("sharpness", 1.9, 2), ("autocontrast", 0, 1), ("posterize", 3, 0),
        ("solarize", 100 / 255, 0), ("invert", 0, 0), ("equalize", 0, 5),
    ],
)  # fmt: skip
def test_operations_are_pillows(name: str, amount: float, tolerance: int) -> None:
    images = sample_images(size=128 if name == "equalize" else 20)
    x = as_float(images)
    factor = torch.full((6, 1, 1, 1), float(amount))
    on = torch.tensor([True, True, True, True, True, False])[:, None, None, None]
    if name == "posterize":
        out = ops.posterize(x, factor, on)
    elif name in ("solarize", "invert"):
        out = ops.solarize(x, torch.where(on, factor, 2.0))
    elif name in ("autocontrast", "equalize"):
        out = getattr(ops, name)(x, on)
    else:
        out = getattr(ops, name)(x.clone(), torch.where(on, factor, 1.0))
    wanted = np.stack([_pillow(name, image, amount) for image in images[:5].numpy()])
    found = (out * 255).permute(0, 2, 3, 1).numpy()
    # Pillow counts in whole levels: blends cut the fraction. Its equalisation rounds the pixels of a level down, too,
    # which turns the brightest part of a small image white; ours does not, and in a large one that is little.
    assert np.abs(found[:5] - wanted).max() <= tolerance + 0.01
    assert np.abs(wanted.astype(int) - images[:5].numpy()).max() > 6
    assert torch.equal(out[5], x[5])


@pytest.mark.parametrize(("name", "degrees"), [("rotate", 30.0), ("rotate", -20.0)])
def test_rotation_is_pillows(name: str, degrees: float) -> None:
    pil = pytest.importorskip("PIL.Image")
    images = sample_images(2, 3, 24)
    from hgrn2.data.augment import _resampled

    neutral = {key: torch.full((2, 1, 1, 1), value[1]) for key, value in ops.AMOUNTS.items()}
    drawn = ops.Drawn({}, neutral | {name: torch.full((2, 1, 1, 1), np.deg2rad(degrees))})
    out = _resampled(as_float(images), ops.affine(drawn, 24, 24), AugmentConfig(), torch.zeros(2, 4))
    for found, image in zip((out * 255).permute(0, 2, 3, 1).numpy(), images.numpy(), strict=True):
        wanted = np.asarray(pil.fromarray(image).rotate(degrees, pil.Resampling.BILINEAR))
        inside = slice(6, 18)  # at the border Pillow repeats pixels, where we blend into the ground
        assert np.abs(found[inside, inside] - wanted[inside, inside]).max() <= 1.5


def test_each_image_draws_its_own_operations() -> None:
    draws = torch.rand(4, 4000, ops.OPERATIONS, generator=torch.Generator().manual_seed(0)).unbind(0)
    for count, probability in ((2, 1.0), (2, 0.5), (15, 1.0)):
        drawn = ops.drawn_from(AugmentConfig(rand_augment=count, operation_probability=probability), *draws)
        on = torch.stack([mask.flatten() for mask in drawn.on.values()], 1)
        assert on.sum(1).max() == count
        assert on.float().mean() * ops.OPERATIONS == pytest.approx(count * probability, rel=0.05)
        assert (on.float().mean(0) * ops.OPERATIONS).sub(count * probability).abs().max() < 0.2
    turned = drawn.amount["rotate"].rad2deg()
    assert 26 < turned.abs().mean() < 28  # magnitude 9 of 10, of 30 degrees
    assert abs(turned.mean()) < 2


def test_erasing_leaves_the_rest_alone() -> None:
    images = sample_images(400, 3, 20)
    out, _ = run(images, AugmentConfig(erasing=0.5))
    changed = (out != as_float(images)).any(1)
    touched = changed.flatten(1).any(1)
    assert 0.4 < touched.float().mean() < 0.6
    assert 0.1 < changed[touched].float().mean() < 0.24  # 2 % to a third
    for mask in changed[touched][:50]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9  # a rectangle; noise may equal a pixel by chance


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_beta_has_its_moments(alpha: float) -> None:
    values = _beta((torch.arange(100_000) + 0.5) / 100_000, alpha).double()
    assert values.mean() == pytest.approx(0.5, abs=1e-4)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=5e-3)
    assert (values[1:] >= values[:-1]).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_tell_what_is_in_the_image(mixup: float, cutmix: float) -> None:
    """Each image is filled with its own class's level, so the mean of the mixture is the mean of the targets."""
    config, classes = AugmentConfig(mixup=mixup, cutmix=cutmix), 8
    images = (torch.arange(64) % classes * 30).to(torch.uint8)[:, None, None, None].expand(64, 16, 16, 3)
    out, targets = run(images, config, classes=classes)
    assert targets.sum(1) == pytest.approx(torch.ones(64))
    assert (targets > 0).sum(1).max() == 2
    expected = targets @ (torch.arange(classes) * 30 / 255)
    assert torch.allclose(out.mean((1, 2, 3)), expected, atol=1e-5)
    if not config.mixup:  # patches, not blends
        assert torch.isin((out * 255).round(), torch.arange(classes) * 30.0).all()
    own = targets.gather(1, (torch.arange(64) % classes)[:, None])
    assert 0.3 < own.mean() < 0.75
    rarely, _ = run(images, replace(config, mix_probability=0.0), classes=classes)
    assert torch.equal(rarely, as_float(images))


def test_normalise() -> None:
    x = torch.rand(2, 3, 4, 4)
    out = normalise(x, (0.5, 0.4, 0.3), (0.2, 0.5, 1.0))
    assert torch.allclose(out[:, 1], (x[:, 1] - 0.4) / 0.5)
    with pytest.raises(ValueError, match="3 channels"):
        normalise(x, (0.5,), (0.5,))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 2, dtype=torch.uint8)])
def test_other_tensors_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        run(wrong, AugmentConfig(flip=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_images() -> None:
    images, labels = sample_images(16), torch.arange(16) % 10
    here = augment(images, labels, small_images(), 10, torch.Generator().manual_seed(0))
    there = augment(images.cuda(), labels.cuda(), small_images(), 10, torch.Generator().manual_seed(0))
    # Equalising and solarising jump: a pixel on a step may land on the other side.
    assert ((here[0] - there[0].cpu()).abs() > 1e-3).float().mean() < 1e-2
    assert torch.allclose(here[1], there[1].cpu(), atol=1e-6)
