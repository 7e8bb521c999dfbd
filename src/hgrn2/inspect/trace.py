"""One pass of a language model over a text, with the recurrence of every gated layer laid open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.block import Block
from hgrn2.layers.state import ModelState
from hgrn2.layers.terms import Terms
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.settings import refuse


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """The recurrence of one layer over a text of T tokens, with H heads of K keys and V values.

    Of a layer with a state of single channels every channel is a head with V = 1: K = 1 for hgru1 and hgru1_real, K = N
    for mamba. All of them are shown as one head.
    """

    layer: int
    """Which of the stack, from 0."""
    kind: str
    """Of its mixer."""
    terms: Terms
    """[T,H,K] and [T,H,V]."""
    lower_bound: Tensor
    """γ [H,K]; zeros where there is none."""

    @property
    def tokens(self) -> int:
        """T."""
        return self.terms.key.shape[0]

    @property
    def vector(self) -> bool:
        """Whether the state is of single channels: no heads to tell apart, no matrix to have a rank."""
        return self.terms.value.shape[2] == 1

    def time_scales(self) -> Tensor:
        """τ = -1 / mean ln f over the text, in tokens, [H,K]; inf where nothing is forgotten."""
        return -1 / self.terms.log_forget.mean(0)

    def guaranteed(self) -> Tensor:
        """-1 / ln γ in tokens, [H,K]: whatever the text, no channel forgets faster; 0 where γ is 0."""
        return -1 / self.lower_bound.log()

    def memory_along(self) -> Tensor:
        """-1 / ln f at every token, the mean of ln f over the channels of a head: memory length in tokens, [T,H].
        A layer with a vector state counts as one head."""
        log_f = self.terms.log_forget
        return -1 / (log_f.flatten(1).mean(1, keepdim=True) if self.vector else log_f.mean(2))

    def held(self, since: int) -> Tensor:
        """Which share of what the state held after `since` tokens it still holds after the text: Π f over the later
        tokens, mean over the channels of each head, [H] ([1] for a vector state)."""
        self._check(since - 1)
        left = self.terms.log_forget[since:].sum(0).exp()
        return left.mean().unsqueeze(0) if self.vector else left.mean(1)

    def weights(self, token: int) -> Tensor:
        """w_s = q_t Diag(Π_{s<r≤t} f_r e^{iθ}) k_s of all s ≤ t = `token`, [t+1,H]; complex for hgru1."""
        self._check(token)
        query, key, _, log_f, phase = self.terms
        decay = _decay_to_end(log_f[: token + 1])
        if phase is not None:
            steps = torch.arange(token, -1, -1, device=decay.device, dtype=decay.dtype)
            decay = torch.polar(decay, steps[:, None, None] * phase)
        found = (query[token] * decay * key[: token + 1]).sum(-1)
        return found.real if query.is_complex() else found  # the output of lru's matrices is the real part

    def contributions(self, token: int) -> Tensor:
        """What each token s ≤ t = `token` adds to the layer's output y_t before its norm: w_s v_s, [t+1,H,V].

        The sum over s is y_t, as the recurrence computes it (complex h_t for hgru1).
        """
        return self.weights(token).unsqueeze(-1) * self.terms.value[: token + 1]

    def shares(self, token: int) -> Tensor:
        """The share of each token in the output y_t, Re⟨w_s v_s, y_t⟩ / ‖y_t‖² over all heads, [t+1].

        They sum to 1; a negative one pulls the other way. Zeros where the output is zero.
        """
        parts = self.contributions(token).flatten(1)
        total = parts.sum(0)
        size = total.abs().square().sum()
        found = (parts * total.conj()).sum(1)
        found = found.real if found.is_complex() else found
        return torch.where(size > 0, found / size, torch.zeros_like(found))

    def reach(self, token: int) -> Tensor:
        """How much comes from how far: Σ over heads of |w_s| ‖v_s‖ by s, as shares that sum to 1, [t+1]."""
        sizes = (self.weights(token).abs() * self.terms.value[: token + 1].abs().square().sum(-1).sqrt()).sum(1)
        return sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny)

    def states(self, after: Sequence[int]) -> Iterator[Tensor]:
        """The state S [H,K,V] after so many tokens of the text, for rising numbers in 1..T."""
        _, key, value, log_f, phase = self.terms
        value = value if phase is None or value.is_complex() else value.to(value.dtype.to_complex())
        state = torch.zeros_like(key[0].unsqueeze(-1) * value[0].unsqueeze(-2))
        done = 0
        for end in after:
            self._check(end - 1)
            refuse(end < done, "the numbers of tokens after which states are wanted must rise")
            if end > done:
                part = slice(done, end)
                decay, whole = _decay_to_end(log_f[part]), log_f[part].sum(0).exp()
                if phase is not None:
                    steps = torch.arange(end - done - 1, -1, -1, device=decay.device, dtype=decay.dtype)
                    decay = torch.polar(decay, steps[:, None, None] * phase)
                    whole = torch.polar(whole, (end - done) * phase)
                added = torch.einsum("thk,thv->hkv", (decay * key[part]).to(value.dtype), value[part])
                state, done = whole.unsqueeze(-1) * state + added, end
            yield state

    def _check(self, token: int) -> None:
        refuse(not 0 <= token < self.tokens, f"there is no token {token} in a text of {self.tokens} tokens, from 0")


@dataclass(frozen=True, eq=False)
class Trace:
    """A text in a model."""

    tokens: Tensor
    """int64 [T]."""
    layers: tuple[LayerTrace, ...]
    """Those that can be laid open."""
    left_out: dict[int, str]
    """The others, which have no forget gates, and the kinds of their mixers: attention."""
    logprobs: Tensor
    """ln p of each token but the first, [T-1]."""
    state: ModelState
    """After the text."""


def trace(model: LanguageModel, tokens: Tensor | Sequence[int]) -> Trace:
    """Read a text and lay open every layer whose mixer has `terms`; the model stays as it was.

    Args:
        model: in float64 for sums that agree to 1e-10, in float32 to about 1e-6.
        tokens: ids [T], from an empty state.

    Raises:
        UserError: no tokens, ids outside the vocabulary, a model of whose layers none can be laid open.
    """
    ids = torch.as_tensor(tokens, dtype=torch.int64, device=model.device).reshape(1, -1)
    refuse(ids.shape[1] == 0, "there is no text to look at: give at least one token")
    entered: list[Tensor] = []
    layers: list[LayerTrace] = []
    left_out: dict[int, str] = {}
    with reading(model):
        features, state = model.hidden(ids, trace=entered)
        assert state is not None
        logits = model.logits(features[0, :-1])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logprobs = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        backbone = model.backbone
        for n, (block, x, lower_bound) in enumerate(
            zip(backbone.blocks, entered[:-1], backbone.layer_lower_bounds(), strict=True)
        ):
            assert isinstance(block, Block)
            mixer: Any = block.mixer
            terms = mixer.terms(block.mixer_norm(x), lower_bound).sequence(0) if hasattr(mixer, "terms") else None
            if terms is None:
                left_out[n] = mixer.config.kind
                continue
            shape = terms.key.shape[1:]
            lower_bound = (
                terms.key.new_zeros(shape)
                if lower_bound is None
                else lower_bound.to(terms.key.dtype).reshape(shape[0], -1).expand(shape)
            )
            layers.append(LayerTrace(n, mixer.config.kind, terms, lower_bound))
    if not layers:
        kinds = model.config.named_kinds
        raise UserError(f"no layer of this model is a sum faded by forget gates, which is looked at: they are {kinds}")
    return Trace(ids[0], tuple(layers), left_out, logprobs, state)


def _decay_to_end(log_f: Tensor) -> Tensor:
    """Π of the gates after each token up to the last one, [T,...]; from sums that begin at the end, where they are
    small and exact: a difference of sums from the beginning would cancel."""
    later = log_f.flip(0).cumsum(0).flip(0)
    return torch.cat((later[1:], torch.zeros_like(later[:1]))).exp()
