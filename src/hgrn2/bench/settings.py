"""What to measure, as frozen values with defaults; no torch here, so that the command line starts quickly."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.count import parameters
from hgrn2.settings import refuse

Op = Literal["hgru2", "gated_outer_scan", "gated_scan", "causal_conv"]
Backend = Literal["native", "chunked", "reference"]
Trained = Literal["hgrn2", "llama-hf", "mamba-hf"]
Decoded = Literal["hgrn2", "llama-hf", "llama-hf-static", "mamba-hf"]
MAX_DIFFERENCE = 0.05  # of parameter counts, between a baseline and hgrn2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How often and for how long."""

    repeats: int = 5
    """Timed rounds; everything that is compared has its turn in each."""
    max_seconds: float = 60.0
    """Of wall time for one subject in one case, after which it is not repeated again."""
    threads: int | None = None
    """To compute with; none given: PyTorch's choice."""

    def __post_init__(self) -> None:
        refuse(self.repeats < 1, f"--repeats is {self.repeats}; it must be at least 1")
        refuse(not 0 < self.max_seconds < math.inf, f"--max-seconds is {self.max_seconds}; it must be positive")
        refuse(self.threads is not None and self.threads < 1, f"--threads is {self.threads}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Size:
    """HGRN2's shape; every other model is fitted to its number of parameters at the same width and vocabulary."""

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
        self.config()  # refuses what does not fit together
        refuse(self.head_size % 2 != 0, f"head_size is {self.head_size}; Llama's rotary positions need an even one")

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
        """Of hgrn2: what the others are fitted to."""
        return parameters(self.config()).total

    def check(self, name: str, count: int) -> None:
        """Refuse to compare with a model whose number of parameters is more than 5 % off."""
        refuse(
            abs(count / self.parameters - 1) > MAX_DIFFERENCE,
            f"{name} has {count:,} parameters, hgrn2 {self.parameters:,}: more than {MAX_DIFFERENCE:.0%} apart; "
            "choose more layers, or leave it out with --subjects",
        )


@dataclass(frozen=True, kw_only=True)
class OpsBench:
    """Operators on each backend."""

    ops: tuple[Op, ...] = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")
    """Which operators."""
    backends: tuple[Backend, ...] = ()
    """Which backends; none given: all that can serve on this machine."""
    shapes: tuple[str, ...] = ("8x512x256x64", "2x2048x256x64", "4x1024x512x128")
    """BxTxDxn: sequences, tokens, channels, head size; element-wise operators have no heads and ignore the last."""
    limits: Limits = field(default_factory=lambda: Limits(repeats=9, max_seconds=10.0))

    def __post_init__(self) -> None:
        _check_distinct("--ops", self.ops)
        _check_distinct("--shapes", self.shapes)
        refuse(len(set(self.backends)) < len(self.backends), "--backends: a value is repeated")
        for shape in self.shapes:
            parse_shape(shape)


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Whole training steps of language models."""

    subjects: tuple[Trained, ...] = ("hgrn2", "llama-hf", "mamba-hf")
    """Which models."""
    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence."""
    tokens: int = 4096
    """Tokens of a step, at every length."""
    compile: bool = False
    """Use torch.compile, for every subject."""
    seed: int = 0
    """Of weights and tokens."""
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_distinct("--subjects", self.subjects)
        _check_distinct("--lengths", self.lengths)
        for length in self.lengths:
            refuse(length < 1, f"--lengths has {length}; it must be at least 1")
            refuse(
                self.tokens < 1 or self.tokens % length != 0,
                f"--tokens is {self.tokens}; it must be a multiple of the length {length}",
            )


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """Decoding with language models, one token at a time."""

    subjects: tuple[Decoded, ...] = ("hgrn2", "llama-hf", "llama-hf-static", "mamba-hf")
    """Which models."""
    contexts: tuple[int, ...] = (128, 8192)
    """Tokens of the prompt."""
    tokens: int = 200
    """Tokens decoded after it, from the same state at every repeat; a repeat is their median."""
    seed: int = 0
    """Of weights and tokens."""
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_distinct("--subjects", self.subjects)
        _check_distinct("--contexts", self.contexts)
        refuse(min(self.contexts) < 1, f"--contexts has {min(self.contexts)}; it must be at least 1")
        refuse(self.tokens < 1, f"--tokens is {self.tokens}; it must be at least 1")


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """(B, T, D, n) from BxTxDxn."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text)
    refuse(match is None, f"--shapes has {text!r}; write BxTxDxn, as in 8x512x256x64")
    assert match is not None
    batch, tokens, width, head = (int(part) for part in match.groups())
    refuse(min(batch, tokens, width, head) < 1, f"--shapes has {text!r}; every number must be at least 1")
    refuse(width % head != 0, f"--shapes has {text!r}: {width} channels do not divide into heads of {head}")
    return batch, tokens, width, head


def _check_distinct(option: str, values: Sequence[Any]) -> None:
    refuse(not values, f"{option}: name at least one")
    refuse(len(set(values)) < len(values), f"{option}: a value is repeated")
