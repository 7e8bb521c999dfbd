"""The HGRN1 mixers, complex and real, against a loop over tokens in real arithmetic written from the formulas."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.layers.config import MixerConfig
from hgrn2.layers.hgru1 import HGRU1

WIDTH, TOKENS, BATCH = 6, 8, 2

OPTIONS: dict[str, dict[str, Any]] = {
    "published": {"input_activation": "silu", "norm": "layer", "bias": True},
    "no input activation": {"input_activation": "none"},
    "output sigmoid": {"output_activation": "sigmoid"},
    "layer norm": {"norm": "layer"},
    "simple norm": {"norm": "simple_rms", "norm_eps": 0.05},
    "rms and eps": {"norm": "rms", "norm_eps": 0.05},
}


def activated(x: Tensor, name: str) -> Tensor:
    up = 1 / (1 + torch.exp(-x))
    return {"none": x, "silu": x * up, "sigmoid": up}[name]


def normed(y: Tensor, layer: HGRU1) -> Tensor:
    kind, eps, norm = layer.config.norm, layer.config.norm_eps, layer.norm
    if kind == "layer":
        return (y - y.mean()) / (y.var(correction=0) + eps).sqrt() * norm.weight + norm.bias
    return y / ((y * y).mean() + eps).sqrt() * (1 if norm.weight is None else norm.weight)


def loop(layer: HGRU1, x: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B,T,D] -> (y [B,T,D], state [B,parts,D] as real and imaginary part), a rotation written out in reals."""
    options, is_complex = layer.config, layer.theta is not None
    wide = 2 * WIDTH if is_complex else WIDTH
    raw = x @ layer.in_proj.weight.T + (0 if layer.in_proj.bias is None else layer.in_proj.bias)
    lower_bound = torch.zeros_like(x[0, 0]) if lower_bound is None else lower_bound
    outputs, states = [], []
    for sequence in raw:
        re = im = x.new_zeros(WIDTH)
        for token in sequence:
            c, g, f = token[:wide], token[wide : 2 * wide], token[2 * wide :]
            c, g = activated(c, options.input_activation), activated(g, options.output_activation)
            f = lower_bound + (1 - lower_bound) * activated(f, "sigmoid")
            if is_complex:  # channel 2 j is the real part, 2 j + 1 the imaginary part
                cos, sin = layer.theta.cos(), layer.theta.sin()
                re, im = (
                    f * (cos * re - sin * im) + (1 - f) * c[0::2],
                    f * (sin * re + cos * im) + (1 - f) * c[1::2],
                )
            else:
                re = f * re + (1 - f) * c
            h = torch.cat((re, im)) if is_complex else re
            y = normed(h, layer) * g
            y = layer.out_proj.weight @ y + (0 if layer.out_proj.bias is None else layer.out_proj.bias)
            outputs.append(y)
        states.append(torch.stack((re, im) if is_complex else (re,)))
    return torch.stack(outputs).view_as(x), torch.stack(states)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(WIDTH, generator=generator, dtype=torch.float64)


def parts(state: Tensor) -> Tensor:
    """A state [B,D], complex or real, as [B,parts,D]."""
    return torch.stack((state.real, state.imag), 1) if state.is_complex() else state.unsqueeze(1)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["hgru1", "hgru1_real"])
def test_equals_the_loop(kind: Any, name: str, bounded: bool, randomised: Callable, same: Callable) -> None:
    layer = randomised(HGRU1(WIDTH, MixerConfig(kind=kind, **OPTIONS[name])))
    x, lower_bound = inputs()
    with torch.no_grad():
        expected, state = loop(layer, x, lower_bound if bounded else None)
    y, final = layer(x, lower_bound if bounded else None)
    same(y, expected)
    same(parts(final.recurrent), state)


@pytest.mark.parametrize("kind", ["hgru1", "hgru1_real"])
def test_gradients_equal_the_loops(kind: Any, randomised: Callable, same: Callable) -> None:
    layer = randomised(HGRU1(WIDTH, MixerConfig(kind=kind, **OPTIONS["published"])))
    found = []
    for run in (layer, lambda x, lower_bound: loop(layer, x, lower_bound)):
        x, lower_bound = (value.requires_grad_() for value in inputs())
        y, final = run(x, lower_bound)
        final = final if isinstance(final, Tensor) else parts(final.recurrent)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        leaves = [x, lower_bound, *layer.parameters()]
        found.append(torch.autograd.grad((y * weights).sum() + final.square().sum(), leaves))
    for ours, expected in zip(*found, strict=True):
        same(ours, expected, 3000)


@pytest.mark.parametrize(("kind", "squares", "vectors"), [("hgru1", 7, 1), ("hgru1_real", 4, 0)])
def test_size_and_state(kind: Any, squares: int, vectors: int) -> None:
    layer = HGRU1(WIDTH, MixerConfig(kind=kind, norm="simple_rms"))
    assert sum(p.numel() for p in layer.parameters()) == squares * WIDTH**2 + vectors * WIDTH
    assert layer.zeros(3).recurrent.dtype == (torch.complex64 if kind == "hgru1" else torch.float32)
    double = layer.zeros(3, dtype=torch.float64).recurrent
    assert double.shape == (3, WIDTH)
    assert double.dtype == (torch.complex128 if kind == "hgru1" else torch.float64)


def test_the_complex_form_without_rotation_is_two_real_ones(randomised: Callable, same: Callable) -> None:
    """θ = 0: real and imaginary parts are independent real recurrences under one gate."""
    layer = randomised(HGRU1(WIDTH, MixerConfig(kind="hgru1", norm="simple_rms")))
    with torch.no_grad():
        layer.theta.zero_()
    x, lower_bound = inputs()
    whole = layer(x, lower_bound)[1].recurrent
    real = HGRU1(WIDTH, MixerConfig(kind="hgru1_real", norm="simple_rms")).double()
    weight = layer.in_proj.weight.detach()
    for part, mine in ((0, whole.real), (1, whole.imag)):
        value, gate = weight[part : 2 * WIDTH : 2], weight[4 * WIDTH :]
        real.in_proj.weight.data = torch.cat((value, torch.zeros_like(value), gate))
        same(mine.detach(), real(x, lower_bound)[1].recurrent.detach())


@pytest.mark.parametrize("kind", ["hgru1", "hgru1_real"])
def test_bfloat16_loses_no_more_than_plain_pytorch(kind: Any, randomised: Callable) -> None:
    layer = randomised(HGRU1(WIDTH, MixerConfig(kind=kind, **OPTIONS["published"]))).bfloat16()
    x, lower_bound = (value.bfloat16() for value in inputs())
    with torch.no_grad():
        ours, final = layer(x, lower_bound)
        plain, _ = loop(layer, x, lower_bound)
        expected, _ = loop(layer.double(), x.double(), lower_bound.double())
    assert ours.dtype == torch.bfloat16
    assert final.recurrent.dtype == (torch.complex64 if kind == "hgru1" else torch.float32)
    floor = torch.finfo(torch.bfloat16).eps * float(expected.abs().max())
    assert float((ours - expected).abs().max()) <= 1.2 * float((plain - expected).abs().max()) + floor
    assert not math.isclose(float(ours.abs().max()), 0)
