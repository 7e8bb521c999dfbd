"""Pathfinder and Path-X: two dots, two dashed curves, shorter dashed curves between them; do the dots share a curve?

Our own drawing by the published description and numbers (Linsley et al. 2018, arXiv 1805.08315, and the authors'
generator drewlinsley/pathfinder; the numbers of Long Range Arena, arXiv 2011.04006, stand in
google-research/long-range-arena, lra_benchmarks/data/pathfinder.py): two curves begin near each other, one dot marks a
beginning, the other the far end of the same curve (label 1) or of the other one (label 0).

Two things are ours. The first curve is grown whole before the second, where the published ones grow in turns. And
labels are not tossed for: an image, which could get either, gets the one that is rarer so far where the dots lie like
that, so that their distance and places tell next to nothing; by tosses, they tell a little.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from hgrn2.data.classes import Described, ImageStream
from hgrn2.data.lra.dashed_curves import SPARE, Dashes, FreeSpace, grow_distractors, grow_pairs, unit
from hgrn2.data.lra.parallel import EASY, counts_of, iterate_blocks
from hgrn2.data.lra.pathfinder_settings import PRESETS, Pathfinder, levels
from hgrn2.progress import Progress, silent

PUBLISHED_COUNTS = (160_000, 20_000, 20_000)
BLOCK = 128  # images made together; part of what a seed means
STEPS = 24  # steps of distance, from nothing to the length of a side, in which labels are balanced
ZONES = 4  # likewise of the far end's distance to the border, and of the beginning's to the centre


def make_pathfinder(
    settings: Pathfinder, *, task: str = "pathfinder", seed: int = 0, count: tuple[int, ...] | None = None,
    easy: int = 0, workers: int = 1, progress: Progress = silent,
) -> tuple[Described, dict[str, ImageStream]]:  # fmt: skip
    """The three splits, and where asked for one of `easy` images with shorter curves, the shortest first, as grey
    images uint8 [N,size,size,1], drawn as they are read."""
    splits = {}
    for split, wanted in counts_of(count, PUBLISHED_COUNTS, easy).items():
        drawn = levels(settings) if split == EASY else [settings]
        blocks = _blocks(drawn, wanted, seed=seed, split=split, workers=workers, progress=progress)
        splits[split] = ImageStream((wanted, settings.size, settings.size, 1), _cut(blocks, wanted))
    described = Described(
        task=task, classes=("apart", "connected"), vocab_size=256, seed=seed, settings=vars(settings),
        origin=_origin(settings) + (
            f", and {easy:,} images of shorter curves to begin with" if easy else ""),
    )  # fmt: skip
    return described, splits


def _origin(settings: Pathfinder) -> str:
    if settings in (preset() for preset in PRESETS.values()):
        return "own generator, published description and numbers"
    return f"own generator, published description, {settings.size} x {settings.size}, {settings.dashes} dashes"


def _blocks(
    drawn: list[Pathfinder], wanted: int, *, seed: int, split: str, workers: int, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of all these settings, one after the other, as many of each."""
    count = -(-wanted // BLOCK)
    ends = [count * (level + 1) // len(drawn) for level in range(len(drawn))]
    for settings, first, end in zip(drawn, [0, *ends], ends, strict=False):
        yield from iterate_blocks(
            partial(draw_block, settings), seed=seed, split=split, blocks=end - first, first=first, workers=workers,
            progress=progress,
        )  # fmt: skip


def _cut(blocks: Iterator[tuple[np.ndarray, np.ndarray]], wanted: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, (images, labels) in enumerate(blocks):
        left = wanted - number * BLOCK
        yield images[:left, ..., None], labels[:left]


def draw_block(settings: Pathfinder, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """BLOCK images uint8 [BLOCK,size,size] and their labels int64: 1 where the dots lie on one curve."""
    spaces = FreeSpace(settings, random.integers(len(settings.margins), size=int(SPARE * BLOCK)))
    rows, curves = grow_pairs(spaces, random, BLOCK)
    distractors = grow_distractors(spaces, random, rows)
    labels, dots = mark(settings, random, curves)
    place = np.zeros(len(spaces.choice), dtype=np.int64)
    place[rows] = np.arange(BLOCK)
    sets = [(np.arange(BLOCK), curves[:, 0]), (np.arange(BLOCK), curves[:, 1])]
    sets += [(place[found], dashes) for found, dashes in distractors]
    return render(settings, sets, dots), labels


def mark(settings: Pathfinder, random: np.random.Generator, curves: Dashes) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [n] for curves [n,2,D], and the dots that go with them, float [n,2,2]: a beginning and a far end.

    Of two labels an image gets the one that makes both classes more alike in the distance between the dots, and in
    that of the end to the border together with that of the beginning to the centre.
    """
    count, size = len(curves.angle), settings.size
    own, first = np.arange(count), random.integers(2, size=count)
    begins, ends = curves.begin[:, :, 0], curves[:, :, -1].along(settings.dash)
    begin = begins[own, first]
    apart = np.linalg.norm(ends - begin[:, None], axis=-1) / size  # [n,2], as the next ones
    border = np.minimum(ends, size - 1 - ends).min(axis=-1) / size
    centre = np.linalg.norm(begin - (size - 1) / 2, axis=-1)[:, None] / size
    zone = _step(4 * border * ZONES, ZONES) * ZONES + _step(3 * centre * ZONES, ZONES)
    labels = np.zeros(count, dtype=np.int64)
    keys = np.stack([_step(apart * STEPS, 2 * STEPS), 2 * STEPS + zone], axis=-1)
    more = np.zeros(2 * STEPS + ZONES**2, dtype=np.int64)  # by how many the connected images outnumber the others
    for n, even in enumerate(random.integers(2, size=count)):
        same, other = keys[n, first[n]], keys[n, 1 - first[n]]
        surplus = (more[same] + more[other]).sum()
        labels[n] = even if surplus == 0 else surplus < 0
        more[same if labels[n] else other] += 1 if labels[n] else -1
    return labels, np.stack([begin, ends[own, np.where(labels, first, 1 - first)]], axis=1)


def _step(value: np.ndarray, steps: int) -> np.ndarray:
    return np.minimum(value.astype(np.int64), steps - 1)


def render(settings: Pathfinder, sets: list[tuple[np.ndarray, Dashes]], dots: np.ndarray) -> np.ndarray:
    """Images uint8 [n,size,size] of sets of dashes (which image [m], dashes [m,D]) and of dots [n,2,2].

    The brightness of a pixel is the part of it that is covered, times `settings.brightness` for dashes.
    """
    half, every = settings.dash / 2, np.arange(len(dots))
    canvas = _Canvas(len(dots), settings.size, max(half + settings.thickness, settings.dot))
    for rows, dashes in sets:
        for number in range(dashes.angle.shape[1]):
            dash = dashes[:, number]
            canvas.draw(rows, dash.along(half), dash.angle, half, settings.thickness, settings.brightness)
    for number in range(2):
        canvas.draw(every, dots[:, number], np.zeros(len(dots)), 0.0, 2 * settings.dot, 1.0)
    return canvas.images()


class _Canvas:
    """Images that strokes are drawn on, a stroke in each image at a time; of two in a pixel the brighter counts."""

    def __init__(self, count: int, size: int, reach: float) -> None:
        """A stroke may light pixels up to `reach` from its middle, and one more."""
        self.size, self.window = size, int(np.ceil(reach + 1))
        self.side = size + 2 * self.window  # so that no window reaches over a border
        self.light = np.zeros((count, self.side, self.side), dtype=np.float32)
        axis = np.arange(-self.window, self.window + 1)
        self.grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)

    def draw(
        self, rows: np.ndarray, middle: np.ndarray, angle: np.ndarray, half: float, width: float, most: float
    ) -> None:
        """Strokes with their middles at y and x [m,2], of length 2 * half and a width, in the images `rows` [m]."""
        nearest, way = np.rint(middle), unit(angle).astype(np.float32)
        apart = self.grid.astype(np.float32) - (middle - nearest).astype(np.float32)[:, None]
        across = apart[..., 0] * way[:, None, 1] - apart[..., 1] * way[:, None, 0]
        along = apart[..., 0] * way[:, None, 0] + apart[..., 1] * way[:, None, 1]
        distance = np.hypot(across, np.maximum(np.abs(along) - np.float32(half), 0))
        covered = (width / 2 + 0.5 - distance).clip(0, min(1, width))
        at = nearest.astype(np.int64)[:, None] + self.window + self.grid
        index = (rows[:, None] * self.side + at[..., 0]) * self.side + at[..., 1]
        flat = self.light.reshape(-1)
        flat[index] = np.maximum(flat[index], most * covered)

    def images(self) -> np.ndarray:
        """The images as uint8 [n,size,size]."""
        inside = slice(self.window, self.window + self.size)
        return np.rint(255 * self.light[:, inside, inside].clip(0, 1)).astype(np.uint8)
