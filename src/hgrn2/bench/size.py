"""The size at which language models are compared; no torch here."""

from dataclasses import dataclass

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.count import parameters
from hgrn2.settings import refuse

MAX_DIFFERENCE = 0.05  # of parameter counts, between a baseline and hgrn2


@dataclass(frozen=True, kw_only=True)
class Size:
    """HGRN2's shape; every baseline is fitted to its number of parameters at the same width and vocabulary."""

    width: int = 256
    """D."""
    layers: int = 8
    """Blocks of hgrn2 and of Llama; Mamba, whose blocks are smaller, gets as many as the parameters allow."""
    head_size: int = 64
    """n of hgrn2, and the head size of Llama."""
    glu_width: int = 1280
    """Hidden width of hgrn2's GLU; 1280 makes 10 M parameters."""
    vocab_size: int = 256
    """Small, so that the head does not outweigh what is compared. Embedding and head are not tied."""

    def __post_init__(self) -> None:
        config = self.config()  # refuses what does not fit together
        refuse(self.head_size % 2 != 0, f"head_size is {self.head_size}; Llama's rotary positions need an even one")
        assert config.heads >= 1

    def config(self) -> ModelConfig:
        """HGRN2 of this size."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            layers=self.layers,
            mixer=MixerConfig(head_size=self.head_size),
            glu_width=self.glu_width,
        )

    @property
    def parameters(self) -> int:
        """Of hgrn2: what the baselines are fitted to."""
        return parameters(self.config()).total


def check_same_size(name: str, count: int, size: Size) -> None:
    """Refuse a comparison of models whose parameter counts differ by more than 5 %."""
    refuse(
        abs(count / size.parameters - 1) > MAX_DIFFERENCE,
        f"{name} has {count:,} parameters, hgrn2 {size.parameters:,}: more than {MAX_DIFFERENCE:.0%} apart; "
        "choose more layers, or leave it out with --subjects",
    )
