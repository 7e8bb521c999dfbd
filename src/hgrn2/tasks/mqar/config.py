"""What a run of multi-query associative recall is, as frozen values; no torch here."""

import re
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, Literal

from hgrn2.errors import UserError
from hgrn2.models.config import ModelConfig
from hgrn2.settings import refuse, settings
from hgrn2.train.config import OptimConfig, TrainConfig

_SEGMENT = re.compile(r"(\d+)x(\d+)x(\d+)")


@settings(kw_only=False)
class Segment:
    """Examples of one length and one number of pairs."""

    length: int
    """T: tokens of a sequence."""
    pairs: int
    """P: keys with their values, and as many queries."""
    examples: int

    def __post_init__(self) -> None:
        for name in ("length", "pairs", "examples"):
            refuse(getattr(self, name) < 1, f"segment {self}: {name} must be at least 1")
        refuse(self.length % 2 != 0, f"segment {self}: the length must be even")
        need = 4 * self.pairs
        refuse(need > self.length, f"segment {self}: {self.pairs} pairs and their queries need {need} tokens")

    def __str__(self) -> str:
        return f"{self.length}x{self.pairs}x{self.examples}"

    @property
    def name(self) -> str:
        """For people: its length and number of pairs."""
        return f"{self.length} tokens, {self.pairs} pairs"

    @property
    def gaps(self) -> int:
        """Places where a query can stand: every second token behind the pairs."""
        return (self.length - 2 * self.pairs) // 2


def segment(text: str) -> Segment:
    """`LENGTHxPAIRSxEXAMPLES`, such as 64x4x100000; anything else is a `UserError`."""
    match = _SEGMENT.fullmatch(text.strip())
    if match is None:
        raise UserError(f"segment {text!r}: write it as LENGTHxPAIRSxEXAMPLES, such as 64x4x100000")
    return Segment(*(int(number) for number in match.groups()))


@settings
class MQARData:
    """Which sequences are made. The vocabulary is the model's: its lower half are keys, its upper half values."""

    train: tuple[str, ...] = ("64x4x100000", "128x8x20000", "256x16x20000", "256x32x20000", "256x64x20000")
    """Segments LENGTHxPAIRSxEXAMPLES that are trained on; a batch is of one segment."""
    test: tuple[str, ...] = (
        "64x4x1000", "64x8x1000", "64x16x1000", "128x32x1000", "256x64x1000", "512x128x1000", "1024x256x1000",
    )  # fmt: skip
    """Segments that accuracy is measured on, each by itself."""
    power: float = 0.01
    """a: a query stands in place g = 1, 2, … behind the pairs with a weight of g^(a-1). 1: anywhere alike."""
    fill: Literal["random", "zero"] = "random"
    """Tokens behind the pairs that are no query: any of the vocabulary, or all 0."""
    order: Literal["shuffled", "by_segment"] = "shuffled"
    """Batches of an epoch: in a new random order each time, or segment after segment, the same each time."""
    seed: int = 0
    """Of the examples. That of weights and order is train.seed."""

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            refuse(not getattr(self, name), f"data.{name} is empty; give at least one segment")
        refuse(not 0 < self.power <= 10, f"power is {self.power}; it must be above 0 and at most 10")
        refuse(self.seed < 0, f"data seed is {self.seed}; it must not be negative")
        for text in (*self.train, *self.test):
            segment(text)

    @property
    def train_segments(self) -> tuple[Segment, ...]:
        """What is trained on."""
        return tuple(segment(text) for text in self.train)

    @property
    def test_segments(self) -> tuple[Segment, ...]:
        """What accuracy is measured on."""
        return tuple(segment(text) for text in self.test)


@settings
class MQARRun:
    """A whole run: what `config.json` in its folder holds. `train.eval_tokens` are those of each test segment."""

    unread: ClassVar[Mapping[str, str]] = {"train.loss": "recall asks for logits at its queries alone"}
    frozen: ClassVar[bool] = False
    kind: Literal["mqar"] = "mqar"
    model: ModelConfig
    data: MQARData = field(default_factory=MQARData)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        most = max(one.pairs for one in (*self.data.train_segments, *self.data.test_segments))
        refuse(
            most > self.model.vocab_size // 2 - 1,
            f"vocab_size {self.model.vocab_size} has {max(self.model.vocab_size // 2 - 1, 0)} keys; "
            f"{most} pairs need as many",
        )
        for one in self.data.train_segments:
            few = one.examples < self.train.batch_size
            refuse(few, f"segment {one}: fewer examples than the batch size of {self.train.batch_size}")
        longest = max(one.length for one in self.data.train_segments)
        given = self.train.sequence_length
        refuse(given != longest, f"train.sequence_length is {given}; the longest training segment has {longest} tokens")

    @property
    def shortest(self) -> int:
        """Tokens of the sequences of the shortest training segment."""
        return min(one.length for one in self.data.train_segments)
