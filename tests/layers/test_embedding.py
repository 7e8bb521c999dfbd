"""Patches and positions: the linear map of a patch is a strided convolution, positions stand where they should."""

import math
from collections.abc import Callable

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.layers.embedding import PatchEmbedding, Positions, resized, sines


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_a_strided_convolution(patch: int, randomised: Callable, same: Callable) -> None:
    layer = randomised(PatchEmbedding(3, patch, 10))
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, shape = layer(images)
    assert shape == (8 // patch, 12 // patch)
    weight = layer.proj.weight.view(10, 3, patch, patch)
    expected = torch.nn.functional.conv2d(images, weight, layer.proj.bias, stride=patch)
    same(tokens, expected.flatten(2).mT)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"images must be \[B,3,height,width\] floating-point; got \[2, 1, 8, 8\] float32"),
        (torch.zeros(3, 8, 8), r"got \[3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "got .* uint8"),
        (torch.zeros(2, 3, 8, 10), "images of 8 x 10 pixels do not divide into patches of 4"),
        (torch.zeros(2, 3, 0, 8), "images of 0 x 8 pixels"),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PatchEmbedding(3, 4, 10)(images)


def test_sines() -> None:
    found = sines(20_000, 8, torch.device("cpu"))
    for t in (0, 1, 17, 19_999):
        for j in range(4):
            angle = t * 10000 ** (-j / 4)
            assert math.isclose(found[t, j], math.sin(angle), abs_tol=1e-7)
            assert math.isclose(found[t, 4 + j], math.cos(angle), abs_tol=1e-7)


def test_sines_of_an_image_tell_rows_from_columns() -> None:
    """Half of the channels say the row and nothing else, the others the column."""
    places = Positions("sine", 8, ()).image(torch.zeros(1, 6, 8), (2, 3))[0].view(2, 3, 8)
    assert (places[:, :1, :4] == places[:, :, :4]).all()
    assert (places[:1, :, 4:] == places[:, :, 4:]).all()
    assert len(places.flatten(0, 1).unique(dim=0)) == 6


def test_a_learned_line_is_cut_and_never_stretched(randomised: Callable) -> None:
    positions = randomised(Positions("learned", 4, (6,)))
    x = torch.zeros(2, 5, 4, dtype=torch.float64)
    assert torch.equal(positions.line(x)[1], positions.table[:5])
    with pytest.raises(UserError, match="a sequence of 7 steps is longer than the 6 positions"):
        positions.line(torch.zeros(2, 7, 4))


def test_learned_positions_of_an_image_are_interpolated(randomised: Callable) -> None:
    positions = randomised(Positions("learned", 4, (3, 5)))
    x = torch.zeros(1, 15, 4, dtype=torch.float64)
    assert torch.equal(positions.image(x, (3, 5))[0], positions.table.flatten(0, 1))
    slope = torch.arange(12.0)[:, None, None].expand(12, 12, 1).contiguous()
    for shape in ((24, 24), (6, 6), (24, 6)):
        grown = resized(slope, shape)
        assert tuple(grown.shape) == (*shape, 1)
        # The middle of a plane stays a plane, one old row apart every shape/12 new ones; every column is alike.
        middle = grown[shape[0] // 3 : 2 * shape[0] // 3, :, 0]
        assert torch.allclose(middle.diff(dim=0), torch.tensor(12 / shape[0]), atol=1e-4)
        assert torch.allclose(middle, middle[:, :1].expand_as(middle), atol=1e-5)


def test_none_adds_nothing() -> None:
    x = torch.randn(1, 6, 4)
    positions = Positions("none", 4, (6,))
    assert positions.line(x) is x
    assert positions.image(x, (2, 3)) is x
    assert not list(positions.parameters())
