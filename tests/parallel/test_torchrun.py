"""Whole runs under torchrun: the numbers of one process, restarts after a kill, what is refused before it starts."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.models.saved import load_model
from hgrn2.testing.processes import free_port
from hgrn2.train import checkpoint, shared_checkpoint

SETTINGS = (
    "train.steps=6", "train.batch_size=4", "train.sequence_length=16", "train.budget_s=0", "train.eval_every=3",
    "train.eval_tokens=200", "train.save_every=2", "train.keep=9", "train.log_every=1", "model.width=8",
    "model.layers=2", "model.glu_width=16", "model.mixer.head_size=4", "model.dropout=0.1", "parallel.wait_s=60",
)  # fmt: skip


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    """The verb and its options."""
    return ["train", "lm", "demo", "--data", str(corpus), "--out", str(out), "--device", "cpu", "--json", "--set",
            *SETTINGS, *more]  # fmt: skip


def torchrun(world: int, arguments: list[str], *options: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
        "--master-port", str(free_port()), *options, "-m", "hgrn2", *arguments,
    ]  # fmt: skip


def run(command: list[str], timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False)


def lines(folder: Path) -> list[dict[str, float]]:
    """Loss and held-out loss by step, without the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: x[k] for k in ("step", "loss", "grad_norm") if k in x} for x in found if x["kind"] != "event"]


def test_without_torchrun_the_line_to_type_is_told(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(tiny_corpus, tmp_path / "run", "parallel.data=2")
    monkeypatch.setattr(sys, "argv", ["hgrn2", *arguments])
    assert entry(arguments) == 2
    said = capsys.readouterr()
    assert "2 processes, which torchrun starts: torchrun --nproc-per-node 2 -m hgrn2 train lm demo" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("world", "more", "said"),
    [
        ("3", ("parallel.data=2",), "torchrun started 3 processes, but parallel.data 2 x context 1 x tensor 1 are 2"),
        ("2", (), "torchrun started 2 processes, but this run is for one: --set parallel.data=2"),
        ("3", ("parallel.data=3",), "batch_size 4 does not divide into parallel.data 3"),
        ("2", ("parallel.tensor=2", "model.glu_width=15"), "glu_width 15 does not divide by parallel.tensor 2"),
        ("2", ("parallel.data=2", "train.compile=true"), "train.compile is not offered under torchrun (parallel): "),
        ("1", ("train.graphs=true", "data.reset_at_documents=false"), "train.graphs is not offered under torchrun"),
        ("2", ("parallel.data=2", "parallel.wait_s=2"), "the 2 processes did not meet at 127.0.0.1:"),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused_in_one_line(
    world: str, more: tuple[str, ...], said: str, tiny_corpus: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    where = {"RANK": "1", "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    assert entry(command(tiny_corpus, tmp_path / "run", *more)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1]
    assert not (tmp_path / "run").exists()


def test_one_process_of_torchrun_ends_where_a_plain_one_does(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gathers, scatters, and writes in the background like one of many; either goes on from the other."""
    more = ("model.dropout=0", "train.precision=bfloat16", "train.steps=4", "optim.schedule=constant")
    assert entry(command(tiny_corpus, tmp_path / "plain", *more)) == 0
    assert entry(command(tiny_corpus, tmp_path / "half", *more, "train.steps=2")) == 0
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (where | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    for name in ("one", "half"):
        assert entry(command(tiny_corpus, tmp_path / name, *more)) == 0
        for mine, theirs in zip(lines(tmp_path / name), lines(tmp_path / "plain"), strict=True):
            assert mine == pytest.approx(theirs, rel=2e-3), name
    assert (tmp_path / "one" / "checkpoints" / "step-00000004" / "model-00001-of-00001.safetensors").is_file()


def test_a_full_disk_in_the_background_ends_in_one_line(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second checkpoint may write 20 kB: training goes on meanwhile, and then says so; the first one stays, and
    with space the run goes on from it."""
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    write, calls = shared_checkpoint.save_file, list[Path]()

    def limited(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) > 2:  # weights and optimiser states of the first checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            write(tensors, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    asked, handler = command(tiny_corpus, tmp_path / "run"), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        monkeypatch.setattr(shared_checkpoint, "save_file", limited)
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        assert entry(asked) == 2
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step-00000004 cannot be written: " in told
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000002")
    monkeypatch.setattr(shared_checkpoint, "save_file", write)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    assert entry(asked) == 0


def test_two_processes_end_where_one_does(tiny_corpus: Path, tmp_path: Path) -> None:
    """The same batches in the same order, states carried from step to step, and a run folder like any other; one
    process goes on from a checkpoint of two."""
    torch.set_num_threads(1)
    plain = ("model.dropout=0", "data.carry=true")
    found = run(torchrun(2, command(tiny_corpus, tmp_path / "two", "parallel.data=2", *plain)))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 1  # one process prints
    assert entry(command(tiny_corpus, tmp_path / "one", *plain)) == 0
    shutil.copytree(tmp_path / "two", tmp_path / "then-one")
    shutil.rmtree(tmp_path / "then-one" / "checkpoints" / "step-00000006")
    assert entry(command(tiny_corpus, tmp_path / "then-one", *plain)) == 0
    for name in ("two", "then-one"):
        for mine, theirs in zip(lines(tmp_path / name), lines(tmp_path / "one"), strict=True):
            assert mine == pytest.approx(theirs, rel=2e-5)
    summary = json.loads(found.stdout)
    alone = json.loads((tmp_path / "one" / "summary.json").read_text())
    for name, row in alone["held_out"].items():
        assert summary["held_out"][name]["nats_per_token"] == pytest.approx(row["nats_per_token"], rel=1e-5)
    assert summary["parameters"] == alone["parameters"]
    assert (tmp_path / "two" / "report.html").is_file()
    for one, other in zip(*(load_model(tmp_path / name).parameters() for name in ("one", "two")), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.full
def test_a_killed_process_is_started_again_and_goes_on_exactly(tiny_corpus: Path, tmp_path: Path) -> None:
    """With dropout, and tensor parallelism beside sharded weights: the lines of a run that nobody killed."""
    more = ("parallel.data=2", "train.steps=40", "train.save_every=4")
    whole = run(torchrun(2, command(tiny_corpus, tmp_path / "whole", *more)))
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = torchrun(2, command(tiny_corpus, killed, *more), "--max-restarts", "1")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(killed.glob("checkpoints/step-*")):
            time.sleep(0.05)
        assert list(killed.glob("checkpoints/step-*"))
        os.kill(child_of(process.pid), signal.SIGKILL)
        _, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    events = [line for line in (killed / "metrics.jsonl").read_text().splitlines() if "resumed" in line]
    assert not events or "resumed from step" in events[0]
    assert lines(killed) == lines(tmp_path / "whole")


def child_of(parent: int) -> int:
    """A process that torchrun started, the last one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rpartition(")")[2].split()
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return max(found)


@pytest.mark.full
def test_a_process_with_other_data_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    """Started by hand, as two machines would be: one line names what differs, and both end."""
    port, processes = free_port(), []
    for rank in range(2):
        where = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = command(tiny_corpus, tmp_path / "run", "parallel.data=2", f"optim.lr={1 + rank}e-3")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "hgrn2", *own], env=os.environ | where, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert all("process 1 has other settings than the first one" in text for text in said)
