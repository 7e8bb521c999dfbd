"""What `hgrn2 bench parity` compares, as a frozen value: no torch here, so that the command line starts quickly."""

from hgrn2.settings import refuse, settings


@settings
class ParityBench:
    """A model of flash-linear-attention here and there."""

    layers: int = 24
    """Of the model; 24 are 1.3 B parameters."""
    tokens: tuple[int, ...] = (64,)
    """Lengths of the prompt; above 64 fla takes its chunked kernels."""
    count: int = 32
    """Tokens decoded greedily after it."""

    def __post_init__(self) -> None:
        refuse(not self.tokens, "--tokens: name at least one length")
        for name, least in (("layers", self.layers), ("tokens", min(self.tokens)), ("count", self.count)):
            refuse(least < 1, f"--{name} is {least}; it must be at least 1")
