"""500 steps of a small model on real text: every backend of a GPU learns what plain PyTorch learns."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.data.samples import shakespeare
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.ops import backend as backends

DEVICE = "cuda"
STEPS, BATCH, TOKENS, WINDOW = 500, 16, 256, 50
SEEDS = (0, 1, 2)
CONFIG = ModelConfig(vocab_size=256, width=128, layers=2, glu_width=256, mixer=MixerConfig(head_size=64))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
hgru2: Callable[..., tuple[Tensor, Tensor | None]] = ops.hgru2


@cache
def text() -> Tensor:
    """The embedded sample as bytes."""
    return torch.frombuffer(bytearray(shakespeare().encode()), dtype=torch.uint8)


@cache
def curve(backend: str, seed: int) -> Tensor:
    """Mean loss of every window of steps; weights and batches come from the seed alone."""
    torch.manual_seed(seed)
    model = LanguageModel(CONFIG).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "hgru2", partial(hgru2, backend=backend))
        for _ in range(STEPS):
            starts = torch.randint(len(text()) - TOKENS, (BATCH,), generator=generator)
            rows = torch.stack([text()[a : a + TOKENS + 1] for a in starts.tolist()]).to(DEVICE, torch.long)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits, _ = model(rows[:, :-1], output_state=False)
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses).cpu().double().unflatten(0, (-1, WINDOW)).mean(1)


def spread() -> Tensor:
    """How far apart the seeds are in each window, on plain PyTorch."""
    curves = torch.stack([curve("chunked", seed) for seed in SEEDS])
    return curves.amax(0) - curves.amin(0)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_curve_lies_within_the_spread_of_seeds(backend: str) -> None:
    try:
        backends.choose(torch.device(DEVICE), backend, op="hgru2", dtype=torch.bfloat16, keys=64, values=64)
    except UserError as why:
        pytest.skip(str(why))
    plain, fast = curve("chunked", SEEDS[0]), curve(backend, SEEDS[0])
    assert plain[-1] < plain[0] - 0.5  # it learns at all
    assert (fast - plain).abs().mean() <= spread().mean()
    assert abs(fast[-1] - plain[-1]) <= spread().max()
