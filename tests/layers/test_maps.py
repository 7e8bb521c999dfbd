"""Structured maps from D to n D channels: the matrices that they are, their weights, and the mixer around them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from hgrn2.layers.block import token_mixer
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.kinds import KINDS
from hgrn2.layers.maps import MAPS, STD

WIDTH, N, GROUPS = 12, 3, 4
every = pytest.mark.parametrize("name", MAPS)


def matrix(made: Any) -> Tensor:
    """[n D, D]: what the map does to every unit vector."""
    width = next(size for size in (WIDTH, 60) if _takes(made, size))
    return made(torch.eye(width, dtype=torch.float64)).flatten(1).T


def _takes(made: Any, width: int) -> bool:
    try:
        return made(torch.zeros(1, width, dtype=torch.float64)).shape[-1] == width
    except RuntimeError:
        return False


def stated(name: str, made: Any) -> Tensor:
    """The same by its definition."""
    if name == "dense":
        return made.map.weight
    if name == "low_rank":
        assert made.up.weight.shape == (N * WIDTH, WIDTH // (N + 1))
        return made.up.weight @ made.down.weight
    if name.startswith("grouped"):
        size, found = WIDTH // GROUPS, torch.zeros(N, WIDTH, WIDTH, dtype=torch.float64)
        blocks = made.map.weight.unflatten(0, (GROUPS, N, size))
        mixing = torch.eye(GROUPS, dtype=torch.float64) + (made.mixing if name == "grouped_mixed" else 0)
        for to in range(GROUPS):
            for of in range(GROUPS):
                part = slice(to * size, (to + 1) * size), slice(of * size, (of + 1) * size)
                found[:, *part] = mixing[to, of] * blocks[of]
        return found.flatten(0, 1)
    if name == "khatri_rao":  # column by column
        columns = [torch.kron(made.copy_factor[:, d], made.map.weight[:, d]) for d in range(WIDTH)]
        return torch.stack(columns, 1)
    if name == "kronecker":
        assert made.right.weight.shape == (4, 4)
        return torch.kron(made.left.weight, made.right.weight)
    return (made.scales.unsqueeze(-1) * made.map.weight).flatten(0, 1)


@every
def test_is_the_matrix_of_its_definition(name: Any, randomised: Callable, same: Callable) -> None:
    made = randomised(MAPS[name](WIDTH, N, GROUPS))
    same(matrix(made), stated(name, made))


@every
def test_outputs_start_as_wide_as_those_of_a_dense_matrix(name: Any) -> None:
    torch.manual_seed(0)
    made: Any = MAPS[name](60, 4, 4).double()
    size = []
    for _ in range(20):
        with torch.no_grad():
            made.start()
            size.append(matrix(made).square().mean())
    assert math.sqrt(torch.stack(size).mean()) == pytest.approx(STD, rel=0.1)


@every
def test_the_mixer_is_its_recurrence(name: Any, randomised: Callable, same: Callable) -> None:
    """Token by token, with the maps as matrices; and its weights are as many as the table of kinds says."""
    config = MixerConfig(kind="wide_hgru1", expansion=N, expansion_map=name, groups=GROUPS, input_activation="silu")
    mixer = randomised(token_mixer(WIDTH, config))
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    lower_bound = torch.rand(WIDTH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    i, o, f = (x @ stated(name, made).T for made in (mixer.input, mixer.output, mixer.forget))
    bound = lower_bound.repeat(N)
    f = bound + (1 - bound) * f.sigmoid()
    h, outputs = torch.zeros(2, N * WIDTH, dtype=torch.float64), []
    for t in range(9):
        h = f[:, t] * h + (1 - f[:, t]) * silu(i[:, t])
        outputs.append((silu(o[:, t]) * h).unflatten(-1, (N, WIDTH)).sum(1))
    y, state = mixer(x, lower_bound)
    same(y, mixer.out_proj(mixer.norm(torch.stack(outputs, 1))))
    same(state.recurrent, h.unflatten(-1, (N, WIDTH)).mT.flatten(1))
    weights = sum(p.numel() for part, p in mixer.named_parameters() if not part.startswith("norm"))
    assert weights == KINDS["wide_hgru1"].matrices(WIDTH, config)


def test_one_dense_copy_is_hgrn2_with_heads_of_one(randomised: Callable, same: Callable) -> None:
    mixer = randomised(token_mixer(WIDTH, MixerConfig(kind="wide_hgru1", expansion=1)))
    other: Any = token_mixer(WIDTH, MixerConfig(head_size=1)).double()
    parts = [made.map.weight for made in (mixer.input, mixer.output, mixer.forget)]
    other.load_state_dict({
        "in_proj.weight": torch.cat(parts), "norm.weight": mixer.norm.weight, "out_proj.weight": mixer.out_proj.weight
    })  # fmt: skip
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    lower_bound = torch.rand(WIDTH, dtype=torch.float64)
    same(mixer(x, lower_bound)[0], other(x, lower_bound)[0])
