"""Accumulation, bfloat16, both optimisers and compilation train the same model; learning is measured, not assumed."""

import json
from pathlib import Path

import pytest

from hgrn2.cli.main import entry

SMALL = (
    "train.budget_s=0", "train.steps=30", "train.sequence_length=32", "train.batch_size=8", "train.log_every=1",
    "train.eval_every=0", "train.eval_tokens=500", "model.width=32", "model.layers=2", "model.glu_width=48",
    "model.mixer.head_size=16", "optim.warmup_steps=3", "optim.lr=1e-2", "optim.matrix_lr=1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def losses(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A function from settings to the training losses of a run with them."""

    def run(*settings: str) -> list[float]:
        folder = tmp_path_factory.mktemp("runs") / "run"
        command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder), "--set", *SMALL, *settings]
        assert entry(command) == 0
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [record["loss"] for record in records if record["kind"] == "step"]

    return run


@pytest.fixture(scope="module")
def plain(losses) -> list[float]:  # type: ignore[no-untyped-def]
    return losses()


def test_the_loss_falls(plain: list[float]) -> None:
    assert len(plain) == 30
    assert plain[-1] < 0.6 * plain[0]


def test_accumulated_parts_are_the_whole_batch(plain: list[float], losses) -> None:  # type: ignore[no-untyped-def]
    assert losses("train.accumulate=4") == pytest.approx(plain, rel=2e-2)
    assert losses("train.accumulate=4")[0] == pytest.approx(plain[0], rel=1e-6)


def test_bfloat16_follows_float32(plain: list[float], losses) -> None:  # type: ignore[no-untyped-def]
    found = losses("train.precision=bfloat16")
    assert found[0] == pytest.approx(plain[0], rel=1e-2)
    assert found[-1] < 0.65 * found[0]


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt"])
def test_adamw_learns_too(schedule: str, losses) -> None:  # type: ignore[no-untyped-def]
    found = losses("optim.optimizer=adamw", f"optim.schedule={schedule}")
    assert found[-1] < 0.75 * found[0]


@pytest.mark.parametrize("kind", ["hgru1", "hgru1_real"])
def test_hgrn1_trains(kind: str, losses) -> None:  # type: ignore[no-untyped-def]
    found = losses(f"model.mixer.kind={kind}", "model.mixer.conv_width=0", "model.mixer.input_activation=silu")
    assert found[-1] < 0.75 * found[0]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_follows_eager(plain: list[float], losses) -> None:  # type: ignore[no-untyped-def]
    assert losses("train.compile=true")[:5] == pytest.approx(plain[:5], rel=1e-3)
