"""Softmax attention: the baseline whose state grows with the text, or which sees a whole sequence at once.

    [q, k, v] = x W_in      y_t = Σ_s softmax_s(R_t q_t · R_s k_s / √n) v_s W_out

The sum runs over s ≤ t, with a window W over t - W < s ≤ t, or with direction bidirectional over all tokens. R_t is the
rotary position (arXiv 2104.09864), which turns the pair of channels (j, j + n/2) of a head by the angle t /
10000^(2j/n), or nothing: then attention sees a set, and order only in what was added to its tokens. t counts the tokens
of the sequence or document itself: padding has no position, and a text goes on counting where its state stopped.
With `qk_norm` the queries and keys of every head pass an rms norm before R, whose weights all heads share.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.directions import Shape, check_shape, no_state
from hgrn2.layers.key_value_rows import BLOCK as ROW_BLOCK
from hgrn2.layers.key_value_rows import KeyValueRows
from hgrn2.layers.key_values import KeyValues, join, with_conv
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.rotary import rotary_turns, rotate
from hgrn2.layers.short_conv import start_conv
from hgrn2.ops.sequences import check_cu_seqlens, offsets_of

BLOCK = 256
"""Queries that look through a window side by side, at least."""


class Attention(nn.Module):
    """D -> D, H = D / n heads of n; 4 D² weights. The state is every key and value so far (`KeyValues`), or those
    that the next token can see through the window.

    With direction bidirectional every token sees every other one, and no state can be carried. Images have no
    direction of their own here: an image is its tokens, row by row, with positions that tell rows and columns.
    """

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, width // config.head_size
        self.causal = config.direction == "causal"
        self.projections = (width, width, width)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.conv = nn.Parameter(torch.empty(3 * width, config.conv_width)) if config.conv_width else None
        self.q_norm, self.k_norm = (self._head_norm() for _ in range(2))
        self.out_proj = nn.Linear(width, width, bias=config.bias)

    def _head_norm(self) -> Norm | None:
        return Norm("rms", self.config.head_size, self.config.norm_eps) if self.config.qk_norm else None

    def start(self) -> None:
        """Taps of the convolution."""
        start_conv(self.conv)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> KeyValues:
        """The state before the first token: no key, no value."""
        n, taps = self.config.head_size, self.config.conv_width - 1
        conv_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        conv = torch.zeros(batch, taps, 3 * self.width, device=device, dtype=conv_dtype) if taps > 0 else None
        none = torch.zeros(batch, 0, 2, self.heads, n, device=device, dtype=dtype)
        return KeyValues(none, (0,) * batch, conv, self.config.window)

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """That of the weights: keys and values are kept as they were computed, and nothing is added to them."""
        return weights

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> None:
        """None: there are no gates here."""

    @accepts_keep
    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: KeyValues | KeyValueRows | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        shape: Shape | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, KeyValues | KeyValueRows | None]:
        """x [B,T,D], state of B (or N packed) sequences -> (y [B,T,D], state after the last token).

        Tokens whose `padding_mask` [B,T] is False are seen by nobody and counted by no position; their y means nothing.
        The state given stays valid, with `inplace` too: what is appended to its buffer lies behind it.

        Raises:
            UserError: a state given or asked for where attention is bidirectional, a shape, as of every mixer that
                reads a line of tokens.
        """
        check_shape(self.config, x.shape[1], shape)
        assert lower_bound is None, "settings with lower bounds are refused for attention"
        if not self.causal and (state is not None or output_state):
            raise UserError(no_state(self.config))
        past = None if state is None else state.conv
        mixed, conv = self.operators.short_conv(
            self.in_proj(x), self.conv, past, cu_seqlens, padding_mask, output_state=output_state
        )
        qkv = mixed.unflatten(-1, (3, self.heads, -1))
        y, final = self.operators.attend(
            self, qkv, cu_seqlens=cu_seqlens, state=state, padding_mask=padding_mask, output_state=output_state
        )
        return self.out_proj(y.flatten(2)), None if final is None else with_conv(final, conv)

    def attend(
        self,
        qkv: Tensor,
        cu_seqlens: Tensor | None,
        state: KeyValues | KeyValueRows | None,
        padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, KeyValues | KeyValueRows | None]:
        """qkv [B,T,3,H,n] -> (outputs of the heads [B,T,H,n], state).

        Packed documents go one by one: the cost is the sum of their own, however long the longest of them is.
        """
        if isinstance(state, KeyValueRows):
            assert cu_seqlens is None
            assert padding_mask is None
            return self._one_by_one(qkv, state)
        if cu_seqlens is None:
            return self._attend(qkv, state, padding_mask, output_state)
        check_cu_seqlens(cu_seqlens, qkv.shape[0])
        ends = offsets_of(cu_seqlens, 1, qkv.shape[1]).tolist()
        outputs, finals = [], []
        for n, (a, b) in enumerate(pairwise(ends)):
            own = None if state is None else state.select([n])
            y, final = self._attend(
                qkv[:, a:b], own, None if padding_mask is None else padding_mask[:, a:b], output_state
            )
            outputs.append(y)
            finals.append(final)
        return torch.cat(outputs, 1), join(finals) if output_state else None

    def _attend(
        self, qkv: Tensor, state: KeyValues | None, padding_mask: Tensor | None, output_state: bool
    ) -> tuple[Tensor, KeyValues | None]:
        """qkv [B,T,3,H,n] -> (outputs of the heads [B,T,H,n], state)."""
        if not self.causal:
            return self._both_ways(qkv, padding_mask), None
        batch, tokens = qkv.shape[:2]
        if state is None:
            none = qkv.new_zeros(batch, 0, 2, self.heads, qkv.shape[-1])
            state = KeyValues(none, (0,) * batch, window=self.config.window)
        places = state.places(tokens, padding_mask)
        turned = self.turned(qkv, state.positions(places))
        return self._over(turned, state, places, padding_mask, output_state)

    def _one_by_one(self, qkv: Tensor, state: KeyValueRows) -> tuple[Tensor, KeyValueRows]:
        """Every sequence over its own keys, as `_attend` does for one alone; zeros where there is none."""
        tokens, rows = qkv.shape[1], list(state.rows)
        before = [0 if row is None else row.longest + sum(row.dropped) for row in rows]
        positions = torch.tensor(before, device=qkv.device).unsqueeze(1) + torch.arange(tokens, device=qkv.device)
        q, k, v = self.turned(qkv, positions)
        y = torch.zeros_like(q)
        for n, row in enumerate(rows):
            if row is not None:
                row, part = row.with_room(tokens, ROW_BLOCK), slice(n, n + 1)
                own = (q[part], k[part], v[part])
                y[part], rows[n] = self._over(own, row, row.places(tokens, None), None, True)
        return y, state.replaced(0, tuple(rows))

    def _over(
        self,
        turned: tuple[Tensor, Tensor, Tensor],
        state: KeyValues,
        places: Tensor,
        padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, KeyValues | None]:
        """Turned q, k, v [B,T,H,n] of tokens at these places of the buffer -> (outputs [B,T,H,n], state)."""
        q, k, v = turned
        tokens, fresh = q.shape[1], state.longest == 0
        final = None
        if output_state or padding_mask is not None or not fresh:
            final = state.append(torch.stack((k, v), 2), places, padding_mask)
            k, v = final.seen.to(q.dtype).unbind(2)
        if padding_mask is None and not state.ragged and 0 < self.config.window < k.shape[1]:
            y = windowed(q, k, v, self.config.window)
        elif padding_mask is None and not state.ragged:
            # Two calls: a compiler that does not know T takes no comparison with it for a truth value.
            if fresh and tokens > 1:
                y = scaled_dot_product(q, k, v, None, causal=True)
            else:
                mask = None if fresh or tokens == 1 else self._visible(places, k.shape[1])
                y = scaled_dot_product(q, k, v, mask)
        elif k.shape[1] == 0:  # padding alone
            y = torch.zeros_like(q)
        else:
            y = scaled_dot_product(q, k, v, self._visible(places, k.shape[1]))
        return y, final.released() if output_state and final is not None else None

    def _both_ways(self, qkv: Tensor, padding_mask: Tensor | None) -> Tensor:
        if padding_mask is None:
            places, mask = torch.arange(qkv.shape[1], device=qkv.device).unsqueeze(0), None
        else:
            # T² numbers per sequence would be a gigabyte for long ones. Of padding alone everything is seen: a row
            # without any key has no softmax.
            places = (padding_mask.cumsum(1) - 1).clamp_min(0)
            mask = (padding_mask | ~padding_mask.any(1, keepdim=True))[:, None, None]
        return scaled_dot_product(*self.turned(qkv, places), mask)

    def turned(self, qkv: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv [B,T,3,H,n] -> q, k, v [B,T,H,n], q and k turned by where they stand, `places` [1 or B,T]."""
        q, k, v = qkv.unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if not self.config.rotary:
            return q, k, v
        turns = rotary_turns(places, q.shape[-1], torch.float64 if q.dtype == torch.float64 else torch.float32)
        return rotate(q, turns), rotate(k, turns), v

    def _visible(self, places: Tensor, size: int) -> Tensor:
        """Who sees which of `size` keys: those up to its own place, [1 or B,1,T,S]."""
        return visible(places, torch.arange(size, device=places.device), self.config.window)


def visible(places: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether a query at `places` [1 or B,T] sees the keys at `keys` [S]: [1 or B,1,T,S]."""
    places = places.unsqueeze(-1)
    seen = keys <= places
    return (seen & (keys > places - window) if window else seen).unsqueeze(1)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of the last T of S tokens, each over the last `window` up to itself: O(T · window), block by block."""
    before, outputs = k.shape[1] - q.shape[1], []
    places = torch.arange(k.shape[1], device=q.device)
    for part in q.split(max(window, BLOCK), 1):
        after = before + part.shape[1]
        keys = slice(max(0, before - window + 1), after)
        mask = visible(places[None, before:after], places[keys], window) if part.shape[1] > 1 else None
        outputs.append(scaled_dot_product(part, k[:, keys], v[:, keys], mask))
        before = after
    return torch.cat(outputs, 1)


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Attention of q [B,T,H,n] over k, v [B,S,H,n] -> [B,T,H,n]; mask [1 or B,1,1 or T,S] is True where it looks."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)
