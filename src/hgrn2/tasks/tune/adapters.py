"""Low-rank adapters through PEFT, on the transformers classes; merged, they are models of ours. Needs hgrn2[finetune].

model = from_language_model(load("runs/wiki").model)
adapted = add_lora(model, rank=8)      # a peft.PeftModel: Trainer and SFTTrainer take it
save_merged(adapted, tokenizer, "models/mine")   # for hgrn2 generate, eval, export
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.models.saved import save_model
from hgrn2.settings import refuse

LORA_TARGETS = ("mixer.in_proj", "mixer.out_proj", "glu.in_proj", "glu.out_proj")
"""All projections of all blocks, as `target_modules`: what "all-linear" finds too. The mixer's own two alone are
`LORA_TARGETS[:2]`; the lower bounds of the forget gates and the norms are no matrices, and stay."""


def add_lora(
    model: Any, rank: int = 8, *, targets: Iterable[str] | str = LORA_TARGETS, alpha: float | None = None, **more: Any
) -> Any:
    """A `peft.PeftModel` of a transformers model of ours: adapters in the named projections, all else frozen.

    Args:
        model: `HGRN2ForCausalLM`, or HGRN1's.
        rank: of the adapters.
        targets: ends of module names, or "all-linear".
        alpha: adapters are scaled by alpha / rank; None: twice the rank.
        more: further fields of `peft.LoraConfig`.

    Raises:
        UserError: PEFT is missing, or a target names no linear map of this model.
    """
    config = lora_config(rank, targets=targets, alpha=alpha, **more)
    if not isinstance(targets, str):
        check_targets(model, targets)
    from peft import get_peft_model

    return get_peft_model(model, config)


def lora_config(
    rank: int = 8, *, targets: Iterable[str] | str = LORA_TARGETS, alpha: float | None = None, **more: Any
) -> Any:
    """The `peft.LoraConfig` of `add_lora`, for trainers that put the adapters in by themselves."""
    refuse(rank < 1, f"rank is {rank}; it must be at least 1")
    try:
        from peft import LoraConfig
    except ImportError as missing:
        raise UserError(f"{missing.name or 'peft'} is not installed: pip install 'hgrn2[finetune]'") from None
    chosen = targets if isinstance(targets, str) else list(targets)
    alpha = 2 * rank if alpha is None else alpha
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, task_type="CAUSAL_LM", **more)  # pyright: ignore[reportArgumentType] (whole or not)


def check_targets(model: torch.nn.Module, targets: Iterable[str]) -> None:
    """Refuse names at whose end no linear map of the model stands."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise UserError(f"no linear map of this model is called {target!r}; choose among {', '.join(LORA_TARGETS)}")


def save_merged(adapted: Any, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Add the adapters to the weights and write a model folder of ours, which every verb takes.

    Args:
        adapted: what `add_lora` or `PeftModel.from_pretrained` gave. Its adapters are gone afterwards.
        tokenizer: of the model.
        folder: new, or without a model.
    """
    refuse(not hasattr(adapted, "merge_and_unload"), f"{type(adapted).__name__} has no adapters to merge")
    merged = adapted.merge_and_unload()
    refuse(not hasattr(merged, "to_language_model"), f"{type(merged).__name__} is not a language model of ours")
    save_model(folder, merged.to_language_model(), tokenizer)


def transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    """`hgrn2.models.hf.tokenizer.fast_tokenizer` for trainers, which want some token for padding: where documents have
    no end mark, it is the first id, and trainers mask it."""
    from hgrn2.models.hf.tokenizer import fast_tokenizer

    made = fast_tokenizer(tokenizer)
    if made is None:
        raise UserError(f"there is no transformers tokenizer for kind {tokenizer.kind!r}")
    if made.pad_token is None:
        made.pad_token = made.convert_ids_to_tokens(0)
    return made
