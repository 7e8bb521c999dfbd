"""Folders for `from_pretrained`: checked before anything is built, and translated where fla-hub wrote them."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from hgrn2.errors import UserError
from hgrn2.models.convert import fla
from hgrn2.models.convert.rules import check, gather
from hgrn2.models.convert.weights import CONFIG, InMemory, read_settings
from hgrn2.models.tensor_files import Weights, open_weights
from hgrn2.settings import refuse

_OF_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_HEAD = "lm_head.weight"
ADAPTER, ADAPTED = "adapter_config.json", "_adapter_model_path"
"""PEFT's file, and the library's word for where it lies while the base is loaded."""
_CLASSES = ("vision.head.proj.weight", "vision.head.proj.bias")


def load_folder(kind: Any, load: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """`kind.from_pretrained`; `load` is the library's own."""
    wanted, given = kwargs.pop("output_loading_info", False), kwargs.get("state_dict")
    asked, folder = path, None if path is None or kwargs.get("gguf_file") else _folder(path, kwargs)
    if folder is not None and (folder / ADAPTER).exists() and not (folder / CONFIG).exists():
        base = read_settings(folder, ADAPTER).get("base_model_name_or_path")
        refuse(not isinstance(base, str), f"{folder / ADAPTER} names no base_model_name_or_path")
        more = (kwargs.pop("adapter_kwargs", None) or {}) | {ADAPTED: str(path)}
        return load_folder(kind, load, base, *args, output_loading_info=wanted, adapter_kwargs=more, **kwargs)
    if folder is not None:
        kwargs = _with_config(kind, folder, kwargs)
        path = folder
    config, tensors = kwargs.get("config"), None
    source = None if given is None else nullcontext(InMemory(given))
    if folder is not None and source is None:
        source = open_weights(folder, kwargs.get("variant") or "")
    if isinstance(config, kind.config_class) and source is not None:
        with source as weights:
            if any(".attn." in name for name in weights.files):
                tensors = _translated(kind, config, weights)
            elif getattr(config, "quantization_config", None) is None:
                _check_own(kind, config, weights, bool(kwargs.get("ignore_mismatched_sizes")))
    adapter = (kwargs.get("adapter_kwargs") or {}).get(ADAPTED)
    if adapter is None and folder is not None and (folder / ADAPTER).exists():  # beside the weights
        adapter = str(folder)
    if tensors is not None:
        for name in (*_OF_HUB, "subfolder", "use_safetensors", "variant", "adapter_kwargs"):
            kwargs.pop(name, None)
        kwargs["state_dict"], path = tensors, None
    model, report = load(path, *args, output_loading_info=True, **kwargs)
    if tensors is not None and adapter is not None:
        model.load_adapter(adapter)  # which the library does for a path only
    if tensors is not None or adapter is None:  # else it is the adapter's; what its base lacks was refused above
        _refuse_drawn(kind, report, bool(kwargs.get("ignore_mismatched_sizes")))
    if folder is not None:
        model.config.name_or_path = model.name_or_path = str(asked)
        if tensors is not None and (folder / "generation_config.json").is_file() and hasattr(model, "lm_head"):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return (model, report) if wanted else model


def _with_config(kind: Any, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call with the configuration of its folder among them."""
    config = options.pop("config", None)
    if isinstance(config, PreTrainedConfig) and not isinstance(config, kind.config_class):
        raise UserError(
            f"the configuration is {type(config).__module__}.{type(config).__name__}; {kind.__name__} needs "
            f"{kind.config_class.__name__} of hgrn2 (import hgrn2.models.hf after other packages of that name)"
        )
    if not isinstance(config, kind.config_class):
        refuse_others(read_settings(folder), folder, kind)
        where = folder if config is None else config
        config, options = kind.config_class.from_pretrained(where, return_unused_kwargs=True, **options)
    return options | {"config": config}


def _refuse_drawn(kind: Any, report: dict[str, Any], asked: bool) -> None:
    """Whatever way a model was loaded by: no weight may have been drawn at random that was not asked for by name.

    Args:
        asked: ignore_mismatched_sizes, which starts anew what has another shape, and a classifier's missing head.
    """
    lacking = sorted(name for name in report["missing_keys"] if not (asked and name in _new_heads(kind)))
    refuse(bool(lacking), f"{kind.__name__}: the weights given lack {_some(lacking)}; nothing was loaded")


def _new_heads(kind: Any) -> tuple[str, ...]:
    """Weights that a new task may begin with anew."""
    return _CLASSES if kind.main_input_name == "pixel_values" else ()


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


def _check_own(kind: Any, config: Any, weights: Weights, mismatched: bool) -> None:
    """Names and shapes as the settings make them; a file may have a head more than a base model.

    Args:
        mismatched: the caller asked for other shapes to be started anew (ignore_mismatched_sizes).
    """
    refuse(
        config.num_hidden_layers > len(weights.files),
        f"{weights.folder}: {len(weights.files)} tensors cannot be {config.num_hidden_layers} layers",
    )
    with torch.device("meta"):
        own = {_short(name): list(value.shape) for name, value in kind(config).state_dict().items()}
    stored = {_short(name): name for name in weights.files}
    spared = {_HEAD} if getattr(config, "tie_word_embeddings", False) else set()
    spared |= set(_new_heads(kind)) if mismatched else set()
    lacking = sorted(set(own) - set(stored) - spared)
    base = lacking == [_HEAD]
    how = "; for a new head, load the base with AutoModel and put it into HGRN2ForCausalLM(config).model"
    refuse(
        bool(lacking),
        f"{weights.folder}: the weights do not fit {CONFIG}: lacks {_some(lacking)}{how if base else ''}",
    )
    more = sorted(stored[name] for name in set(stored) - set(own) if name.startswith(("language.", "vision.")))
    refuse(bool(more), f"{weights.folder}: the weights do not fit {CONFIG}: has unknown tensors {_some(more)}")
    for name in () if mismatched else sorted(set(own) & set(stored)):
        shape = weights.shape(stored[name])
        refuse(
            shape != own[name], f"{weights.folder}: {stored[name]} is {shape}, but its {CONFIG} makes it {own[name]}"
        )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _short(name: str) -> str:
    return name.removeprefix("model.")
