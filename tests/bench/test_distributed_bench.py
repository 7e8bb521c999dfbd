"""`hgrn2 bench distributed` at tiny sizes on a CPU: jobs, rows, what is left for the next call."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgrn2.bench import distributed, distributed_job
from hgrn2.bench.distributed_settings import DistributedBench, jobs
from hgrn2.cli.main import entry
from hgrn2.files import read_json, write_json
from hgrn2.rows import Row, read_rows
from hgrn2.testing.processes import free_port

TINY = (
    "--device", "cpu", "--sizes", "tiny", "--large", "tiny", "--length", "32", "--batch", "8", "--no-compile",
    "--warmup", "1", "--rounds", "2", "--queued", "1", "--large-steps", "8",
)  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Jobs of one process are carried out in this one, which has imported everything; the commands that were asked."""
    asked: list[list[str]] = []

    def run(command: list[str], log: Path, seconds: float) -> tuple[int, str]:
        asked.append(command)
        job = read_json(log.parent / "job.json", dict)
        write_json(log.parent / "job.json", job | {"limit_s": 0})
        with pytest.MonkeyPatch.context() as patch:
            if "torch.distributed.run" in command:
                assert job["run"]["parallel"]["data"] == 1
                where = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
                for name, value in where.items():
                    patch.setenv(name, str(value))
            try:
                distributed_job.main(log.parent)
            except Exception as error:
                return 1, f"{type(error).__name__}: {error}"
        return 0, ""

    monkeypatch.setattr(distributed, "_ran", run)
    return asked


def rows_of(folder: Path) -> dict[tuple[str, str], Row]:
    return {(row.case["measurement"], row.subject): row for row in read_rows(folder / "distributed.jsonl")}


def test_jobs_of_one_process(here: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "distributed", *TINY, "--out", str(tmp_path), "--measure"]
    assert entry([*command, "fsdp", "save", "large", "float8"]) == 0
    rows = rows_of(tmp_path)
    assert ["torch.distributed.run" in one for one in here][:2] == [False, True]
    plain, sharded = rows["fsdp", "plain"], rows["fsdp", "fsdp2"]
    assert plain.unit == "tokens/s"
    assert plain.repeats == 2
    assert sharded.details["of_first"] == pytest.approx(sharded.median / plain.median, rel=1e-3)
    assert sharded.details["first_loss"] == pytest.approx(plain.details["first_loss"], rel=1e-5)
    assert sharded.details["parameters"] == plain.details["parameters"]
    save = rows["save", "fsdp2"]
    assert save.unit == "s"
    assert 0 < save.value < save.details["whole_s"]
    assert save.details["bytes"] > 12 * save.details["parameters"]
    large = rows["large", "fsdp2"]
    assert large.details["resumed_apart"] == 0.0
    assert large.details["last_loss"] < large.details["first_loss"]
    assert len(large.details["losses"]) == 8

    before, count = (tmp_path / "distributed.jsonl").read_text(), len(here)
    assert entry([*command, "fsdp", "save"]) == 0  # they have rows: nothing is measured again
    assert (tmp_path / "distributed.jsonl").read_text() == before
    assert len(here) == count
    assert entry([*command, "fsdp", "--again", "--minutes", "1e-9"]) == 1
    assert "minutes are over; the same command goes on" in capsys.readouterr().err


def test_a_job_that_fails_leaves_the_others_alone(
    here: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no space left")

    monkeypatch.setitem(distributed_job.KINDS, "save", broken)
    assert entry(["bench", "distributed", *TINY, "--out", str(tmp_path), "--measure", "save", "large"]) == 1
    assert list(rows_of(tmp_path)) == [("large", "fsdp2")]
    assert "save tiny, fsdp2, 1 processes: RuntimeError: no space left" in capsys.readouterr().err


def test_jobs_that_hang_are_given_up(tmp_path: Path) -> None:
    code, said = distributed._ran(["sh", "-c", "echo begun; sleep 60 & wait"], tmp_path / "log", 0.5)
    assert code is None
    assert said == "begun\n"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "echo begun; sleep 60" not in listed
    assert distributed._why("x\nValueError: wrong\nChildFailedError: y\n") == "ValueError: wrong"


def test_which_jobs_there_are() -> None:
    every = list(jobs(DistributedBench(), 8))
    assert [job.world for job in every if job.measurement == "weak"] == [1, 2, 2, 4, 4, 8, 8]
    assert max(job.world for job in jobs(DistributedBench(), 1) if job.measurement == "weak") == 1
    assert len({distributed._identity(job.case, job.subject) for job in every}) == len(every)
    per_process = {job.run.train.tokens_per_step // job.world for job in every if job.measurement == "weak"}
    assert per_process == {16 * 2048}


@pytest.mark.full
def test_two_processes_share_a_device(tmp_path: Path) -> None:
    """Each layout's losses are those of one process."""
    command: Callable[..., int] = entry
    assert command(["bench", "distributed", *TINY, "--out", str(tmp_path), "--measure", "shared"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 5
    assert max(row.details["largest_difference"] for row in rows.values()) < 1e-4
