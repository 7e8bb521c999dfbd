"""Folders for `from_pretrained`: checked before anything is built, and translated where fla-hub wrote them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from hgrn2.errors import UserError
from hgrn2.models.convert import fla
from hgrn2.models.convert.rules import check, gather
from hgrn2.models.convert.weights import CONFIG, Weights, open_weights, read_settings
from hgrn2.settings import refuse

_OF_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_HEAD = "lm_head.weight"


def load_folder(kind: Any, load: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """`kind.from_pretrained`; `load` is the library's own."""
    special = path is None or kwargs.get("gguf_file") or kwargs.get("variant") or kwargs.get("state_dict") is not None
    folder = None if special else _folder(path, kwargs)
    if folder is None or ((folder / "adapter_config.json").exists() and not (folder / CONFIG).exists()):
        return load(path, *args, **kwargs)
    config = kwargs.pop("config", None)
    if isinstance(config, PreTrainedConfig) and not isinstance(config, kind.config_class):
        raise UserError(
            f"the configuration is {type(config).__module__}.{type(config).__name__}; {kind.__name__} needs "
            f"{kind.config_class.__name__} of hgrn2 (import hgrn2.models.hf after other packages of that name)"
        )
    if not isinstance(config, kind.config_class):
        refuse_others(read_settings(folder), folder, kind)
        where = folder if config is None else config
        config, kwargs = kind.config_class.from_pretrained(where, return_unused_kwargs=True, **kwargs)
    tensors = None
    with open_weights(folder) as weights:
        if any(".attn." in name for name in weights.files):
            tensors = _translated(kind, config, weights)
        elif getattr(config, "quantization_config", None) is None and not kwargs.get("ignore_mismatched_sizes"):
            _check_own(kind, config, weights)
    if tensors is None:
        return load(folder, *args, config=config, **kwargs)
    for name in (*_OF_HUB, "subfolder", "use_safetensors"):
        kwargs.pop(name, None)
    found = load(None, *args, config=config, state_dict=tensors, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    model.config.name_or_path = str(path)
    if (folder / "generation_config.json").is_file() and hasattr(model, "lm_head"):
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return found


def refuse_others(values: dict[str, Any], folder: Path, kind: Any) -> None:
    """Our own model folders, and models of another kind."""
    own = "format" in values and "model" in values
    refuse(own, f"{folder} is a model folder of ours: load it with hgrn2.models.saved, or write it for "
                "transformers with `hgrn2 convert to-hf`")  # fmt: skip
    found, wanted = values.get("model_type"), kind.config_class.model_type
    refuse(found != wanted, f"{folder / CONFIG} is of model_type {found!r}; {kind.__name__} reads {wanted!r}")


def _folder(path: Any, options: dict[str, Any]) -> Path | None:
    """Where the files lie, downloaded if it is a name of a hub."""
    local = Path(path)
    if not local.exists():
        from huggingface_hub import snapshot_download

        chosen = {name: options[name] for name in _OF_HUB if options.get(name) is not None}
        try:
            local = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **chosen))
        except Exception as error:  # of a dozen kinds: no network, no such repository, no access
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} is no folder, and cannot be had from the hub: {reason}") from None
    local = local / options["subfolder"] if options.get("subfolder") else local
    refuse(not local.is_dir(), f"{local} is not a folder; give the folder that holds {CONFIG} and the weights")
    return local


def _translated(kind: Any, config: Any, weights: Weights) -> dict[str, torch.Tensor]:
    """The state dict of `kind` from flash-linear-attention's, every bit as it was."""
    settings = config.to_model_config()
    refuse(settings.layers > len(weights.files), f"{weights.folder}: {len(weights.files)} tensors cannot be "
                                                 f"{settings.layers} layers")  # fmt: skip
    if settings.tie_embeddings:
        weights.files.pop(_HEAD, None)
    rules = fla.rules(settings)
    check(rules, weights)
    prefix = "model." if kind.base_model_prefix == "model" and hasattr(kind, "generate") else ""
    named = gather(rules, weights)
    head = named.pop("head.weight", None)
    found = {f"{prefix}language.{name}": value for name, value in named.items()}
    if head is not None and prefix:
        found[_HEAD] = head
    return found


def _check_own(kind: Any, config: Any, weights: Weights) -> None:
    """Shapes as the settings make them, and nothing absent but a head that a base model has not."""
    refuse(
        config.num_hidden_layers > len(weights.files),
        f"{weights.folder}: {len(weights.files)} tensors cannot be {config.num_hidden_layers} layers",
    )
    with torch.device("meta"):
        own = {_short(name): list(value.shape) for name, value in kind(config).state_dict().items()}
    stored = {_short(name): name for name in weights.files}
    lacking = sorted(set(own) - set(stored) - {_HEAD})
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    refuse(bool(lacking), f"{weights.folder}: the weights do not fit {CONFIG}: lacks {', '.join(lacking[:3])}{more}")
    for name in sorted(set(own) & set(stored)):
        shape = weights.shape(stored[name])
        refuse(
            shape != own[name], f"{weights.folder}: {stored[name]} is {shape}, but its {CONFIG} makes it {own[name]}"
        )


def _short(name: str) -> str:
    return name.removeprefix("model.")
