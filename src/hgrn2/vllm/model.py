"""The model that vLLM runs: our backbone between vLLM's embedding and head."""

# pyright: reportMissingImports=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching
from vllm.model_executor.models.utils import maybe_prefix
from vllm.tokenizers import cached_tokenizer_from_config

from hgrn2.errors import UserError
from hgrn2.models.backbone import Backbone
from hgrn2.vllm.loading import named
from hgrn2.vllm.parts import exchange


@support_torch_compile
class Stack(nn.Module):
    """Tokens [T] of many sequences -> features before the head [T,D]."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        settings = vllm_config.model_config.hf_config.to_model_config()
        self.scale = settings.width**0.5 if settings.scale_embeddings else 1.0
        self.embedding = VocabParallelEmbedding(settings.vocab_size, settings.width, prefix=f"{prefix}.embedding")
        with torch.device("meta"):
            self.backbone = Backbone(settings)
        exchange(self.backbone, vllm_config, f"{prefix}.backbone")

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """To the mixers a step is one text; which token belongs to which sequence only their operators know."""
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.scale if self.scale != 1.0 else x
        return self.backbone(x.unsqueeze(0), output_state=False)[0].squeeze(0)


class HGRN2ForCausalLM(nn.Module, HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching):
    """HGRN2 and HGRN, of folders that `hgrn2 convert to-hf` or flash-linear-attention wrote."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.settings = vllm_config.model_config.hf_config.to_model_config()
        width, vocabulary = self.settings.width, self.settings.vocab_size
        self.stack = Stack(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "stack"))
        self.lm_head = ParallelLMHead(vocabulary, width, prefix=maybe_prefix(prefix, "lm_head"))
        if self.settings.tie_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.stack.embedding)
        self.logits_processor = LogitsProcessor(vocabulary)
        self.known_ids = _known_ids(vllm_config.model_config, vocabulary)

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        """A state is copied whole, for a prefix that is kept."""
        return MambaStateCopyFuncCalculator.linear_attention_state_copy_func()

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """As vLLM asks for it."""
        return self.stack.embedding(input_ids)

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        """As `Stack`; positions mean nothing to a recurrent model."""
        return self.stack(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[N,D] -> [N,V]; ids that the tokenizer does not have are never chosen."""
        logits = self.logits_processor(self.lm_head, hidden_states)
        if logits is not None and self.known_ids < logits.shape[-1]:
            logits[..., self.known_ids :] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Every process reads all, and keeps its share.

        Raises:
            UserError: a tensor that this model does not have; vLLM itself names what is missing.
        """
        parameters, loaded = dict(self.named_parameters()), set()
        for name, value in named(weights, self.settings):
            if name == "head.weight" and self.settings.tie_embeddings:
                continue
            place = "lm_head.weight" if name == "head.weight" else f"stack.{name}"
            if place not in parameters:
                raise UserError(f"the weights do not fit config.json: unknown tensor {name}")
            parameter = parameters[place]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, value)
            loaded.add(place)
        return loaded


def _known_ids(model_config: Any, vocabulary: int) -> int:
    """Ids below it may be chosen: those of the tokenizer, where there is one and the model's vocabulary is padded."""
    if model_config.skip_tokenizer_init:
        return vocabulary
    ids = cached_tokenizer_from_config(model_config).get_vocab().values()
    return min(vocabulary, max(ids, default=vocabulary - 1) + 1)
