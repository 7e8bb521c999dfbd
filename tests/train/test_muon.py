"""Our Muon is torch's, in a dtype that the device multiplies natively and with equal shapes in one batch."""

import pytest
import torch
from torch import nn

from hgrn2 import cpu
from hgrn2.train.muon import Muon, orthogonalised

SHAPES = ((24, 8), (8, 24), (24, 8), (16, 16), (24, 8))


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def torchs(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        parameters, lr=3e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )  # fmt: skip


def ours(parameters: list[nn.Parameter]) -> Muon:
    return Muon(parameters, lr=3e-2, weight_decay=0.1, momentum=0.9)


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        parameters[1].grad = None if step == 2 else parameters[1].grad  # one that took no part in a step
        optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str
)
def test_the_update_is_that_of_torch(dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's has no choice of dtype: what it takes for bfloat16 is replaced.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.to(dtype, copy=True))
    monkeypatch.setattr(cpu, "product_dtype", lambda device: dtype)
    theirs, mine = matrices(), matrices()
    reference, optimizer = torchs(theirs), ours(mine)
    train(reference, theirs, 6)
    train(optimizer, mine, 6)
    for a, b, start in zip(theirs, mine, matrices(), strict=True):
        assert (a - b).norm() <= near * (a - start).norm()
        assert torch.equal(reference.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"])


def test_states_of_torch_go_on_here() -> None:
    theirs, mine = matrices(), matrices()
    reference, optimizer = torchs(theirs), ours(mine)
    train(reference, theirs, 3)
    with torch.no_grad():
        for a, b in zip(theirs, mine, strict=True):
            b.copy_(a)
            optimizer.state[b] = {name: value.clone() for name, value in reference.state[a].items()}
    train(reference, theirs, 1, first=3)
    train(optimizer, mine, 1, first=3)
    for a, b in zip(theirs, mine, strict=True):
        assert torch.equal(reference.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"])
        assert torch.allclose(a, b, atol=2e-2)


def test_singular_values_come_near_to_one_and_the_input_stays() -> None:
    x = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    values = torch.linalg.svdvals(orthogonalised(x, torch.float32))
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.equal(x, before)
    assert orthogonalised(torch.zeros(1, 4, 4), torch.float32).count_nonzero() == 0


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.float32),
        ({"avx512_f": True, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_cpu_multiplies_in_bfloat16_where_it_has_units_for_it(
    features: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert cpu.product_dtype(torch.device("cpu")) == dtype
    assert cpu.product_dtype(torch.device("cuda")) == torch.bfloat16
