"""The engine in a thread of its own, heard from asyncio: what it tells goes to the mailbox of each request."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence

import torch

from hgrn2.serve.engine import Engine, Told
from hgrn2.serve.errors import ApiError
from hgrn2.serve.request import Delta, Event, Failure, Request, Ticket

STATUS = {"busy": 429, "large": 400, "late": 503, "broken": 500, "closing": 503}
CODES = {"large": "context_length_exceeded"}


class Mailbox:
    """What one request is told; of one task."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def put(self, event: Event) -> None:
        """In the loop's thread."""
        self._events.append(event)
        self._news.set()

    async def take(self) -> list[Event]:
        """All that has come since the last call; waits for something."""
        await self._news.wait()
        self._news.clear()
        events, self._events = self._events, []
        return events


class Driver:
    """Runs an engine; `answer` is called in the loop that `start` was called in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._threads = torch.get_num_threads()
        self._work = threading.Condition()
        self._stopping = False
        self._mailboxes: dict[Ticket, Mailbox] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="hgrn2-engine", daemon=True)
        self._thread.start()

    async def drain(self, seconds: float) -> None:
        """Take nothing more, let texts go on for so long, then end them; the thread has ended afterwards."""
        self.engine.close()
        with self._work:
            self._work.notify()
        deadline = time.monotonic() + seconds
        while not self.engine.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        with self._work:
            self._stopping = True
            self._work.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # what was told last reaches its mailbox

    async def answer(self, request: Request) -> AsyncGenerator[tuple[Ticket, list[Delta]], None]:
        """What comes of a request, several events at a time; leaving the iteration cancels it.

        Raises:
            ApiError: too many wait, it took too long, the model failed, the server is about to end.
        """
        ticket = self.engine.submit(request)
        if isinstance(ticket, Failure):
            raise error_of(ticket)
        mailbox, left = Mailbox(), request.samples
        self._mailboxes[ticket] = mailbox
        try:
            with self._work:
                self._work.notify()
            while left:
                events = await mailbox.take()
                deltas = [event for event in events if isinstance(event, Delta)]
                left -= sum(delta.ended is not None for delta in deltas)
                if deltas:
                    yield ticket, deltas
                for event in events:
                    if isinstance(event, Failure):
                        raise error_of(event)
        finally:
            self.engine.counts.cancelled += bool(left) and not ticket.cancelled
            ticket.cancelled = True
            del self._mailboxes[ticket]

    def _run(self) -> None:
        # A new thread computes with as many as the machine has, whatever was set before, and sums in another order.
        torch.set_num_threads(self._threads)
        while True:
            with self._work:
                while self.engine.idle and not self._stopping:
                    self._work.wait()
                if self._stopping:
                    break
            self._tell(self.engine.step())
        self._tell(self.engine.cut())
        if self.engine.cache is not None:
            self.engine.cache.close()

    def _tell(self, told: Sequence[Told]) -> None:
        if told and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, told)

    def _deliver(self, told: Sequence[Told]) -> None:
        for ticket, event in told:
            mailbox = self._mailboxes.get(ticket)
            if mailbox is not None:
                mailbox.put(event)


def error_of(failure: Failure) -> ApiError:
    """The answer to a request that failed."""
    retry = 1 if failure.trouble in ("busy", "late", "closing") else None
    return ApiError(
        STATUS[failure.trouble], failure.message, code=CODES.get(failure.trouble, failure.trouble), retry=retry
    )
