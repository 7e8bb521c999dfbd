"""Who is read and who is written next. One thread calls `step`; others hand in requests and cancel them.

    submit -> queue (of each owner) -> reading (piece by piece) -> slot (one token per step) -> events

A step of the engine is one token of every text that is being written, then pieces of prompts for about as long as that
took. So a long prompt holds nobody up for more than a piece. Prompts take turns between the one with the least left and
the oldest one, so that short ones need not wait for long ones and long ones get on all the same.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.generate.sampling import NOT_FINITE
from hgrn2.generate.snapshots import Snapshot
from hgrn2.generate.text import CONTEXT, TextStream, Writing
from hgrn2.models.language import LanguageModel
from hgrn2.serve.budget import Budget
from hgrn2.serve.choosing import Choice, choose, listed
from hgrn2.serve.gates import of_row
from hgrn2.serve.prefix import PrefixCache
from hgrn2.serve.reading import Reader, Reading
from hgrn2.serve.request import Delta, Ended, Event, Failure, Request, Ticket, Token
from hgrn2.serve.settings import EngineConfig
from hgrn2.serve.slots import Slots

Told = tuple[Ticket, Event]
log = logging.getLogger("hgrn2.serve")


@dataclass
class Counts:
    """What has happened since the start."""

    requests: int = 0
    refused: int = 0
    """By a full queue."""
    cancelled: int = 0
    """By whoever asked."""
    failed: int = 0
    prompt_tokens: int = 0
    """Read, those of reused prefixes not included."""
    cached_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    hits: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    """By reason."""


@dataclass(eq=False)
class _Text:
    """A text that is being written, in the slot of its place in the list."""

    ticket: Ticket
    sample: int
    writing: Writing
    choice: Choice
    new: list[int] = field(default_factory=list)


class Engine:
    """Writes many texts at once with one model."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allocate slots and the cache of prefixes."""
        self.model, self.tokenizer, self.config = model, tokenizer, config or EngineConfig()
        self.clock, self.counts = clock, Counts()
        self.slots = Slots(model, self.config.slots, vocabulary=tokenizer.vocab_size, graph=self.config.graph)
        self.budget = Budget(model, self.config)
        prefix = self.config.prefix
        self.cache = PrefixCache(model.zeros(1), prefix) if prefix.cache_mb else None
        self._reader = Reader(model, self.config.chunk, self.cache)
        self._lock = threading.RLock()
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._readings: list[Reading] = []
        self._texts: list[_Text] = []
        self._told: list[Told] = []
        self._closing = False
        self._oldest_next = False

    # From any thread.

    def submit(self, request: Request) -> Ticket | Failure:
        """Put a request into the queue; a `Failure` where it is full, the engine is closing, or it can never fit."""
        ticket = Ticket(request, self.clock())
        refusal = self.budget.refusal(request)
        if refusal is not None:
            return Failure("large", refusal)
        with self._lock:
            if self._closing:
                return Failure("closing", "the server is shutting down")
            if self.waiting >= self.config.queue:
                self.counts.refused += 1
                return Failure("busy", f"{self.config.queue} requests wait already; try again in a moment")
            self.counts.requests += 1
            self._queues.setdefault(request.owner, deque()).append(ticket)
        return ticket

    def close(self) -> None:
        """Take no more requests; those that wait are refused, those that run go on."""
        with self._lock:
            self._closing = True

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests."""
        return self._closing

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._lock:
            return sum(len(queue) for queue in self._queues.values())

    @property
    def reading(self) -> int:
        """Prompts that are being read."""
        return len(self._readings)

    @property
    def writing(self) -> int:
        """Texts that are being written."""
        return len(self._texts)

    @property
    def idle(self) -> bool:
        """Whether a step would find nothing to do."""
        return not (self.waiting or self._readings or self._texts)

    @property
    def reserved(self) -> int:
        """Bytes that are set aside for keys and values of texts in progress."""
        return sum(map(self.budget.bytes, list(self._held())))

    # From the engine's thread.

    def step(self) -> list[Told]:
        """A token for every text, and pieces of prompts; returns what there is to tell."""
        self._sweep()
        self._admit()
        began = self.clock()
        if self._texts:
            self._guarded(self._write, [text.ticket for text in self._texts])
        seconds = self.clock() - began if self._texts else 0.0
        began = self.clock()
        while self._readings:
            self._read()
            if self.clock() - began >= seconds or any(r.ticket.cancelled for r in self._readings):
                break
        told, self._told = self._told, []
        return told

    def cut(self) -> list[Told]:
        """End everything now; texts keep what they have."""
        for reading in self._readings:
            self._fail(reading.ticket, Failure("closing", "the server is shutting down"))
        self._readings = []
        for row in reversed(range(len(self._texts))):
            text = self._texts[row]
            self._end(row, "cut", text.writing.cut(), ())
        self._drain_queue()
        told, self._told = self._told, []
        return told

    def _guarded(self, work: Callable[[], None], tickets: list[Ticket]) -> None:
        """A fault of the model or of this program ends the requests at hand, and nothing else."""
        try:
            work()
        except Exception as error:
            log.exception("a step failed")
            lines = str(error).splitlines() or [type(error).__name__]
            for ticket in dict.fromkeys(tickets):
                self._fail(ticket, Failure("broken", f"the model could not go on: {lines[0]}"))

    def _sweep(self) -> None:
        """Let go of what nobody waits for and of what took too long; slots are free at once."""
        now, config = self.clock(), self.config
        running = [one.ticket for one in (*self._readings, *self._texts)]
        late = [t for t in dict.fromkeys(running) if now - t.arrived > config.request_seconds and not t.cancelled]
        for ticket in late:
            message = f"the request took longer than {config.request_seconds:g} seconds"
            self._fail(ticket, Failure("late", message))
        self._readings = [reading for reading in self._readings if not reading.ticket.cancelled]
        for row in reversed(range(len(self._texts))):
            if self._texts[row].ticket.cancelled:
                self._free(row)
        if self._closing:
            self._drain_queue()
        with self._lock:
            for owner in list(self._queues):
                queue = self._queues[owner]
                while queue and (queue[0].cancelled or now - queue[0].arrived > config.queue_seconds):
                    ticket = queue.popleft()
                    if not ticket.cancelled:
                        message = f"the request waited longer than {config.queue_seconds:g} seconds for a slot"
                        self._fail(ticket, Failure("late", message))
                if any(ticket.cancelled for ticket in queue):
                    self._queues[owner] = deque(ticket for ticket in queue if not ticket.cancelled)
                if not self._queues[owner]:
                    del self._queues[owner]

    def _drain_queue(self) -> None:
        with self._lock:
            waiting = [ticket for queue in self._queues.values() for ticket in queue]
            self._queues.clear()
        for ticket in waiting:
            self._fail(ticket, Failure("closing", "the server is shutting down"))

    def _fail(self, ticket: Ticket, failure: Failure) -> None:
        if not ticket.cancelled:
            ticket.cancelled = True
            self.counts.failed += 1
            self._told.append((ticket, failure))

    def _admit(self) -> None:
        """Begin to read what there will be slots for; owners take turns."""
        free = self.slots.size - len(self._texts) - sum(r.ticket.request.samples for r in self._readings)
        while True:
            with self._lock:
                owner = next(iter(self._queues), None)
                if owner is None or self._queues[owner][0].request.samples > free:
                    return
                if not self.budget.fits(self._queues[owner][0].request, self._held()):
                    return
                ticket = self._queues[owner].popleft()
                self._queues.move_to_end(owner)
                if not self._queues[owner]:
                    del self._queues[owner]
            free -= ticket.request.samples
            self._guarded(lambda ticket=ticket: self._begin(ticket), [ticket])

    def _held(self) -> Iterator[Request]:
        """The request of every text in progress, those included whose prompts are read."""
        yield from (text.ticket.request for text in list(self._texts))
        for reading in list(self._readings):
            yield from [reading.ticket.request] * reading.ticket.request.samples

    def _begin(self, ticket: Ticket) -> None:
        ticket.began = self.clock()
        reading = self._reader.begin(ticket)
        if ticket.found is not None:
            why = ticket.why
            self.counts.hits += why is None
            if why is not None:
                self.counts.misses[why] = self.counts.misses.get(why, 0) + 1
        self.counts.cached_tokens += ticket.cached
        self._readings.append(reading)
        if not reading.left:
            self._enter(reading)

    def _read(self) -> None:
        """A piece of one prompt."""
        self._oldest_next = not self._oldest_next
        one = self._readings[0] if self._oldest_next else min(self._readings, key=lambda reading: reading.left)
        before = one.done
        self._guarded(lambda: self._reader.advance(one), [one.ticket])
        self.counts.prompt_tokens += one.done - before
        if not one.left and not one.ticket.cancelled:
            self._enter(one)

    def _enter(self, one: Reading) -> None:
        """Put the texts of a prompt that is read into slots."""
        self._readings.remove(one)
        ticket, request = one.ticket, one.ticket.request
        ticket.open = set(range(request.samples))
        last, start = int(request.ids[-1]), request.start
        pending = start.pending if start is not None and len(request.ids) == 1 else b""
        if request.max_tokens == 0:
            tokens = self._tokens_before(request)
            for sample in range(request.samples):
                snapshot = Snapshot(one.state.to("cpu"), last, tokens, pending) if request.snapshot else None
                self._told.append((ticket, Delta(sample, "", ended="length", snapshot=snapshot)))
            ticket.open.clear()
            return
        ids = torch.from_numpy(request.ids)
        eot = self.tokenizer.eot if request.stop_at_eot else None
        for sample in range(request.samples):
            stream = TextStream(self.tokenizer, request.ids[-CONTEXT:].tolist(), pending)
            writing = Writing(stream, request.stop, eot=eot, max_tokens=request.max_tokens)
            device, vocabulary = self.model.device, self.tokenizer.vocab_size
            choice = Choice.of(request.sampling, sample, ids, vocabulary, device)
            self.slots.enter(one.state, last)
            self._texts.append(_Text(ticket, sample, writing, choice))

    def _write(self) -> None:
        """One token of every text."""
        wants_gates = any(text.ticket.request.gates for text in self._texts)
        logits, gates = self.slots.step_with_gates() if wants_gates else (self.slots.step(), [])
        chosen = choose(logits, [text.choice for text in self._texts])
        self.slots.feed([max(0, token) for token in chosen])
        now = self.clock()
        self.counts.steps += 1
        self.counts.new_tokens += len(chosen)
        for row in reversed(range(len(self._texts))):  # from the end: freeing a slot moves the last text into it
            ticket = self._texts[row].ticket
            ticket.first = now if ticket.first is None else ticket.first
            if chosen[row] < 0:
                self._fail(ticket, Failure("broken", NOT_FINITE))
            elif not ticket.cancelled:
                self._take(row, chosen[row], logits, gates)

    def _take(self, row: int, token: int, logits: Tensor, gates: list[Tensor | None]) -> None:
        text = self._texts[row]
        request = text.ticket.request
        text.new.append(token)
        shown, ended = text.writing.take(token)
        tokens: tuple[Token, ...] = ()
        if request.logprobs is not None or request.gates:
            one = listed(logits[row], token, request.logprobs or 0)
            tokens = (Token(one.id, one.logprob, one.top, of_row(gates, row)),) if request.gates else (one,)
        if ended is not None:
            self._end(row, ended, shown, tokens)
        elif shown or tokens:
            self._told.append((text.ticket, Delta(text.sample, shown, tokens, count=len(text.new))))

    def _end(self, row: int, ended: Ended, shown: str, tokens: tuple[Token, ...]) -> None:
        """A text is complete; its slot is free for another."""
        text = self._texts[row]
        ticket, request, snapshot = text.ticket, text.ticket.request, None
        if text.new and (request.snapshot or (request.cache and self.cache is not None)):
            state = self.slots.snapshot(row)
            self._reader.finished(ticket, text.new, state)
            if request.snapshot:
                count = self._tokens_before(request) + len(text.new)
                snapshot = Snapshot(state, text.new[-1], count, text.writing.stream.pending)
        self._free(row)
        ticket.open.discard(text.sample)
        self._told.append((ticket, Delta(text.sample, shown, tokens, ended, len(text.new), snapshot)))

    def _free(self, row: int) -> None:
        self.slots.leave(row)
        last = self._texts.pop()
        if row < len(self._texts):
            self._texts[row] = last

    @staticmethod
    def _tokens_before(request: Request) -> int:
        """Length of the text up to the end of the prompt."""
        return len(request.ids) if request.start is None else request.start.tokens + len(request.ids) - 1
