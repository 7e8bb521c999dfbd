"""A run with a steady learning rate is ended from one of its checkpoints, to the bit as if it had been one run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.train.metrics import read_metrics

SMALL = (
    "train.budget_s=0", "train.epochs=0", "train.sequence_length=16", "train.batch_size=2", "train.log_every=1",
    "train.eval_every=0", "train.save_every=4", "train.keep=9", "train.eval_tokens=100", "train.keep_best=false",
    "train.patience=0", "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=16",
    "model.dropout=0.1", "optim.warmup_steps=2", "optim.schedule=wsd", "optim.final_lr_ratio=0.0",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def bare() -> Iterator[None]:
    """Neither reports nor samples, which these tests do not look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgrn2.tasks.lm.task.write_report", lambda *_, **__: None)
        patch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
        yield


@pytest.fixture(scope="module")
def stable(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never decays."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "stable"
    assert train(folder, tiny_corpus, "train.steps=9", "optim.decay_share=0") == 0
    return folder


def train(folder: Path, corpus: Path, *more: str, branch: Path | None = None) -> int:
    options = [] if branch is None else ["--branch", str(branch)]
    return entry(["train", "lm", "demo", "--data", str(corpus), "--out", str(folder), *options, "--set", *SMALL, *more])


def test_a_branch_ends_as_one_run_does(stable: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    decay = ("train.steps=12", "optim.decay_share=0.34")  # falls from step 8 on
    whole, branched = tmp_path / "whole", tmp_path / "branched"
    before = sorted(path.name for path in (stable / "checkpoints").iterdir())
    assert train(whole, tiny_corpus, *decay) == 0
    assert train(branched, tiny_corpus, *decay, branch=stable / "checkpoints" / "step-00000004") == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ended = [folder / "checkpoints" / "step-00000012" / name for folder in (whole, branched)]
        assert ended[0].read_bytes() == ended[1].read_bytes()
    records = [read_metrics(folder / "metrics.jsonl") for folder in (whole, branched)]
    losses = [[(r["step"], r["loss"], r["lr"]) for r in one if r["kind"] == "step"] for one in records]
    assert losses[0] == losses[1]
    assert losses[0][-1][2] < losses[0][7][2]
    assert next(r["text"] for r in records[1] if r["kind"] == "event").endswith("step-00000004")
    assert before == sorted(path.name for path in (stable / "checkpoints").iterdir())
    assert train(branched, tiny_corpus, *decay, branch=tmp_path / "gone") == 0, "it has begun: it goes on by itself"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("train.steps=12", "optim.lr=0.5"), "optim.lr is 0.008 there and 0.5 here"),
        (("train.steps=9",), "step 9 is the end of this run already"),
        (("train.steps=12", "optim.decay_share=0.5"), "would jump at step 9, from 1 of its peak to 0."),
    ],
)
def test_what_is_no_branch(
    more: tuple[str, ...], told: str, stable: Path, tiny_corpus: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(tmp_path / "run", tiny_corpus, *more, branch=stable) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
