"""One linear recurrence with a vector state, and the same recurrence expanded to a matrix by an outer product.

    vector      h_t = f_t e^{iθ} ⊙ h_{t-1} + k_t ⊙ v_t                     y_t = h_t
    expanded    S_t = Diag(f_t e^{iθ}) S_{t-1} + k_t ⊗ v_t                 y_t = Re(q_t S_t), heads of n channels

k_t is the factor with which a cell weights its input (1 - f for HGRN1, z for minGRU, sqrt(1-a²) i for RG-LRU, a
constant for LRU): it becomes the key, and no parameter is added. This is what takes HGRN1 to HGRN2 (arXiv 2404.07904,
section 3). A phase θ that does not depend on the data needs no complex matrix: turning keys and queries by the angles
that have passed, as rotary positions do, leaves a real scan with twice as many key channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.layers.operators import Operators


@dataclass(frozen=True)
class Parts:
    """What a cell makes of its tokens, [B,T,D] each."""

    log_forget: Tensor
    """ln f ≤ 0, float32 (float64 for float64)."""
    key: Tensor
    """k, the factor of the input."""
    value: Tensor
    """v, the input; complex where the state is a complex vector."""
    query: Tensor | None = None
    """q of the expanded form, or its real part."""
    turned_query: Tensor | None = None
    """The imaginary part of q, where there are phases."""
    phase: Tensor | None = None
    """θ [D]; None: the decay is real."""

    def masked(self, padding_mask: Tensor | None) -> "Parts":
        """The same, but that tokens whose `padding_mask` [B,T] is False keep everything and write nothing."""
        if padding_mask is None:
            return self
        skipped = ~padding_mask.unsqueeze(-1)
        log_f, key, value = (part.masked_fill(skipped, 0) for part in (self.log_forget, self.key, self.value))
        return replace(self, log_forget=log_f, key=key, value=value)


def scan_vector(
    operators: Operators, parts: Parts, state: Tensor | None, *, cu_seqlens: Tensor | None,
    padding_mask: Tensor | None, output_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """h [B,T,D] and the final state [B,D]; a token alone is one step."""
    parts = parts.masked(padding_mask)
    forget, added = parts.log_forget.exp(), parts.key * parts.value.to(_wide(parts))
    if parts.phase is not None:
        phase = parts.phase.expand_as(forget)
        phase = phase if padding_mask is None else phase.masked_fill(~padding_mask.unsqueeze(-1), 0)
        forget = torch.polar(forget, phase)
    if _is_step(added, state, cu_seqlens):
        assert state is not None
        h, final = ops.gated_step(added[:, 0], forget[:, 0], state=state)
        return h.unsqueeze(1), final
    return operators.gated_scan(added, forget, state=state, cu_seqlens=cu_seqlens, output_final_state=output_state)


def scan_expanded(
    operators: Operators, parts: Parts, heads: int, state: Tensor | None, *, cu_seqlens: Tensor | None,
    padding_mask: Tensor | None, output_state: bool, inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """y [B,T,D] in the value's dtype and the final state [B,H,n,n], complex where there are phases; a token alone is
    one step, which writes into the state given where `inplace`."""
    parts = parts.masked(padding_mask)
    assert parts.query is not None
    dtype = parts.value.dtype
    q, k, v, log_f = (
        part.unflatten(-1, (heads, -1))
        for part in (parts.query.to(dtype), parts.key.to(dtype), parts.value, parts.log_forget)
    )
    step = _is_step(v, state, cu_seqlens)
    if parts.phase is None:
        if step:
            assert state is not None
            tensors = (part[:, 0] for part in (q, k, v, log_f))
            y, final = ops.gated_outer_step(*tensors, state=state, inplace=inplace)
            return y.flatten(1).unsqueeze(1), final
        y, final = operators.gated_outer_scan(
            q, k, v, log_f, state=state, cu_seqlens=cu_seqlens, output_final_state=output_state
        )
        return y.flatten(2), final
    assert parts.turned_query is not None
    turned = parts.turned_query.to(dtype).unflatten(-1, (heads, -1))
    phase = parts.phase.unflatten(-1, (heads, -1))
    if step:
        assert state is not None
        kept = None if padding_mask is None else padding_mask
        y, final = _turned_step((q, turned, k, v, log_f), phase, state, kept, inplace)
        return y.flatten(1).unsqueeze(1), final
    steps, totals = passed(v.shape[:2], v.device, cu_seqlens, padding_mask)
    cos, sin = _turns(steps, phase)
    q2 = torch.cat((q * cos - turned * sin, q * sin + turned * cos), -1).to(dtype)
    k2 = torch.cat((k * cos, k * sin), -1).to(dtype)
    begin = None if state is None else torch.cat((state.real, -state.imag), -2)
    y, final = operators.gated_outer_scan(
        q2, k2, v, torch.cat((log_f, log_f), -1), state=begin, cu_seqlens=cu_seqlens, output_final_state=output_state
    )
    if final is None:
        return y.flatten(2), None
    real, imag = final.chunk(2, -2)
    cos, sin = (turn[:, 0].unsqueeze(-1) for turn in _turns(totals.unsqueeze(1), phase))
    # The scan's state is e^{-iθT} S_T: it begins with a phase of zero, wherever in a text that is.
    return y.flatten(2), torch.complex(real * cos + imag * sin, real * sin - imag * cos)


def passed(
    shape: torch.Size, device: torch.device, cu_seqlens: Tensor | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many tokens of its own sequence were read up to each one and with it, [B or 1,T], and in all, [B or 1] ([N]
    of packed sequences); padding counts nothing."""
    batch, tokens = shape
    kept = torch.ones(1, tokens, dtype=torch.int64, device=device) if padding_mask is None else padding_mask.long()
    counts = kept.cumsum(1)
    if cu_seqlens is None:
        return counts, kept.sum(1)
    assert batch == 1, "packed sequences are one row"
    before = torch.cat((counts.new_zeros(1), counts[0]))[cu_seqlens.long()]
    places = torch.arange(tokens, device=device)
    document = torch.searchsorted(cu_seqlens.to(places.dtype), places, right=True) - 1
    return counts - before[document], before.diff()


def _turns(steps: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B,T,H,n] of steps [B,T] times phases [H,n], in the dtype of the phases; the angles in float64,
    because a phase times thousands of tokens leaves few digits of float32 behind the full turns."""
    angle = steps.double()[..., None, None] * phase.double()
    return angle.cos().to(phase.dtype), angle.sin().to(phase.dtype)


def _turned_step(
    tensors: tuple[Tensor, ...], phase: Tensor, state: Tensor, kept: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """One token [B,1,H,n] of a complex matrix state, without gradients."""
    q, turned, k, v, log_f = (part[:, 0] for part in tensors)
    phase = phase.expand_as(log_f)
    phase = phase if kept is None else phase.masked_fill(~kept[:, :, None], 0)
    new = state if inplace else state.clone()
    new.mul_(torch.polar(log_f.exp(), phase).unsqueeze(-1)).add_(k.unsqueeze(-1) * v.unsqueeze(-2))
    q, turned = q.to(log_f.dtype).unsqueeze(-2), turned.to(log_f.dtype).unsqueeze(-2)
    y = q @ new.real.to(q.dtype) - turned @ new.imag.to(q.dtype)
    return y.squeeze(-2).to(v.dtype), new


def _is_step(tokens: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> bool:
    return tokens.shape[1] == 1 and state is not None and cu_seqlens is None and not torch.is_grad_enabled()


def _wide(parts: Parts) -> torch.dtype:
    """That of the sums: the gates' precision, complex for complex values."""
    dtype = parts.log_forget.dtype
    return dtype.to_complex() if parts.value.is_complex() else dtype
