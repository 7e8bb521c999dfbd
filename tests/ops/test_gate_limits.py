"""Gates at their limits, where the right answer is known without a reference."""

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.testing import contracts
from hgrn2.testing.cases import Case, build
from hgrn2.testing.compare import different_bits, failures
from hgrn2.testing.evaluation import Results, differentiate, leaves, run


def padded(case: Case, backend: str) -> tuple[Results, Results]:
    """Results on a sequence with skipped tokens strewn in, cut back to the real tokens; and without them."""
    problem = build(case, torch.float32)
    real = (
        torch.rand(3 * case.tokens, generator=torch.Generator().manual_seed(0)).argsort()[: case.tokens].sort().values
    )
    tensors = leaves(problem)

    def spread(x: Tensor, fill: float) -> Tensor:
        return x.new_full((x.shape[0], 3 * case.tokens, *x.shape[2:]), fill).index_copy(1, real, x)

    fills = {"q": 0.7, "f": torch.inf, "i": -0.4}
    wide = {k: x if x is None or k not in fills else spread(x, fills[k]) for k, x in tensors.items()}
    output, state = run(problem, backend, wide)
    got = differentiate(problem, tensors, output[:, real], state)
    whole = leaves(problem)
    return got, differentiate(problem, whole, *run(problem, backend, whole))


@pytest.mark.parametrize("lower_bound", ["none", "small", "high"])
def test_skipped_tokens_might_as_well_not_be_there(lower_bound: str, backend: str) -> None:
    case = Case(op="hgru2", tokens=40, lower_bound=lower_bound)
    got, want = padded(case, backend)
    assert not failures(contracts.near(case, backend, torch.float32, got, want))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lower_bound", ["none", "mixed", "high"])
def test_plus_infinity_keeps_the_state_to_the_bit_with_zero_gradients(
    lower_bound: str, dtype: torch.dtype, backend: str
) -> None:
    problem = build(Case(op="hgru2", tokens=67, lower_bound=lower_bound), dtype)
    tensors = leaves(problem)
    tensors["f"] = torch.full_like(problem.tensors["f"], torch.inf).requires_grad_()
    output, state = run(problem, backend, tensors)
    assert different_bits(state, problem.tensors["state"]) == 0
    results = differentiate(problem, tensors, output, state)
    for name in ("d f", "d i", "d lower_bound"):
        assert name not in results or not results[name].any(), name
    assert results["d q"].any()


@pytest.mark.parametrize("token", [0, 30, 64])
def test_one_skipped_token_has_zero_gradients_among_others(token: int, backend: str) -> None:
    problem = build(Case(op="hgru2", tokens=67, lower_bound="small"), torch.float32)
    f = problem.tensors["f"].clone()
    f[:, token] = torch.inf
    tensors = {**leaves(problem), "f": f.requires_grad_()}
    results = differentiate(problem, tensors, *run(problem, backend, tensors))
    assert all(x.isfinite().all() for x in results.values())
    assert not results["d f"][:, token].any()
    assert not results["d i"][:, token].any()
    assert results["d f"][:, token + 1].all()


def test_minus_infinity_forgets_everything_before(backend: str) -> None:
    q, f, i = torch.randn(3, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    f[:, 3] = -torch.inf
    state = torch.full((1, 2, 4, 4), 1e6)
    output, final = ops.hgru2(q, f, i, heads=2, state=state, output_activation=None, backend=backend)
    alone, alone_final = ops.hgru2(q[:, 3:], f[:, 3:], i[:, 3:], heads=2, output_activation=None, backend=backend)
    torch.testing.assert_close(output[:, 3:], alone)
    torch.testing.assert_close(final, alone_final)


INTEGERS = torch.Generator().manual_seed(1)


def integers(*shape: int) -> Tensor:
    """Small whole numbers: their sums and products are exact in float32."""
    return torch.randint(-3, 4, shape, generator=INTEGERS).float()


def test_gate_of_exactly_one_sums_exactly(backend: str) -> None:
    q, k, v = integers(2, 70, 1, 4), integers(2, 70, 1, 4), integers(2, 70, 1, 4)
    output, final = ops.gated_outer_scan(q, k, v, torch.zeros_like(k), backend=backend)
    outer = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1)
    assert torch.equal(final, outer[:, -1])
    assert torch.equal(output, (q.unsqueeze(-2) @ outer).squeeze(-2))
    x = integers(2, 70, 5)
    h, last = ops.gated_scan(x, torch.ones_like(x), backend=backend)
    assert torch.equal(h, x.cumsum(1))
    assert torch.equal(last, x.sum(1))


def test_gate_of_exactly_zero_keeps_only_the_present(backend: str) -> None:
    q, k, v = integers(2, 70, 1, 4), integers(2, 70, 1, 4), integers(2, 70, 1, 4)
    state = torch.full((2, 1, 4, 4), 1e30)
    output, final = ops.gated_outer_scan(q, k, v, torch.full_like(k, -torch.inf), state=state, backend=backend)
    assert torch.equal(final, k[:, -1].unsqueeze(-1) * v[:, -1].unsqueeze(-2))
    assert torch.equal(output, (q * k).sum(-1, keepdim=True) * v)
    x = integers(2, 70, 5)
    h, last = ops.gated_scan(x, torch.zeros_like(x), state=torch.full((2, 5), 1e30), backend=backend)
    assert torch.equal(h, x)
    assert torch.equal(last, x[:, -1])


def test_gate_of_exactly_zero_has_no_gradient_before_it(backend: str) -> None:
    q, k, v = integers(1, 9, 1, 4), integers(1, 9, 1, 4), integers(1, 9, 1, 4)
    log_f = torch.full_like(k, -0.5)
    log_f[:, 5] = -torch.inf
    inputs = [x.requires_grad_() for x in (k, v, log_f)]
    state = torch.ones(1, 1, 4, 4, requires_grad=True)
    output, final = ops.gated_outer_scan(q, k, v, log_f, state=state, backend=backend)
    *grads, d_state = torch.autograd.grad(output[:, 5:].sum() + final.sum(), [*inputs, state])
    assert not d_state.any()
    assert all(not g[:, :5].any() and g[:, 5:].isfinite().all() for g in grads)
    assert not grads[2][:, 5].any()
    assert grads[0][:, 5].any()


@pytest.mark.parametrize("gate", [1j, -1.0, 0.6 + 0.8j])
def test_complex_gate_of_modulus_one_turns_the_state(gate: complex, backend: str) -> None:
    x = torch.zeros(1, 100, 3, dtype=torch.complex128)
    x[:, 0] = 1
    h, _ = ops.gated_scan(x, torch.full_like(x, gate), backend=backend)
    powers = torch.tensor(gate, dtype=torch.complex128) ** torch.arange(100)
    torch.testing.assert_close(h[0, :, 0], powers)


def test_convolution_of_an_impulse_is_the_weight(backend: str) -> None:
    weight = integers(5, 4)
    x = torch.zeros(1, 9, 5)
    x[:, 3] = 1
    y, state = ops.causal_conv(x, weight, backend=backend)
    assert torch.equal(y[0, 3:7], weight.T)
    assert not y[0, :3].any()
    assert not y[0, 7:].any()
    assert torch.equal(state, x[:, -3:])
