"""What `hgrn2 bench quantize` measures, as a frozen value: no torch here, so that the command line starts quickly."""

from typing import Literal

from hgrn2.settings import refuse, settings

Weights = Literal["float32", "bfloat16", "int8", "int4"]


@settings
class QuantizeBench:
    """A saved model in several precisions of its weights."""

    device: str = "cpu"
    """Where."""
    weights: tuple[Weights, ...] = ("float32", "bfloat16", "int8", "int4")
    """What matrices are held in."""
    text_tokens: int = 16_384
    """Tokens of the text from which nats/token are measured, the state being carried."""
    context: int = 512
    """Tokens of the prompt."""
    tokens: int = 100
    """Tokens decoded after it, from the same state at every repeat."""
    threads: int = 1
    """Of PyTorch."""
    repeats: int = 7
    """How often; all take turns."""

    def __post_init__(self) -> None:
        known = ("float32", "bfloat16", "int8", "int4")
        unknown = [name for name in self.weights if name not in known]
        refuse(bool(unknown), f"--weights has {', '.join(unknown)}; choose from {', '.join(known)}")
        refuse(not self.weights, "--weights: name at least one")
        refuse(len(set(self.weights)) < len(self.weights), "--weights: a value is repeated")
        refuse(self.text_tokens < 2, f"--text-tokens is {self.text_tokens}; it must be at least 2")
        for name in ("context", "tokens", "threads", "repeats"):
            refuse(getattr(self, name) < 1, f"--{name} is {getattr(self, name)}; it must be at least 1")
