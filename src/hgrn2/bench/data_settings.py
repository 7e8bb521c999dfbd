"""Settings of `hgrn2 bench data`; no torch here."""

from hgrn2.settings import refuse, settings


@settings
class DataBench:
    """How preparation is measured."""

    tokenizer: str = "bytes"
    """A spec as of hgrn2 data prepare."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes, which take turns."""
    repeats: int = 3
    """Preparations of each."""

    def __post_init__(self) -> None:
        refuse(self.repeats < 1, f"repeats is {self.repeats}; it must be at least 1")
        refuse(not self.processes or min(self.processes) < 1, "processes must be numbers from 1 on")
