"""Decoding speed of language models side by side: one token at a time after a prompt, batch 1, greedy, float32."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hgrn2 import cpu
from hgrn2.bench.memory import peak_memory
from hgrn2.bench.record import Row, measurement
from hgrn2.bench.size import Size
from hgrn2.bench.subjects import Subject, build, check_distinct, use_threads
from hgrn2.bench.timing import Progress, Sample, interleave, silent
from hgrn2.models.modes import reading
from hgrn2.settings import refuse


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """What to measure."""

    size: Size = field(default_factory=Size)
    subjects: tuple[str, ...] = ("hgrn2", "llama-hf", "llama-hf-static", "mamba-hf")
    contexts: tuple[int, ...] = (128, 8192)
    """Tokens of the prompt."""
    tokens: int = 200
    """Decoded after it, from the same state again at every repeat."""
    repeats: int = 5
    max_seconds: float = 60.0
    """Of wall time for a subject at a context, after which it is not repeated again."""
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_distinct("--subjects", self.subjects)
        check_distinct("--contexts", self.contexts)
        refuse(min(self.contexts) < 1, f"--contexts has {min(self.contexts)}; it must be at least 1")
        refuse(self.tokens < 1, f"--tokens is {self.tokens}; it must be at least 1")
        refuse(self.repeats < 1, f"--repeats is {self.repeats}; it must be at least 1")
        refuse(not 0 < self.max_seconds < math.inf, f"--max-seconds is {self.max_seconds}; it must be positive")


@dataclass(frozen=True)
class _Ready:
    """A subject that has read its prompt."""

    subject: Subject
    decode: Sample
    details: dict[str, Any]


Key = tuple[str, int]
"""Subject and context."""


def measure(bench: DecodeBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """Measure every subject after every context, all in the same rounds, and hand the rows to `record`."""
    use_threads(bench.threads)
    conditions = {"freed_memory_kept": cpu.keep_freed_memory(), "interleaved": True}
    subjects = {name: build(name, bench.size, bench.seed) for name in bench.subjects}
    ready: dict[Key, _Ready] = {}
    for context in bench.contexts:
        for name, subject in subjects.items():
            progress(f"{name} reads {context} tokens", len(ready), len(subjects) * len(bench.contexts))
            ready[name, context] = _read_prompt(bench, subject, context)
    samples = {key: one.decode for key, one in ready.items()}
    limits = {"repeats": bench.repeats, "max_seconds": bench.max_seconds}
    taken = interleave(samples, **limits, stage="decoding", progress=progress)
    speeds = {key: [1 / seconds for seconds in times] for key, times in taken.items()}
    for (name, context), one in ready.items():
        case = {**asdict(bench.size), "dtype": "float32", "batch": 1, "context": context, "new_tokens": bench.tokens}
        shortest = statistics.median(speeds[name, min(bench.contexts)])
        ratio = statistics.median(speeds[name, context]) / shortest
        details = {**one.details, "speed_of_shortest_context": round(ratio, 4), **conditions}
        record(measurement("decode", case, name, one.subject.backend, speeds[name, context], "tokens/s", details))


def _read_prompt(bench: DecodeBench, subject: Subject, context: int) -> _Ready:
    """Read the prompt, and see what that and the decoding after it need of memory."""
    generator = torch.Generator().manual_seed(bench.seed)
    prompt = torch.randint(bench.size.vocab_size, (1, context), generator=generator)
    with reading(subject.model):
        with peak_memory() as prefill_peak:
            began = time.perf_counter()
            logits, state = subject.prefill(prompt, bench.tokens)
            seconds = time.perf_counter() - began
        first = logits.argmax(-1, keepdim=True)
        start = subject.fork(state)
        with peak_memory() as decode_peak:
            _decode(subject, first, start, bench.tokens)
    details = {
        "parameters": subject.parameters,
        "state_bytes": subject.state_bytes(state),
        "prefill_seconds": round(seconds, 4),
        "prefill_peak_bytes": prefill_peak.extra_bytes,
        "decode_peak_bytes": decode_peak.extra_bytes,
    }

    def decode() -> float:
        with reading(subject.model):
            return statistics.median(_decode(subject, first, subject.fork(state), bench.tokens))

    return _Ready(subject, decode, details)


def _decode(subject: Subject, token: torch.Tensor, state: Any, tokens: int) -> list[float]:
    """Seconds of each of `tokens` greedy steps."""
    times = []
    for _ in range(tokens):
        began = time.perf_counter()
        logits, state = subject.step(token, state)
        token = logits.argmax(-1, keepdim=True)
        times.append(time.perf_counter() - began)
    return times
