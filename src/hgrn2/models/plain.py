"""Modules that others have changed: adapters, quantised or offloaded weights, hooks.

Where short cuts past a module hold, where its tensors lie, and refusals by name where its weights are to be read.
"""

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.settings import refuse

_ADAPTERS = ("lora_", "base_layer", "modules_to_save")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_product(head: nn.Module, features: Tensor) -> bool:
    """Whether calling `head` on `features` is features · weightᵀ and nothing else: then the weight may be read.

    False for adapters and other classes, a bias, hooks (also accelerate's, which fetch offloaded weights), a replaced
    `forward`, parametrised, sharded or quantised weights, and weights on another device or of another precision.
    """
    if type(head) not in (nn.Linear, nn.Embedding) or not _untouched(head):
        return False
    weight, bias = head.weight, getattr(head, "bias", None)
    narrowed = torch.is_autocast_enabled(features.device.type)
    return bias is None and weight.device == features.device and (narrowed or weight.dtype == features.dtype)


def untouched(module: nn.Module) -> bool:
    """Whether a module's call is the `forward` of its class and nothing else: no hooks, no replaced method."""
    hooked = any(getattr(module, name) for name in _HOOKS) or torch.nn.modules.module._has_any_global_hook()
    return not hooked and "forward" not in vars(module)


def _untouched(module: nn.Module) -> bool:
    return untouched(module) and type(module._parameters.get("weight")) in (nn.Parameter, Tensor)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its first tensor that is not on meta, else that to which a hook of
    accelerate brings offloaded weights; meta where all of it is."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.device.type != "meta":
            return tensor.device
    for part in module.modules():
        place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device(place)
    return tensors[0].device if tensors else torch.device("cpu")


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of its first floating-point parameter, or of the first part that states one, as quantised parts do;
    float32 where there is none."""
    found = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), None)
    stated = (vars(part).get("dtype") for part in module.modules())
    return found or next((dtype for dtype in stated if isinstance(dtype, torch.dtype)), torch.float32)


def check_plain(tensors: dict[str, Tensor], own: dict[str, Tensor], what: str) -> None:
    """Refuse a state dict that is not that of the plain model: `own` has the names it should have.

    Raises:
        UserError: adapters in place, quantised or sharded weights, weights that lie on the meta device.
    """
    more, lacks = sorted(set(tensors) - set(own)), sorted(set(own) - set(tensors))
    adapter = next((name for name in more if any(mark in name for mark in _ADAPTERS)), None)
    if adapter is not None:
        raise UserError(f"{what}: the model has an adapter in place ({adapter}): merge it first (merge_and_unload())")
    for name, value in tensors.items():
        check_readable(name, value, what)
        whole = name in own and not value.is_floating_point()
        refuse(whole, f"{what}: {name} is quantised ({value.dtype}): use the model that this one was made from")
    refuse(bool(more), f"{what}: the model was changed: it has {_some(more)}, which its settings do not make")
    refuse(bool(lacks), f"{what}: the model was changed: it lacks {_some(lacks)}")


def check_readable(name: str, tensor: Tensor, what: str) -> None:
    """Refuse a tensor without plain values in memory: quantised or sharded ones of a class of their own, and meta."""
    kind = type(tensor)
    if kind not in (Tensor, nn.Parameter):
        raise UserError(
            f"{what}: {name} is quantised or sharded ({kind.__name__}): use the model that this one was made from"
        )
    refuse(tensor.is_meta, f"{what}: {name} is offloaded (on the meta device): load the model onto one device first")


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
