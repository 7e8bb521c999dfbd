"""What a gated recurrence adds up, laid open: its state and its outputs as sums over tokens.

    S_t = Diag(f_t e^{iθ}) S_{t-1} + k_t ⊗ v_t        y_t = q_t S_t = Σ_{s≤t} q_t Diag(Π_{s<r≤t} f_r e^{iθ}) k_s ⊗ v_s

HGRU2 has k = 1 - f, GLA a key of its own; HGRU1's vector state is D heads of one channel that are read with q = 1;
Mamba's is E heads of N keys and one value each.
"""

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The factors of a mixer's recurrence for every token, in float32 (float64 for float64), before its norm."""

    query: Tensor
    """q [B,T,H,K], the scale of scores included; complex where a matrix state has phases, and y is then Re(q S)."""
    key: Tensor
    """k [B,T,H,K], with which the value is written."""
    value: Tensor
    """v [B,T,H,V], complex for vector states that are complex."""
    log_forget: Tensor
    """ln f [B,T,H,K], at most 0."""
    phase: Tensor | None = None
    """θ [H,K] of hgru1 and lru; None elsewhere."""

    def sequence(self, row: int) -> "Terms":
        """Of one sequence of the batch: [T,H,K] and [T,H,V]; without gradients."""
        query, key, value, log_f = (part[row].detach() for part in self[:4])
        return Terms(query, key, value, log_f, None if self.phase is None else self.phase.detach())
