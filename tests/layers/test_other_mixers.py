"""GLA and attention against their definitions, one token after the other, and what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.attention import BLOCK, Attention
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.gla import GATE_ROOT, GLA
from hgrn2.layers.rotary import rotary_turns
from hgrn2.layers.rotary import rotate as turn

WIDTH = 16
ATTENTION = {
    "one head": MixerConfig(kind="attention", head_size=16),
    "heads": MixerConfig(kind="attention", head_size=4, bias=True),
    "conv": MixerConfig(kind="attention", head_size=8, conv_width=4),
}
every = pytest.mark.parametrize("name", ATTENTION)


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return turn(x, rotary_turns(positions, x.shape[-1], x.dtype))


def inputs(batch: int = 2, tokens: int = 19) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.fixture
def attention(name: str, randomised: Callable) -> Any:
    return randomised(Attention(WIDTH, ATTENTION[name]))


@pytest.mark.parametrize("keys", [8, 4], ids=["keys as wide as values", "keys of half the width"])
def test_gla_is_its_recurrence(keys: int, randomised: Callable, same: Callable) -> None:
    """The paper's equations token by token; the second as published, with a norm of each head by itself."""
    norm: Any = {"norm": "head_rms", "norm_eps": 1e-3} if keys == 4 else {}
    config = MixerConfig(kind="gla", head_size=8, key_size=keys, scale_scores=True, bias=True, **norm)
    mixer, x = randomised(GLA(WIDTH, config)), inputs()
    q, k, v, g = mixer.in_proj(x).split((2 * keys, 2 * keys, WIDTH, WIDTH), -1)
    forget = torch.sigmoid(mixer.gate_up(mixer.gate_down(x))) ** (1 / GATE_ROOT)
    state = torch.zeros(2, 2, keys, 8, dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        one = [part[:, t].view(2, 2, -1) for part in (q, k, v, forget)]
        state = one[3].unsqueeze(-1) * state + one[1].unsqueeze(-1) * one[2].unsqueeze(-2)
        outputs.append(keys**-0.5 * torch.einsum("bhk,bhkv->bhv", one[0], state))
    y = torch.stack(outputs, 1)
    if keys == 4:
        y = y * (y.square().mean(-1, keepdim=True) + 1e-3).rsqrt()
        y = y.flatten(2) * mixer.norm.weight
    else:
        y = mixer.norm(y.flatten(2))
    expected = mixer.out_proj(y * torch.nn.functional.silu(g))
    found, final = mixer(x)
    same(found, expected)
    same(final.recurrent, state)


def test_attention_is_its_definition(randomised: Callable, same: Callable) -> None:
    """Rotation as a complex number, softmax over what lies before, written out for every pair of tokens."""
    mixer, x = randomised(Attention(WIDTH, ATTENTION["heads"])), inputs()
    q, k, v = (part.unflatten(-1, (4, 4)) for part in mixer.in_proj(x).split(WIDTH, -1))
    speed = 10_000.0 ** (-torch.arange(2, dtype=torch.float64) / 2)

    def turned(part: Tensor, t: int) -> Tensor:
        return torch.complex(part[:, t, :, :2], part[:, t, :, 2:]) * torch.polar(torch.ones(2).double(), t * speed)

    outputs = []
    for t in range(x.shape[1]):
        scores = torch.stack([(turned(q, t) * turned(k, s).conj()).real.sum(-1) / 2 for s in range(t + 1)], -1)
        outputs.append(torch.einsum("bhs,bshn->bhn", scores.softmax(-1), v[:, : t + 1]).flatten(1))
    same(mixer(x)[0], mixer.out_proj(torch.stack(outputs, 1)))


@pytest.mark.parametrize("window", [1, 2, 7, 18, 19, 40])
@pytest.mark.parametrize("block", [1, 5, BLOCK])
def test_a_window_is_the_masked_loop(
    window: int, block: int, randomised: Callable, same: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token over its last `window` keys alone; whole, in two parts, token by token, and as two rows that differ in
    length. The state holds window - 1 tokens."""
    monkeypatch.setattr("hgrn2.layers.attention.BLOCK", block)
    mixer, x = randomised(Attention(WIDTH, replace(ATTENTION["heads"], window=window))), inputs()
    q, k, v = (part.unflatten(-1, (4, 4)) for part in mixer.in_proj(x).split(WIDTH, -1))
    q, k = (rotate(part, torch.arange(19)[None]) for part in (q, k))
    outputs = []
    for t in range(19):
        near = slice(max(0, t - window + 1), t + 1)
        shares = (torch.einsum("bhn,bshn->bhs", q[:, t], k[:, near]) / 2).softmax(-1)
        outputs.append(torch.einsum("bhs,bshn->bhn", shares, v[:, near]).flatten(1))
    expected = mixer.out_proj(torch.stack(outputs, 1))
    y, final = mixer(x)
    same(y, expected)
    left, state = mixer(x[:, :11], None, mixer.zeros(2, None, torch.float64))
    same(torch.cat((left, mixer(x[:, 11:], None, state)[0]), 1), expected)
    padding_mask = torch.arange(11) < torch.tensor([[11], [6]])
    _, state = mixer(x[:, :11], padding_mask=padding_mask)
    rest = torch.stack((x[0, 11:], x[1, 6:14]))
    right, _ = mixer(rest, None, state)
    same(right, torch.stack((expected[0, 11:], expected[1, 6:14])))
    state, read = mixer.zeros(2, None, torch.float64), []
    with torch.no_grad():
        for token in x.split(1, 1):
            one, state = mixer(token, None, state)
            read.append(one)
    same(torch.cat(read, 1), expected)
    named = state.tensors()
    assert named["keys_values"].shape[1] == min(19, window - 1)
    assert named["dropped"].tolist() == [max(0, 20 - window)] * 2
    for name, tensor in final.tensors().items():
        same(named[name], tensor)


@torch.no_grad()
def test_a_window_lets_go_of_what_nobody_sees(randomised: Callable, same: Callable) -> None:
    """However long the text is, and whether it comes at once or token by token, the memory is that of the window."""
    mixer, x = randomised(Attention(WIDTH, MixerConfig(kind="attention", head_size=8, window=10))), inputs(1, 400)
    expected, at_once = mixer(x)
    assert at_once.buffer.untyped_storage().nbytes() == 64 * 2 * WIDTH * 8
    outputs, state = [], mixer.zeros(1, None, torch.float64)
    for token in x.split(1, 1):
        y, state = mixer(token, None, state)
        outputs.append(y)
        assert state.buffer.shape[1] <= 256
    same(torch.cat(outputs, 1), expected)


@every
@pytest.mark.parametrize("at", [1, 3, 18])
def test_attention_split_anywhere_is_the_whole(name: str, at: int, attention: Any, same: Callable) -> None:
    x = inputs()
    expected, final = attention(x)
    left, middle = attention(x[:, :at], None, attention.zeros(2, None, torch.float64))
    right, state = attention(x[:, at:], None, middle)
    same(torch.cat((left, right), 1), expected)
    same(state.seen, final.seen)
    assert state.lengths == (19, 19)


@every
def test_attention_step_by_step_is_the_whole(name: str, attention: Any, same: Callable) -> None:
    x, state, outputs = inputs(), attention.zeros(2, None, torch.float64), []
    for token in x.split(1, 1):
        y, state = attention(token, None, state)
        outputs.append(y)
    same(torch.cat(outputs, 1), attention(x)[0])


@every
def test_padding_changes_no_other_token(name: str, attention: Any, same: Callable) -> None:
    x = inputs(3)
    padding_mask = torch.rand(3, 19, generator=torch.Generator().manual_seed(1)) < 0.6
    padding_mask[1, :5] = False
    x.requires_grad_()
    y, state = attention(x, padding_mask=padding_mask, output_state=False)
    assert state is None
    for row, mask in enumerate(padding_mask):
        same(y[row, mask], attention(x[row : row + 1, mask])[0][0])
    (gradient,) = torch.autograd.grad(y[padding_mask].square().sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[~padding_mask].any()


@every
def test_no_later_token_is_seen_unless_asked_for(name: str, attention: Any) -> None:
    x = inputs()
    changed = torch.cat((x[:, :10], -x[:, 10:]), 1)
    assert torch.equal(attention(x)[0][:, :10], attention(changed)[0][:, :10])


def test_both_directions(randomised: Callable, same: Callable) -> None:
    """Every token counts for every other: turned round, the same comes out turned round, but for rotation's sign."""
    mixer = randomised(Attention(WIDTH, MixerConfig(kind="attention", head_size=8, direction="bidirectional")))
    x, padding_mask = inputs(), torch.ones(2, 19, dtype=torch.bool)
    padding_mask[1, 12:] = False
    y, _ = mixer(x, padding_mask=padding_mask, output_state=False)
    changed = torch.cat((x[:, :18], -x[:, 18:]), 1)
    other, _ = mixer(changed, padding_mask=padding_mask, output_state=False)
    assert (y[0, :18] - other[0, :18]).abs().max() > 1e-3
    same(y[1, :12], other[1, :12])
    same(y[1:, :12], mixer(x[1:, :12], output_state=False)[0])
    with pytest.raises(UserError, match="direction bidirectional reads whole sequences: it has no state to carry"):
        mixer(x)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_both_directions_are_their_definition(rotary: bool, bias: bool, randomised: Callable, same: Callable) -> None:
    """Softmax over every token that is kept, written out one by one; gradients of inputs and weights beside outputs."""
    config = MixerConfig(kind="attention", head_size=4, direction="bidirectional", rotary=rotary, bias=bias)
    mixer, x = randomised(Attention(WIDTH, config)), inputs(3).requires_grad_()
    padding_mask = torch.rand(3, 19, generator=torch.Generator().manual_seed(2)) < 0.6
    padding_mask[0], padding_mask[1, :4] = True, False
    y, state = mixer(x, padding_mask=padding_mask, output_state=False)
    assert state is None
    expected = torch.zeros_like(y)
    q, k, v = (part.unflatten(-1, (4, 4)) for part in mixer.in_proj(x).split(WIDTH, -1))
    for row in range(3):
        seen = padding_mask[row].nonzero().flatten().tolist()
        for t in seen:
            here = slice(row, row + 1)

            def turned(part: Tensor, s: int, here: slice = here, seen: list[int] = seen) -> Tensor:
                return (
                    rotate(part[here, s : s + 1], torch.tensor([[seen.index(s)]]))[0, 0] if rotary else part[here, s][0]
                )

            scores = torch.stack([(turned(q, t) * turned(k, s)).sum(-1) / 2 for s in seen], -1)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            read = sum(weights[:, n, None] * v[row, s] for n, s in enumerate(seen))
            expected[row, t] = mixer.out_proj(read.flatten())  # pyright: ignore[reportAttributeAccessIssue]
    same(y[padding_mask], expected[padding_mask])
    leaves = [x, *mixer.parameters()]
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)[padding_mask]
    grads = (
        torch.autograd.grad((found[padding_mask] * weight).sum(), leaves, retain_graph=True) for found in (y, expected)
    )
    for mine, theirs in zip(*grads, strict=True):
        same(mine, theirs, 3000)


def test_without_rotation_order_is_not_seen(randomised: Callable, same: Callable) -> None:
    """What positions in the embedding are for."""
    for rotary in (False, True):
        config = MixerConfig(kind="attention", head_size=8, direction="bidirectional", rotary=rotary)
        mixer, order = (
            randomised(Attention(WIDTH, config)),
            torch.randperm(19, generator=torch.Generator().manual_seed(4)),
        )
        y, other = (mixer(x, output_state=False)[0] for x in (inputs(), inputs()[:, order]))
        if rotary:
            assert (other - y[:, order]).abs().max() > 1e-3
        else:
            same(other, y[:, order])


def test_a_sequence_of_padding_alone_stays_finite(randomised: Callable) -> None:
    mixer = randomised(Attention(WIDTH, MixerConfig(kind="attention", head_size=8, direction="bidirectional")))
    padding_mask = torch.ones(2, 19, dtype=torch.bool)
    padding_mask[1] = False
    x = inputs().requires_grad_()
    y, _ = mixer(x, padding_mask=padding_mask, output_state=False)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert gradient.isfinite().all()


def test_a_shape_is_for_mixers_that_read_images(randomised: Callable) -> None:
    mixer = randomised(Attention(WIDTH, MixerConfig(kind="attention", head_size=8, direction="bidirectional")))
    with pytest.raises(UserError, match="direction bidirectional reads a line of tokens"):
        mixer(inputs(), shape=(1, 19), output_state=False)


def test_scores_depend_on_distances_only() -> None:
    x, y = inputs(1).unflatten(-1, (2, 8)), inputs(1).flip(1).unflatten(-1, (2, 8))
    at = torch.arange(19).unsqueeze(0)
    near = (rotate(x, at) * rotate(y, at + 3)).sum(-1)
    far = (rotate(x, at + 500) * rotate(y, at + 503)).sum(-1)
    assert (near - far).abs().max() < 1e-10


def test_positions_count_the_tokens_of_their_own_document(randomised: Callable, same: Callable) -> None:
    """Padding, packing and continued states, held to the definition that is written out token by token above."""
    mixer, x = randomised(Attention(WIDTH, ATTENTION["heads"])), inputs(1)
    q, k, v = (part.unflatten(-1, (4, 4))[0] for part in mixer.in_proj(x).split(WIDTH, -1))

    def expected(seen: list[int]) -> Tensor:
        """Of the last of these tokens, which are a document."""
        at = torch.arange(len(seen)).unsqueeze(0)
        turned, query = rotate(k[None, seen], at)[0], rotate(q[None, seen[-1:]], at[:, -1:])[0, 0]
        weights = (torch.einsum("hn,shn->hs", query, turned) / 2).softmax(-1)
        return mixer.out_proj(torch.einsum("hs,shn->hn", weights, v[seen]).flatten())

    padding_mask = torch.tensor([[True, False, True, True, False, True, True, True, False, True]])
    cuts = torch.tensor([0, 4, 10])
    _, state = mixer(x[:, :10], padding_mask=padding_mask, cu_seqlens=cuts)
    assert state.lengths == (3, 4)
    y, after = mixer(x[:, 10:], None, state.select([1]))
    kept = [5, 6, 7, 9]
    for t in range(10, 19):
        same(y[0, t - 10], expected([*kept, *range(10, t + 1)]))
    both, _ = mixer(x[:, :10], padding_mask=padding_mask, cu_seqlens=cuts, output_state=False)
    for seen in ([0], [0, 2], [0, 2, 3], [5], [5, 6], kept):
        same(both[0, seen[-1]], expected(seen))
    assert after.lengths == (13,)


def test_both_directions_read_packed_documents(randomised: Callable, same: Callable) -> None:
    config = MixerConfig(kind="attention", head_size=8, direction="bidirectional")
    mixer, x = randomised(Attention(WIDTH, config)), inputs(1)
    padding_mask = torch.rand(1, 19, generator=torch.Generator().manual_seed(2)) < 0.7
    y, _ = mixer(x, cu_seqlens=torch.tensor([0, 7, 7, 19]), padding_mask=padding_mask, output_state=False)
    for part in (slice(0, 7), slice(7, 19)):
        mask = padding_mask[:, part]
        same(y[:, part][mask], mixer(x[:, part], padding_mask=mask, output_state=False)[0][mask])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "attention", "head_size": 7}, "head_size is 7; rotary positions of attention need an even one"),
        ({"rotary": False}, "rotary=false is offered for attention, not for hgru2"),
        (
            {"kind": "gla", "input_activation": "silu"},
            "input_activation silu is offered for hgru2, hgru1, hgru1_real, wide_hgru1, not for gla",
        ),
        ({"kind": "gla", "direction": "bidirectional"}, "direction bidirectional is not offered for gla"),
        ({"kind": "attention", "direction": "parallel_2d"}, "direction parallel_2d is not offered for attention"),
        ({"kind": "attention", "scale_scores": True}, "scale_scores=true is offered for hgru2, gla, not for attention"),
    ],
)
def test_settings_refuse_what_is_not_offered(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        MixerConfig(**changes)
    assert str(error.value) == said
