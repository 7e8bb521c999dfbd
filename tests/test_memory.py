"""What does not fit into memory is refused before it is made, with the number of bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2 import memory
from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.generator import Generator
from hgrn2.layers.config import MixerConfig
from hgrn2.memory import machine_memory, out_of_memory, readable, refuse_too_big
from hgrn2.models.config import DeiTConfig, ModelConfig, SequenceConfig, VisionConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.vision import VisionClassifier
from hgrn2.train.config import TrainConfig
from hgrn2.train.fitting import check_run

STACK: dict[str, Any] = {"width": 32, "layers": 1, "glu_width": 32, "mixer": MixerConfig(head_size=16)}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1 KB"), (3_200_000_000_000, "3.2 TB"), (24 * 10**9, "24 GB"),
        (999_600_000, "1 GB"), (10**40, "1.0e+22 EB"), (10**400, "1.0e+282 EB"),
    ],
)  # fmt: skip
def test_bytes_for_people(count: int, text: str) -> None:
    assert readable(count) == text


def test_this_machine_has_some_memory() -> None:
    found = machine_memory()
    assert found is not None
    assert found > 1 << 28
    refuse_too_big(found, "all of it is")
    with pytest.raises(UserError, match=r"^one more needs .* [GT]B; this machine has .* [GT]B: take less$"):
        refuse_too_big(found + 1, "one more needs", "take less")


def test_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUPS", (limit, tmp_path / "none"))
    limit.write_text("max\n")
    whole = machine_memory()
    limit.write_text("1000000\n")
    assert machine_memory() == 1_000_000
    assert whole is not None
    assert whole > 1_000_000


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory does not suffice;"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400000000000000 bytes."),
         "memory does not suffice for 400 TB;"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."), "memory does not suffice for 20.00 GiB:"),
        (MemoryError("Unable to allocate 728. TiB for an array"), "memory does not suffice for 728. TiB;"),
        (RuntimeError("Storage size calculation overflowed with sizes=[4, 8]"), "memory does not suffice;"),
    ],
)  # fmt: skip
def test_allocations_that_failed(error: Exception, said: str) -> None:
    assert str(out_of_memory(error)).startswith(said)
    assert out_of_memory(RuntimeError("shapes do not fit")) is None


@pytest.mark.parametrize("many", [10**10, 10**12, 2**62])
def test_models(many: int) -> None:
    for name in ("layers", "glu_width", "vocab_size"):
        with pytest.raises(UserError, match=r"needs .* [TPE]B; this machine has"):
            LanguageModel(ModelConfig(**STACK | {"vocab_size": 11, name: many}))
    with pytest.raises(UserError, match="this model needs"):
        SequenceClassifier(SequenceConfig(**STACK, classes=3, vocab_size=11, max_length=many, positions="learned"))
    with pytest.raises(UserError, match="this model needs"):
        VisionClassifier(VisionConfig(**STACK, classes=many))
    with pytest.raises(UserError, match="this model needs"):
        check_run(DeiTConfig(classes=3, width=2**40), TrainConfig(), torch.device("cpu"), 1)


def test_on_the_meta_device_everything_fits() -> None:
    with torch.device("meta"):
        assert LanguageModel(ModelConfig(**STACK, vocab_size=10**12)).embedding.weight.shape[0] == 10**12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 10**12}, "a batch of 1,000,000,000,000 sequences of 256 tokens needs"),
        ({"batch_size": 2**62, "accumulate": 2**62}, "a batch of"),
        ({"sequence_length": 10**12}, "a batch of 16 sequences of 1,000,000,000,000 tokens needs"),
        ({"batch_size": 2**20, "sequence_length": 512}, "a step on 1,048,576 sequences of 512 tokens needs"),
    ],
)
def test_runs(settings: dict[str, int], words: str) -> None:
    train = TrainConfig(**{"sequence_length": 256, **settings})  # type: ignore[arg-type]
    model = ModelConfig(**STACK | {"vocab_size": 8000, "layers": 4})
    with pytest.raises(UserError, match=words):
        check_run(model, train, torch.device("cpu"), train.sequence_length)
    check_run(model, TrainConfig(), torch.device("cpu"), 512)


def test_samples() -> None:
    generator = Generator(LanguageModel(ModelConfig(**STACK, vocab_size=257)), ByteTokenizer())
    with pytest.raises(UserError, match=r"1,000,000,000,000 samples need .* PB; this machine has"):
        generator.stream("a", GenerationConfig(samples=10**12))


@pytest.mark.parametrize(
    "setting",
    ["model.layers=1000000000", "model.glu_width=1000000000000", "train.batch_size=4611686018427387904",
     "train.sequence_length=1000000000000", "train.batch_size=1e18"],
)  # fmt: skip
def test_on_the_command_line(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["train", "lm", "demo", "--out", str(tmp_path / "r"), "--set", setting]) == 2
    line = capsys.readouterr().err
    assert "B; this machine has" in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("setting", ["data.train=64x4x1000000000000000", "data.test=64x4x1000000000000000"])
def test_recall_on_the_command_line(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = [] if setting.startswith("data.train") else ["data.train=64x4x100000"]
    sets = [setting, *trained, "train.sequence_length=64"]
    assert entry(["train", "mqar", "small", "--out", str(tmp_path / "r"), "--set", *sets]) == 2
    assert "this machine has" in capsys.readouterr().err
