"""The element-wise form of the mixing core gives what the outer form gives, at any head size and every gate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.layers import small_heads
from hgrn2.ops.hgru2.reference import hgru2 as token_loop

TOKENS, WIDTH = 9, 12


def problem(heads: int, sequences: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(heads)
    n = WIDTH // heads
    made = {name: torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64) for name in ("q", "f", "i")}
    made["f"] *= 5
    made["lower_bound"] = torch.rand(WIDTH, generator=generator, dtype=torch.float64)
    made["state"] = torch.randn(sequences, heads, n, n, generator=generator, dtype=torch.float64)
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


OPTIONS: dict[str, Any] = {"input_activation": "silu", "output_activation": "sigmoid", "scale": 0.7}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("heads", [12, 6, 4, 3, 2, 1])
def test_equals_the_token_loop(heads: int, reverse: bool, same: Callable) -> None:
    """Outputs, final states and all five gradients, for n of 1 to 12."""
    found = []
    for name in ("loop", "elementwise"):
        x = problem(heads)
        if name == "loop":
            o, final = token_loop(*x.values(), None, heads, reverse, "silu", "sigmoid", 0.7)
        else:
            o, final = small_heads.elementwise(
                **x, heads=heads, cu_seqlens=None, reverse=reverse, output_final_state=True, **OPTIONS
            )
        assert final is not None
        loss = (o * torch.arange(o.numel()).view_as(o).cos()).sum() + final.square().sum()
        found.append([o, final, *torch.autograd.grad(loss, list(x.values()))])
    for ours, truth in zip(*reversed(found), strict=True):
        same(ours, truth, 3000)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_the_choice_of_form_changes_nothing(n: int, same: Callable) -> None:
    x = problem(WIDTH // n)
    options: dict[str, Any] = {**OPTIONS, "heads": WIDTH // n, "state": x.pop("state")}
    for ours, truth in zip(
        small_heads.mix(**x, **options), ops.hgru2(**x, **options, backend="reference"), strict=True
    ):
        same(ours, truth)


def test_which_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(small_heads, "elementwise", lambda q, *_, heads, **__: ran.append(WIDTH // heads) or (q, None))
    for n in (1, 2, 3, 4, 6):
        x = problem(WIDTH // n)
        del x["state"]
        small_heads.mix(**x, heads=WIDTH // n)
    assert ran == [1, 2, 3]


@pytest.mark.parametrize("heads", [12, 6])
def test_gates_at_their_ends_and_tokens_left_out(heads: int, same: Callable) -> None:
    """f = +inf leaves the state alone exactly, -inf forgets down to the bound."""
    x = {name: tensor.detach() for name, tensor in problem(heads).items()}
    x["f"][:, 3], x["f"][:, 5] = torch.inf, -torch.inf
    x["i"][:, 3] = 0
    state = x.pop("state")
    o, final = small_heads.mix(**x, heads=heads, state=state)
    truth, last = ops.hgru2(**x, heads=heads, state=state, backend="reference")
    same(o, truth)
    kept = [t for t in range(TOKENS) if t != 3]
    bound = x.pop("lower_bound")
    short, short_final = small_heads.mix(
        **{k: v[:, kept] for k, v in x.items()}, lower_bound=bound, heads=heads, state=state
    )
    same(o[:, kept], short)
    same(final, short_final)
    same(final, last)


@pytest.mark.parametrize("heads", [12, 6])
def test_packed_documents(heads: int, same: Callable) -> None:
    x = {
        name: tensor.detach()[:1] if tensor.dim() == 3 else tensor.detach()
        for name, tensor in problem(heads, 3).items()
    }
    cu = torch.tensor([0, 4, 4, TOKENS])
    for ours, truth in zip(
        small_heads.mix(**x, heads=heads, cu_seqlens=cu),
        ops.hgru2(**x, heads=heads, cu_seqlens=cu, backend="reference"),
        strict=True,
    ):
        same(ours, truth)


@pytest.mark.parametrize("heads", [12, 6])
def test_what_a_token_reads_of_its_own_write(heads: int, same: Callable) -> None:
    """A sequence of one token reads nothing else."""
    x = {name: tensor.detach() for name, tensor in problem(heads).items()}
    del x["state"]
    own = small_heads.current(**x, heads=heads, **OPTIONS)
    bound = x.pop("lower_bound")
    for t in range(TOKENS):
        o, _ = ops.hgru2(**{k: v[:, t : t + 1] for k, v in x.items()}, lower_bound=bound, heads=heads, **OPTIONS)
        same(own[:, t : t + 1], o)


@pytest.mark.parametrize("heads", [12, 6])
def test_bfloat16_loses_no_more_than_the_outer_form(heads: int) -> None:
    x = {name: tensor.detach().to(torch.bfloat16) for name, tensor in problem(heads).items()}
    x["lower_bound"], x["state"] = x["lower_bound"].float(), x["state"].float()
    truth, last = ops.hgru2(**{k: v.double() for k, v in x.items()}, heads=heads, backend="reference")
    errors = []
    for run in (small_heads.mix, ops.hgru2):
        o, final = run(**x, heads=heads)
        assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
        errors.append((float((o - truth).abs().max()), float((final - last).abs().max())))
    floor = torch.finfo(torch.bfloat16).eps * float(truth.abs().max())
    assert errors[0][0] <= 1.2 * errors[1][0] + floor
    assert errors[0][1] <= 1.2 * errors[1][1] + 10 * torch.finfo(torch.float32).eps * float(last.abs().max())


@pytest.mark.parametrize("heads", [12, 6])
def test_gradients_of_gates_near_one_keep_their_digits(heads: int) -> None:
    """float32, σ(x) of 1 - 5e-5 to 1 - 8e-7: y (1 - y) would have lost three to five digits of the slope."""
    found = []
    for run, dtype in ((small_heads.mix, torch.float32), (ops.hgru2, torch.float32), (ops.hgru2, torch.float64)):
        x = {name: tensor.detach().to(dtype) for name, tensor in problem(heads).items()}
        x["f"] = (12 + x["f"].clamp(-10, 10) / 5).requires_grad_()
        x["lower_bound"].requires_grad_()
        o, _ = run(**x, heads=heads)
        loss = (o * torch.arange(o.numel()).view_as(o).cos().to(dtype)).sum()
        found.append([grad.double() for grad in torch.autograd.grad(loss, [x["f"], x["lower_bound"]])])
    for ours, others, truth in zip(*found, strict=True):
        error, theirs = ((x - truth).norm() / truth.norm() for x in (ours, others))
        assert error <= 2 * theirs + 10 * torch.finfo(torch.float32).eps
