"""Figures for Prometheus: what the engine counts, read when it is asked for, and two distributions."""

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hgrn2.serve.engine import Engine
from hgrn2.serve.request import Ticket

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """A registry of its own: several servers in one process do not mix."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.began = engine, time.monotonic()
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        first = "seconds from a request's arrival to its first token"
        whole = "seconds from a request's arrival to its last token"
        self._first = Histogram("hgrn2_first_token_seconds", first, buckets=SECONDS, registry=self.registry)
        self._whole = Histogram("hgrn2_request_seconds", whole, buckets=SECONDS, registry=self.registry)
        ended = "texts by why they ended"
        self._ended = Counter("hgrn2_texts_ended", ended, ["reason"], registry=self.registry)
        self._answers = Counter("hgrn2_http_answers", "answers by status", ["status"], registry=self.registry)

    def ended(self, reason: str) -> None:
        """A text has ended."""
        self._ended.labels(reason).inc()

    def status(self, status: int) -> None:
        """A request was answered."""
        self._answers.labels(str(status)).inc()

    def answered(self, ticket: Ticket, now: float) -> None:
        """A request is complete."""
        if ticket.first is not None:
            self._first.observe(ticket.first - ticket.arrived)
        self._whole.observe(now - ticket.arrived)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What the engine knows; the registry calls it."""
        for name, about, value in self._gauges():
            yield GaugeMetricFamily(f"hgrn2_{name}", about, value=value)
        counts = self._engine.counts
        for name in ("requests", "refused", "cancelled", "failed", "prompt_tokens", "cached_tokens", "new_tokens"):
            yield CounterMetricFamily(f"hgrn2_{name}", name.replace("_", " "), value=getattr(counts, name))
        yield CounterMetricFamily("hgrn2_steps", "one-token steps", value=counts.steps)
        yield CounterMetricFamily("hgrn2_prefix_hits", "prompts that went on from a kept state", value=counts.hits)
        misses = CounterMetricFamily("hgrn2_prefix_misses", "prompts that did not, by reason", labels=["reason"])
        for reason, count in list(counts.misses.items()):
            misses.add_metric([reason], count)
        yield misses

    def describe(self) -> list[Any]:
        """Nothing beforehand: the registry need not call `collect` when it is made."""
        return []

    def _gauges(self) -> list[tuple[str, str, float]]:
        engine, cache = self._engine, self._engine.cache
        states, nbytes = (cache.states, cache.nbytes) if cache is not None else ((0, 0), (0, 0))
        return [
            ("slots", "texts that can be written at the same time", engine.slots.size),
            ("writing", "texts that are being written", engine.writing),
            ("reading", "prompts that are being read", engine.reading),
            ("waiting", "requests in the queue", engine.waiting),
            ("reserved_bytes", "bytes set aside for keys and values of texts in progress", engine.reserved),
            ("prefix_states_memory", "kept states in memory", states[0]),
            ("prefix_states_disk", "kept states on disk", states[1]),
            ("prefix_bytes_memory", "bytes of kept states and their tokens in memory", nbytes[0]),
            ("prefix_bytes_disk", "bytes of kept states on disk", nbytes[1]),
            ("uptime_seconds", "since the start", time.monotonic() - self.began),
        ]
