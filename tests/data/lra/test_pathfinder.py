"""Pathfinder: curves that keep apart, labels that only the curves tell, the same images for any worker."""

from pathlib import Path

import numpy as np
import pytest

from hgrn2.cli.main import entry
from hgrn2.data.classes import ImageStream, open_examples, write_examples
from hgrn2.data.lra.dashed_curves import Dashes, FreeSpace, grow_distractors, grow_pairs
from hgrn2.data.lra.pathfinder import BLOCK, draw_block, make_pathfinder, mark, render
from hgrn2.data.lra.pathfinder_settings import PRESETS, Pathfinder, levels
from hgrn2.errors import UserError

EASY = Pathfinder(dashes=5, distractors=2)


def grown(settings: Pathfinder, count: int, seed: int = 0) -> tuple[FreeSpace, np.ndarray, Dashes, list]:
    random = np.random.default_rng(seed)
    spaces = FreeSpace(settings, random.integers(len(settings.margins), size=2 * count))
    rows, curves = grow_pairs(spaces, random, count)
    return spaces, rows, curves, grow_distractors(spaces, random, rows)


def points(settings: Pathfinder, dashes: Dashes) -> np.ndarray:
    """Nine points of each dash, [...,9,2]."""
    return np.stack([dashes.along(part) for part in np.linspace(0, settings.dash, 9)], axis=-2)


@pytest.mark.parametrize("task", ["pathfinder", "pathx"])
def test_curves_have_even_gaps_and_keep_clear(task: str) -> None:
    settings = PRESETS[task]()
    spaces, rows, curves, distractors = grown(settings, 12)
    margin = spaces.margin[rows]
    gaps = np.linalg.norm(curves.begin[:, :, 1:] - curves[:, :, :-1].along(settings.dash), axis=-1)
    assert (gaps <= 2 * margin[:, None, None] + 1e-6).all()  # two margins long where the curve goes straight on
    assert gaps.mean() > 1.5 * margin.mean()
    starts = np.linalg.norm(curves.begin[:, 0, 0] - curves.begin[:, 1, 0], axis=-1)
    assert np.allclose(starts, settings.start_distance)
    fine = 1.0 / spaces.fine  # zones are made of cells
    for n, row in enumerate(rows):
        parts = [points(settings, curves[n, 0]), points(settings, curves[n, 1])]
        parts += [points(settings, dashes[list(found).index(row)]) for found, dashes in distractors if row in found]
        assert len(parts) <= 2 + settings.distractors
        least = settings.padding + margin[n] - fine
        for k, part in enumerate(parts):
            assert part.min() >= least
            assert part.max() <= settings.size - 1 - least
            for other in parts[:k]:
                apart = np.linalg.norm(part.reshape(-1, 1, 2) - other.reshape(1, -1, 2), axis=-1).min()
                assert apart > 2 * margin[n] + settings.thickness - 2 * fine
        for curve in parts[:2]:  # nor does a curve touch itself
            apart = np.linalg.norm(curve[:-2, :, None, None] - curve[None, None, 2:], axis=-1).min(axis=(1, 3))
            assert apart[np.triu_indices(settings.dashes - 2)].min() > 2 * margin[n] + settings.thickness - 2 * fine


def test_a_failed_curve_leaves_nothing() -> None:
    settings = Pathfinder(dashes=40)  # hardly any curve of that length fits
    spaces = FreeSpace(settings, np.zeros(64, dtype=np.int64))
    before = spaces.taken.copy()
    random = np.random.default_rng(0)
    rows, _ = spaces.grow(random, np.arange(64), random.uniform(14, 17, (64, 1, 2)), settings.dashes)
    failed = np.delete(np.arange(64), rows)
    assert len(failed) > 32
    assert np.array_equal(spaces.taken[failed], before[failed])


def test_the_label_is_whether_the_dots_share_a_curve() -> None:
    settings = Pathfinder()
    _, _, curves, _ = grown(settings, 48)
    labels, dots = mark(settings, np.random.default_rng(1), curves)
    begins, ends = curves.begin[:, :, 0], curves[:, :, -1].along(settings.dash)
    from_curve = np.linalg.norm(begins - dots[:, :1], axis=-1).argmin(axis=1)
    to_curve = np.linalg.norm(ends - dots[:, 1:], axis=-1).argmin(axis=1)
    assert np.array_equal(labels, from_curve == to_curve)
    assert 0.3 < from_curve.mean() < 0.7
    assert 0.3 < labels.mean() < 0.7


def test_images_say_nothing_by_simple_measures() -> None:
    """Labels against the dots' distance, the number of lit pixels and their brightness: within 3 deviations."""
    settings, count = Pathfinder(), 3 * BLOCK
    _, _, curves, _ = grown(settings, count)
    parts = [mark(settings, np.random.default_rng(n), curves[n * BLOCK : (n + 1) * BLOCK]) for n in range(3)]
    labels, dots = (np.concatenate(part) for part in zip(*parts, strict=True))
    images = render(settings, [(np.arange(count), curves[:, 0]), (np.arange(count), curves[:, 1])], dots)
    distance = np.linalg.norm(dots[:, 0] - dots[:, 1], axis=1)
    for measure in (distance, (images > 0).sum((1, 2)), images.mean((1, 2))):
        agreement = ((measure > np.median(measure)) == labels).mean()
        assert abs(agreement - 0.5) < 3 * 0.5 / np.sqrt(count)


def test_a_dot_is_as_large_as_it_should_be() -> None:
    settings = Pathfinder()
    images = render(settings, [], np.array([[[8.0, 8.0], [20.0, 20.0]]]))
    area = images.sum() / 255 / 2
    assert area == pytest.approx(np.pi * settings.dot**2, rel=0.1)
    assert images[0, 8, 8] == 255
    line = Dashes(np.array([[[8.0, 4.0]]]), np.zeros((1, 1)))
    image = render(settings, [(np.array([0]), line)], np.full((1, 2, 2), 25.0))[0]
    assert image[8, 4:7].tolist() == [191] * 3  # half covered, one and a half times as bright
    assert not image[9].any()


def test_a_block_is_the_same_for_any_count_and_workers() -> None:
    _, one = make_pathfinder(EASY, count=(150, 4, 4), seed=2)
    _, two = make_pathfinder(EASY, count=(130, 4, 4), seed=2, workers=2)
    held = one["train"].held()
    assert held.a.shape == (150, 32, 32, 1)
    assert np.array_equal(held.a[:130], two["train"].held().a)
    images, labels = draw_block(EASY, np.random.default_rng(0))
    assert images.shape == (BLOCK, 32, 32)
    assert abs(labels.sum() - BLOCK / 2) < BLOCK / 5
    assert len({image.tobytes() for image in images}) == BLOCK


@pytest.mark.parametrize("shown", [{"margins": ()}, {"size": 8}, {"dashes": 1}, {"start_distance": 9.0}, {"dot": 0.0}])
def test_settings_that_make_no_image(shown: dict) -> None:
    with pytest.raises(UserError, match=next(iter(shown))):
        Pathfinder(**shown)


def test_curves_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgrn2.data.lra.dashed_curves.PATIENCE", 3)
    with pytest.raises(UserError, match="two curves of 60 dashes hardly ever fit into 32 pixels"):
        grown(Pathfinder(dashes=60), 4)


def test_a_stream_that_ends_early_leaves_no_folder(tmp_path: Path) -> None:
    described, _ = make_pathfinder(EASY, count=(4, 4, 4))
    short = iter([(np.zeros((2, 4, 4, 1), dtype=np.uint8), np.zeros(2, dtype=np.int64))])
    with pytest.raises(UserError, match="3 images were announced and 2 came"):
        write_examples(tmp_path / "out", described, {"train": ImageStream((3, 4, 4, 1), short)})
    assert not list(tmp_path.iterdir())


def test_folder_with_its_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    few = ["--count", "40", "2", "2", "--set", "dashes=4", "distractors=1"]
    assert entry(["data", "lra", "pathx", "--out", str(out), *few]) == 0
    assert "samples.png" in capsys.readouterr().out
    header = (out / "samples.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 8 * (128 + 2) + 2
    data = open_examples(out)
    assert data.described.settings["dashes"] == 4
    assert data.split("train").a.shape == (40, 128, 128, 1)
    assert entry(["data", "lra", "pathx", "--out", str(tmp_path / "y"), "--set", "dash=-1"]) == 2
    assert "dash must be above 0" in capsys.readouterr().err
    assert entry(["data", "lra", "pathx", "--out", str(tmp_path / "y"), "--source", "a"]) == 2
    assert "takes no --source" in capsys.readouterr().err


def test_easier_images_come_from_the_easiest_on() -> None:
    settings = Pathfinder(dashes=7)
    drawn = levels(settings)
    assert [one.dashes for one in drawn] == [2, 3, 4, 6]
    assert all(one.size == settings.size and one.distractors <= settings.distractors for one in drawn)
    described, splits = make_pathfinder(settings, count=(4, 4, 4), easy=4 * BLOCK, seed=1)
    made = list(splits["easy"].blocks)
    lit = [float((images > 0).mean()) for images, _ in made]
    assert len(made) == 4
    assert lit == sorted(lit)  # longer curves light more of an image
    assert "512 images of shorter curves" in described.origin
    assert not np.array_equal(made[0][1], made[1][1])  # every block has its own randomness


def test_the_shortest_curves_have_nothing_easier() -> None:
    assert levels(Pathfinder(dashes=2)) == [Pathfinder(dashes=2)]
