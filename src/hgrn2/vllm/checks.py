"""What vLLM is asked for and cannot have here, refused before anything is loaded."""

# pyright: reportMissingImports=false

from typing import Any

from vllm.model_executor.models.config import MambaModelConfig

from hgrn2.models.config import ModelConfig
from hgrn2.parallel.config import TENSOR_KINDS, refuse_tensor
from hgrn2.settings import refuse

KINDS = ("hgru2", "hgru1", "hgru1_real")
"""Mixers whose folders transformers loads, and vLLM with it."""


class CheckedConfig(MambaModelConfig):
    """Settings of vLLM for models of constant state, as far as this one has them."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Raises `UserError` for a model or an option that is not offered, in one line."""
        refuse_options(vllm_config)
        refuse_model(vllm_config.model_config.hf_config.to_model_config(), _ranks(vllm_config))
        super().verify_and_update_config(vllm_config)


def refuse_model(settings: ModelConfig, ranks: int) -> None:
    """Refuse kinds of mixers that are not offered, and numbers that `ranks` processes cannot share."""
    for mixer in settings.kinds.values():
        offered = mixer.kind in KINDS and mixer.kind in TENSOR_KINDS
        refuse(not offered, f"vLLM is offered for {', '.join(KINDS)}, not for {mixer.kind}")
        if ranks > 1:
            refuse_tensor(mixer, settings.width, ranks)
    width = settings.glu_width
    refuse(width % ranks != 0, f"glu_width {width} does not divide by tensor_parallel_size {ranks}")


def refuse_options(vllm_config: Any) -> None:
    """Refuse what would give wrong texts, or states narrower than were tried."""
    refuse(
        vllm_config.num_speculative_tokens > 0,
        "drafted tokens cannot be taken back from a state here: leave speculative_config out",
    )
    narrow = vllm_config.cache_config.mamba_ssm_cache_dtype
    refuse(narrow not in ("auto", "float32"), f"states are kept in float32: mamba_ssm_cache_dtype {narrow} is refused")


def _ranks(vllm_config: Any) -> int:
    return vllm_config.parallel_config.tensor_parallel_size
