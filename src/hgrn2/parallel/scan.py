"""Gated scans of sequences of which every process has a slice; exact, with one exchange per scan and direction.

The state is affine in the state before it, S_out = A ⊙ S_in + L with A the product of a slice's gates and L its final
state from zero. Each process computes its (A, L), all of them are gathered (float32; float64 for float64), and every
process chains those before it to its own initial state. Then it scans its slice once, from there. Backward alike: the
gradient that arrives at a slice's end is chained from those of the slices behind it, G_in = A ⊙ G_out + D with D the
gradient at a slice's beginning from its own outputs, and the operator's backward runs once.

The alternative, a scan from zero and its outputs corrected by o_t += q_t (a_t ⊙ S_in) with a_t the decay up to t, costs
more: per token and channel, with 2-byte operands, it reads q, f and o again and writes o (8 bytes), where A and L need
f and i (4 bytes; both do 2 V operations for it), and its backward needs the derivative of a_t, a running sum that
cancels. A scan that is corrected is also none of the operators that are tested. For `gated_scan` both read and write
the same; there L is the final state of one more scan.

Measured beside the scan itself, A and L are one elementwise pass and one matrix product without a loop: the exponents
are sums of logarithms outward from the slice's border, and none is positive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.activations import activate, name_of
from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.hgru2.chunked import gates
from hgrn2.parallel.collectives import Group, all_gather, summed
from hgrn2.parallel.slices import Slice

TOKENS = 4096
"""Of a slice at a time, while its summary is computed: the working copies stay small beside the model's activations."""


class Summary(NamedTuple):
    """What a stretch of tokens does to a state: S -> decay ⊙ S + state; both of one shape but for the last axis."""

    decay: Tensor
    state: Tensor

    def after(self, before: Tensor) -> Tensor:
        """The state after the tokens."""
        return self.decay * before + self.state


@dataclass(frozen=True)
class Scan:
    """One of the operators, and how its slices are summarised."""

    tensors: tuple[Tensor | None, ...]
    """Its arguments."""
    shape: tuple[int, ...]
    """Of a sequence's state."""
    run: Callable[..., tuple[Tensor, Tensor | None]]
    """(*tensors, state=, cu_seqlens=) -> (output, final states)."""
    forward: Callable[..., Summary]
    """(*tensors, tokens) -> the summary of those tokens."""
    backward: Callable[..., Summary]
    """(*tensors, gradient of the output, tokens) -> what they do to the gradient of the state, from the last to the
    first."""
    work: torch.dtype


def hgru2(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, *, heads: int, input_activation: str | None = None,
    output_activation: str | None = "silu", scale: float = 1.0, **options: Any,
) -> Scan:  # fmt: skip
    """`ops.hgru2`."""
    work = work_dtype(i.dtype)
    given = {"heads": heads, "input_activation": input_activation, "output_activation": output_activation}
    into, out = name_of(input_activation), name_of(output_activation)

    def by_heads(x: Tensor) -> Tensor:
        return x.to(work).unflatten(-1, (heads, -1))

    def gates_of(f: Tensor, lower_bound: Tensor | None) -> Any:
        return gates(by_heads(f), None if lower_bound is None else by_heads(lower_bound))

    def forward(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, tokens: slice) -> Summary:
        opened = gates_of(f[:, tokens], lower_bound)
        return _written(opened.log_forget, opened.key, activate(by_heads(i[:, tokens]), into))

    def backward(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, grad: Tensor, tokens: slice) -> Summary:
        query = scale * activate(by_heads(q[:, tokens]), out)
        return _read(gates_of(f[:, tokens], lower_bound).log_forget, query, by_heads(grad[:, tokens]))

    def run(*tensors: Any, **more: Any) -> Any:
        return ops.hgru2(*tensors, scale=scale, **given, **options, **more)

    shape = (heads, q.shape[2] // heads, i.shape[2] // heads)
    return Scan((q, f, i, lower_bound), shape, run, _in_pieces(forward), _in_pieces(backward, back=True), work)


def gated_outer_scan(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *, scale: float = 1.0, **options: Any) -> Scan:
    """`ops.gated_outer_scan`."""
    work = work_dtype(v.dtype)

    def forward(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, tokens: slice) -> Summary:
        return _written(*(x[:, tokens].to(work) for x in (log_f, k, v)))

    def backward(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, grad: Tensor, tokens: slice) -> Summary:
        return _read(log_f[:, tokens].to(work), scale * q[:, tokens].to(work), grad[:, tokens].to(work))

    def run(*tensors: Any, **more: Any) -> Any:
        return ops.gated_outer_scan(*tensors, scale=scale, **options, **more)

    shape = (q.shape[2], q.shape[3], v.shape[3])
    return Scan((q, k, v, log_f), shape, run, _in_pieces(forward), _in_pieces(backward, back=True), work)


def gated_scan(x: Tensor, f: Tensor, **options: Any) -> Scan:
    """`ops.gated_scan`, real and complex."""
    work = work_dtype(x.dtype)

    def forward(x: Tensor, f: Tensor, tokens: slice) -> Summary:
        _, final = ops.gated_scan(x[:, tokens], f[:, tokens])
        assert final is not None
        return Summary(f[:, tokens].to(work).prod(1), final)

    def backward(x: Tensor, f: Tensor, grad: Tensor, tokens: slice) -> Summary:
        gate = f[:, tokens].to(work).conj().resolve_conj()
        following = torch.cat((gate[:, 1:], torch.ones_like(gate[:, :1])), 1)
        _, first = ops.gated_scan(grad[:, tokens].to(work), following, reverse=True)
        assert first is not None
        return Summary(gate.prod(1), gate[:, 0] * first)

    def run(*tensors: Any, **more: Any) -> Any:
        return ops.gated_scan(*tensors, **options, **more)

    return Scan((x, f), (x.shape[2],), run, forward, backward, work)


def _written(log_f: Tensor, key: Tensor, value: Tensor) -> Summary:
    """log f, k [B,T,H,K], v [B,T,H,V] -> decay [B,H,K,1] and Σ_t (Π_{s>t} f_s k_t) ⊗ v_t [B,H,K,V]."""
    behind = torch.nn.functional.pad(log_f[:, 1:].flip(1).cumsum(1).flip(1), (0, 0, 0, 0, 0, 1))
    total = (behind[:, 0] + log_f[:, 0]).exp()
    return Summary(total.unsqueeze(-1), torch.einsum("bthk,bthv->bhkv", key * behind.exp(), value))


def _read(log_f: Tensor, query: Tensor, grad: Tensor) -> Summary:
    """log f, q [B,T,H,K], gradient [B,T,H,V] -> decay [B,H,K,1] and Σ_t (Π_{s≤t} f_s q_t) ⊗ do_t [B,H,K,V]."""
    up_to = log_f.cumsum(1)
    return Summary(up_to[:, -1].exp().unsqueeze(-1), torch.einsum("bthk,bthv->bhkv", query * up_to.exp(), grad))


def _in_pieces(summary: Callable[..., Summary], *, back: bool = False) -> Callable[..., Summary]:
    """The summary of any stretch of tokens from those of at most TOKENS, in full precision."""

    def joined(*tensors: Any) -> Summary:
        *given, tokens = tensors
        total: Summary | None = None
        pieces = [slice(a, min(a + TOKENS, tokens.stop)) for a in range(tokens.start, tokens.stop, TOKENS)]
        with full_precision(given[0].device):
            for piece in reversed(pieces) if back else pieces:
                one = summary(*given, piece)
                total = one if total is None else Summary(total.decay * one.decay, one.after(total.state))
        assert total is not None
        return total

    return joined


def sliced(
    scan: Scan, part: Slice, group: Group, state: Tensor | None, *, output_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    """What `scan` returns for whole sequences, for this process's slice of them.

    Args:
        state: initial states of all sequences [B or N,...], alike in every process; its gradient is the sum of those
            of the processes.
        output_final_state: return the final states of all sequences, to every process; the loss is the sum of what the
            processes make of them.
    """
    own = part.own(state)
    arriving = _arriving(scan, part, group, own)
    start = own
    if part.enters and arriving is not None:
        rest = own if own is not None else arriving.new_zeros(_sequences(scan, part), *scan.shape)
        start = arriving if part.documents is None else torch.cat((arriving, rest[1:].to(arriving.dtype)))
    o, final = scan.run(*scan.tensors, state=start, cu_seqlens=part.cu_seqlens, output_final_state=True)
    assert final is not None
    o, final = _Leave.apply(scan, part, group, o, final, *scan.tensors)  # pyright: ignore[reportGeneralTypeIssues]
    return o, ended(final, part, group, len(state) if state is not None else None) if output_final_state else None


def _sequences(scan: Scan, part: Slice) -> int:
    first = scan.tensors[0]
    assert first is not None
    return first.shape[0] if part.documents is None else len(part.documents)


@torch.no_grad()
def _arriving(scan: Scan, part: Slice, group: Group, own: Tensor | None) -> Tensor | None:
    """The states before this slice's first token, of the sequences that enter it; None where none does."""
    shape = (_sequences(scan, part) if part.documents is None else 1, *scan.shape)
    empty = scan.tensors[0].new_zeros(shape, dtype=scan.work)  # pyright: ignore[reportOptionalMemberAccess]
    summary = Summary(empty[..., :1] if len(shape) > 2 else empty, empty)
    if part.leaves:
        found = scan.forward(*scan.tensors, slice(part.last_begin, part.tokens))
        whole = part.documents is None or len(part.documents) == 1
        if own is not None and not (part.enters and whole):
            rows = own if part.documents is None else own[-1:]
            found = Summary(found.decay, found.after(rows.to(scan.work)))
        summary = found if part.through else Summary(summary.decay, found.state)
    state = empty
    for rank, one in enumerate(_all(summary, group)):
        if rank == part.rank:
            return state if part.enters else None
        state = one.after(state)
    return None


def _all(summary: Summary, group: Group) -> list[Summary]:
    """The summaries of all processes, by rank; exchanged at once."""
    width = 1 if summary.decay.dim() > 2 else summary.decay.shape[-1]
    return [Summary(x[..., :width], x[..., width:]) for x in all_gather(torch.cat(summary, -1), group)]


class _Leave(torch.autograd.Function):
    """Nothing forward; backward, what the slices behind this one add to the gradient of the states that leave it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, scan: Scan, part: Slice, group: Group, o: Tensor, final: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*tensors)
        ctx.scan, ctx.part, ctx.group = (scan.backward, scan.shape, scan.work), part, group
        return o.view_as(o), final.view_as(final)

    @staticmethod
    def backward(ctx: Any, grad_o: Tensor, grad_final: Tensor) -> Any:  # type: ignore[override]
        backward, shape, work = ctx.scan
        part, rows = ctx.part, slice(None) if ctx.part.documents is None else slice(0, 1)
        tensors = ctx.saved_tensors
        empty = grad_final.new_zeros(grad_final.shape if part.documents is None else (1, *shape), dtype=work)
        summary = Summary(empty[..., :1] if empty.dim() > 2 else empty, empty)
        if part.enters:
            found = backward(*tensors, grad_o, slice(0, part.first_end))
            arrived = found.after(grad_final[rows].to(work))
            summary = Summary(found.decay if part.through else summary.decay, arrived)
        gradient = empty
        for one in reversed(_all(summary, ctx.group)[part.rank + 1 :]):
            gradient = one.after(gradient)
        if part.leaves:
            last = slice(None) if part.documents is None else slice(-1, None)
            grad_final = grad_final.clone()
            grad_final[last] += gradient
        return None, None, None, grad_o, grad_final, *([None] * len(tensors))


def ended(final: Tensor, part: Slice, group: Group, sequences: int | None = None) -> Tensor:
    """Final states of this slice's sequences -> those of all sequences, in every process; each comes from the slice in
    which its sequence ends."""
    if part.documents is None:
        nothing = final.new_ones((), dtype=torch.bool)  # zeros, through which the backward finds its way all the same
        return summed(final.masked_fill(nothing, 0) if part.leaves else final, group)
    count = part.documents.stop - part.leaves
    if sequences is None:
        last = torch.tensor(count if part.rank == part.ranks - 1 else 0, device=final.device)
        sequences = int(all_gather(last, group).max())
    rows = torch.arange(part.documents.start, count, device=final.device)
    everything = final.new_zeros(sequences, *final.shape[1:])
    return summed(everything.index_copy(0, rows, final[: len(rows)]), group)
