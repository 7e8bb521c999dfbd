"""Pathfinder and Path-X: two dots, two dashed curves, shorter dashed curves between them; are the dots connected?

Written from the published description (Linsley et al. 2018, arXiv 1805.08315; Long Range Arena, arXiv 2011.04006): two
curves of the same number of dashes begin near each other; a dot marks the beginning of one, another dot the end of the
same curve (label 1) or of the other (label 0); distractors have a third of the dashes. Sizes are chosen here for
32 x 32 and 128 x 128 pixels, so results do not compare exactly with those on the published pictures. One thing is
added: the far ends of both curves must be about equally far from the first dot, so the dots' distance tells nothing.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from hgrn2.data.classes import Described, Examples
from hgrn2.settings import refuse
from hgrn2.tasks.lra.parallel import Progress, counts_of, make_blocks

PUBLISHED_COUNTS = (160_000, 20_000, 20_000)
BLOCK = 32  # pictures made together; part of what a seed means
TRIES = 8  # directions tried for a dash before its curve is given up


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """Lengths in pixels, angles in radians."""

    size: int = 32
    dashes: int = 9
    """Dashes of each of the two curves; distractors have a third as many."""
    dash: float = 2.0
    gap: float = 1.5
    thickness: float = 0.8
    spacing: float = 2.2
    """Least distance between dashes of different curves."""
    start_distance: float = 6.0
    """Between the beginnings of the two curves."""
    turn: float = 0.35
    """Standard deviation of the change of direction from dash to dash."""
    distractors: int = 8
    dot: float = 1.3
    """Radius of the dots."""

    def __post_init__(self) -> None:
        refuse(self.size < 16, f"size must be at least 16, not {self.size}")
        refuse(self.dashes < 3, f"dashes must be at least 3, not {self.dashes}")
        refuse(self.distractors < 0, f"distractors must not be negative, not {self.distractors}")
        for name in ("dash", "gap", "thickness", "spacing", "start_distance", "turn", "dot"):
            refuse(not getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")


def pathfinder() -> Pathfinder:
    """32 x 32."""
    return Pathfinder()


def pathx() -> Pathfinder:
    """128 x 128, as sequences 16,384 tokens."""
    return Pathfinder(size=128, dashes=14, dash=5.0, gap=3.5, thickness=1.4, spacing=6.0, start_distance=16.0,
                      turn=0.3, distractors=14, dot=3.0)  # fmt: skip


def make_pathfinder(
    settings: Pathfinder, *, task: str = "pathfinder", seed: int = 0, count: tuple[int, ...] | None = None,
    workers: int = 1, progress: Progress | None = None,
) -> tuple[Described, dict[str, Examples]]:  # fmt: skip
    """Generate the three splits as grey pictures uint8 [N,size,size,1]."""
    splits = {}
    for split, wanted in counts_of(count, PUBLISHED_COUNTS).items():
        blocks = make_blocks(
            partial(_draw_block, settings), seed=seed, split=split, blocks=-(-wanted // BLOCK), workers=workers,
            progress=progress,
        )  # fmt: skip
        images = np.concatenate([images for images, _ in blocks])[:wanted]
        labels = np.concatenate([labels for _, labels in blocks])[:wanted]
        splits[split] = Examples(a=images[..., None], labels=labels)
    described = Described(
        task=task, classes=("apart", "connected"), vocab_size=256, seed=seed, settings=vars(settings),
        origin="own generator after the published description",
    )  # fmt: skip
    return described, splits


def _draw_block(settings: Pathfinder, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    made = [draw(settings, random) for _ in range(BLOCK)]
    return np.stack([image for image, _ in made]), np.array([label for _, label in made], dtype=np.int64)


def draw(settings: Pathfinder, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """One picture uint8 [size,size] and its label: 1 where the dots lie on one curve."""
    curves = None
    while curves is None:
        curves = _two_curves(settings, random)
    label = int(random.integers(2))
    dots = [curves[0][0, 0], curves[0 if label else 1][-1, 1]]
    dashes = list(curves)
    for _ in range(settings.distractors):
        for _ in range(TRIES):
            start = random.uniform(settings.dot, settings.size - settings.dot, 2)
            found = _curve(settings, random, start, max(1, settings.dashes // 3), np.concatenate(dashes))
            if found is not None:
                dashes.append(found)
                break
    if random.integers(2):  # which curve holds the first dot must not follow from the order of drawing
        dots.reverse()
    return _rendered(settings, np.concatenate(dashes), np.array(dots)), label


def _two_curves(settings: Pathfinder, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    first = random.uniform(settings.dot, settings.size - settings.dot, 2)
    a = _curve(settings, random, first, settings.dashes, np.zeros((0, 2, 2)))
    if a is None:
        return None
    for _ in range(4 * TRIES):
        angle = random.uniform(0, 2 * np.pi)
        second = first + settings.start_distance * np.array([np.cos(angle), np.sin(angle)])
        b = _curve(settings, random, second, settings.dashes, a)
        if b is None:
            continue
        ends = np.linalg.norm(a[-1, 1] - first), np.linalg.norm(b[-1, 1] - first)
        apart = np.linalg.norm(a[-1, 1] - b[-1, 1]) > 3 * settings.dot
        if apart and min(ends) > 3 * settings.dot and abs(ends[0] - ends[1]) < settings.size / 12:
            return a, b
    return None


def _curve(
    settings: Pathfinder, random: np.random.Generator, start: np.ndarray, dashes: int, others: np.ndarray
) -> np.ndarray | None:
    """Dashes [n,2,2] (begin and end, as x and y) clear of `others` and of the curve itself; None where none fits."""
    made: list[np.ndarray] = []
    angle, point, margin = random.uniform(0, 2 * np.pi), start, settings.dot
    blocked = _points(others)
    for number in range(dashes):
        for _ in range(TRIES):
            turned = angle + (random.normal(0, settings.turn) if number else 0)
            step = np.array([np.cos(turned), np.sin(turned)])
            begin = point + (settings.gap * step if number else 0)
            dash = np.stack([begin, begin + settings.dash * step])
            inside = dash.min() >= margin and dash.max() <= settings.size - 1 - margin
            # the dash before is a neighbour on purpose; those before it must stay clear
            near = np.concatenate([blocked, _points(np.array(made[:-1]).reshape(-1, 2, 2))])
            if inside and _clear(_points(dash[None]), near, settings.spacing):
                break
        else:
            return None
        made.append(dash)
        angle, point = turned, dash[1]
    return np.array(made)


def _points(dashes: np.ndarray) -> np.ndarray:
    """Beginnings, middles and ends of dashes [n,2,2], as [3n,2]."""
    return np.concatenate([dashes[:, 0], dashes.mean(axis=1), dashes[:, 1]])


def _clear(points: np.ndarray, others: np.ndarray, spacing: float) -> bool:
    if not len(others):
        return True
    return bool((((points[:, None] - others[None]) ** 2).sum(-1)).min() >= spacing**2)


def _rendered(settings: Pathfinder, dashes: np.ndarray, dots: np.ndarray) -> np.ndarray:
    """Brightness falls from 1 to 0 over one pixel at the edge of dashes and dots."""
    axis = np.arange(settings.size, dtype=np.float32)
    pixels = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    begin, along = dashes[None, :, 0].astype(np.float32), (dashes[:, 1] - dashes[:, 0])[None].astype(np.float32)
    place = (((pixels - begin) * along).sum(-1) / (along**2).sum(-1)).clip(0, 1)
    distance = np.sqrt(((pixels - begin - place[..., None] * along) ** 2).sum(-1)).min(1) - settings.thickness / 2
    to_dots = np.sqrt(((pixels - dots[None].astype(np.float32)) ** 2).sum(-1)).min(1) - settings.dot
    brightness = (0.5 - np.minimum(distance, to_dots)).clip(0, 1)
    return np.rint(255 * brightness).astype(np.uint8).reshape(settings.size, settings.size)
