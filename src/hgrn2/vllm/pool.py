"""Where states lie: blocks of vLLM's pool, one per sequence, and what is known of them before a step.

vLLM hands out blocks without clearing them. The rows of a step whose sequences begin with it are told by numbers that
the host has anyway; their blocks are cleared before the step, outside of any graph, so that whatever reads a state
finds a whole one. While tokens are written, a step reads block numbers at one address for all steps: a graph that was
captured once finds those of every later step there.
"""

# pyright: reportMissingImports=false

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backends.linear_attn import LinearAttentionBackend, LinearAttentionMetadataBuilder
from vllm.v1.attention.backends.utils import NULL_BLOCK_ID


@dataclass(frozen=True)
class Step:
    """The sequences of one step, flattened: those that read one token, then those that read several."""

    ones: int
    """Sequences that read one token; they are the first tokens."""
    tokens: int
    """Of all sequences; a batch that is padded for a graph has more rows."""
    blocks: Tensor
    """[N] int64, the block of each sequence."""
    offsets: Tensor | None
    """[N - ones + 1] offsets of the longer ones behind the first `ones` tokens; None where there are none."""


class StatesBackend(LinearAttentionBackend):
    """Named so in vLLM's messages."""

    @staticmethod
    def get_name() -> str:
        """The name."""
        return "HGRN2_STATES"

    @staticmethod
    def get_builder_cls() -> type["StepBuilder"]:
        """Makes a `Step` of what the scheduler chose."""
        return StepBuilder


class StepBuilder(LinearAttentionMetadataBuilder):
    """Called once a step, before the model, for all its layers."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.layer_names = layer_names
        widest = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        rows = max(vllm_config.scheduler_config.max_num_seqs, widest)
        self.blocks = torch.zeros(rows, dtype=torch.int64, device=device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """The step, with the states of sequences that begin in it cleared."""
        found = super().build(common_prefix_len, common_attn_metadata, fast_build)
        rows = found.num_decodes + found.num_prefills
        lengths = common_attn_metadata.query_start_loc_cpu[: rows + 1].diff()
        before = common_attn_metadata.seq_lens_cpu_upper_bound[:rows] - lengths
        blocks = found.state_indices_tensor[:rows].long()
        begun = (before == 0) & (lengths > 0)
        if bool(begun.any()):
            self._clear(blocks[begun.nonzero().flatten().to(blocks.device)])
        if not found.num_prefills:
            return Step(rows, found.num_decode_tokens, self._placed(blocks, int((lengths > 0).sum())), None)
        offsets = found.query_start_loc[found.num_decodes : rows + 1] - found.num_decode_tokens
        tokens = found.num_decode_tokens + found.num_prefill_tokens
        return Step(found.num_decodes, tokens, blocks, offsets)

    def _clear(self, blocks: Tensor) -> None:
        layers = self.vllm_config.compilation_config.static_forward_context
        for name in self.layer_names:
            layers[name].kv_cache[0].index_fill_(0, blocks, 0)

    def _placed(self, blocks: Tensor, real: int) -> Tensor:
        """The block numbers where every step has them; rows that pad a batch get the block that nobody owns."""
        placed = self.blocks[: len(blocks)]
        placed.copy_(blocks)
        placed[real:] = NULL_BLOCK_ID
        return placed
