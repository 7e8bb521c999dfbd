"""One token at a time: in place, in slots of a pool, in views; the state is never touched without being asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.testing.compare import different_bits, relative_error

HEADS, KEY, VALUE, BATCH = 2, 5, 16, 3


def tokens(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of `hgru2_step` but for the state."""
    generator = torch.Generator().manual_seed(0)
    q, f = torch.randn(2, BATCH, HEADS * KEY, generator=generator).to(dtype)
    i = torch.randn(BATCH, HEADS * VALUE, generator=generator).to(dtype)
    lower_bound = torch.rand(HEADS * KEY, generator=generator)
    return {"q": q, "f": f, "i": i, "lower_bound": lower_bound, "heads": HEADS}


def states(count: int = BATCH) -> Tensor:
    return torch.randn(count, HEADS, KEY, VALUE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("value", [16, 7])
def test_in_place_is_the_same_step_in_the_given_memory(value: int, backend: str) -> None:
    call, state = tokens(), states()[..., :value].contiguous()
    call["i"] = call["i"].unflatten(1, (HEADS, -1))[..., :value].flatten(1)
    mine = state.clone()
    output, new = ops.hgru2_step(**call, state=state, backend=backend)
    assert new.data_ptr() != state.data_ptr()
    assert torch.equal(state, mine)
    output2, same = ops.hgru2_step(**call, state=mine, inplace=True, backend=backend)
    assert same is mine
    assert torch.equal(mine, new)
    assert torch.equal(output2, output)


def test_slots_pick_and_write_rows_of_a_pool(backend: str) -> None:
    call, pool = tokens(), states(6)
    before, slots = pool.clone(), torch.tensor([4, 0, 5])
    want, new = ops.hgru2_step(**call, state=pool[slots], backend=backend)
    output, copied = ops.hgru2_step(**call, state=pool, slots=slots, backend=backend)
    assert torch.equal(pool, before)
    assert torch.equal(output, want)
    output, same = ops.hgru2_step(**call, state=pool, slots=slots, inplace=True, backend=backend)
    assert same is pool
    assert torch.equal(output, want)
    for made in (copied, pool):
        assert torch.equal(made[slots], new)
        assert torch.equal(made[[1, 2, 3]], before[[1, 2, 3]])


def test_rows_of_a_pool_may_have_more_in_them(backend: str) -> None:
    call, rows, slots = tokens(), torch.randn(6, 7 + HEADS * KEY * VALUE), torch.tensor([4, 0, 5])
    pool, before = rows[:, 7:].unflatten(1, (HEADS, KEY, VALUE)), rows.clone()
    want, new = ops.hgru2_step(**call, state=pool[slots], backend=backend)
    output, same = ops.hgru2_step(**call, state=pool, slots=slots, inplace=True, backend=backend)
    assert same.data_ptr() == pool.data_ptr()
    assert torch.equal(output, want)
    assert torch.equal(pool[slots], new)
    assert torch.equal(rows[:, :7], before[:, :7])
    assert torch.equal(rows[[1, 2, 3]], before[[1, 2, 3]])


def test_a_state_that_is_a_view_is_updated_in_place(backend: str) -> None:
    call, room = tokens(), states().mT.contiguous()
    want, new = ops.hgru2_step(**call, state=room.mT.contiguous(), backend=backend)
    output, same = ops.hgru2_step(**call, state=room.mT, inplace=True, backend=backend)
    assert relative_error(output, want) < 1e-6
    assert same.data_ptr() == room.data_ptr()
    assert relative_error(room.mT, new) < 1e-6


def test_tokens_may_be_slices_of_a_fused_projection(backend: str) -> None:
    call, state = tokens(), states()
    want, _ = ops.hgru2_step(**call, state=state, backend=backend)
    fused = torch.cat((call["i"], call["q"], call["f"]), 1)
    i, q, f = fused.split((HEADS * VALUE, HEADS * KEY, HEADS * KEY), 1)
    output, _ = ops.hgru2_step(**{**call, "q": q, "f": f, "i": i}, state=state, backend=backend)
    assert relative_error(output, want) < 1e-6


def test_step_in_bfloat16_keeps_a_float32_state(backend: str) -> None:
    call, state = tokens(torch.bfloat16), states()
    output, new = ops.hgru2_step(**call, state=state, backend=backend)
    wide = {name: x.float() if isinstance(x, Tensor) else x for name, x in call.items()}
    want, want_state = ops.hgru2_step(**wide, state=state, backend=backend)
    assert output.dtype == torch.bfloat16
    assert different_bits(output, want.bfloat16()) == 0
    assert different_bits(new, want_state) == 0


def test_skipped_token_keeps_the_state_to_the_bit(backend: str) -> None:
    call, state = tokens(), states()
    _, new = ops.hgru2_step(**{**call, "f": torch.full_like(call["f"], torch.inf)}, state=state, backend=backend)
    assert different_bits(new, state) == 0


def test_steps_carry_no_gradient(backend: str) -> None:
    call, state = tokens(), states().requires_grad_()
    call["q"].requires_grad_()
    assert not any(x.requires_grad for x in ops.hgru2_step(**call, state=state, backend=backend))


def test_a_narrow_state_is_served_by_plain_pytorch_and_never_in_silence() -> None:
    call, state = tokens(), states().bfloat16()
    output, new = ops.hgru2_step(**call, state=state)
    assert new.dtype == torch.bfloat16
    want, _ = ops.hgru2_step(**call, state=state.float(), backend="chunked")
    assert relative_error(output, want) < 8 * torch.finfo(torch.bfloat16).eps
    assert "runs on chunked" in ops.explain("hgru2_step", **call, state=state)
    with pytest.raises(UserError, match="native"):
        ops.hgru2_step(**call, state=state, backend="native")


def test_other_steps_work_in_place() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, log_f = torch.randn(3, 2, HEADS, KEY, generator=generator)
    v, state = torch.randn(2, HEADS, VALUE, generator=generator), states(2)
    want, new = ops.gated_outer_step(q, k, v, -log_f.abs(), state=state)
    output, same = ops.gated_outer_step(q, k, v, -log_f.abs(), state=state, inplace=True)
    assert same is state
    assert torch.equal(state, new)
    assert torch.equal(output, want)
    x, f, h = torch.randn(3, 2, 7, generator=generator)
    want, new = ops.gated_step(x, f, state=h)
    assert new.data_ptr() != want.data_ptr()
    output, same = ops.gated_step(x, f, state=h, inplace=True)
    assert same is h
    assert torch.equal(h, new)
    assert output.data_ptr() != h.data_ptr()


def test_outer_step_multiplies_in_the_dtype_of_its_state() -> None:
    k, v = torch.full((1, 1, 1), 1.0078125).bfloat16(), torch.full((1, 1, 1), 1.0078125).bfloat16()
    _, state = ops.gated_outer_step(k, k, v, torch.zeros(1, 1, 1), state=torch.zeros(1, 1, 1, 1))
    assert state.item() == 1.0078125**2
