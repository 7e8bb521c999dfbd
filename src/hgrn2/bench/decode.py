"""Decoding speed of language models side by side: one token at a time after a prompt, batch 1, greedy, float32."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hgrn2.bench.memory import peak_memory
from hgrn2.bench.record import Row, measurement
from hgrn2.bench.settings import DecodeBench
from hgrn2.bench.subjects import Subject, build
from hgrn2.bench.timing import Progress, Sample, interleave, prepare_process, silent
from hgrn2.models.modes import reading


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
    conditions = prepare_process(bench.limits)
    subjects = {name: build(name, bench.size, bench.seed) for name in bench.subjects}
    ready: dict[Key, _Ready] = {}
    for context in bench.contexts:
        for name, subject in subjects.items():
            progress(f"{name} reads {context} tokens", len(ready), len(subjects) * len(bench.contexts))
            ready[name, context] = _read_prompt(bench, subject, context)
    samples = {key: one.decode for key, one in ready.items()}
    taken = interleave(samples, bench.limits, "decoding", progress)
    speeds = {key: [1 / seconds for seconds in times] for key, times in taken.items()}
    for (name, context), one in ready.items():
        case = {**asdict(bench.size), "dtype": "float32", "batch": 1, "context": context, "new_tokens": bench.tokens}
        shortest = statistics.median(speeds[name, min(bench.contexts)])
        ratio = statistics.median(speeds[name, context]) / shortest
        details = {**one.details, "of_shortest_context": round(ratio, 4), **conditions}
        record(measurement("decode", case, name, one.subject.backend, speeds[name, context], "tokens/s", details))


def _read_prompt(bench: DecodeBench, subject: Subject, context: int) -> _Ready:
    """Read the prompt, and see what that and the decoding after it need of memory."""
    generator = torch.Generator().manual_seed(bench.seed)
    prompt = torch.randint(bench.size.vocab_size, (1, context), generator=generator)
    with reading(subject.model):
        logits, state = subject.prefill(prompt[:, :8], 1)  # pays for what is made once
        _decode(subject, logits.argmax(-1, keepdim=True), state, 1)
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
