"""How text is drawn from a model, as frozen values; no torch here, so that the command line starts quickly."""

from dataclasses import field
from typing import Literal

from hgrn2.settings import refuse, settings

GraphUse = Literal["auto", "on", "off"]
StateDtype = Literal["float32", "bfloat16"]


@settings
class SamplingConfig:
    """How one token is chosen from its logits. The steps apply in the order of the fields (hgrn2.generate.sampling)."""

    greedy: bool = False
    """Always the most probable token; of the fields below only the repetition penalty then has an effect."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens that occurred already; 1: off."""
    temperature: float = 1.0
    """Divide logits by it: below 1 sharper, above 1 flatter."""
    top_k: int = 0
    """Keep the k most probable tokens; 0: off."""
    top_p: float = 1.0
    """Keep the fewest most probable tokens that together have at least this probability; 1: off."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one; 0: off."""
    seed: int | None = None
    """Of the random numbers: sample n of a call has those of seed + n. None: another one each time."""

    def __post_init__(self) -> None:
        positive = self.temperature > 0
        refuse(not positive, f"temperature is {self.temperature}; it must be positive (greedy takes the most probable)")
        penalty = self.repetition_penalty
        refuse(not 1e-9 <= penalty <= 1e9, f"repetition_penalty is {penalty}; it must be in [1e-9, 1e9]")
        refuse(self.top_k < 0, f"top_k is {self.top_k}; it must not be negative")
        refuse(not 0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be in (0, 1]")
        refuse(not 0 <= self.min_p <= 1, f"min_p is {self.min_p}; it must be in [0, 1]")
        refuse(self.seed is not None and not 0 <= self.seed < 2**62, f"seed is {self.seed}; it must be in [0, 2^62)")


@settings
class GenerationConfig:
    """What is generated: how much, where it ends, how many samples."""

    max_tokens: int = 200
    """Tokens of each sample at most; 0 only reads the prompt."""
    stop: tuple[str, ...] = ()
    """A sample ends before the first of these texts, which is not part of it."""
    stop_at_eot: bool = True
    """A sample ends at the tokenizer's end of document."""
    samples: int = 1
    """Continuations of the one prompt, drawn side by side."""
    segment: int = 512
    """Tokens of the prompt read at a time: it bounds memory and does not change the result."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    graph: GraphUse = "auto"
    """Replay the one-token step as a CUDA graph: where it can be and pays, always (an error elsewhere), or never."""
    state_dtype: StateDtype = "float32"
    """Of the states of hgru2, gla and attention while tokens are made; bfloat16 halves what large batches move, and
    rounds after every token (keys and values of attention: once). A float64 model keeps float64."""

    def __post_init__(self) -> None:
        refuse(self.max_tokens < 0, f"max_tokens is {self.max_tokens}; it must not be negative")
        refuse("" in self.stop, "a stop text is empty; it must have at least one character")
        for name in ("samples", "segment"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
