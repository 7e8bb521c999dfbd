"""What a state-tuning run is, as a frozen value; no torch here. The resolved form is `config.json` in its folder."""

from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, Literal

from hgrn2.models.config import ModelConfig
from hgrn2.settings import refuse, settings
from hgrn2.train.config import DataConfig, OptimConfig, TrainConfig


def short_training() -> TrainConfig:
    """Some hundred thousand tokens: a state has few numbers to learn."""
    return TrainConfig(
        steps=200, sequence_length=256, batch_size=8, eval_every=50, eval_tokens=16_385, save_every=100, keep=1
    )


def for_states() -> OptimConfig:
    """Adam moves every number by about lr per step, and states have numbers of the order of 1: a rate far above that of
    weights. No weight decay, which would pull the state towards an empty past."""
    return OptimConfig(lr=0.3, schedule="linear", warmup_steps=10, final_lr_ratio=0.0, weight_decay=0.0, beta2=0.98)


MATRICES = "states are no matrices of blocks, which Muon is for"


@settings
class TuneSettings:
    """What can be chosen of a run; the model's settings come with the model."""

    unread: ClassVar[Mapping[str, str]] = {
        "data.validation": "further texts are measured of language models alone",
        "train.float8": "the model's own weights stay as they are",
        "train.compile": "it is not offered for state tuning",
        "data.mixture": "a state is learned on one corpus",
        "data.carry": "every sequence begins with the state that is learned",
        "optim.optimizer": MATRICES,
        "optim.matrix_lr": MATRICES,
        "optim.momentum": MATRICES,
    }
    start_tokens: int = 0
    """Begin from the state that so many tokens of the training text leave, rather than from zeros."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=short_training)
    optim: OptimConfig = field(default_factory=for_states)

    def __post_init__(self) -> None:
        refuse(self.start_tokens < 0, f"start_tokens is {self.start_tokens}; it must not be negative")
        packed = self.train.graphs and self.data.reset_at_documents
        refuse(packed, "train.graphs needs data.reset_at_documents=false: documents end elsewhere in every batch")


@settings
class TuneConfig:
    """A whole run: the settings, and which model they were for."""

    unread: ClassVar[Mapping[str, str]] = TuneSettings.unread
    frozen: ClassVar[bool] = True
    kind: Literal["state"] = "state"
    base: str
    """Folder of the frozen model, as it was given."""
    base_hash: str
    """Of its settings and weights: another model with this name is another run."""
    model: ModelConfig
    settings: TuneSettings

    @property
    def start_tokens(self) -> int:
        """Where the states begin."""
        return self.settings.start_tokens

    @property
    def data(self) -> DataConfig:
        """The text."""
        return self.settings.data

    @property
    def train(self) -> TrainConfig:
        """The loop."""
        return self.settings.train

    @property
    def optim(self) -> OptimConfig:
        """The optimiser."""
        return self.settings.optim

    @property
    def shortest(self) -> int:
        """T: every training sequence has as many tokens."""
        return self.train.sequence_length
