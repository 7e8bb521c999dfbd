"""The page says what rows say: who has the lowest loss, by how much, with what spread, and what that leaves open."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hgrn2.errors import UserError
from hgrn2.rows import Row
from hgrn2.study.arms import arms, subjects
from hgrn2.study.page import BEGIN, END, block, update
from hgrn2.study.protocol import Study
from hgrn2.study.results import groups

Make = Callable[..., Row]
STUDY = Study(size="45m", source="wiki", seeds=(0, 1, 2), sweep_tokens=16_000_000, final_tokens=32_000_000)


def swept(
    row: Make, name: str, loss: float, *, best: float = 4e-3, study: Study = STUDY, optimizer: str = "adamw"
) -> list[Row]:
    """Four rates around `best`, three of them."""
    (arm,) = arms(study, (name,), (optimizer,))  # pyright: ignore[reportArgumentType]
    return [row(study, arm, loss + extra, lr=lr) for lr, extra in ((best / 2, 0.1), (best, 0.0), (best * 2, 0.2))]


def seeded(row: Make, name: str, losses: tuple[float, ...], *, lr: float = 4e-3) -> list[Row]:
    (arm,) = arms(STUDY, (name,), ("adamw",))
    return [row(STUDY, arm, loss, lr=lr, seed=seed, tokens=STUDY.final) for seed, loss in enumerate(losses)]


def first_line(rows: list[Row]) -> str:
    return block(rows).split("\n\n")[1]


def test_no_rows_no_verdict() -> None:
    assert "**Not known yet**" in block([])
    assert "Not run: `hgrn2 study compare` makes it." in block([])


def test_the_verdict_is_that_of_the_longest_runs(row: Make) -> None:
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1)
    assert first_line(rows).startswith("**HGRN2 has the lowest loss** at 45.0M parameters and 16.0M tokens of wiki")
    assert "4.0000 nats/token on held-out text beside 4.1000 of LLaMA, 0.1000 lower; one seed each" in first_line(rows)
    rows += seeded(row, "hgrn2", (3.80, 3.81, 3.82)) + seeded(row, "llama", (3.70, 3.71, 3.72))
    line = first_line(rows)
    assert line.startswith("**HGRN2 does not win** at 45.0M parameters and 32.0M tokens")
    assert "3.8100 ± 0.0100 nats/token on held-out text beside 3.7100 ± 0.0100 of LLaMA, 0.1000 higher" in line
    assert line.endswith("In order: LLaMA 3.7100, HGRN2 3.8100.")


def test_a_difference_within_the_spread_of_seeds_is_none(row: Make) -> None:
    sweeps = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1)
    rows = sweeps + seeded(row, "hgrn2", (3.80, 3.82, 3.84)) + seeded(row, "llama", (3.81, 3.83, 3.85))
    assert first_line(rows).startswith("**HGRN2 is level with the best of the others**")
    assert "lower, within what seeds differ by" in block(rows)
    rows = sweeps + seeded(row, "hgrn2", (3.80, 3.82, 3.84)) + seeded(row, "llama", (4.81, 4.83, 4.85))
    assert first_line(rows).startswith("**HGRN2 wins**")


def test_other_forms_are_set_beside_the_published_ones_and_decide_nothing(row: Make) -> None:
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1) + swept(row, "llama-qknorm", 3.5)
    rows += swept(row, "hgrn2", 3.6, optimizer="muon") + swept(row, "hgrn2-attention", 3.3)
    assert first_line(rows).startswith("**HGRN2 has the lowest loss**")
    made = block(rows)
    assert "- llama-qknorm beside llama: 0.6000 lower (one seed)" in made
    assert "- hgrn2, Muon beside AdamW: 0.4000 lower (one seed)" in made
    table = [line.split("|")[1].strip() for line in made.splitlines() if line.startswith("| ") and "±" not in line]
    assert table[2:] == ["hgrn2-attention", "llama-qknorm", "hgrn2, muon", "hgrn2", "llama"]


def test_nothing_is_decided_before_every_sweep_is_complete(row: Make) -> None:
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1)[1:] + swept(row, "gla", 4.2)[2:]
    line = first_line(rows)
    assert line.startswith("**Not decided yet** at 45.0M parameters and 16.0M tokens of wiki")
    assert "HGRN2 4.0000 at a rate of 0.004 (between two others), LLaMA 4.1000 at a rate of 0.004 (at an edge)" in line
    assert "GLA 4.4000 at a rate of 0.008 (the only one tried)" in line
    assert "Missing: rates of LLaMA 0.002; of GLA 0.002, 0.004; every run of HGRN1, Mamba, Mamba-2." in line
    made = block(rows)
    assert "0.004 (edge)" in made
    assert "- HGRN2 beside" not in made
    assert (
        "- at the same rate of 0.008, which need not be the best of any: HGRN2 4.2000, LLaMA 4.3000, GLA 4.4000" in made
    )
    assert "- an order: LLaMA, GLA may be better at rates that were not tried." in made


def test_an_open_sweep_of_another_form_is_named(row: Make) -> None:
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1) + swept(row, "hgrn2-conv", 3.9)[1:]
    assert "- the best rate of hgrn2-conv: it stands at an edge of those tried" in block(rows)
    assert first_line(rows).startswith("**HGRN2 has the lowest loss**")


def test_runs_with_other_settings_stand_in_tables_of_their_own(row: Make) -> None:
    other = Study(size="45m", source="wiki", sweep_tokens=16_000_000, set=("optim.clip=2",))
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1, study=other)
    assert len(groups(rows, "compare")) == 2
    assert "**Not known yet**" in block(rows)
    again = swept(row, "hgrn2", 3.9)
    assert groups(rows + again, "compare")[0].entries[0].loss == 3.9


def test_length_and_ablation_say_what_changes(row: Make) -> None:
    length = Study(study="length", size="45m", sweep_tokens=16_000_000)
    (arm,) = arms(length, ("hgrn2",))
    buckets = [[1, 2, 7.0], [128, 256, 4.0], [256, 512, 3.9], [2048, 4096, 4.5]]
    (carry,) = arms(length, ("hgrn2-carry",))
    assert carry.run == ("data.carry=true", "data.reset_at_documents=true")
    assert "llama-carry" not in subjects(length)
    rows = [row(length, arm, 4.0, lr=1e-3, by_position=buckets)]
    later = [[first, stop, nats - 0.01 * n] for n, (first, stop, nats) in enumerate(buckets)]
    rows.append(row(length, carry, 4.1, lr=1e-3, by_position=later))
    ablation = Study(study="ablation", size="45m", sweep_tokens=16_000_000)
    rows += swept(row, "hgrn2", 4.0, study=ablation) + swept(row, "no-bound", 4.2, study=ablation)
    made = block(rows)
    assert "- hgrn2: 4.000 at positions 128 to 256, 4.500 at 2,048 to 4,096, 0.500 higher" in made
    assert "hgrn2-carry beside hgrn2, nats/token: +0.000 at the first position, -0.020, -0.030 in the doublings" in made
    assert "- no-bound: 0.2000 higher (one seed)" in made


def test_expanded_cells_stand_beside_their_vector_states_and_maps_beside_the_outer_product(row: Make) -> None:
    study = Study(study="others", size="45m", sweep_tokens=16_000_000)
    losses = {"hgrn1": 4.2, "hgrn1-expanded": 4.0, "lru": 4.4, "lru-expanded": 4.5}
    rows = [one for name, loss in losses.items() for one in swept(row, name, loss, study=study)]
    maps = Study(study="structured", size="45m", sweep_tokens=16_000_000)
    for name, loss, width in (("outer", 4.3, 2048), ("low-rank", 4.1, 2040)):
        rows += [replace(one, details=one.details | {"glu_width": width}) for one in swept(row, name, loss, study=maps)]
    made = block(rows)
    assert "- hgrn1-expanded beside hgrn1: 0.2000 lower (one seed)" in made
    assert "- lru-expanded beside lru: 0.1000 higher (one seed)" in made
    assert "- low-rank beside outer: 0.2000 lower (one seed)" in made
    assert "a single rate was tried" not in made
    alone = [*rows, replace(row(maps, arms(maps, ("dense",))[0], 4.4, lr=0.001), details=rows[-1].details)]
    assert "- how good dense can be: a single rate was tried" in block(alone)
    assert "lowest: low-rank, 4.1000; highest: outer, 4.3000" in made
    assert "from the GLU, which is 2,040 to 2,048 wide" in made
    assert "- an order of the cells as published" in made


def test_the_page_is_made_anew_with_its_plot(row: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "study.md"
    page.write_text(f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    rows = swept(row, "hgrn2", 4.0) + swept(row, "llama", 4.1)
    assert update(page, rows)
    text = page.read_text()
    assert text.startswith("# Title")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "](study-compare.png)" in text
    assert (tmp_path / "study-compare.png").stat().st_size > 10_000
    assert not update(page, rows)
    page.write_text("nothing")
    with pytest.raises(UserError, match="has no place for the tables"):
        update(page, rows)
