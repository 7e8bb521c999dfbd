"""Averaged weights: the numbers of torch.optim.swa_utils, and files of earlier runs that still load."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hgrn2.train.average import WeightAverage

DECAY = 0.6


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).to(torch.float64))


def train(one: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    with torch.no_grad():
        for value in one.state_dict().values():
            value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)


def rising(means: tuple[Tensor, ...], values: tuple[Tensor, ...], step: Any) -> None:
    """What `AveragedModel` is told to do with every dtype: whole numbers are copied."""
    share = min(DECAY, (1 + int(step)) / (10 + int(step)))
    for mean, value in zip(means, values, strict=True):
        mean.lerp_(value, 1 - share) if mean.is_floating_point() else mean.copy_(value)


def test_the_mean_is_that_of_swa_utils() -> None:
    trained = model()
    theirs = AveragedModel(trained, multi_avg_fn=rising, use_buffers=True)
    theirs.n_averaged.fill_(1)  # its first update would copy the weights
    ours = WeightAverage(trained, DECAY)
    for step in range(1, 30):
        train(trained, step)
        ours.update(step)
        theirs.update_parameters(trained)
    assert ours.values.keys() == theirs.module.state_dict().keys()
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.values[name], value, rtol=1e-6, atol=0)
        assert not value.is_floating_point() or not torch.equal(value, trained.state_dict()[name])


def test_a_checkpoint_holds_both_and_goes_on_alike() -> None:
    trained = model()
    ours = WeightAverage(trained, DECAY)
    for step in range(1, 5):
        train(trained, step)
        ours.update(step)
    before, mean = ({name: value.clone() for name, value in one.items()} for one in (ours.own, ours.values))
    with ours.in_place() as others:
        saved = {name: value.clone() for name, value in trained.state_dict().items()}
        beside = {name: value.clone() for name, value in others.items()}
    assert set(beside) == {f"raw/{name}" for name in before}  # the names in the files of every version

    other = model()
    other.load_state_dict(saved)
    again = WeightAverage(other, DECAY)
    assert again.load({**beside, "optimizer/x": torch.zeros(1)}).keys() == {"optimizer/x"}
    for found, wanted in ((again.own, before), (again.values, mean)):
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
