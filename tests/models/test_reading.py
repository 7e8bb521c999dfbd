"""Reading a model leaves its mode alone: other threads may read or train it meanwhile."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hgrn2.layers.config import MixerConfig
from hgrn2.layers.reading import Dropout, DropPath
from hgrn2.models.config import SequenceConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.sequence import SequenceClassifier


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture
def model(make: Callable[..., LanguageModel]) -> LanguageModel:
    return make("hgru2", dropout=0.5, drop_path=0.5).train()


def test_no_dropout_while_reading_and_dropout_beside_it(model: LanguageModel, tokens: Callable) -> None:
    ids = tokens()
    with reading(model):
        expected = model(ids)[0]
        assert all(module.training for module in model.modules())

        def beside() -> None:  # a training step of another thread
            assert not torch.equal(model(ids)[0], model(ids)[0])
            with reading(model):
                assert torch.equal(model(ids)[0], expected)

        in_thread(beside)
        with reading(model):
            assert torch.equal(model(ids)[0], expected)
        assert torch.equal(model(ids)[0], expected)
    assert not torch.equal(model(ids)[0], expected)
    assert torch.equal(model.eval()(ids)[0], expected)


def test_a_part_in_evaluation_mode_stays_there(model: LanguageModel) -> None:
    model.backbone.eval()
    with reading(model):
        pass
    assert model.training
    assert not model.backbone.training


def test_batch_statistics_are_not_moved() -> None:
    mixer = MixerConfig(head_size=4, direction="bidirectional")
    config = SequenceConfig(vocab_size=9, classes=2, width=8, layers=1, glu_width=8, mixer=mixer, norm="batch")
    model, ids = SequenceClassifier(config).train(), torch.randint(9, (3, 7))
    before = {name: value.clone() for name, value in model.named_buffers()}
    with reading(model):
        found = model(ids)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert torch.equal(found, model.eval()(ids))


def test_modules_of_others_come_back_after_the_last_reader(model: LanguageModel, tokens: Callable) -> None:
    """A dropout of torch's own, as an adapter brings one."""
    adapter = nn.Dropout(0.5)
    model.adapter = adapter
    ready, done = threading.Event(), threading.Event()

    def other() -> None:
        with reading(model):
            ready.set()
            done.wait(10)
            assert not adapter.training

    thread = threading.Thread(target=other)
    with reading(model):
        thread.start()
        assert ready.wait(10)
        assert not adapter.training
    assert not adapter.training  # the other one still reads
    done.set()
    thread.join()
    assert adapter.training
    assert model.training


@pytest.mark.parametrize("layer", [Dropout(0.5), DropPath(0.5)], ids=["dropout", "drop path"])
def test_compiled_layers_know_it_too(layer: nn.Module) -> None:
    torch.compiler.reset()
    compiled, x = torch.compile(layer.train(), fullgraph=True, backend="aot_eager"), torch.ones(64, 8)
    x.requires_grad_()
    assert not torch.equal(compiled(x), x)
    with torch.no_grad():
        assert torch.equal(compiled(x), x)
    assert not torch.equal(compiled(x), x)
