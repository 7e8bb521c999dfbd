"""The page is made from rows alone."""

from pathlib import Path
from typing import Any

import pytest

from hgrn2.errors import UserError
from hgrn2.reproduce.lines import lines_of
from hgrn2.reproduce.page import BEGIN, END, block, update
from hgrn2.rows import Row, measurement

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
RESULTS = Path(__file__).parents[2] / "results"


def row(value: float, model: str = "hgrn2", seed: int = 0, **more: Any) -> Row:
    case = {"table": "lra", "task": "listops", "size": "full", "n": None, "seed": seed}
    details = {"device_minutes": 6.0, "device": "cpu", "data": "own generator; 9 / 3 / 3 examples", "differs": ""}
    return measurement("reproduce", case, model, "torch", [value], "accuracy", details | more)


def test_mean_and_deviation_over_seeds_beside_the_published_number() -> None:
    rows = [row(0.60), row(0.62, seed=1), row(0.64, seed=2), row(0.5, "hgrn1")]
    found = {line.model: line for line in lines_of(rows, "lra") if (line.task, line.size) == ("listops", "full")}
    assert found["hgrn2"].cells[:5] == ("listops", "hgrn2", "60.52", "62.00 ± 2.00", "0, 1, 2")
    assert found["hgrn1"].cells[2:5] == ("59.95", "50.00", "0")
    assert found["transformer"].cells[2:4] == ("38.37", "not run")


def test_the_newest_row_of_a_seed_counts() -> None:
    (line,) = (line for line in lines_of([row(0.1), row(0.6)], "lra", all_of_it=False))
    assert line.ours == "60.00"


def test_small_runs_are_not_set_beside_published_numbers() -> None:
    one = row(0.3)
    small = measurement("reproduce", one.case | {"size": "small"}, "hgrn2", "torch", [0.3], "accuracy", one.details)
    (line,) = lines_of([small], "lra", all_of_it=False)
    assert line.task_name == "listops, small"
    assert line.cells[2] == "–"


def test_published_and_measured_numbers_stand_side_by_side() -> None:
    fast = row(0.63)
    fast = measurement("reproduce", fast.case | {"size": "fast"}, "hgrn2", "torch", [0.63], "accuracy", fast.details)
    text = block([row(0.6), fast])
    assert "| model | published, % | ours, full, % | ours, fast, % |" in text
    assert "| hgrn2 | 60.52 | 60.00 | 63.00 |" in text
    assert "| transformer | 38.37 | not run | not run |" in text
    assert "figures/lra.png" in text


def test_settings_have_a_table_with_the_published_ones() -> None:
    differs = "norm layer (batch), batch 64 (128), warm-up 1,500 (5,000), training sets 64x4 64x8 (64x4)"
    text = block([row(0.6, differs=differs, by_the_clock_s=600.0, at_once=3), row(0.5, "hgrn1", at_once=1)])
    assert "| setting | published | hgrn2, full | hgrn1, full |" in text
    settings = ("norm | batch | layer | ", "warm-up | 5,000 | 1,500 | ", "training sets | 64x4 | 64x4 64x8 | ")
    for line in (*settings, "budget, minutes |  | 10 | –", "runs at once |  | 3 | 1"):
        assert f"| {line} |" in text
    alike = block([row(0.6), row(0.5, "hgrn1")])
    assert "| setting | published | hgrn2, full; hgrn1, full |" in alike


def test_what_was_not_run_is_one_sentence() -> None:
    text = block([row(0.6)])
    told = next(
        line for line in text.splitlines() if line.startswith("Not run: listops in size full (hgrn1, transformer)")
    )
    assert "text, retrieval, image, pathfinder, pathx in size full (hgrn2, hgrn1, transformer)" in told


def test_update_touches_nothing_but_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update(page, [row(0.6)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "60.00" in text
    assert "old" not in text
    assert not update(page, [row(0.6)])


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        update(tmp_path / "none.md", [])
    (tmp_path / "page.md").write_text("words")
    with pytest.raises(UserError, match="no place for the tables"):
        update(tmp_path / "page.md", [])
    assert (tmp_path / "page.md").read_text() == "words"


def test_the_page_of_this_repository_is_that_of_its_rows(tmp_path: Path) -> None:
    from hgrn2.reproduce.whole import read_recorded

    copy = tmp_path / "reproduce.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert not update(copy, read_recorded(RESULTS)), "run: hgrn2 reproduce table"
