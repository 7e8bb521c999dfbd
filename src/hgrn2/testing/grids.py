"""Named lists of cases: what the tests run, and what a check of one machine can run."""

from collections.abc import Iterator
from dataclasses import replace

from hgrn2.testing.cases import LOGITS, LOWER_BOUNDS, Case, packed

LENGTHS = (1, 2, 7, 63, 64, 65, 127, 131)
"""Tokens: alone, a pair, and around the chunk of 64."""
HEADS = ((1, 1), (1, 5), (3, 2), (16, 24), (24, 16), (128, 16), (16, 128))
"""(K, V): narrower than a vector register, odd, unequal, wide."""
DOCUMENTS = (0, 1, 70, 0, 3, 64, 0, 128, 5, 0)
"""Lengths of packed documents: empty ones at both ends and inside, exact chunks, more than a chunk."""


def _hgru2() -> Iterator[Case]:
    base = Case(op="hgru2", lower_bound="small")
    yield from (replace(base, gates=gates, lower_bound=lower_bound) for gates in LOGITS for lower_bound in LOWER_BOUNDS)
    yield from (replace(base, tokens=tokens, batch=1) for tokens in (0, *LENGTHS))
    yield from (replace(base, tokens=tokens, lower_bound="high", state=False) for tokens in LENGTHS)
    yield from (replace(base, key=key, value=value) for key, value in HEADS)
    yield replace(base, heads=1, batch=3, tokens=9)
    for activation in ("none", "silu", "sigmoid"):
        options = (("input_activation", activation), ("output_activation", activation), ("scale", 0.25))
        yield replace(base, options=options)
    for lower_bound in ("mixed", "high"):
        yield replace(base, tokens=131, lower_bound=lower_bound, options=(("reverse", True),))
        yield packed(replace(base, lower_bound=lower_bound), DOCUMENTS)


def _outer() -> Iterator[Case]:
    base = Case(op="gated_outer_scan")
    yield from (replace(base, gates=gates) for gates in LOGITS)
    yield from (replace(base, tokens=tokens, batch=1) for tokens in (0, *LENGTHS))
    yield from (replace(base, key=key, value=value) for key, value in HEADS)
    yield replace(base, tokens=131, gates="wide", options=(("reverse", True), ("scale", 0.25)))
    yield packed(replace(base, state=False), DOCUMENTS)


def _scan() -> Iterator[Case]:
    for complex_ in (False, True):
        base = Case(op="gated_scan", complex=complex_)
        yield from (replace(base, gates=gates) for gates in LOGITS)
        yield from (replace(base, tokens=tokens, batch=1, key=37) for tokens in (0, *LENGTHS))
        yield replace(base, tokens=131, state=False, options=(("reverse", True),))
        yield packed(base, DOCUMENTS)


def _conv() -> Iterator[Case]:
    for taps in (1, 2, 4):
        base = Case(op="causal_conv", taps=taps)
        yield from (replace(base, tokens=tokens, key=37, state=tokens % 2 == 0) for tokens in (0, 1, 2, 3, 4, 65))
        yield packed(base, DOCUMENTS)


ACCURACY = (*_hgru2(), *_outer(), *_scan(), *_conv())
"""Every kind of gate and lower bound, every length and head shape: for `matches_reference`."""

_LONG = 131
DENSE = (
    Case(op="hgru2", tokens=_LONG, lower_bound="mixed", value=24),
    Case(op="hgru2", tokens=_LONG, lower_bound="high", options=(("reverse", True),)),
    Case(op="hgru2", tokens=_LONG, lower_bound="edge", gates="wide"),
    Case(op="hgru2", tokens=70, gates="infinite", state=False, options=(("input_activation", "silu"),)),
    Case(op="gated_outer_scan", tokens=_LONG, gates="wide", key=24),
    Case(op="gated_outer_scan", tokens=66, gates="infinite", options=(("reverse", True),)),
    Case(op="gated_scan", tokens=_LONG),
    Case(op="gated_scan", tokens=70, complex=True, options=(("reverse", True),)),
    Case(op="gated_scan", tokens=70, gates="infinite", state=False),
    Case(op="causal_conv", tokens=_LONG),
    Case(op="causal_conv", tokens=7, taps=1),
    Case(op="causal_conv", tokens=5, taps=3, state=False),
)
PACKED = tuple(packed(case, DOCUMENTS) for case in DENSE if case.tokens > 5)
SMALL = tuple(replace(case, tokens=5, key=3, value=2) for case in DENSE) + tuple(
    packed(replace(case, key=3, value=2), (0, 2, 0, 3)) for case in DENSE
)
"""Tiny problems of every kind, for checks that evaluate them many times or run the token loop itself."""
STRUCTURE = DENSE + PACKED
"""A few problems of every operator: for the contracts that compare a backend with itself."""

_STRONG = (
    *(Case(op="hgru2", gates=gates, lower_bound=lower_bound) for gates in LOGITS for lower_bound in ("none", "high")),
    *(Case(op="gated_outer_scan", gates=gates) for gates in LOGITS),
)
FULL = (
    *(replace(case, tokens=521) for case in _STRONG),
    *(replace(case, batch=1, tokens=70, heads=1, key=128, value=128) for case in _STRONG),
    *(Case(op="gated_scan", gates=gates, tokens=1021, key=200, complex=c) for gates in LOGITS for c in (False, True)),
)
"""Long and wide problems; minutes."""
