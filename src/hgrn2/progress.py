"""How long work tells how far it is: one kind of function, told the stage, what is done of it and how much there is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; a total of 0 is one that nobody knows."""


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def named(progress: Progress, stage: str) -> Progress:
    """The same progress with a stage of another name, for work that is one of several of a kind."""
    return lambda _, done, total: progress(stage, done, total)
