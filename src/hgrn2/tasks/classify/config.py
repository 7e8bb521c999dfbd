"""What a run of classification is, as frozen values; no torch here. Sequences, pairs of them and images alike."""

from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, Literal

from hgrn2.data.augment_settings import AugmentConfig
from hgrn2.models.config import DeiTConfig, SequenceConfig, VisionConfig
from hgrn2.settings import refuse, settings
from hgrn2.train.config import OptimConfig, TrainConfig

ClassifierSettings = SequenceConfig | VisionConfig | DeiTConfig


@settings
class Curriculum:
    """Easier examples, which a run begins with."""

    steps: int = 0
    """The first so many steps learn from them; 0: none."""
    split: str = "easy"
    """Their split of the folder (`hgrn2 data lra ... --easy N` makes it)."""
    batch_size: int = 0
    """Examples of such a step, as they are often shorter; 0: train.batch_size."""
    rising: bool = False
    """The split begins with its easiest examples: step s of `steps` draws from the first share s / steps of it."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            refuse(getattr(self, name) < 0, f"data.curriculum.{name} must not be negative, not {getattr(self, name)}")


@settings
class OwnColumns:
    """How the examples of `hgrn2 train classify` stand in tables, and how new ones are read."""

    kind: Literal["none", "text", "numbers"] = "none"
    """none: the examples are no table's. text: in tokens of the run's own tokenizer. numbers: sequences of them."""
    inputs: tuple[str, ...] = ()
    """The column of the texts or sequences, or the columns whose numbers are a sequence's steps."""
    label: str = ""
    """The column of the labels."""
    header: bool = True
    """Whether the first row of a CSV file names the columns."""
    mean: tuple[float, ...] = ()
    """Of the numbers of each channel in the training examples; taken from every number."""
    deviation: tuple[float, ...] = ()
    """Their standard deviation, by which every number is then divided."""


@settings
class ClassifyData:
    """Which examples are learned from."""

    folder: str = ""
    """One that `hgrn2 data lra` or `hgrn2 data image` made; empty where the run folder holds its own (examples/)."""
    own: OwnColumns = field(default_factory=OwnColumns)
    """Of `hgrn2 train classify`."""
    train_split: str = "train"
    """Split that is trained on."""
    valid_split: str = "valid"
    """Split that is measured on during training."""
    test_split: str = "test"
    """Split that is measured on at the end."""
    grey: bool = False
    """Turn colour into grey (ITU-R 601 weights), for models of one channel."""
    too_long: Literal["cut", "stop"] = "cut"
    """A sequence longer than train.sequence_length: keep its beginning, or stop with a word."""
    multiple: int = 64
    """Batches of sequences are padded to a multiple of this many tokens."""
    pool: int = 16
    """Batches that are sorted by length together, so that little is padded; 1: none."""
    drop_tokens: float = 0.0
    """Share of the tokens of a training sequence that are left out as padding is, others in every step: against
    learning texts by heart."""
    curriculum: Curriculum = field(default_factory=Curriculum)
    """Easier examples before the others."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images."""

    def __post_init__(self) -> None:
        for name in ("multiple", "pool"):
            refuse(getattr(self, name) < 1, f"data.{name} is {getattr(self, name)}; it must be at least 1")
        refuse(not 0 <= self.drop_tokens < 1, f"data.drop_tokens is {self.drop_tokens}; it must be in [0, 1)")


@settings
class ClassifyRun:
    """A whole run: what `config.json` in its folder holds.

    `train.sequence_length` is the longest sequence that is read (of images only for the record), and
    `train.eval_tokens` the tokens of a measurement during training.
    """

    unread: ClassVar[Mapping[str, str]] = {"train.loss": "the few logits of a classifier are always whole in memory"}
    frozen: ClassVar[bool] = False
    kind: Literal["classify"] = "classify"
    task: str
    """Its name, such as listops."""
    model: ClassifierSettings
    data: ClassifyData = field(default_factory=ClassifyData)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        first, parts = self.data.curriculum.batch_size, self.train.accumulate
        refuse(first % parts != 0, f"data.curriculum.batch_size {first} does not divide into {parts} parts")
        if isinstance(self.model, SequenceConfig) and self.model.positions == "learned":
            longest, rows = self.train.sequence_length, self.model.max_length
            refuse(longest > rows, f"train.sequence_length is {longest}; the model has {rows} positions")

    @property
    def shortest(self) -> int:
        """1: a sequence may have a single token, and how long those of the data are is not known before it is read."""
        return 1
