"""Mixers of several directions against a plain loop: states of every scan summed, read once, as published."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.directions import Directional

WIDTH, BATCH, SHAPE = 12, 2, (3, 4)
TOKENS = SHAPE[0] * SHAPE[1]
UNITS: dict[str, dict[str, Any]] = {
    **{f"hgru2 n={n}": {"head_size": n, "output_activation": "sigmoid"} for n in (1, 2, 3, 4, 6, 12)},
    "hgru2 scaled": {"head_size": 3, "scale_scores": True, "norm": "head_rms", "input_activation": "none"},
    "hgru2 gated": {"head_size": 4, "output_gate": "silu"},
    "hgru1": {"kind": "hgru1"},
    "hgru1_real": {"kind": "hgru1_real"},
}
DIRECTIONS = ("bidirectional", "parallel_2d", "series_2d")
CHOICES = {
    "published": {},
    "separate": {"separate_scans": True},
    "local": {"local_width": 3},
}


def config(unit: str, direction: str, choice: str = "published") -> MixerConfig:
    shared: dict[str, Any] = {"input_activation": "silu", "norm": "layer", "bias": True}
    return MixerConfig(**shared | UNITS[unit], direction=direction, **CHOICES[choice])  # pyright: ignore


def inputs(batch: int = BATCH, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, tokens, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(WIDTH, generator=generator, dtype=torch.float64)


def shape_of(direction: str) -> tuple[int, int] | None:
    return None if direction == "bidirectional" else SHAPE


def lines(axis: str, shape: tuple[int, int] | None, tokens: int) -> list[list[int]]:
    """Token numbers of every line along an axis."""
    if axis == "line":
        return [list(range(tokens))]
    assert shape is not None
    grid = [[row * shape[1] + column for column in range(shape[1])] for row in range(shape[0])]
    return grid if axis == "rows" else [list(column) for column in zip(*grid, strict=True)]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def written(layer: Directional, raw: Tensor, lower_bound: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What one token decays by, adds, and reads with: [H,n,1], [H,n,n], [H,1,n] for hgru2; [D] twice for HGRN1."""
    options, unit = layer.config, layer.unit
    if options.kind == "hgru2":
        i, o, f = raw[-3 * WIDTH :].split(WIDTH)  # an output gate stands before them
        padding_mask = lower_bound + (1 - lower_bound) * sigmoid(f)
        i = i * sigmoid(i) if options.input_activation == "silu" else i
        o = sigmoid(o) if options.output_activation == "sigmoid" else o * sigmoid(o)
        n = options.head_size
        o = o * n**-0.5 if options.scale_scores else o
        padding_mask, key, value = (part.view(-1, n) for part in (padding_mask, 1 - padding_mask, i))
        return padding_mask.unsqueeze(-1), key.unsqueeze(-1) * value.unsqueeze(-2), o.view(-1, 1, n)
    c, f = raw[: unit.parts * WIDTH], raw[-WIDTH:]
    c = c * sigmoid(c)
    padding_mask = lower_bound + (1 - lower_bound) * sigmoid(f)
    if unit.theta is None:
        return padding_mask, (1 - padding_mask) * c, None
    turn = torch.complex(padding_mask * unit.theta.cos(), padding_mask * unit.theta.sin())
    return turn, (1 - padding_mask) * torch.complex(c[0::2], c[1::2]), None


def one_pass(layer: Directional, x: Tensor, lower_bound: Tensor, axes: list[str], shape: Any, skip: Any = ()) -> Tensor:
    """One image or line x [T,D] -> [T,D]: loop over scans, lines and tokens, then norm, gate and projection."""
    unit, options = layer.unit, layer.config
    everything = x @ unit.in_proj.weight.T + unit.in_proj.bias
    raws = [everything] + [x @ more.weight.T + more.bias for more in layer.more]
    scans = [(axis, backward) for axis in axes for backward in (False, True)]
    read: dict[int, Tensor] = {}
    for number, (axis, backward) in enumerate(scans):
        raw = raws[number] if options.separate_scans else raws[0]
        for line in lines(axis, shape, len(x)):
            state: Any = 0.0
            for t in reversed(line) if backward else line:
                if t in skip:
                    continue
                padding_mask, added, query = written(layer, raw[t], lower_bound)
                state = padding_mask * state + added
                seen = torch.zeros_like(added) + state
                value = seen if query is None else (query @ seen).flatten()
                read[t] = read[t] + value if t in read else value
    rows = []
    for t in range(len(x)):
        if t in skip:
            rows.append(torch.zeros_like(x[0]))
            continue
        y = read[t]
        y = torch.cat((y.real, y.imag)) if y.is_complex() else y
        if options.norm == "head_rms":
            heads = y.view(-1, options.head_size)
            y = (heads / (heads.square().mean(1, keepdim=True) + options.norm_eps).sqrt()).flatten() * unit.norm.weight
        else:
            y = (y - y.mean()) / (y.var(correction=0) + options.norm_eps).sqrt() * unit.norm.weight + unit.norm.bias
        if options.kind != "hgru2" or options.output_gate == "silu":
            gate = everything[t, unit.parts * WIDTH : 2 * unit.parts * WIDTH] if options.kind != "hgru2" else (
                everything[t, :WIDTH])  # fmt: skip
            y = y * gate * sigmoid(gate)
        rows.append(unit.out_proj.weight @ y + unit.out_proj.bias)
    return torch.stack(rows)


def neighbours(layer: Directional, x: Tensor, shape: Any, skip: Any = ()) -> Tensor:
    """x [T,D] with the local convolution added, tap by tap."""
    if layer.local is None:
        return x
    half = layer.config.local_width // 2
    rows, columns = shape or (1, len(x))
    steps = [(dy, dx) for dy in (range(-half, half + 1) if shape else (0,)) for dx in range(-half, half + 1)]
    added = []
    for t in range(len(x)):
        y, total = divmod(t, columns), torch.zeros_like(x[0])
        for tap, (dy, dx) in enumerate(steps):
            row, column = y[0] + dy, y[1] + dx
            source = row * columns + column
            if 0 <= row < rows and 0 <= column < columns and source not in skip:
                total = total + layer.local[:, tap] * x[source]
        added.append(total)
    return x + torch.stack(added)


def loop(layer: Directional, x: Tensor, lower_bound: Tensor, shape: Any, skip: Any = ()) -> Tensor:
    """The mixer of any direction, [B,T,D] -> [B,T,D]."""
    passes = {
        "bidirectional": [["line"]],
        "parallel_2d": [["columns", "rows"]],
        "series_2d": [["columns"], ["rows"]],
    }[layer.config.direction]
    results = []
    for sequence in x:
        sequence = neighbours(layer, sequence, shape, skip)
        for axes in passes:
            sequence = one_pass(layer, sequence, lower_bound, axes, shape, skip)
        results.append(sequence)
    return torch.stack(results)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("unit", UNITS)
def test_equals_the_loop(unit: str, direction: str, choice: str, randomised: Callable, same: Callable) -> None:
    layer = randomised(Directional(WIDTH, config(unit, direction, choice)))
    x, lower_bound = inputs()
    y, state = layer(x, lower_bound, shape=shape_of(direction))
    assert state is None
    with torch.no_grad():
        same(y, loop(layer, x, lower_bound, shape_of(direction)), 2000)


@pytest.mark.parametrize("choice", ["published", "separate", "local"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("unit", ["hgru2 n=1", "hgru2 n=2", "hgru2 n=4", "hgru2 gated", "hgru1", "hgru1_real"])
def test_gradients_equal_the_loops(
    unit: str, direction: str, choice: str, randomised: Callable, same: Callable
) -> None:
    layer = randomised(Directional(WIDTH, config(unit, direction, choice)))
    found = []
    for run in (lambda x, lower_bound: layer(x, lower_bound, shape=shape_of(direction))[0],
                lambda x, lower_bound: loop(layer, x, lower_bound, shape_of(direction))):  # fmt: skip
        x, lower_bound = (value.requires_grad_() for value in inputs())
        y = run(x, lower_bound)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        found.append(torch.autograd.grad((y * weights).sum(), [x, lower_bound, *layer.parameters()]))
    for ours, expected in zip(*found, strict=True):
        same(ours, expected, 20_000)


@pytest.mark.parametrize("unit", ["hgru2 n=1", "hgru2 n=4", "hgru1"])
def test_separate_scans_with_equal_weights_are_shared_ones(unit: str, randomised: Callable, same: Callable) -> None:
    shared = randomised(Directional(WIDTH, config(unit, "bidirectional")))
    separate = randomised(Directional(WIDTH, config(unit, "bidirectional", "separate")))
    separate.unit.load_state_dict(shared.unit.state_dict())
    raw, _ = shared.unit.split(torch.cat((shared.unit.in_proj.weight, shared.unit.in_proj.bias[:, None]), 1).T)
    with torch.no_grad():
        separate.more[0].weight.copy_(torch.cat([part[:-1].T for part in raw]))
        separate.more[0].bias.copy_(torch.cat([part[-1] for part in raw]))
    x, lower_bound = inputs()
    same(separate(x, lower_bound)[0], shared(x, lower_bound)[0])


@pytest.mark.parametrize("choice", ["published", "separate"])
@pytest.mark.parametrize("unit", UNITS)
def test_padding_anywhere_is_as_if_it_were_not_there(
    unit: str, choice: str, randomised: Callable, same: Callable
) -> None:
    """Values and gradients of what is kept; NaN-free garbage in the padding."""
    layer = randomised(Directional(WIDTH, config(unit, "bidirectional", choice)))
    x, lower_bound = inputs()
    padding_mask = torch.tensor([[True] * 5 + [False] * 7, [False, True, True, False] * 3])
    x = x.masked_fill(~padding_mask.unsqueeze(-1), 1e3).requires_grad_()
    y, _ = layer(x, lower_bound, padding_mask=padding_mask)
    whole = torch.autograd.grad(y[padding_mask].square().sum(), x)[0]
    assert (whole[~padding_mask] == 0).all()
    for row in range(BATCH):
        alone = x[row : row + 1, padding_mask[row]].detach().requires_grad_()
        z, _ = layer(alone, lower_bound)
        same(y[row, padding_mask[row]], z[0])
        same(whole[row, padding_mask[row]], torch.autograd.grad(z.square().sum(), alone)[0][0], 3000)


@pytest.mark.parametrize("unit", ["hgru2 n=1", "hgru2 n=4", "hgru1"])
def test_padding_at_the_ends_of_a_local_convolution(unit: str, randomised: Callable, same: Callable) -> None:
    layer = randomised(Directional(WIDTH, config(unit, "bidirectional", "local")))
    x, lower_bound = inputs()
    padding_mask = torch.tensor([[True] * 5 + [False] * 7, [False] * 3 + [True] * 8 + [False]])
    y, _ = layer(x.masked_fill(~padding_mask.unsqueeze(-1), 1e3), lower_bound, padding_mask=padding_mask)
    for row in range(BATCH):
        same(y[row, padding_mask[row]], layer(x[row : row + 1, padding_mask[row]], lower_bound)[0][0])


@pytest.mark.parametrize("choice", ["published", "local"])
@pytest.mark.parametrize("direction", ["parallel_2d", "series_2d"])
@pytest.mark.parametrize("unit", ["hgru2 n=1", "hgru2 n=2", "hgru2 n=6", "hgru1"])
def test_a_smaller_image_in_a_padded_frame(
    unit: str, direction: str, choice: str, randomised: Callable, same: Callable
) -> None:
    layer = randomised(Directional(WIDTH, config(unit, direction, choice)))
    x, lower_bound = inputs()
    frame = torch.zeros(SHAPE, dtype=torch.bool)
    frame[:2, :3] = True
    padding_mask = frame.flatten().expand(BATCH, -1)
    y, _ = layer(x, lower_bound, padding_mask=padding_mask, shape=SHAPE)
    small, _ = layer(x[padding_mask].view(BATCH, 6, WIDTH), lower_bound, shape=(2, 3))
    same(y[padding_mask].view(BATCH, 6, WIDTH), small)
    skip = {t for t in range(TOKENS) if not frame.flatten()[t]}
    with torch.no_grad():
        same(y[padding_mask], loop(layer, x, lower_bound, SHAPE, skip)[padding_mask], 2000)


@pytest.mark.parametrize("choice", ["separate", "local"])
@pytest.mark.parametrize("unit", ["hgru2 n=1", "hgru2 n=3", "hgru2 n=12", "hgru1", "hgru1_real"])
def test_packed_is_each_by_itself(unit: str, choice: str, randomised: Callable, same: Callable) -> None:
    layer = randomised(Directional(WIDTH, config(unit, "bidirectional", choice)))
    x, lower_bound = inputs(batch=1)
    y, _ = layer(x, lower_bound, cu_seqlens=torch.tensor([0, 5, 5, 12]))
    same(y, torch.cat((layer(x[:, :5], lower_bound)[0], layer(x[:, 5:], lower_bound)[0]), 1))


def test_one_row_of_an_image_is_a_line(randomised: Callable, same: Callable) -> None:
    """With one row, every column is one token: the series form is two passes, the second of which is bidirectional."""
    layer = randomised(Directional(WIDTH, config("hgru2 n=4", "series_2d")))
    line = randomised(Directional(WIDTH, config("hgru2 n=4", "bidirectional")))
    x, lower_bound = inputs()
    columns, _ = line(x.reshape(-1, 1, WIDTH), lower_bound)
    same(layer(x, lower_bound, shape=(1, TOKENS))[0], line(columns.view_as(x), lower_bound)[0])


def test_bfloat16_rounds_the_sum_once(randomised: Callable) -> None:
    """Four outputs are added in float32: the error stays near that of one rounding of the projections."""
    layer = randomised(Directional(WIDTH, config("hgru2 n=4", "parallel_2d"))).bfloat16()
    x, lower_bound = (value.bfloat16() for value in inputs())
    with torch.no_grad():
        y, _ = layer(x, lower_bound.float(), shape=SHAPE)
        expected, _ = layer.double()(x.double(), lower_bound.double(), shape=SHAPE)
    assert y.dtype == torch.bfloat16
    assert float((y.double() - expected).abs().max()) <= 8 * torch.finfo(torch.bfloat16).eps * float(
        expected.abs().max()
    )


@pytest.mark.parametrize(
    ("direction", "options", "message"),
    [
        ("parallel_2d", {}, r"direction parallel_2d needs shape=\(height, width\) of its 12 tokens"),
        ("series_2d", {"shape": (3, 5)}, r"shape \(3, 5\) does not hold 12 tokens"),
        ("series_2d", {"shape": (-3, -4)}, r"shape \(-3, -4\) does not hold 12 tokens"),
        ("bidirectional", {"shape": (3, 4)}, r"shape \(3, 4\) is given, but direction bidirectional reads a line"),
        ("bidirectional", {"output_state": True}, "has no state to carry, and cannot generate; use direction causal"),
        ("parallel_2d", {"shape": (3, 4), "cu_seqlens": torch.tensor([0, 12])}, "takes batches of images, not cu_"),
    ],
)
def test_refusals(direction: str, options: dict[str, Any], message: str) -> None:
    layer = Directional(WIDTH, config("hgru2 n=4", direction)).double()
    with pytest.raises(UserError, match=message):
        layer(*inputs(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "sideways"}, "direction is 'sideways'; choose one of: causal, bidirectional, parallel_2d"),
        ({"separate_scans": True}, "separate_scans needs a direction of more than one scan"),
        ({"direction": "bidirectional", "conv_width": 4}, "conv_width 4 looks back along one line; direction bidirect"),
        ({"local_width": 3}, "local_width 3 looks both ways; it needs a direction other than causal"),
        ({"direction": "bidirectional", "local_width": 4}, "local_width is 4; use 0 or an odd number from 3"),
        ({"output_gate": "silu"}, "output_gate silu is offered for hgru2 in directions other than causal"),
        ({"norm": "batch"}, "norm batch is offered between blocks"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixerConfig(**options)
