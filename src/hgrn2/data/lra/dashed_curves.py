"""Dashed curves that keep clear of each other, grown for many images in lock-step: what Pathfinder is drawn from.

The free space of an image is a grid of cells, taken where a dash would come too near to one that is there. A dash is
tried by looking up a few points along it and placed by taking the cells of a capsule around it; the capsules of 64
directions are made once, so a step costs the same few array operations for hundreds of images as for one. The zone of a
curve's last dash is taken only after the next one was found, since that begins inside it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hgrn2.data.lra.pathfinder_settings import Pathfinder
from hgrn2.errors import UserError

DIRECTIONS = 64  # capsules kept; half a step of direction moves the end of a dash by less than a cell
TURNS = 16  # directions tried for each further dash
PLACES = 24  # places tried for the first dash of a distractor
SECOND_TRIES = 8  # second curves tried beside a first one before that is given up, too
PATIENCE = 1000  # rounds without any image after which settings are taken to leave no space for two curves
SPARE = 1.5  # spaces for each image: those that are still empty when enough are full are given up


@dataclass
class Dashes:
    """Dashes: their beginnings as y and x [...,2] and directions in radians [...]."""

    begin: np.ndarray
    angle: np.ndarray

    def __getitem__(self, index: Any) -> "Dashes":
        return Dashes(self.begin[index], self.angle[index])

    def along(self, distance: float | np.ndarray) -> np.ndarray:
        """Points at a distance from the beginnings, [...,2]."""
        return self.begin + np.asarray(distance)[..., None] * unit(self.angle)


def unit(angle: np.ndarray) -> np.ndarray:
    """Steps of length one, [...,2] as y and x."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


class FreeSpace:
    """The free space of N images, each with its margin out of `settings.margins`."""

    def __init__(self, settings: Pathfinder, choice: np.ndarray) -> None:
        """`choice` [N] holds for each image the index of its margin."""
        self.settings, self.choice, self.margin = settings, choice, np.asarray(settings.margins)[choice]
        self.fine, self.rim, self.closed, self.capsules = _prepared(settings)
        self.side = self.closed.shape[-1]
        self.points = np.linspace(0, settings.dash, int(np.ceil(settings.dash * self.fine)) + 1)
        self.taken = self.closed[choice]  # [N,side,side]

    def empty(self, rows: np.ndarray) -> None:
        """Make the images `rows` as they were at the beginning: only their borders are taken."""
        self.taken[rows] = self.closed[self.choice[rows]]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        """Number in its space [...] of the cell that holds a point [...,2]; pixel centres are whole numbers."""
        cells = np.floor((points + 0.5) * self.fine).astype(np.int64) + self.rim
        return cells[..., 0] * self.side + cells[..., 1]

    def take(self, rows: np.ndarray, dashes: Dashes) -> None:
        """Take the zones of dashes [n] in the images `rows` [n]."""
        turned = np.rint(dashes.angle * (DIRECTIONS / np.pi)).astype(np.int64) % DIRECTIONS
        base = rows * self.side**2 + self._cells(dashes.along(self.settings.dash / 2))
        flat = self.taken.reshape(-1)
        for n, capsules in enumerate(self.capsules):
            mine = self.choice[rows] == n
            flat[base[mine, None] + capsules[turned[mine]]] = True

    def free(self, rows: np.ndarray, dashes: Dashes) -> np.ndarray:
        """Whether dashes [n,K] are in free space of the images `rows` [n], bool [n,K]."""
        points = dashes.begin[:, :, None] + self.points[:, None] * unit(dashes.angle)[:, :, None]
        index = rows[:, None, None] * self.side**2 + self._cells(points)
        return np.logical_not(self.taken.reshape(-1)[index].any(axis=-1))

    def next(self, random: np.random.Generator, rows: np.ndarray, last: Dashes) -> tuple[np.ndarray, Dashes]:
        """A next dash for the curves that end with `last` [n]: which found space, bool [n], and their dashes.

        It begins two margins behind the last one, around the point half-way; a turn by a has the weight
        cos(continuity * a)**2 among those that are free.
        """
        settings, margin = self.settings, self.margin[rows]
        widest = min(np.pi, np.pi / 2 / settings.continuity)
        turns = (np.arange(TURNS) + random.random((len(rows), 1))) * (2 * widest / TURNS) - widest
        angle = last.angle[:, None] + turns
        pivot = last.along(settings.dash + margin)
        tried = Dashes(pivot[:, None] + margin[:, None, None] * unit(angle), angle)
        total = (np.cos(settings.continuity * turns) ** 2 * self.free(rows, tried)).cumsum(axis=1)
        chosen = (total > random.random((len(rows), 1)) * total[:, -1:]).argmax(axis=1)
        good = total[:, -1] > 0
        return good, tried[np.flatnonzero(good), chosen[good]]

    def grow(
        self, random: np.random.Generator, rows: np.ndarray, begin: np.ndarray, dashes: int
    ) -> tuple[np.ndarray, Dashes]:
        """One curve of `dashes` in each image of `rows` [n], its first dash at one of the places begin [n,K,2].

        Returns the images [m] where one grew, and its dashes [m,D]; the others are as they were.
        """
        every, before = rows, self.taken[rows]
        places = Dashes(begin, random.uniform(-np.pi, np.pi, begin.shape[:2]))
        free = self.free(rows, places)
        good = free.any(axis=1)
        last = places[np.flatnonzero(good), free.argmax(axis=1)[good]]
        alive, curve = np.flatnonzero(good), [last]
        for _ in range(dashes - 1):
            good, found = self.next(random, every[alive], last)
            alive, curve = alive[good], [placed[good] for placed in curve]
            self.take(every[alive], curve[-1])
            last = found
            curve.append(last)
        self.take(every[alive], last)
        failed = np.delete(np.arange(len(every)), alive)
        self.taken[every[failed]] = before[failed]
        begins, angles = [placed.begin for placed in curve], [placed.angle for placed in curve]
        return every[alive], Dashes(np.stack(begins, axis=1), np.stack(angles, axis=1))


@cache
def _prepared(settings: Pathfinder) -> tuple[int, int, np.ndarray, list[np.ndarray]]:
    """Cells a pixel, cells beyond the image, and for each margin an empty space and the capsules."""
    fine = 2 if min(settings.margins) < 2 else 1  # a small margin needs finer cells
    # how far the end of a tried dash, or the zone of a placed one, may lie outside the image
    rim = fine * int(np.ceil(settings.dash + 2 * max(settings.margins) + settings.thickness)) + 1
    side = settings.size * fine + 2 * rim
    centre = (np.arange(side) + 0.5 - rim) / fine - 0.5
    closed, capsules = [], []
    for margin in settings.margins:
        least = settings.padding - 0.5 + margin + settings.thickness / 2
        outside = (centre < least) | (centre > settings.size - 1 - least)
        closed.append(outside[:, None] | outside[None, :])
        capsules.append(_capsules(settings.dash / 2, 2 * margin + settings.thickness, fine, side))
    return fine, rim, np.stack(closed), capsules


def _capsules(half: float, reach: float, fine: int, side: int) -> np.ndarray:
    """For each direction the cells within `reach` of a dash, as offsets from its middle's number [DIRECTIONS,C]."""
    extent = int(np.ceil((half + reach) * fine))
    axis = np.arange(-extent, extent + 1)
    cells = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    found = []
    for way in unit(np.arange(DIRECTIONS) * np.pi / DIRECTIONS):  # a dash and its reverse share a capsule
        place = np.clip(cells / fine @ way, -half, half)
        inside = cells[np.linalg.norm(cells / fine - place[:, None] * way, axis=1) < reach]
        found.append(inside[:, 0] * side + inside[:, 1])
    return np.stack([np.resize(capsule, max(map(len, found))) for capsule in found])  # short ones repeat


def grow_pairs(spaces: FreeSpace, random: np.random.Generator, wanted: int) -> tuple[np.ndarray, Dashes]:
    """Two full curves in `wanted` of the spaces: which those are [n], and the dashes [n,2,D]."""
    settings, count = spaces.settings, len(spaces.choice)
    curves = Dashes(np.zeros((count, 2, settings.dashes, 2)), np.zeros((count, 2, settings.dashes)))
    full, tries = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)  # curves there; seconds tried
    near = 2 * settings.start_distance
    idle = 0
    while idle < PATIENCE:
        rows = np.flatnonzero(full == 0)
        begin = random.uniform(near - 0.5, settings.size - near - 0.5, (len(rows), 1, 2))
        rows, found = spaces.grow(random, rows, begin, settings.dashes)
        curves.begin[rows, 0], curves.angle[rows, 0], full[rows] = found.begin, found.angle, 1
        rows = np.flatnonzero(full == 1)
        tries[rows] += 1
        begin = Dashes(curves.begin[rows, 0, :1], random.uniform(-np.pi, np.pi, (len(rows), 1)))
        rows, found = spaces.grow(random, rows, begin.along(settings.start_distance), settings.dashes)
        curves.begin[rows, 1], curves.angle[rows, 1], full[rows] = found.begin, found.angle, 2
        idle = 0 if len(rows) else idle + 1
        done = np.flatnonzero(full == 2)
        if len(done) >= wanted:
            return done[:wanted], curves[done[:wanted]]
        weary = np.flatnonzero((full == 1) & (tries == SECOND_TRIES))
        spaces.empty(weary)
        full[weary] = tries[weary] = 0
    raise UserError(f"two curves of {settings.dashes} dashes hardly ever fit into {settings.size} pixels here")


def grow_distractors(
    spaces: FreeSpace, random: np.random.Generator, rows: np.ndarray, tries: int = 5
) -> list[tuple[np.ndarray, Dashes]]:
    """Short curves anywhere in the images `rows`: `settings.distractors` in each, fewer where `tries` for one fail.

    Returns sets of them, each the images [m] that have one and the dashes [m,D].
    """
    settings, found = spaces.settings, []
    for _ in range(settings.distractors):
        lacking = rows
        for _ in range(tries):
            begin = random.uniform(0, settings.size - 1, (len(lacking), PLACES, 2))
            found.append(spaces.grow(random, lacking, begin, settings.distractor_dashes))
            lacking = np.setdiff1d(lacking, found[-1][0], assume_unique=True)
            if not len(lacking):
                break
    return found
