"""What a state-tuning run is, as a frozen value; no torch here. The resolved form is `config.json` in its folder."""

from dataclasses import field
from typing import Literal

from hgrn2.models.config import ModelConfig
from hgrn2.settings import refuse, settings
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig


def short_training() -> TrainConfig:
    """Some hundred thousand tokens: a state has few numbers to learn."""
    return TrainConfig(
        steps=200, sequence_length=256, batch_size=8, eval_every=50, eval_tokens=16_385, save_every=100, keep=1
    )


def for_states() -> OptimConfig:
    """Adam moves every number by about lr a step, and states have numbers of the order of 1: a rate far above that of
    weights. No weight decay, which would pull the state towards an empty past."""
    return OptimConfig(lr=0.3, schedule="linear", warmup_steps=10, final_lr_ratio=0.0, weight_decay=0.0, beta2=0.98)


@settings
class TuneSettings:
    """What can be chosen of a run; the model's settings come with the model."""

    start_tokens: int = 0
    """Begin from the state that so many tokens of the training text leave, rather than from zeros."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=short_training)
    optim: OptimConfig = field(default_factory=for_states)

    def __post_init__(self) -> None:
        refuse(self.start_tokens < 0, f"start_tokens is {self.start_tokens}; it must not be negative")
        refuse(self.train.compile, "train.compile is not offered for state tuning")


@settings
class TuneConfig:
    """A whole run: the settings, and which model they were for."""

    kind: Literal["state"] = "state"
    base: str
    """Folder of the frozen model, as it was given."""
    base_hash: str
    """Of its settings and weights: another model with this name is another run."""
    model: ModelConfig
    settings: TuneSettings

    @property
    def run(self) -> RunConfig:
        """As the trainer takes it."""
        chosen = self.settings
        return RunConfig(model=self.model, data=chosen.data, train=chosen.train, optim=chosen.optim)
