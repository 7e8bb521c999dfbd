"""States are tuned: a frozen model and a text in, a state file out, and a run folder on the way."""

from dataclasses import dataclass, replace
from pathlib import Path

from hgrn2.generate.loading import Loaded
from hgrn2.models.saved import model_hash
from hgrn2.models.tuned import check_tunable
from hgrn2.tasks.tune.config import TuneConfig, TuneSettings
from hgrn2.tasks.tune.task import STATE, TuneTask, corpora, opening_token
from hgrn2.train.run import RunResult, train

__all__ = ["TuneResult", "corpora", "opening_token", "tune_state", "with_data"]


@dataclass(frozen=True)
class TuneResult(RunResult):
    """What a run ended with; its summary has held-out measurements before and after."""

    @property
    def state(self) -> Path:
        """The learned state, for `hgrn2 generate --state`; written when the run ends."""
        return self.folder / STATE


def tune_state(
    loaded: Loaded, settings: TuneSettings, folder: Path, *, restart: bool = False, quiet: bool = False
) -> TuneResult:
    """Learn initial states for a text in `folder`, or go on where an interrupted run stopped.

    Args:
        loaded: the model, which stays as it is, and its tokenizer.
        settings: data and training; a folder that holds another run is refused.
        folder, restart, quiet: as of `hgrn2.train.run.train`.
    """
    base = loaded.model
    loaded.need_tokenizer()
    check_tunable(base.config)
    run = TuneConfig(
        base=str(loaded.found.run or loaded.found.folder), base_hash=model_hash(base), model=base.config,
        settings=settings,
    )  # fmt: skip
    found = train(run, lambda _: TuneTask(run, loaded), folder, device=str(base.device), restart=restart, quiet=quiet)
    return TuneResult(**vars(found))


def with_data(settings: TuneSettings, source: str | None) -> TuneSettings:
    """The settings with another text."""
    return settings if source is None else replace(settings, data=replace(settings.data, source=source))
