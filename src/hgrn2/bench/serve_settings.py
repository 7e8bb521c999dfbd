"""What `hgrn2 bench serve` measures, as a frozen value: no torch here, so that the command line starts quickly."""

from pathlib import Path
from typing import Literal

from hgrn2.settings import refuse, settings

Scenario = Literal["closed", "open", "long-prompt", "context", "state", "memory", "transformers", "int8"]


@settings
class ServeBench:
    """A server with a saved model, asked over HTTP by clients of this process."""

    scenarios: tuple[Scenario, ...] = ("closed",)
    """closed: clients that ask again as soon as they are answered; open: requests at random times, whoever is still
    being answered; long-prompt: gaps between tokens while a long prompt is read; context: decoding after a short and a
    long prompt; state: the first token after a saved state; memory: resident memory over many requests; transformers:
    its generate with the same model in batches as large as --streams; int8: what states in eight bits cost."""
    streams: tuple[int, ...] = (1, 16, 64)
    """Clients at the same time (closed; the largest one: long-prompt)."""
    rates: tuple[float, ...] = (4.0,)
    """Requests per second (open)."""
    seconds: float = 10.0
    """Of each closed and open measurement."""
    prompt: int = 32
    """Tokens of a prompt (closed, open, memory)."""
    tokens: int = 64
    """New tokens of a request (closed, open, long-prompt, context)."""
    long_prompt: int = 20_000
    """Tokens of the prompt that is read meanwhile (long-prompt)."""
    contexts: tuple[int, ...] = (128, 100_000)
    """Tokens before those that are timed (context)."""
    state_tokens: int = 50_000
    """Tokens of the text whose state is saved (state)."""
    requests: int = 10_000
    """How many, one hundredth of them before memory is first read (memory)."""
    text: Path | None = None
    """A text file that is read (int8); without one the model writes its own."""
    int8_context: int = 512
    """Tokens before the state that is held in eight bits (int8)."""
    int8_tokens: int = 256
    """Tokens that go on from it (int8)."""
    slots: int = 64
    """Of the server."""
    cache_mb: int = 128
    """Mebibytes of kept states in the server's memory."""
    threads: int | None = None
    """Of the server; None: PyTorch's choice."""
    seed: int = 0
    """Of prompts, sampling and arrivals."""

    def __post_init__(self) -> None:
        for name in ("scenarios", "streams", "rates", "contexts"):
            values = getattr(self, name)
            refuse(not values, f"--{name}: name at least one")
            refuse(len(set(values)) < len(values), f"--{name}: a value is repeated")
        for name in ("prompt", "tokens", "long_prompt", "state_tokens", "slots", "int8_context", "int8_tokens"):
            refuse(getattr(self, name) < 1, f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be positive")
        refuse(not 1 <= min(self.streams) <= max(self.streams) <= 4096, "--streams must be in [1, 4096]")
        refuse(not 0 < min(self.rates) <= max(self.rates) <= 1e4, "--rates must be in (0, 10,000]")
        refuse(min(self.contexts) < 1, "--contexts must be positive")
        refuse(self.cache_mb < 0, f"--cache-mb is {self.cache_mb}; it must not be negative")
        refuse(self.requests < 100, f"--requests is {self.requests}; it must be at least 100")
        refuse(not 0 < self.seconds <= 3600, f"--seconds is {self.seconds}; it must be in (0, 3600]")
        refuse(self.threads is not None and self.threads < 1, f"--threads is {self.threads}; it must be positive")
