"""The HGRN2 mixer, every option, against a loop over tokens written from the paper's lines and nothing of ours."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.layers.config import MixerConfig
from hgrn2.layers.hgru2 import HGRU2

WIDTH, TOKENS, BATCH = 12, 9, 2

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "input silu": {"input_activation": "silu"},
    "output sigmoid": {"output_activation": "sigmoid"},
    "norm layer": {"norm": "layer"},
    "norm simple": {"norm": "simple_rms"},
    "norm of heads": {"norm": "head_rms"},
    "eps": {"norm_eps": 0.05},
    "scale": {"scale_scores": True, "norm_eps": 0.05},
    "bias": {"bias": True},
    "conv": {"conv_width": 4},
    "wide conv and bias": {"conv_width": 6, "bias": True},
    "one head": {"head_size": 12},
    "no expansion": {"head_size": 1},
    "modules for images": {"input_activation": "silu", "output_activation": "sigmoid", "norm": "layer", "bias": True},
}


def activated(x: Tensor, name: str) -> Tensor:
    up = 1 / (1 + torch.exp(-x))
    return {"none": x, "silu": x * up, "sigmoid": up}[name]


def normed(y: Tensor, layer: HGRU2) -> Tensor:
    """One token's output [D] after the norm."""
    kind, eps, norm = layer.config.norm, layer.config.norm_eps, layer.norm
    if kind == "layer":
        return (y - y.mean()) / (y.var(correction=0) + eps).sqrt() * norm.weight + norm.bias
    groups = layer.heads if kind == "head_rms" else 1
    parts = [part / ((part * part).mean() + eps).sqrt() for part in y.chunk(groups)]
    return torch.cat(parts) * (1 if norm.weight is None else norm.weight)


def loop(layer: HGRU2, x: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B,T,D] in any dtype -> (y [B,T,D], state [B,H,n,n]), every sum in x's dtype."""
    n, options = layer.config.head_size, layer.config
    raw = x @ layer.in_proj.weight.T + (0 if layer.in_proj.bias is None else layer.in_proj.bias)
    if layer.conv is not None:
        past = torch.cat((raw.new_zeros(len(x), options.conv_width - 1, raw.shape[2]), raw), 1)
        reach = options.conv_width - 1
        taps = [past[:, reach - j : reach - j + x.shape[1]] * layer.conv[:, j] for j in range(options.conv_width)]
        raw = torch.stack(taps).sum(0)
    lower_bound = torch.zeros_like(x[0, 0]) if lower_bound is None else lower_bound
    outputs, states = [], []
    for sequence in raw:
        state = [x.new_zeros(n, n) for _ in range(layer.heads)]
        for token in sequence:
            i, o, f = token[:WIDTH], token[WIDTH : 2 * WIDTH], token[2 * WIDTH :]
            i, o = activated(i, options.input_activation), activated(o, options.output_activation)
            f = lower_bound + (1 - lower_bound) * activated(f, "sigmoid")
            read = []
            for h in range(layer.heads):
                own = slice(h * n, (h + 1) * n)
                state[h] = torch.diag(f[own]) @ state[h] + torch.outer(1 - f[own], i[own])
                read.append(o[own] @ state[h] * (n**-0.5 if options.scale_scores else 1))
            y = layer.out_proj.weight @ normed(torch.cat(read), layer)
            outputs.append(y + (0 if layer.out_proj.bias is None else layer.out_proj.bias))
        states.append(torch.stack(state))
    return torch.stack(outputs).view_as(x), torch.stack(states)


def inputs(seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_loop(name: str, bounded: bool, randomised: Callable, same: Callable) -> None:
    layer = randomised(HGRU2(WIDTH, MixerConfig(**{"head_size": 4} | OPTIONS[name])))
    x, lower_bound = inputs()
    with torch.no_grad():
        expected, state = loop(layer, x, lower_bound if bounded else None)
    y, final = layer(x, lower_bound if bounded else None)
    same(y, expected)
    same(final.recurrent, state)


def test_gradients_equal_the_loops(randomised: Callable, same: Callable) -> None:
    layer = randomised(HGRU2(WIDTH, MixerConfig(head_size=4, input_activation="silu", bias=True, conv_width=3)))
    found = []
    for run in (layer, lambda x, lower_bound: loop(layer, x, lower_bound)):
        x, lower_bound = (value.requires_grad_() for value in inputs())
        y, final = run(x, lower_bound)
        final = final if isinstance(final, Tensor) else final.recurrent
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        leaves = [x, lower_bound, *layer.parameters()]
        found.append(torch.autograd.grad((y * weights).sum() + final.square().sum(), leaves))
    for ours, expected in zip(*found, strict=True):
        same(ours, expected, 3000)


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "conv", "modules for images"])
def test_options_matter(name: str, randomised: Callable) -> None:
    """Each field of an option changes the result by far more than rounding: none is read and ignored."""
    config = MixerConfig(**{"head_size": 4} | OPTIONS[name])
    x, lower_bound = inputs()
    changes = {
        "input_activation": "none" if config.input_activation == "silu" else "silu",
        "output_activation": "silu" if config.output_activation == "sigmoid" else "sigmoid",
        "norm": "simple_rms",
        "norm_eps": 0.1,
        "head_size": 6,
        "scale_scores": True,
    }
    base = randomised(HGRU2(WIDTH, config))
    y, _ = base(x, lower_bound)
    for field, value in changes.items():
        other = HGRU2(WIDTH, dataclasses.replace(config, **{field: value})).double()
        own = {key: tensor for key, tensor in base.state_dict().items() if key in other.state_dict()}
        other.load_state_dict(own)
        assert float((other(x, lower_bound)[0] - y).abs().max()) > 1e-3, field


@pytest.mark.parametrize("name", ["plain", "conv", "scale", "norm of heads"])
def test_bfloat16_loses_no_more_than_plain_pytorch(name: str, randomised: Callable) -> None:
    """Both against the float64 loop over the same rounded weights; ours keeps gates and state in float32."""
    layer = randomised(HGRU2(WIDTH, MixerConfig(**{"head_size": 4} | OPTIONS[name]))).bfloat16()
    x, lower_bound = (value.bfloat16() for value in inputs())
    with torch.no_grad():
        ours, final = layer(x, lower_bound)
        plain, _ = loop(layer, x, lower_bound)
        expected, _ = loop(layer.double(), x.double(), lower_bound.double())
    assert ours.dtype == torch.bfloat16
    assert final.recurrent.dtype == torch.float32
    scale = float(expected.abs().max())
    floor = torch.finfo(torch.bfloat16).eps * scale
    assert float((ours - expected).abs().max()) <= 1.2 * float((plain - expected).abs().max()) + floor
    assert float((ours - expected).square().mean().sqrt()) <= 1.2 * float((plain - expected).square().mean().sqrt())
