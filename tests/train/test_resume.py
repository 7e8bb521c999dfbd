"""An interrupted or killed run, once resumed, ends with the very bits of one that was never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hgrn2.cli.main import entry

SMALL = (
    "train.budget_s=0", "train.sequence_length=32", "train.batch_size=4", "train.log_every=1", "train.eval_every=10",
    "train.save_every=5", "train.keep=2", "train.eval_tokens=500", "model.width=32", "model.layers=2",
    "model.glu_width=48", "model.mixer.head_size=16", "model.dropout=0.1", "optim.warmup_steps=3",
)  # fmt: skip
STEPS = 40


@pytest.fixture(scope="module", autouse=True)
def corpus(tiny_corpus: Path) -> None:
    DATA[:] = ["--data", str(tiny_corpus)]


DATA: list[str] = []


def command(folder: Path, *more: str) -> list[str]:
    return ["train", "lm", "demo", "--out", str(folder), *DATA, "--set", *SMALL, f"train.steps={STEPS}", *more]


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{STEPS:08d}"


def same_bits(a: Path, b: Path) -> bool:
    return all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder)
    return folder


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "hgrn2", *command(folder, *more)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # another count sums in another order
    return subprocess.Popen(arguments, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(folder: Path, *more: str) -> None:
    """Run to the end in a process of its own, as an uninterrupted or a resumed run is."""
    process = start(folder, *more)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error.decode()


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()[1].decode()}"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


def test_killed_mid_run_and_resumed_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(folder, "train.save_every=1")
    wait_for(process, lambda: len(list((folder / "checkpoints").glob("step-0000000[3-9]"))) > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not last_checkpoint(folder).exists()
    resumed_from = max(path.name for path in (folder / "checkpoints").glob("step-*"))
    finish(folder)
    assert same_bits(last_checkpoint(whole), last_checkpoint(folder)), f"resumed from {resumed_from}"
    assert losses(whole) == losses(folder)


def test_ctrl_c_saves_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    process = start(folder)
    wait_for(process, lambda: (folder / "metrics.jsonl").exists() and len(losses(folder)) >= 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"goes on from there" in out
    steps = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")]
    assert 3 <= max(steps) < STEPS
    finish(folder)
    assert same_bits(last_checkpoint(whole), last_checkpoint(folder))


def test_a_finished_run_is_left_as_it_is(whole: Path) -> None:
    before = last_checkpoint(whole).stat().st_mtime_ns
    assert entry(command(whole)) == 0
    assert last_checkpoint(whole).stat().st_mtime_ns == before


def test_only_the_newest_checkpoints_are_kept(whole: Path) -> None:
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000035", "step-00000040"]


def test_optimiser_states_are_saved_by_name(whole: Path) -> None:
    names = load_file(last_checkpoint(whole) / "optimizer.safetensors")
    assert "backbone.blocks.0.mixer.in_proj.weight/momentum_buffer" in names
    assert "embedding.weight/exp_avg" in names
    assert "random/cpu" in names


def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_used(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    weights = last_checkpoint(folder) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    assert entry(command(folder)) == 0
    assert "checksum" in capsys.readouterr().out
    assert weights.exists()


def test_another_model_in_the_folder_is_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(command(whole, "model.width=48")) == 2
    assert "other settings: model.width is 32 there and 48 here" in capsys.readouterr().err


def test_a_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert entry(command(tmp_path)) == 2
    assert "other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"
