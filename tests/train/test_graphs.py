"""Steps as CUDA graphs: the losses of plain steps, for batches of several shapes in any order."""

import pytest
import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.train.config import DataConfig, RunConfig, TrainConfig
from hgrn2.train.graphs import StepGraphs


def test_packed_documents_are_refused() -> None:
    """A graph would repeat the documents of the batch that it was captured from."""
    model = ModelConfig(vocab_size=9, width=8, layers=1, glu_width=8, mixer=MixerConfig(head_size=4))
    train = TrainConfig(graphs=True)
    with pytest.raises(UserError, match=r"train\.graphs needs data\.reset_at_documents=false"):
        RunConfig(model=model, train=train)
    RunConfig(model=model, train=train, data=DataConfig(reset_at_documents=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_take_the_steps_that_plain_python_takes() -> None:
    found = {}
    for graphed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 1)).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def backward(batch: tuple[Tensor, None], model: nn.Module = model) -> Tensor:
            loss = model(batch[0]).square().mean()
            loss.backward()
            return loss.detach()

        step = StepGraphs(backward, model.parameters()) if graphed else backward
        generator = torch.Generator().manual_seed(1)
        losses = []
        for number in range(24):
            x = torch.randn((3, 5, 9)[number % 3], 8, generator=generator).cuda()
            losses.append(step((x, None)).item())
            optimizer.step()
            optimizer.zero_grad(set_to_none=not graphed)
        found[graphed] = losses
    assert found[True] == pytest.approx(found[False], rel=1e-5)
