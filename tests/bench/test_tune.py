"""Launch settings: candidates take turns, a table keeps what it does not know, nothing wrong is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgrn2.bench import tune
from hgrn2.bench.problems import Setting
from hgrn2.bench.settings import Limits
from hgrn2.ops.gated_outer_scan.triton import launch_table as table
from hgrn2.ops.gated_outer_scan.triton.launch_table import Launch

KEY = ("output", "sm00", 64, "bfloat16")
SETTING = Setting(op="hgru2", shape="1x65x16x16", lower_bound=0.0, dtype="float32", device="cpu")
FIRST, *OTHERS = (Launch(num_warps=warps) for warps in (1, 2, 4, 8, 16))


def job() -> tune.Job:
    return tune.Job(SETTING, KEY, FIRST, tuple(OTHERS))


def present() -> Launch:
    """What a call would launch now."""
    return table.launch(*KEY)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[Launch, list[float]]:
    """How long each launch takes, round after round; the GPU is this table."""
    times: dict[Launch, list[float]] = {}

    def sample_of(work: Callable[[], object], device: str) -> Callable[[], float]:
        def sample() -> float:
            work()
            row = times[present()]
            return row.pop(0) if len(row) > 1 else row[0]

        return sample

    monkeypatch.setattr(tune, "sample_of", sample_of)
    return times


def test_the_quickest_replaces_the_one_before(seconds: dict[Launch, list[float]]) -> None:
    seconds |= {launch: [0.010] for launch in (FIRST, *OTHERS)} | {OTHERS[2]: [0.004]}
    seen: list[Launch] = []
    choice = tune.quickest(job(), [FIRST, *OTHERS], lambda: seen.append(present()), Limits(repeats=3))
    assert (choice.before, choice.after) == (FIRST, OTHERS[2])
    assert (choice.before_ms, choice.after_ms, choice.tried) == (10.0, 4.0, 5)
    assert set(seen) == {FIRST, *OTHERS}
    assert "num_warps 1 -> 8; 10 -> 4 ms (5 tried)" in str(choice)


def test_a_tie_or_a_lucky_round_changes_nothing(seconds: dict[Launch, list[float]]) -> None:
    seconds |= {launch: [0.010] for launch in (FIRST, *OTHERS)}
    seconds[OTHERS[0]] = [0.010, 0.002, *(x for _ in range(10) for x in (0.0099, 0.0101))]
    choice = tune.quickest(job(), [FIRST, *OTHERS], lambda: None, Limits(repeats=8))
    assert choice.after == choice.before == FIRST
    assert "as it was" in str(choice)


def test_a_setting_holds_inside_only() -> None:
    before = present()
    with tune.using(KEY, OTHERS[3]):
        assert present() == OTHERS[3]
        with pytest.raises(RuntimeError, match="stop"), tune.using(KEY, FIRST):
            raise RuntimeError("stop")
        assert present() == OTHERS[3]
    assert present() == before


def test_rows_of_others_stay_in_the_table(tmp_path: Path) -> None:
    file = tmp_path / "launch.json"
    other = {"pass": "step", "arch": "sm01", "n": 32, "dtype": "float32", "num_warps": 8}
    old = {"pass": KEY[0], "arch": KEY[1], "n": KEY[2], "dtype": KEY[3], "num_warps": 16}
    file.write_text(json.dumps({"command": "an older one", "rows": [old, other]}))
    found = tune.Choice(key=KEY, before=FIRST, after=OTHERS[0], before_ms=2.0, after_ms=1.0, tried=2)
    tune.write(file, [found], "hgrn2 bench ops --tune")
    assert json.loads(file.read_text())["command"] == "hgrn2 bench ops --tune"
    rows = table.rows(str(file))
    assert Launch(**rows[KEY]) == OTHERS[0]
    assert rows["step", "sm01", 32, "float32"] == {"num_warps": 8}
    assert len(rows) == 2


def test_settings_that_a_gpu_refuses_are_left_out_and_other_errors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfResources(Exception):
        __module__ = "triton.runtime.errors"

    def call_of(setting: Setting, op_pass: str) -> Callable[[], object]:
        def call() -> None:
            if present() == OTHERS[1]:
                raise OutOfResources
            if present() == OTHERS[2]:
                raise ZeroDivisionError

        return call

    monkeypatch.setattr(tune, "call_of", call_of)
    assert tune.build_all([tune.Job(SETTING, KEY, FIRST, tuple(OTHERS[:2]))]) == {KEY: [FIRST, OTHERS[0]]}
    with pytest.raises(tune.UserError, match="output do not run on this GPU"):
        tune.build_all([tune.Job(SETTING, KEY, OTHERS[1], (FIRST,))])
    with pytest.raises(ZeroDivisionError):
        tune.build_all([job()])


def test_the_command_writes_a_table_that_calls_read(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(table, "candidates", lambda op_pass, n, dtype: [table.default(op_pass, n, dtype), FIRST])
    sizes = ("--shapes", "1x9x16x16", "--repeats", 1, "--max-seconds", 0.01)
    done = bench("ops", "--tune", *sizes, "--table", tmp_path / "launch.json")
    assert done.code == 0, done.err
    rows = table.rows(str(tmp_path / "launch.json"))
    assert {key[0] for key in rows} == set(table.PASSES)
    assert {key[1:] for key in rows} == {("cpu", 16, "float32")}
    assert all(
        any(line.startswith(f"{op_pass} cpu n 16 float32: ") for line in done.out.splitlines())
        for op_pass in table.PASSES
    )


def test_wrong_settings_are_not_written(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from hgrn2.ops.hgru2 import triton as kernels

    right = kernels.forward
    monkeypatch.setattr(table, "candidates", lambda op_pass, n, dtype: [table.default(op_pass, n, dtype)])
    monkeypatch.setattr(kernels, "forward", lambda *a, **k: [1.001 * x for x in right(*a, **k)])
    sizes = ("--shapes", "1x17x16x16", "--repeats", 1, "--max-seconds", 0.01)
    done = bench("ops", "--tune", *sizes, "--table", tmp_path / "launch.json")
    assert done.code == 2
    assert "are wrong, nothing is written" in done.err
    assert list(tmp_path.iterdir()) == []
