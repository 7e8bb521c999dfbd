"""Whether a model fits into memory, asked before its first weight is made."""

import torch

from hgrn2.memory import refuse_too_big
from hgrn2.models.config import DeiTConfig, StackConfig
from hgrn2.models.count import parameters

MODULES = 20_000
"""Bytes of Python's objects for one block, at the very least (42,000 were measured, weights of 7,400 among them)."""


def parameter_bytes(config: StackConfig | DeiTConfig, each: int) -> int:
    """What the parameters take at so many bytes each; of DeiT those of the blocks' matrices alone."""
    if isinstance(config, DeiTConfig):
        return 12 * config.layers * config.width**2 * each
    return parameters(config).total * each


def check_model(config: StackConfig | DeiTConfig) -> None:
    """Refuse a model that is larger than the memory of the device on which it is about to be made.

    Raises:
        UserError: says how much the model needs and how much there is. On the meta device everything fits.
    """
    device = torch.get_default_device()
    count = parameter_bytes(config, torch.get_default_dtype().itemsize)
    refuse_too_big(count, "this model needs", _HINT, device=device)
    if device.type != "meta":
        refuse_too_big(config.layers * MODULES, f"a model of {config.layers:,} layers needs", "use fewer layers")


_HINT = "make model.width, model.layers, model.glu_width or model.vocab_size smaller"
