"""Forward-mode derivatives are those of finite differences or refused by name, never zeros without a word."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jvp, linearize, vmap

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops.linear_cross_entropy import linear_cross_entropy
from hgrn2.ops.operator import operator


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(0)
X, F, I, W = drawn(1, 5, 4), drawn(1, 5, 4), drawn(1, 5, 4), drawn(4, 3)  # noqa: E741
FOUR, STATE, ONE = drawn(1, 5, 2, 2), drawn(1, 2, 2, 2), drawn(1, 4)
LOWER_BOUND = drawn(4).sigmoid()
Call = Callable[[Tensor, str], Tensor | None]
CALLS: dict[str, tuple[Tensor, Call]] = {
    "hgru2 q": (X, lambda x, b: ops.hgru2(x, F, I, heads=2, backend=b)[0]),
    "hgru2 bound, state": (LOWER_BOUND, lambda x, b: ops.hgru2(X, F, I, x, heads=2, backend=b)[1]),
    "hgru2 state": (STATE, lambda x, b: ops.hgru2(X, F, I, heads=2, state=x, reverse=True, backend=b)[0]),
    "gated_outer_scan": (FOUR, lambda x, b: ops.gated_outer_scan(FOUR, x, FOUR, -FOUR.abs(), backend=b)[0]),
    "gated_scan": (X, lambda x, b: ops.gated_scan(X, x.sigmoid(), backend=b)[0]),
    "causal_conv": (W, lambda x, b: ops.causal_conv(X, x, backend=b)[0]),
    "hgru2_step": (ONE, lambda x, b: ops.hgru2_step(x, ONE, ONE, heads=2, state=STATE, backend=b)[0]),
    "hgru2_step state": (STATE, lambda x, b: ops.hgru2_step(ONE, ONE, ONE, heads=2, state=x, backend=b)[1]),
}


def by_dual_numbers(call: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x.clone().requires_grad_(), v))).tangent.detach()


WAYS: dict[str, Callable[..., Tensor]] = {
    "jvp": lambda call, x, v: jvp(call, (x,), (v,))[1],
    "jacfwd": lambda call, x, v: (jacfwd(call)(x) * v).flatten(-x.dim()).sum(-1),
    "linearize": lambda call, x, v: linearize(call, x)[1](v),
    "dual numbers": by_dual_numbers,
    "jvp of vmap": lambda call, x, v: jvp(vmap(call), (x[None],), (v[None],))[1][0],
    "vmap of jvp": lambda call, x, v: vmap(lambda y, w: jvp(call, (y,), (w,))[1])(x[None], v[None])[0],
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # linearize, of its own graph
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an operator runs row by row
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLS)
def test_the_derivative_is_that_of_finite_differences_or_refused_by_name(name: str, way: str) -> None:
    x, call = CALLS[name]
    v = drawn(*x.shape)
    step = 1e-6
    wanted = (call(x + step * v, "reference") - call(x - step * v, "reference")) / (2 * step)
    for backend in ("auto", "reference"):
        found = WAYS[way](lambda y, b=backend: call(y, b), x, v)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    for backend in ("native",) if "step" in name else ("chunked", "native"):
        refused = f"backend {backend} cannot serve this call: forward-mode .* backend='reference' alone"
        with pytest.raises(UserError, match=refused):
            WAYS[way](lambda y, b=backend: call(y, b), x, v)


def test_a_compiled_function_has_the_same_derivatives() -> None:
    x, call = CALLS["gated_scan"]
    v = drawn(*x.shape)
    compiled = torch.compile(lambda x, v: jvp(lambda y: call(y, "auto"), (x,), (v,))[1], backend="eager")
    torch.testing.assert_close(compiled(x, v), WAYS["jvp"](lambda y: call(y, "reference"), x, v))


def test_the_loss_at_the_head_names_what_has_them() -> None:
    weight, targets = drawn(7, 4), torch.tensor([[0, 1, 2, 3, 6]])
    for argument in (0, 1):
        given = [X, weight]
        with pytest.raises(UserError, match=r"has no forward-mode derivatives .*; cross_entropy\(linear"):
            jvp(
                lambda x, n=argument, g=given: linear_cross_entropy(*g[:n], x, *g[n + 1 :], targets),
                (given[argument],),
                (given[argument],),
            )


def test_no_operator_drops_a_tangent() -> None:
    """Whoever adds one, and whoever calls a backward with dual numbers."""

    @operator("tangent_test")
    def double(x: Tensor) -> Tensor:
        return 2 * x

    assert torch.equal(double(X), 2 * X)
    with pytest.raises(UserError, match="hgrn2::tangent_test cannot serve this call: forward-mode derivatives"):
        jvp(double, (X,), (X,))
    x = X.clone().requires_grad_()
    output, _ = ops.hgru2(x, F, I, heads=2, backend="chunked")
    with forward_ad.dual_level(), pytest.raises(UserError, match="hgru2_backward cannot serve"):
        torch.autograd.grad(output, x, forward_ad.make_dual(I, F))


def test_explain_is_of_the_call_itself() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        assert "runs on reference: forward-mode" in ops.explain("hgru2", dual, F, I, heads=2)
