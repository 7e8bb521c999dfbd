"""What mixers compute along the tokens of a step: the operators of `hgrn2.ops`, over states in vLLM's pool.

A mixer calls its `operators` (`hgrn2.layers.operators`) as if a step were one text. Those here take the step apart:
sequences that read one token advance by the one-token step, the others are packed documents with initial states.
`torch.compile` sees three calls, each of which writes a result and, unseen, the pool.
"""

# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from hgrn2 import ops
from hgrn2.layers.operators import Operators
from hgrn2.ops.causal_conv import causal_conv_step
from hgrn2.vllm.pool import StatesBackend, Step

Part = Callable[..., tuple[Tensor, Tensor]]


class PooledOperators(MambaBase, Operators):
    """Of one mixer. A block of the pool holds its state and the last inputs of its convolution, in float32."""

    def __init__(self, name: str, mixer: Any) -> None:
        self.name, self.options = name, getattr(mixer, "options", {})
        state = mixer.zeros(1, torch.device("meta"))
        self.complex, self.shape = state.recurrent.is_complex(), tuple(state.recurrent.shape[1:])
        self.conv_shape = () if state.conv is None else tuple(state.conv.shape[1:])
        self.numbers = state.recurrent.numel() * (2 if self.complex else 1)
        self.conv_numbers = 0 if state.conv is None else state.conv.numel()

    # What vLLM asks of a layer with a state.

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """One row of numbers a sequence; both of its parts are found in it again."""
        return ((self.numbers + self.conv_numbers,),)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """float32: a state is a sum over a whole text."""
        return (torch.float32,)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """The nearest kind that vLLM knows."""
        return MambaAttentionBackendEnum.LINEAR

    def get_attn_backend(self) -> type[StatesBackend]:
        """Ours, which clears states."""
        return StatesBackend

    # What a mixer calls, and torch.compile traces: x [1,T,...].

    def short_conv(self, *tensors: Tensor | None, output_state: bool) -> tuple[Tensor, None]:
        """As `layers.short_conv`."""
        x, weight = tensors[:2]
        assert x is not None
        if weight is None:
            return x, None
        y = x.new_empty(x.shape[1:])
        torch.ops.vllm.hgrn2_conv(x[0], weight, y, self.name)
        return y.unsqueeze(0), None

    def hgru2(self, *tensors: Tensor | None, **options: Any) -> tuple[Tensor, None]:
        """As `ops.hgru2`; the options are those of the mixer, which are known."""
        q, f, i, lower_bound = tensors
        assert q is not None
        assert f is not None
        assert i is not None
        o = i.new_empty(i.shape[1:])
        torch.ops.vllm.hgrn2_matrix_scan(q[0], f[0], i[0], lower_bound, o, self.name)
        return o.unsqueeze(0), None

    def gated_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, None]:
        """As `ops.gated_scan`."""
        x, f = tensors
        h = x.new_empty(x.shape[1:])
        torch.ops.vllm.hgrn2_vector_scan(x[0], f[0], h, self.name)
        return h.unsqueeze(0), None

    # What runs: tensors [T,...].

    def run_conv(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        """The convolution of every sequence, y [T,D]."""

        def one(part: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
            return causal_conv_step(part, weight, state=past)

        def several(part: Tensor, past: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor | None]:
            return ops.causal_conv(part, weight, state=past, cu_seqlens=cu_seqlens)

        self._run((x,), y, self._inputs, _taken_out(self._inputs, one), several)

    def run_matrix_scan(self, q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, o: Tensor) -> None:
        """HGRN2's recurrence of every sequence, o [T,H*V]."""

        def one(*parts: Tensor) -> Tensor:
            q, f, i, blocks = parts
            options = {"state": self._states(), "slots": blocks, "inplace": True}
            return ops.hgru2_step(q, f, i, lower_bound, **options, **self.options)[0]

        def several(*parts: Tensor) -> tuple[Tensor, Tensor | None]:
            q, f, i, state, cu_seqlens = parts
            return ops.hgru2(q, f, i, lower_bound, state=state, cu_seqlens=cu_seqlens, **self.options)

        self._run((q, f, i), o, self._states, one, several)

    def run_vector_scan(self, x: Tensor, f: Tensor, h: Tensor) -> None:
        """HGRN1's recurrence of every sequence, h [T,D]."""

        def one(x: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return ops.gated_step(x, f, state=state)

        def several(x: Tensor, f: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor | None]:
            return ops.gated_scan(x, f, state=state, cu_seqlens=cu_seqlens)

        self._run((x, f), h, self._states, _taken_out(self._states, one), several)

    def _run(
        self, inputs: tuple[Tensor, ...], y: Tensor, states: Callable[[], Tensor], one: Callable[..., Tensor],
        several: Callable[..., tuple[Tensor, Tensor | None]],
    ) -> None:  # fmt: skip
        step = self._step()
        if step is None:  # vLLM measures memory before there is a pool
            y.zero_()
            return
        if step.ones:
            y[: step.ones] = one(*(x[: step.ones] for x in inputs), step.blocks[: step.ones])
        if step.offsets is not None:
            tokens, blocks, pool = slice(step.ones, step.tokens), step.blocks[step.ones :], states()
            made, final = several(*(x[None, tokens] for x in inputs), pool[blocks], step.offsets)
            assert final is not None
            y[tokens] = made[0]
            pool[blocks] = final

    def _step(self) -> Step | None:
        steps = get_forward_context().attn_metadata
        return None if steps is None else steps[self.name]

    def _states(self) -> Tensor:
        """The states of all blocks, a view of the pool."""
        pool = self.kv_cache[0][:, : self.numbers]
        return torch.view_as_complex(pool.unflatten(1, (-1, 2))) if self.complex else pool.unflatten(1, self.shape)

    def _inputs(self) -> Tensor:
        """The last inputs of the convolution of all blocks, a view of the pool."""
        return self.kv_cache[0][:, self.numbers :].unflatten(1, self.conv_shape)


def _taken_out(states: Callable[[], Tensor], one: Part) -> Callable[..., Tensor]:
    """A step over states [N,...] as one over blocks of the pool."""

    def run(*tensors: Tensor) -> Tensor:
        *inputs, blocks = tensors
        pool = states()
        y, new = one(*inputs, pool.index_select(0, blocks))
        pool.index_copy_(0, blocks, new)
        return y

    return run


def _layer(name: str) -> PooledOperators:
    return get_forward_context().no_compile_layers[name]


def hgrn2_conv(x: Tensor, weight: Tensor, y: Tensor, layer_name: str) -> None:
    """One call of a compiled model."""
    _layer(layer_name).run_conv(x, weight, y)


def hgrn2_matrix_scan(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, o: Tensor, layer_name: str) -> None:
    """One call of a compiled model."""
    _layer(layer_name).run_matrix_scan(q, f, i, lower_bound, o)


def hgrn2_vector_scan(x: Tensor, f: Tensor, h: Tensor, layer_name: str) -> None:
    """One call of a compiled model."""
    _layer(layer_name).run_vector_scan(x, f, h)


def _nothing(*tensors: Any) -> None:
    """What tracing sees of them: a result of its own shape is written."""


for _function, _written in ((hgrn2_conv, "y"), (hgrn2_matrix_scan, "o"), (hgrn2_vector_scan, "h")):
    direct_register_custom_op(_function.__name__, _function, mutates_args=[_written], fake_impl=_nothing)
