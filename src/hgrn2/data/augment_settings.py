"""Which random changes a training image undergoes; `hgrn2.data.augment` makes them. By default none."""

import math

from hgrn2.settings import refuse, settings

LARGEST_MAGNITUDE = 10.0
OPERATIONS = 15
"""Operations among which RandAugment chooses; `hgrn2.data.augment_ops` has them."""


@settings
class AugmentConfig:
    """Random changes of training images, in the order in which they are made."""

    crop_padding: int = 0
    """Pixels by which an image may be shifted each way (pad, then crop to the old size): for small images."""
    crop_area: float = 1.0
    """Smallest part of the area that a random crop keeps before it is resized to the old size, its sides at most as
    3 to 4 or 4 to 3: for large images. 1: no such crop."""
    flip: bool = False
    """Mirror left and right, every second image."""
    rand_augment: int = 0
    """Different operations of RandAugment drawn for each image; 0: off."""
    magnitude: float = 9.0
    """Strength of these operations, 0 to 10; each image's varies around it with a standard deviation of 0.5."""
    operation_probability: float = 0.5
    """How likely an operation that was drawn is applied."""
    fill: float = 0.0
    """Grey level, 0 to 1, of what shifts and rotations bring in from outside the image."""
    erasing: float = 0.0
    """Probability that a rectangle of 2 % to 33 % of the area is replaced by noise."""
    mixup: float = 0.0
    """α of Beta(α, α), from which the share of an image in its mixture with another is drawn; 0: no mixup."""
    cutmix: float = 0.0
    """The same for the area of a rectangle that is taken from another image; 0: no cutmix. With both, each image
    undergoes one of them, at random."""
    mix_probability: float = 1.0
    """How likely an image is mixed at all, where mixup or cutmix is on."""
    label_smoothing: float = 0.0
    """Part of each target that is spread evenly over all classes. The loss applies it: `augment` leaves it out."""

    def __post_init__(self) -> None:
        for name in ("operation_probability", "fill", "erasing", "mix_probability"):
            value = getattr(self, name)
            refuse(not 0.0 <= value <= 1.0, f"{name} must lie in [0, 1], not {value}")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            refuse(not (math.isfinite(value) and value >= 0.0), f"{name} must be 0 or a positive number, not {value}")
        refuse(self.crop_padding < 0, f"crop_padding must not be negative, not {self.crop_padding}")
        refuse(not 0.0 < self.crop_area <= 1.0, f"crop_area must lie in (0, 1], not {self.crop_area}")
        refuse(
            self.crop_padding > 0 and self.crop_area < 1.0,
            "crop_padding is for small images, crop_area for large ones: set one of them",
        )
        refuse(
            not 0 <= self.rand_augment <= OPERATIONS,
            f"rand_augment must lie in 0 to {OPERATIONS}, not {self.rand_augment}",
        )
        refuse(
            not 0.0 <= self.magnitude <= LARGEST_MAGNITUDE,
            f"magnitude must lie in [0, {LARGEST_MAGNITUDE:g}], not {self.magnitude}",
        )
        refuse(not 0.0 <= self.label_smoothing < 1.0, f"label_smoothing must lie in [0, 1), not {self.label_smoothing}")

    @property
    def mixes(self) -> bool:
        """Whether targets come out as distributions over classes rather than class numbers."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0

    @property
    def changes_images(self) -> bool:
        """Whether images come out otherwise than they went in."""
        crops = self.crop_padding > 0 or self.crop_area < 1.0
        operations = self.rand_augment > 0 and self.operation_probability > 0
        return crops or self.flip or operations or self.erasing > 0 or self.mixes


def deit() -> AugmentConfig:
    """The DeiT recipe for ImageNet at 224 × 224 (300 epochs; for much shorter training it is too strong)."""
    return AugmentConfig(
        crop_area=0.08, flip=True, rand_augment=2, fill=0.45, erasing=0.25, mixup=0.8, cutmix=1.0, label_smoothing=0.1
    )


def small_images(*, mix: bool = True, flip: bool = True) -> AugmentConfig:
    """For images of about 32 × 32: small shifts instead of resized crops, otherwise as DeiT.

    `mix=False` leaves mixup and cutmix out, which a training of few epochs may want; `flip=False` is for images
    whose left and right mean something, such as digits.
    """
    mixup, cutmix = (0.8, 1.0) if mix else (0.0, 0.0)
    return AugmentConfig(
        crop_padding=4, flip=flip, rand_augment=2, erasing=0.25, mixup=mixup, cutmix=cutmix, label_smoothing=0.1
    )
