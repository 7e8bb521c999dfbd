"""MFU and memory as the log has them."""

from pathlib import Path

import pytest
import torch

from hgrn2.models.count import flops_per_token
from hgrn2.models.presets import preset
from hgrn2.tasks.lm.task import LanguageTask, open_corpora
from hgrn2.train import speed
from hgrn2.train.config import DataConfig, RunConfig, TrainConfig
from hgrn2.train.speed import Meter


def test_mfu_is_relative_to_the_measured_rate_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_rate", lambda device, precision: 1e12)
    assert Meter(torch.device("cpu"), "bfloat16", 1_000_000).mfu(500_000.0) == pytest.approx(0.5)
    assert Meter(torch.device("cpu"), "bfloat16", 1_000_000, 2).mfu(500_000.0) == pytest.approx(0.25)
    assert Meter(torch.device("cpu"), "bfloat16", None).mfu(500_000.0) is None


def test_a_processor_has_memory_and_no_mfu() -> None:
    meter = Meter(torch.device("cpu"), "float32", 1_000_000)
    assert meter.mfu(1e6) is None
    before = meter.memory_bytes()
    assert before is not None
    held = torch.ones(30_000_000)
    after = meter.memory_bytes()
    assert after is not None
    assert after >= before > held.nbytes // 4


def test_operations_are_those_of_the_model(tiny_corpus: Path) -> None:
    data = DataConfig(source=str(tiny_corpus))
    run = RunConfig(model=preset("hgrn2_44m_wikitext103"), data=data, train=TrainConfig(sequence_length=64))
    task = LanguageTask(run, *open_corpora(data), torch.device("cpu"))
    assert task.flops_per_token == flops_per_token(run.model, training=True)
    assert 6 * 35e6 < task.flops_per_token < 6 * 80e6, "about six for each weight"
