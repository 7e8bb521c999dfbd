"""Scans, convolutions and attention over slices of a sequence: the outputs, states and gradients of one process."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.layers.block import token_mixer
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.operators import WHOLE
from hgrn2.layers.state import LayerState
from hgrn2.parallel.collectives import all_sum
from hgrn2.parallel.context import SlicedOperators
from hgrn2.parallel.slices import slice_of

TOKENS = 24
WIDTH = 8
DOCUMENTS = {
    "one row": None,
    "borders inside and on slices": [0, 5, 12, 12, 13, 24],
    "one document over all slices": [0, 24],
    "empty ones at the ends": [0, 0, 0, 20, 24, 24],
    "a long one between": [0, 1, 23, 24],
    "every border": [0, 6, 6, 12, 12, 18, 24],
}


def mine(x: Tensor | None) -> Tensor | None:
    """This process's slice of the tokens."""
    return None if x is None else x.chunk(dist.get_world_size(), 1)[dist.get_rank()]


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape, what
    error = float((found - wanted).detach().abs().max()) if wanted.numel() else 0.0
    assert error <= 1e-12 * max(1.0, float(wanted.detach().abs().max()) if wanted.numel() else 0.0), (what, error)


def compare(
    run: Callable[..., tuple[Tensor, Tensor | None]], sliced: Callable[..., tuple[Tensor, Tensor | None]],
    tokens: list[Tensor], shared: list[Tensor | None], state: Tensor | None, cu: Tensor | None, what: str,
) -> None:  # fmt: skip
    """Outputs, final states and every gradient of a call over whole sequences, and over slices of them.

    tokens [B,T,...] are cut into slices, `shared` and `state` are alike in every process.
    """
    leaves = [x.requires_grad_() for x in (*tokens, *shared, state) if x is not None]
    o, final = run(*tokens, *shared, state=state, cu_seqlens=cu)
    assert final is not None
    torch.manual_seed(5)
    weights = torch.randn_like(o), torch.randn_like(final)
    loss = (o * weights[0]).real.sum() if o.is_complex() else (o * weights[0]).sum()
    wanted = torch.autograd.grad(loss + (final * weights[1]).sum().real, leaves)

    local = [mine(x.detach()).requires_grad_() for x in tokens]  # pyright: ignore[reportOptionalMemberAccess]
    alike = [None if x is None else x.detach().requires_grad_() for x in (*shared, state)]
    mine_o, mine_final = sliced(*local, *alike[:-1], state=alike[-1], cu_seqlens=cu)
    assert mine_final is not None
    close(mine_o, mine(o), f"{what}: output")  # type: ignore[arg-type]
    close(mine_final, final, f"{what}: final state")
    loss = (mine_o * mine(weights[0])).sum().real + (mine_final * weights[1]).sum().real / dist.get_world_size()
    found = torch.autograd.grad(loss, [*local, *(x for x in alike if x is not None)], allow_unused=True)
    cut = len(tokens)
    for n, (one, expected) in enumerate(zip(found[:cut], wanted[:cut], strict=True)):
        close(one, mine(expected), f"{what}: gradient {n}")  # type: ignore[arg-type]
    together(found[cut:], wanted[cut:], f"{what}: gradients of what is shared")


def together(found: Any, wanted: Any, what: str) -> None:
    """Gradients of what all processes hold alike are the sum of theirs; all of them in one exchange."""
    filled = [torch.zeros_like(expected) if one is None else one for one, expected in zip(found, wanted, strict=True)]
    if filled:
        flat, expected = (torch.cat([x.reshape(-1) for x in xs]) for xs in (filled, wanted))
        close(all_sum(flat, dist.group.WORLD), expected, what)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def cases() -> list[tuple[str, int, Tensor | None, bool]]:
    """(name, B, offsets, whether there is an initial state)."""
    found = []
    for name, ends in DOCUMENTS.items():
        cu = None if ends is None else torch.tensor(ends)
        found += [(name, 2 if cu is None else 1, cu, with_state) for with_state in (False, True)]
    return found


def hgru2_slices() -> None:
    operators = SlicedOperators(dist.group.WORLD)
    for seed, (name, batch, cu, with_state) in enumerate(cases()):
        torch.manual_seed(seed)
        heads, sequences = 2, batch if cu is None else len(cu) - 1
        q, f, i = drawn(batch, TOKENS, WIDTH), 2 * drawn(batch, TOKENS, WIDTH), drawn(batch, TOKENS, 6)
        f[:, 3] = float("inf") if seed % 2 else -50.0
        lower_bound = torch.rand(WIDTH, dtype=torch.float64) if seed % 3 else None
        state = drawn(sequences, heads, WIDTH // heads, 3) if with_state else None
        options: dict[str, Any] = {"heads": heads, "scale": 0.7, "input_activation": "silu"}
        compare(
            partial(ops.hgru2, **options), partial(operators.hgru2, **options),
            [q, f, i], [lower_bound], state, cu, f"hgru2, {name}",
        )  # fmt: skip


def outer_slices() -> None:
    operators = SlicedOperators(dist.group.WORLD)
    for seed, (name, batch, cu, with_state) in enumerate(cases()[1::3]):
        torch.manual_seed(seed)
        sequences = batch if cu is None else len(cu) - 1
        q, k = (drawn(batch, TOKENS, 2, 4) for _ in range(2))
        v, log_f = drawn(batch, TOKENS, 2, 3), -torch.rand(batch, TOKENS, 2, 4, dtype=torch.float64) * 3
        state = drawn(sequences, 2, 4, 3) if with_state else None
        compare(
            partial(ops.gated_outer_scan, scale=0.3), partial(operators.gated_outer_scan, scale=0.3),
            [q, k, v, log_f], [], state, cu, f"gated_outer_scan, {name}",
        )  # fmt: skip


def element_slices() -> None:
    operators = SlicedOperators(dist.group.WORLD)
    for seed, (name, batch, cu, with_state) in enumerate(cases()):
        for dtype in (torch.float64, torch.complex128)[seed % 2 :]:
            torch.manual_seed(seed)
            x, f = (drawn(batch, TOKENS, WIDTH, dtype=dtype) for _ in range(2))
            f = 0.9 * f / f.abs().clamp_min(0.9)
            f[:, 4, 1] = 0
            state = drawn(batch if cu is None else len(cu) - 1, WIDTH, dtype=dtype) if with_state else None
            compare(ops.gated_scan, operators.gated_scan, [x, f], [], state, cu, f"gated_scan, {dtype}, {name}")


def conv_slices() -> None:
    operators = SlicedOperators(dist.group.WORLD)

    def call(of: Any, padding_mask: Tensor | None) -> Any:
        def run(x: Tensor, weight: Tensor, *, state: Tensor | None, cu_seqlens: Tensor | None) -> Any:
            y, final = of.short_conv(x, weight, state, cu_seqlens, padding_mask, output_state=True)
            return (y if padding_mask is None else y.masked_fill(~padding_mask.unsqueeze(-1), 0)), final

        return run

    for seed, (name, batch, cu, with_state) in enumerate(cases()):
        for width, padded in ((4, seed % 3 == 0), (9, seed % 3 != 0)):
            torch.manual_seed(seed)
            x, weight = drawn(batch, TOKENS, WIDTH), drawn(WIDTH, width)
            padding_mask = torch.rand(batch, TOKENS) < 0.6 if padded else None
            sequences = batch if cu is None else len(cu) - 1
            state = drawn(sequences, width - 1, WIDTH) if with_state else None
            what = f"conv {width}, padded {padded}, {name}"
            compare(call(WHOLE, padding_mask), call(operators, mine(padding_mask)), [x], [weight], state, cu, what)


MIXERS = {
    "hgru2": MixerConfig(head_size=4, conv_width=4),
    "gla": MixerConfig(kind="gla", head_size=4, conv_width=3),
    "hgru1": MixerConfig(kind="hgru1", input_activation="silu", norm="layer"),
    "hgru1_real": MixerConfig(kind="hgru1_real"),
    "mamba2": MixerConfig(kind="mamba2", head_size=4, conv_width=3),
    "attention": MixerConfig(kind="attention", head_size=4),
    "attention window": MixerConfig(kind="attention", head_size=4, window=7, conv_width=2),
}


def mixer_slices() -> None:
    """Whole mixers, with padding: every weight's gradient is the sum of the processes' own."""
    operators = SlicedOperators(dist.group.WORLD)
    shapes = [cases()[n] for n in (0, 2, 8)]
    for (kind, config), (name, batch, cu, _) in ((m, c) for m in MIXERS.items() for c in shapes):
        for padded in (False, True) if "attention" in kind or cu is None else (True,):
            torch.manual_seed(len(name))
            mixer = token_mixer(WIDTH, config).double()
            for parameter in mixer.parameters():
                parameter.data = 0.4 * torch.randn_like(parameter)
            x = drawn(batch, TOKENS, WIDTH).requires_grad_()
            lower_bound = torch.rand(WIDTH, dtype=torch.float64) if kind.startswith("hgru") else None
            padding_mask = torch.rand(batch, TOKENS) < 0.7 if padded else None
            weight = drawn(batch, TOKENS, WIDTH)
            weight = weight if padding_mask is None else weight * padding_mask.unsqueeze(-1)
            leaves = [x, *mixer.parameters()]
            y, _ = mixer(x, lower_bound, cu_seqlens=cu, padding_mask=padding_mask, output_state=False)
            wanted = torch.autograd.grad((y * weight).sum(), leaves)
            mixer.operators = operators
            part = mine(x.detach()).requires_grad_()  # pyright: ignore[reportOptionalMemberAccess]
            z, _ = mixer(part, lower_bound, cu_seqlens=cu, padding_mask=mine(padding_mask), output_state=False)
            found = torch.autograd.grad((z * mine(weight)).sum(), [part, *leaves[1:]])
            what = f"{kind}, padded {padded}, {name}"
            close(z * (mine(weight) != 0), mine(y * (weight != 0)), what)  # type: ignore[arg-type, operator]
            close(found[0], mine(wanted[0]), f"{what}: gradient of x")  # type: ignore[arg-type]
            together(found[1:], wanted[1:], f"{what}: gradients of the weights")


def refusals() -> None:
    operators = SlicedOperators(dist.group.WORLD)
    attention = token_mixer(WIDTH, MIXERS["attention"])
    attention.operators = operators
    with pytest.raises(UserError, match="carries no state"):
        attention(torch.zeros(1, 4, WIDTH))
    with pytest.raises(UserError, match="slices of 4 tokens together"):
        operators.gated_scan(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), cu_seqlens=torch.tensor([0, 4]))


CHECKS = (hgru2_slices, outer_slices, element_slices, conv_slices, mixer_slices, refusals)


def test_two_slices_are_the_whole(ranks: Callable[..., None]) -> None:
    ranks(2, *CHECKS)


@pytest.mark.full
@pytest.mark.parametrize("world", [3, 4])
def test_several_slices_are_the_whole(ranks: Callable[..., None], world: int) -> None:
    ranks(world, *CHECKS)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [name for name, ends in DOCUMENTS.items() if ends])
def test_every_document_belongs_to_its_slices(name: str, world: int) -> None:
    cu = torch.tensor(DOCUMENTS[name])
    parts = [slice_of(rank, world, TOKENS // world, cu) for rank in range(world)]
    found = [n for part in parts for n in list(part.documents or [])[int(part.enters) :]]
    assert found == list(range(len(cu) - 1))
    for before, after in pairwise(parts):
        assert before.leaves == after.enters
    assert not parts[0].enters
    assert not parts[-1].leaves


def test_long_slices_are_summarised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of a summary agree with the operator's own final state and its gradient of the initial one."""
    from hgrn2.parallel import scan

    monkeypatch.setattr(scan, "TOKENS", 7)
    torch.manual_seed(0)
    q, f, i = drawn(2, 20, WIDTH), drawn(2, 20, WIDTH), drawn(2, 20, WIDTH)
    state = drawn(2, 2, 4, 4).requires_grad_()
    made = scan.hgru2(q, f, i, None, heads=2)
    o, final = ops.hgru2(q, f, i, heads=2, state=state)
    assert final is not None
    close(made.forward(q, f, i, None, slice(0, 20)).after(state), final, "final state")
    grad_o, grad_final = torch.randn_like(o), torch.randn_like(final)
    wanted = torch.autograd.grad((o * grad_o).sum() + (final * grad_final).sum(), state)[0]
    close(made.backward(q, f, i, None, grad_o, slice(0, 20)).after(grad_final), wanted, "gradient of the state")


def test_states_of_whole_sequences_are_as_before() -> None:
    """Mixers compute what they did: the operators of a sequence that is whole are those of hgrn2.ops."""
    mixer = token_mixer(WIDTH, MIXERS["hgru2"])
    _, state = mixer(torch.zeros(1, 3, WIDTH))
    assert isinstance(state, LayerState)
    assert mixer.operators is WHOLE
