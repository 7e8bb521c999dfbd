"""What a server may use and whom it answers, as frozen values; no torch here: the command line starts quickly."""

from dataclasses import field

from hgrn2.generate.config import GraphUse
from hgrn2.settings import refuse, settings

MIB = 1 << 20


@settings
class PrefixConfig:
    """States of prompts that were read before, from which later prompts go on."""

    cache_mb: int = 128
    """Mebibytes of states in memory at most; 0: none is kept."""
    cache_disk_mb: int = 1024
    """Mebibytes of states that had to leave memory, in temporary files; 0: they are dropped."""
    cache_int8: bool = False
    """Hold them in eight bits a number: more fit, and what follows is rounded; requests with a seed do without them."""
    cache_least: int = 16
    """Shorter texts are not kept: reading them again costs about as much as a copy."""
    cache_least_spilled: int = 512
    """Texts that are shorter are dropped rather than written to disk."""

    def __post_init__(self) -> None:
        for name in ("cache_mb", "cache_disk_mb"):
            refuse(not 0 <= getattr(self, name) <= 1 << 24, f"{name} is {getattr(self, name)}; it must be in [0, 2^24]")
        for name in ("cache_least", "cache_least_spilled"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")


@settings
class EngineConfig:
    """How many texts are written at the same time, and what one of them may ask for."""

    slots: int = 64
    """Texts that are written at the same time; each has one state."""
    chunk: int = 64
    """Tokens of a prompt read at once. Texts that are being written wait about as long as one takes, and the split
    never depends on who else is there."""
    context: int = 0
    """Tokens of a text with its prompt at most, where attention keeps all of them; 0: as many as --state-mb holds."""
    state_mb: int = 2048
    """Mebibytes of keys and values of all texts in progress at most (attention over everything): a text begins once
    all that it may need is free. Other states have a constant size, and --slots bounds them."""
    queue: int = 256
    """Requests that may wait for a slot; more are refused."""
    max_prompt: int = 1_000_000
    """Tokens of a prompt at most."""
    max_tokens: int = 100_000
    """New tokens of a text at most."""
    max_samples: int = 16
    """Continuations of one prompt at most."""
    queue_seconds: float = 60.0
    """How long a request may wait for a slot."""
    request_seconds: float = 3600.0
    """How long a request may take from its arrival to its last token."""
    graph: GraphUse = "auto"
    """On a GPU, replay the one-token step as CUDA graphs."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)

    def __post_init__(self) -> None:
        for name, most in (("slots", 4096), ("chunk", 65536), ("queue", 1 << 20), ("max_samples", 4096)):
            value = getattr(self, name)
            refuse(not 1 <= value <= most, f"{name} is {value}; it must be in [1, {most:,}]")
        for name in ("max_prompt", "max_tokens"):
            value = getattr(self, name)
            refuse(not 1 <= value <= 1 << 31, f"{name} is {value}; it must be in [1, 2^31]")
        refuse(not 0 <= self.context <= 1 << 31, f"context is {self.context}; it must be in [0, 2^31]")
        refuse(not 1 <= self.state_mb <= 1 << 24, f"state_mb is {self.state_mb}; it must be in [1, 2^24]")
        for name in ("queue_seconds", "request_seconds"):
            value = getattr(self, name)
            refuse(not 0 < value <= 1e7, f"{name} is {value}; it must be in (0, 1e7]")


@settings
class HttpConfig:
    """Where the server listens and what it takes from one client."""

    host: str = "127.0.0.1"
    """Anything else is heard by other machines, and needs keys."""
    port: int = 8000
    """0: a free one, which is printed."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the server from a browser, as https://example.org."""
    max_body_mb: int = 16
    """Mebibytes of a request's body at most."""
    max_header_bytes: int = 16384
    """Of a request's line and headers together."""
    max_connections: int = 1024
    """Open connections; more are closed at once."""
    streams_per_key: int = 64
    """Requests of one key (without keys: of all) that may be answered at the same time."""
    send_seconds: float = 30.0
    """How long a client may take to send its headers, its body, or to take a piece of an answer."""
    grace_seconds: float = 30.0
    """How long texts may go on after SIGTERM before they are ended."""
    max_states: int = 10_000
    """Saved states at most."""
    states_mb: int = 4096
    """Mebibytes of saved states at most."""
    states_int8: bool = False
    """Save states in eight bits a number: smaller files, and what goes on from them is rounded."""

    def __post_init__(self) -> None:
        refuse(not self.host, "host is empty; give an address, as 127.0.0.1")
        refuse(not 0 <= self.port < 65536, f"port is {self.port}; it must be in [0, 65535]")
        for name in ("max_body_mb", "max_connections", "streams_per_key", "max_states", "states_mb"):
            value = getattr(self, name)
            refuse(not 1 <= value <= 1 << 24, f"{name} is {value}; it must be in [1, 2^24]")
        refuse(self.max_header_bytes < 1024, f"max_header_bytes is {self.max_header_bytes}; it must be at least 1024")
        refuse(not 0 < self.send_seconds <= 3600, f"send_seconds is {self.send_seconds}; it must be in (0, 3600]")
        refuse(not 0 <= self.grace_seconds <= 3600, f"grace_seconds is {self.grace_seconds}; it must be in [0, 3600]")
        bad = [origin for origin in self.cors if "://" not in origin and origin != "*"]
        refuse(bool(bad), f"cors has {bad[:1]}; write an origin as https://example.org")
