"""Trackers beside metrics.jsonl: what they are told, resumed series, failures that never end a run."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.train import trackers
from hgrn2.train.metrics import read_metrics
from hgrn2.train.trackers import Start, Trackers, check_installed, numbers, run_id

SMALL = [
    "train.budget_s=0", "train.epochs=0", "train.sequence_length=16", "train.batch_size=2", "train.log_every=1",
    "train.eval_every=2", "train.save_every=2", "train.keep=3", "train.eval_tokens=100",
    "train.keep_best=false", "train.patience=0", "model.width=16", "model.layers=1", "model.glu_width=16",
    "model.mixer.head_size=16",
]  # fmt: skip
STEP = {
    "kind": "step", "step": 3, "tokens": 96, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": 10.0,
    "mfu": None, "memory_bytes": 7, "elapsed_s": 1.0,
}  # fmt: skip
EVAL = {
    "kind": "eval", "step": 3, "tokens": 96, "elapsed_s": 1.0, "loss": 2.0, "bits_per_byte": 3.0, "accuracy": None,
    "corpora": {"wiki": 4.0, "code": None},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def bare() -> Iterator[None]:
    """Neither reports nor samples, which these tests do not look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgrn2.tasks.lm.task.write_report", lambda *_, **__: None)
        patch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
        yield


def command(folder: Path, corpus: Path, *more: str) -> list[str]:
    return ["train", "lm", "demo", "--data", str(corpus), "--out", str(folder), "--set", *SMALL, *more]


def start(folder: Path, step: int = 0) -> Start:
    folder.mkdir(exist_ok=True)
    return Start(folder, "mine", run_id(folder), {"train": {"steps": 4}}, step)


def test_names_of_the_numbers() -> None:
    assert numbers(STEP) == {
        "train/loss": 2.5, "train/lr": 1e-3, "train/grad_norm": 0.5, "train/tokens_per_s": 10.0,
        "train/memory_bytes": 7.0,
    }  # fmt: skip
    assert numbers(EVAL) == {"valid/loss": 2.0, "valid/bits_per_byte": 3.0, "valid/wiki/loss": 4.0}
    assert numbers({"kind": "event", "step": 3, "elapsed_s": 1.0, "text": "saved"}) == {}


def test_tensorboard_reads_what_the_log_has_after_a_resume_too(tiny_corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, ask = tmp_path / "run", "train.trackers=tensorboard"
    assert entry(command(folder, tiny_corpus, "train.steps=5", ask)) == 0
    # As a run that was killed after its fifth step, and goes on from its checkpoint of the fourth one.
    (folder / "checkpoints" / "step-00000005").rename(tmp_path / "gone")
    assert entry(command(folder, tiny_corpus, "train.steps=7", ask)) == 0
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    records = read_metrics(folder / "metrics.jsonl")
    names = {"train/loss": ("step", "loss"), "train/lr": ("step", "lr"), "train/grad_norm": ("step", "grad_norm"),
             "train/memory_bytes": ("step", "memory_bytes"), "valid/loss": ("eval", "loss")}  # fmt: skip
    for name, (kind, field) in names.items():
        logged = [(r["step"], r[field]) for r in records if r["kind"] == kind]
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in logged], name
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged], rel=1e-6), name
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_wandb_offline_keeps_the_run_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    told: list[str] = []
    for step in (0, 3):
        sink = Trackers(("wandb",), start(tmp_path / "run", step), told.append)
        sink.take({**STEP, "step": step + 1})
        sink.take(EVAL)
        sink.close()
    assert told == []
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {path.stem for path in files} == {f"run-{run_id(tmp_path / 'run')}"}, "one run, gone on with"
    deadline = time.monotonic() + 60  # a process of its own writes the file
    for name in (b"train/loss", b"valid/wiki/loss", b"mine"):
        while not all(name in path.read_bytes() for path in files):
            assert time.monotonic() < deadline, name
            time.sleep(0.05)


FAKE = """
import contextvars
calls, current = [], contextvars.ContextVar("current", default=None)
def init(project, name=None, config=None, resume="never", embed=True):
    print("hello")
    current.set(name)
    calls.append(("init", project, name, resume, config))
def log(metrics, step=None):
    assert current.get() is not None
    calls.append(("log", step, metrics))
def finish():
    assert current.get() is not None, "as in another thread without its context"
    calls.append(("finish",))
"""


def test_trackio_is_called_as_it_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module of that name that records calls: the package wants an older Pillow than the other extras have."""
    (tmp_path / "trackio.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    check_installed(("trackio",))
    told: list[str] = []
    sink = Trackers(("trackio",), start(tmp_path / "run"), told.append)
    sink.take(STEP)
    sink.close()
    name = f"run-{run_id(tmp_path / 'run')}"
    assert sys.modules["trackio"].calls == [
        ("init", "mine", name, "allow", {"train": {"steps": 4}}), ("log", 3, numbers(STEP)), ("finish",),
    ]  # fmt: skip
    assert (told, capsys.readouterr().out) == ([], "")
    monkeypatch.delitem(sys.modules, "trackio")


class Failing:
    """A tracker that fails at one of its calls, and counts them."""

    def __init__(self, start: Start, at: str) -> None:
        self.at, self.calls = at, 0
        self.fail("begin")

    def fail(self, now: str) -> None:
        if now == self.at:
            raise ConnectionError("no\nnetwork")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        self.fail("log")

    def close(self) -> None:
        self.fail("close")


@pytest.mark.parametrize(
    ("at", "told"), [("begin", "was not started"), ("log", "failed at step 1"), ("close", "was not closed")]
)
def test_one_that_fails_is_told_once_and_the_run_ends_well(
    at: str, told: str, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made: list[Failing] = []

    def begin(start: Start) -> Failing:
        made.append(Failing(start, at))
        return made[-1]

    monkeypatch.setitem(trackers.TRACKERS, "wandb", begin)
    monkeypatch.setattr("hgrn2.train.run.check_installed", lambda names: None)
    assert entry(command(tmp_path / "run", tiny_corpus, "train.steps=3", "train.trackers=wandb")) == 0
    line = f"wandb {told}: no network; training goes on without it"
    assert capsys.readouterr().out.count(line) == 1
    events = [r["text"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "event"]
    assert events.count(line) == 1
    assert [one.calls for one in made] == {"begin": [], "log": [1], "close": [6]}[at]


def test_a_tracker_that_never_ends_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release, told = threading.Event(), list[str]()
    monkeypatch.setattr(trackers, "CLOSE_S", 0.05)
    never: Callable[[Start], Any] = lambda _: type("Never", (), {"close": lambda self: release.wait(30)})()  # noqa: E731
    monkeypatch.setitem(trackers.TRACKERS, "wandb", never)
    Trackers(("wandb",), start(tmp_path / "run"), told.append).close()
    release.set()
    assert told == ["wandb was not closed: it was still sending after 0 s; training goes on without it"]


def test_a_missing_package_is_one_line_before_anything_starts(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").mkdir()  # a folder that looks like a package from the current directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", _spec_from(tmp_path))
    assert entry(command(tmp_path / "run", tiny_corpus, "train.steps=3", "train.trackers=wandb")) == 2
    error = capsys.readouterr().err
    assert "train.trackers=wandb needs the package wandb: pip install 'hgrn2[wandb]'" in error
    assert not (tmp_path / "run").exists()


def _spec_from(folder: Path) -> Callable[[str], Any]:
    from importlib.machinery import PathFinder

    return lambda name: PathFinder.find_spec(name, [str(folder)])
