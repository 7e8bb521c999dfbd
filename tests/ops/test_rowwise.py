"""RMSNorm and the gated unit: the C++ against float64, who takes it, and what else must go on working."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.doctor.rowwise import NORM, UNIT, RowCheck
from hgrn2.errors import UserError
from hgrn2.ops.backend import Call, choose, find
from hgrn2.ops.gated_unit import gated_unit
from hgrn2.ops.rms_norm import rms_norm

native = pytest.mark.skipif(
    not find("rms_norm", "native").supports(Call("rms_norm", torch.device("cpu"), torch.float32))[0],
    reason="no C++ compiler",
)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("check", [NORM, UNIT], ids=lambda check: check.NAME)
def test_held_to_float64(check: RowCheck, dtype: torch.dtype) -> None:
    found = check.findings(torch.device("cpu"), dtype, "native")
    assert [one.what for one in found] == ["output", "d x", "d weight"][: 3 if check.weighted else 2]
    assert all(one.error <= one.allowed for one in found), found


CALLS: dict[str, Callable[..., Tensor]] = {
    "rms_norm": lambda x, backend="auto": rms_norm(x, backend=backend),
    "silu": lambda x, backend="auto": gated_unit(x, backend=backend),
    "none": lambda x, backend="auto": gated_unit(x, "none", backend=backend),
}


@native
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_like_plain_pytorch_everywhere_else(call: Callable[..., Tensor]) -> None:
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    strided = torch.randn(3, 12, 5, dtype=torch.float64).transpose(1, 2)
    assert torch.allclose(call(strided), call(strided, "reference"), rtol=1e-14)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))
    rows = torch.cat([call(row) for row in x.detach().flatten(0, 1).split(1)])
    assert torch.equal(rows, call(x.detach()).flatten(0, 1)), "a row must not depend on those beside it"
    primal, tangent = torch.func.jvp(call, (x.detach(),), (torch.ones_like(x),))[:2]
    assert torch.isfinite(primal + tangent).all()
    each = torch.func.vmap(torch.func.grad(lambda row: call(row).sum()))(x.detach())
    (together,) = torch.autograd.grad(call(x).sum(), x)
    assert torch.allclose(each, together, rtol=1e-12)


@native
def test_who_takes_it() -> None:
    cpu = torch.device("cpu")
    for op in ("rms_norm", "gated_unit"):
        chosen = [choose(cpu, op=op, dtype=kind).backend for kind in (torch.float32, torch.float64, torch.bfloat16)]
        assert chosen == ["native", "native", "reference"]
        assert choose(torch.device("cuda"), op=op).backend == "reference"
    assert rms_norm(torch.ones(2, 0)).shape == (2, 0)
    x = torch.randn(4, 8).bfloat16()
    assert torch.equal(rms_norm(x), torch.nn.functional.rms_norm(x, (8,), eps=1e-6))
    assert torch.allclose(gated_unit(torch.randn(4, 8), "gelu"), gated_unit(torch.randn(4, 8), "gelu")) is False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.rms_norm(torch.ones(2, 3), torch.ones(4)), "weight"),
        (lambda: ops.rms_norm(torch.ones(2, 3), torch.ones(3).double()), "in its dtype"),
        (lambda: ops.gated_unit(torch.ones(2, 3)), "2m"),
        (lambda: ops.gated_unit(torch.ones(2, 4), "tanh"), "choose one of none, silu, gelu"),  # type: ignore[arg-type]
        (lambda: ops.gated_unit(torch.ones(2, 4), "gelu", backend="native"), "gelu"),
        (lambda: ops.rms_norm(torch.ones(2, 3), backend="triton"), "triton"),
    ],
)
def test_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
