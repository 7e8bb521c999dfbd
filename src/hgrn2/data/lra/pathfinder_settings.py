"""The numbers that Pathfinder images are drawn by, and those of the published sets."""

from dataclasses import replace

from hgrn2.settings import refuse, settings

LARGEST = 4_096  # pixels of a side


@settings
class Pathfinder:
    """Lengths in pixels; the defaults are those of the published 32 x 32 set, its hard part."""

    size: int = 32
    """Height and width of an image."""
    padding: float = 1
    """Width of the border that stays empty."""
    dashes: int = 14
    """Dashes of each of the two curves."""
    dash: float = 2
    """Length of a dash."""
    margins: tuple[float, ...] = (1.0,)
    """One is drawn for each image. Dashes of a curve are two margins apart, other dashes at least as much."""
    thickness: float = 0.5
    """Of a dash."""
    start_distance: float = 7
    """Between the beginnings of the two curves, the first of which lies at least twice that from the border."""
    continuity: float = 1.0
    """Curves turn by a with the weight cos(continuity * a)**2, up to where it is zero: smaller is curlier."""
    distractors: int = 5
    """Curves that touch no dot."""
    distractor_dashes: int = 4
    """Dashes of each of them."""
    dot: float = 1.5
    """Radius of the dots."""
    brightness: float = 1.5
    """Of a dash that covers a pixel, where a dot has 1; above 1 for dashes thinner than a pixel."""

    def __post_init__(self) -> None:
        refuse(not 16 <= self.size <= LARGEST, f"size must be from 16 to {LARGEST:,}, not {self.size}")
        refuse(self.dashes < 2, f"dashes must be at least 2, not {self.dashes}")
        refuse(self.distractors < 0, f"distractors must not be negative, not {self.distractors}")
        refuse(self.distractor_dashes < 1, f"distractor_dashes must be at least 1, not {self.distractor_dashes}")
        refuse(not self.margins or min(self.margins) <= 0, f"margins must be above 0, not {self.margins}")
        refuse(self.padding < 0, f"padding must not be negative, not {self.padding}")
        for name in ("dash", "thickness", "start_distance", "continuity", "dot", "brightness"):
            refuse(not getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("padding", "dash", "thickness", "dot"):
            refuse(getattr(self, name) > self.size, f"{name} is {getattr(self, name)}; an image has {self.size} pixels")
        refuse(max(self.margins) > self.size, f"margins are {self.margins}; an image has {self.size} pixels")
        for name in ("dashes", "distractors", "distractor_dashes"):
            most = self.size**2
            refuse(getattr(self, name) > most, f"{name} is {getattr(self, name)}; an image has {most:,} pixels")
        space = self.size - 4 * self.start_distance
        refuse(space <= 0, f"start_distance {self.start_distance} leaves no room to begin in {self.size} pixels")


def pathfinder() -> Pathfinder:
    """Pathfinder: 32 x 32."""
    return Pathfinder()


def small() -> Pathfinder:
    """A form of 16 x 16 that a CPU learns in minutes: curves of five dashes, two distractors of two."""
    return Pathfinder(size=16, dashes=5, start_distance=3, distractors=2, distractor_dashes=2)


def pathx() -> Pathfinder:
    """Path-X: 128 x 128, as sequences 16,384 tokens."""
    return Pathfinder(size=128, dash=5, margins=(2.0, 3.0), thickness=1.5, start_distance=20, continuity=1.8,
                      distractors=8, dot=3, brightness=0.9)  # fmt: skip


SHORT = (2, 3, 4, 6, 9)
"""Dashes of the curves of easier images; the published easy and middle sets have 6 and 9."""


def easier(settings: Pathfinder, dashes: int) -> Pathfinder:
    """The same images with curves of so many dashes, and in proportion fewer and shorter distractors."""
    share = dashes / settings.dashes
    few, short = round(share * settings.distractors), max(1, round(share * settings.distractor_dashes))
    return replace(settings, dashes=dashes, distractors=few, distractor_dashes=short)


def levels(settings: Pathfinder) -> list[Pathfinder]:
    """Easier images, from the easiest on."""
    return [easier(settings, dashes) for dashes in SHORT if dashes < settings.dashes] or [settings]


PRESETS = {"pathfinder": pathfinder, "pathx": pathx}
