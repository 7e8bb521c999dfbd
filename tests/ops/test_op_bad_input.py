"""Shapes, heads, states, dtypes and document boundaries that do not fit: one clear line each, on every backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError

X, W = torch.ones(2, 6, 8), torch.ones(8, 3)
FOUR = torch.ones(2, 6, 2, 4)
ONE, STATE = torch.ones(3, 8), torch.ones(3, 2, 4, 4)


def hgru2(**changes: Any) -> Callable[[str], object]:
    return lambda backend: ops.hgru2(**{"q": X, "f": X, "i": X, "heads": 2, "backend": backend, **changes})


def step(**changes: Any) -> Callable[[str], object]:
    call = {"q": ONE, "f": ONE, "i": ONE, "heads": 2, "state": STATE}
    return lambda backend: ops.hgru2_step(**{**call, "backend": backend, **changes})


def outer(**changes: Any) -> Callable[[str], object]:
    call = {"q": FOUR, "k": FOUR, "v": FOUR, "log_f": -FOUR}
    return lambda backend: ops.gated_outer_scan(**{**call, "backend": backend, **changes})


def outer_step(**changes: Any) -> Callable[[str], object]:
    one = torch.ones(3, 2, 4)
    call = {"q": one, "k": one, "v": one, "log_f": -one, "state": STATE}
    return lambda _: ops.gated_outer_step(**{**call, **changes})


def scan(**changes: Any) -> Callable[[str], object]:
    return lambda backend: ops.gated_scan(**{"x": X, "f": X, "backend": backend, **changes})


def scan_step(**changes: Any) -> Callable[[str], object]:
    return lambda _: ops.gated_step(**{"x": ONE, "f": ONE, "state": ONE, **changes})


def conv(**changes: Any) -> Callable[[str], object]:
    return lambda backend: ops.causal_conv(**{"x": X, "weight": W, "backend": backend, **changes})


def conv_step(**changes: Any) -> Callable[[str], object]:
    return lambda _: ops.causal_conv_step(**{"x": ONE, "weight": W, "state": torch.ones(3, 2, 8), **changes})


MISTAKES = {
    "q two-dimensional": (hgru2(q=X[0]), "must be [B,T,H*K]"),
    "f of other width": (hgru2(f=X[..., :6]), "got [2, 6, 8], [2, 6, 6], [2, 6, 8]"),
    "i of other length": (hgru2(i=X[:, :5]), "got [2, 6, 8], [2, 6, 8], [2, 5, 8]"),
    "heads that do not divide": (hgru2(heads=3), "8 and 8 channels do not divide into 3 heads"),
    "no heads": (hgru2(heads=0), "do not divide into 0 heads"),
    "value heads that do not divide": (hgru2(i=X[..., :7]), "8 and 7 channels do not divide into 2 heads"),
    "an array of numpy": (hgru2(f=X.numpy()), "f must be a tensor, not numpy.ndarray; torch.from_numpy makes one"),
    "no tensor": (hgru2(i=None), "i must be a tensor, not builtins.NoneType"),
    "a sparse tensor": (scan(f=X.to_sparse()), "f must be a dense tensor, not float32 sparse_coo"),
    "float8": (conv(x=X.to(torch.float8_e4m3fn)), "x must hold real floating-point numbers, not torch.float8"),
    "two devices": (hgru2(q=X.to("meta")), "must be on one device; got q on meta, f on cpu"),
    "heads in halves": (hgru2(heads=2.0), "heads is 2.0; it must be a whole number"),
    "bound above one": (hgru2(lower_bound=torch.full((8,), 1.5)), "lower_bound has 1.5; lower bounds of a gate lie in"),
    "bound below zero": (hgru2(lower_bound=torch.linspace(-0.25, 0.5, 8)), "lower_bound has -0.25; lower bounds"),
    "scale that is no number": (hgru2(scale=float("nan")), "scale is nan; it must be a finite number"),
    "reverse that is no choice": (scan(reverse="yes"), "reverse is 'yes'; it must be True or False"),
    "step with bound above one": (step(lower_bound=torch.full((8,), 2.0)), "lower_bound has 2; lower bounds of a gate"),
    "step without a state": (step(state=None), "state must be [B,H,K,V], not None"),
    "step with a list": (step(q=[1.0]), "q must be a tensor, not builtins.list"),
    "step with slots outside the pool": (step(slots=torch.tensor([0, 1, 3])), "slot 3 is outside the pool of 3"),
    "step with slots in halves": (step(slots=torch.ones(3)), "slots must be [B] whole numbers; got [3] torch.float32"),
    "outer step with a token axis": (outer_step(q=FOUR), "gated_outer_step takes q, k, log_f [B,H,K]"),
    "scan step of numpy": (scan_step(x=ONE.numpy()), "x must be a tensor, not numpy.ndarray"),
    "conv step without a state": (conv_step(state=None), "causal_conv_step takes x [B,D]"),
    "boundaries in a list": (
        scan(x=X[:1], f=X[:1], cu_seqlens=[0, 6]),
        "cu_seqlens must be a tensor, not builtins",
    ),
    "bound of other width": (
        hgru2(lower_bound=torch.ones(4)),
        "lower_bound must be [8], one value per channel; got [4]",
    ),
    "state of other heads": (hgru2(state=torch.ones(2, 4, 2, 2)), "state must be [2, 2, 4, 4]; got [2, 4, 2, 2]"),
    "state of other batch": (hgru2(state=STATE), "state must be [2, 2, 4, 4]; got [3, 2, 4, 4]"),
    "unknown input activation": (
        hgru2(input_activation="relu"),
        "activation 'relu' is unknown; choose one of none, silu",
    ),
    "unknown output activation": (hgru2(output_activation="tanh"), "activation 'tanh' is unknown"),
    "whole numbers": (hgru2(q=X.long()), "q must hold real floating-point numbers, not torch.int64"),
    "complex numbers": (hgru2(i=X.to(torch.complex64)), "i must hold real floating-point numbers, not torch.complex64"),
    "step with a token axis": (step(q=X), "takes q and f [B,H*K] and i [B,H*V], not [2, 6, 8]"),
    "step with f of other width": (step(f=ONE[:, :4]), "[B,H*V], not [3, 8], [3, 4], [3, 8]"),
    "step with state of other batch": (step(state=STATE[:2]), "state must be [3, 2, 4, 4]; got [2, 2, 4, 4]"),
    "step with too few slots": (step(slots=torch.tensor([0, 1])), "state must be [3, 2, 4, 4]; got [2, 2, 4, 4]"),
    "outer with three axes": (outer(q=X), "must be [B,T,H,K]"),
    "outer with k of other width": (outer(k=FOUR[..., :3]), "got [2, 6, 2, 4], [2, 6, 2, 3], [2, 6, 2, 4]"),
    "outer with v of other heads": (outer(v=FOUR[:, :, :1]), "must be [B,T,H,K] and v [B,T,H,V]"),
    "outer state of other width": (outer(state=torch.ones(2, 2, 4, 3)), "state must be [2, 2, 4, 4]; got [2, 2, 4, 3]"),
    "outer complex": (outer(log_f=FOUR * 1j), "log_f must hold real floating-point numbers"),
    "outer step state": (outer_step(state=STATE[:1]), "state must be [3, 2, 4, 4]; got [1, 2, 4, 4]"),
    "scan with two axes": (scan(x=X[0], f=X[0]), "x and f must be [B,T,D]"),
    "scan with f of other length": (scan(f=X[:, :5]), "got [2, 6, 8] and [2, 5, 8]"),
    "scan of mixed kinds": (scan(f=X * 1j), "must both be real or both be complex"),
    "scan of whole numbers": (scan(x=X.long()), "x must hold real floating-point numbers, not torch.int64"),
    "scan with a complex state": (scan(state=torch.ones(2, 8) * 1j), "state must hold real floating-point numbers"),
    "complex scan with a real state": (
        scan(x=X * 1j, f=X * 1j, state=X[:, 0]),
        "state must be [2, 8] and complex like x",
    ),
    "scan state of other width": (scan(state=torch.ones(2, 7)), "state must be [2, 8]"),
    "scan step state": (scan_step(state=ONE[:2]), "state must be [3, 8]"),
    "conv with weight of other width": (conv(weight=W[:4]), "weight [D,W]; got [2, 6, 8] and [4, 3]"),
    "conv without taps": (conv(weight=W[:, :0]), "got [2, 6, 8] and [8, 0]"),
    "conv state of other width": (conv(state=torch.ones(2, 3, 8)), "state must be [2, 2, 8]; got [2, 3, 8]"),
    "conv complex": (conv(x=X * 1j), "x must hold real floating-point numbers"),
    "conv step state": (conv_step(state=torch.ones(3, 3, 8)), "state must be [3, 2, 8]; got [3, 3, 8]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
def test_mistake_is_refused_in_one_line(mistake: str, reference: bool, backend: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        call("reference" if reference else backend)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BOUNDARIES = {
    "too few tokens": ([0, 3, 5], "must rise from 0 to the number of tokens (6)"),
    "too many tokens": ([0, 3, 7], "must rise from 0 to the number of tokens (6)"),
    "not from zero": ([1, 6], "must rise from 0"),
    "falling": ([0, 4, 3, 6], "must rise from 0"),
    "negative": ([0, -1, 6], "must rise from 0"),
    "one offset": ([0], "at least two int32 or int64 offsets"),
    "a matrix": ([[0, 6]], "must be a vector"),
    "not whole": ([0.0, 6.0], "int32 or int64"),
}
RUNS: dict[str, Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor | None]]] = {
    "hgru2": lambda x, cu, backend: ops.hgru2(x, x, x, heads=2, cu_seqlens=cu, backend=backend),
    "gated_outer_scan": lambda x, cu, backend: ops.gated_outer_scan(
        *(x.unflatten(-1, (2, 4)),) * 4, cu_seqlens=cu, backend=backend
    ),
    "gated_scan": lambda x, cu, backend: ops.gated_scan(x, x, cu_seqlens=cu, backend=backend),
    "causal_conv": lambda x, cu, backend: ops.causal_conv(x, W, cu_seqlens=cu, backend=backend),
}


@pytest.mark.parametrize("op", RUNS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
def test_boundaries_that_do_not_fit(boundary: str, op: str, reference: bool, backend: str) -> None:
    ends, message = BOUNDARIES[boundary]
    with pytest.raises(UserError) as error:
        RUNS[op](X[:1], torch.tensor(ends), "reference" if reference else backend)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("op", RUNS)
def test_packed_documents_need_a_batch_of_one(op: str, backend: str) -> None:
    with pytest.raises(UserError, match="packed documents with B = 1, not B = 2"):
        RUNS[op](X, torch.tensor([0, 6]), backend)


@pytest.mark.parametrize("op", RUNS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_boundaries_of_either_integer_fit(dtype: torch.dtype, op: str, backend: str) -> None:
    """Each document's output is that of the document by itself."""
    whole = RUNS[op](X[:1] / 2, torch.tensor([0, 2, 6], dtype=dtype), backend)[0]
    for first, last in ((0, 2), (2, 6)):
        alone = RUNS[op](X[:1, first:last] / 2, torch.tensor([0, last - first]), backend)[0]
        torch.testing.assert_close(whole[:, first:last], alone)


def test_a_packed_state_needs_a_row_for_every_document(backend: str) -> None:
    with pytest.raises(UserError, match=r"state must be \[3, 2, 4, 4\]; got \[1, 2, 4, 4\]"):
        hgru2(q=X[:1], f=X[:1], i=X[:1], cu_seqlens=torch.tensor([0, 2, 2, 6]), state=STATE[:1])(backend)
