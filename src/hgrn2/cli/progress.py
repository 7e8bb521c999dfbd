"""What a verb is doing, on standard error: a bar in a terminal, a line for each stage elsewhere."""

import contextlib
import sys
from collections.abc import Iterator

from hgrn2.progress import Progress


@contextlib.contextmanager
def progress_shown() -> Iterator[Progress]:
    """Shows what it is told while the context lasts; stages may come in any order, several at a time."""
    from rich import progress as rich
    from rich.console import Console

    console, shown = Console(stderr=True), set[str]()
    if not console.is_terminal:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown.add(stage)
                print(stage, file=sys.stderr, flush=True)

        yield tell
        return
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, rich.TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total or None)
