"""Rotary positions: turns of pairs, and what a compiled model makes of them."""

import pytest
import torch

from hgrn2.layers.rotary import rotary_turns, rotate


@pytest.mark.parametrize("positions", [torch.arange(7).unsqueeze(0), torch.tensor([[0, 3, 900], [1, 2, 40_000]])])
def test_pairs_are_complex_numbers_turned_by_their_angles(positions: torch.Tensor) -> None:
    x = torch.randn(2, positions.shape[1], 3, 8, dtype=torch.float64)
    got = rotate(x, rotary_turns(positions, 8, torch.float64))
    speed = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones(()).double(), positions[..., None].double() * speed).unsqueeze(2)
    want = torch.view_as_real(torch.complex(x[..., :4], x[..., 4:]) * turn)
    assert torch.allclose(got, torch.cat(want.unbind(-1), -1), rtol=1e-12, atol=1e-12)


def test_compiled_turns_are_the_same_bits_and_one_operator() -> None:
    def turned(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return rotate(x, rotary_turns(positions, x.shape[-1], torch.float32))

    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x, positions = torch.randn(2, 5, 3, 8, requires_grad=True), torch.arange(5).unsqueeze(0)
    plain, compiled = turned(x, positions), torch.compile(turned, backend=backend, fullgraph=True)(x, positions)
    assert torch.equal(plain, compiled)
    assert "hgrn2.rotary_turns.default" in seen
    assert not any("cos" in name or "pow" in name for name in seen)
    torch.library.opcheck(torch.ops.hgrn2.rotary_turns.default, (positions, 8, torch.float32))
