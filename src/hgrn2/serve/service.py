"""From a request's body to the bytes of its answer, whatever carries them."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from hgrn2.errors import UserError
from hgrn2.generate.generator import Generator
from hgrn2.generate.snapshots import Snapshot
from hgrn2.serve.driver import Driver
from hgrn2.serve.errors import ApiError
from hgrn2.serve.formats import DONE, Choice, Format, dumps, event, extras, usage
from hgrn2.serve.metrics import Metrics
from hgrn2.serve.request import Delta, Request, Ticket
from hgrn2.serve.schema import ChatRequest, CompletionRequest, StateRequest
from hgrn2.serve.states import Saved, StateStore
from hgrn2.serve.templates import ChatTemplate

PROMPTS = 64  # of one request
LONG = 20_000  # characters from which on a text is encoded in another thread
COMPLETION_TOKENS, CHAT_TOKENS = 16, 1024  # where max_tokens is not given; the former is OpenAI's

Body = CompletionRequest | ChatRequest
Part = tuple[int, Ticket, list[Delta]]


@dataclass
class Job:
    """A body that was looked at."""

    body: Body
    requests: list[Request]
    """One for each prompt."""
    prompts: list[str]
    """Their texts, where they are echoed."""
    format: Format
    owner: str
    lead: str = ""
    """Taken from the beginning of an answer, if it is there."""


class Service:
    """Answers with one model."""

    def __init__(
        self, generator: Generator, driver: Driver, states: StateStore, template: ChatTemplate, name: str,
        example: str = "",
    ) -> None:  # fmt: skip
        """`example` is a text that the page offers to continue."""
        self.generator, self.driver, self.states, self.template = generator, driver, states, template
        self.tokenizer, self.engine, self.name = generator.tokenizer, driver.engine, name
        self.state_bytes = generator.model.zeros(1).nbytes
        self.metrics, self.created = Metrics(self.engine), int(time.time())
        blocks: Any = generator.model.backbone.blocks
        layers = [{"kind": block.mixer.config.kind, "heads": getattr(block.mixer, "heads", 1) or 1} for block in blocks]
        self.about = {"chat": not template.is_plain, "example": example, "layers": layers}
        """What the page shows of the model."""

    # Looking at a body.

    async def completion(self, body: CompletionRequest, owner: str) -> Job:
        """A job of `POST /v1/completions`."""
        self._check(body)
        start = await self.start(body.state, owner)
        given = body.prompt
        several = isinstance(given, list) and (not given or not isinstance(given[0], int))
        prompts: Sequence[str | list[int]] = given if several else [given]  # type: ignore[list-item,assignment]
        if not 1 <= len(prompts) <= PROMPTS:
            raise ApiError(400, f"prompt must be one to {PROMPTS} texts or lists of ids", param="prompt")
        ids = [await self.ids(prompt, start) for prompt in prompts]
        listed = body.logprobs is not None
        requests = [self._request(body, one, start, owner, logprobs=body.logprobs) for one in ids]
        texts = [self._echoed(prompt) for prompt in prompts] if body.echo else []
        return Job(body, requests, texts, Format(self.tokenizer, self.name, chat=False, listed=listed), owner)

    async def chat(self, body: ChatRequest, owner: str) -> Job:
        """A job of `POST /v1/chat/completions`."""
        self._check(body)
        start = await self.start(body.state, owner)
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        try:
            text = self.template(messages)
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
        ids = await self.ids(text, start, param="messages")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        request = self._request(body, ids, start, owner, logprobs=logprobs, stops=self.template.stops)
        made = Format(self.tokenizer, self.name, chat=True, listed=logprobs is not None)
        return Job(body, [request], [], made, owner, lead=self.template.lead)

    async def start(self, key: str | None, owner: str) -> Snapshot | None:
        """The state that a request names."""
        return None if key is None else await asyncio.to_thread(self.states.load, key, owner)

    async def ids(self, prompt: str | list[int], start: Snapshot | None, param: str = "prompt") -> np.ndarray:
        """What has to be read."""
        try:
            if len(prompt) > LONG:
                ids = await asyncio.to_thread(self.generator.prompt_ids, prompt, start)
            else:
                ids = self.generator.prompt_ids(prompt, start)
        except UserError as error:
            raise ApiError(400, str(error), param=param) from None
        limit = self.engine.config.max_prompt
        if len(ids) > limit:
            message = f"the prompt has {len(ids):,} tokens; this server reads {limit:,} at most"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return ids

    def _check(self, body: Body) -> None:
        if body.model not in (None, self.name):
            message = f"there is no model {body.model!r} here; this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        config = self.engine.config
        most = min(config.max_samples, config.slots)
        if (body.n or 1) > most:
            raise ApiError(400, f"n is {body.n}; this server makes {most} texts of a prompt at most", param="n")
        tokens = self._max_tokens(body)
        if tokens > config.max_tokens:
            message = f"max_tokens is {tokens}; this server makes {config.max_tokens:,} at most"
            raise ApiError(400, message, param="max_tokens")

    @staticmethod
    def _max_tokens(body: Body) -> int:
        if isinstance(body, CompletionRequest):
            return COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return CHAT_TOKENS if given is None else given

    def _request(
        self, body: Body, ids: np.ndarray, start: Snapshot | None, owner: str, *, logprobs: int | None,
        stops: tuple[str, ...] = (),
    ) -> Request:  # fmt: skip
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        tokens, context = self._max_tokens(body), self.engine.budget.context
        if context and isinstance(body, ChatRequest) and body.max_tokens is body.max_completion_tokens is None:
            before = len(ids) if start is None else start.tokens - 1 + len(ids)
            tokens = max(1, min(tokens, context - before))  # nobody has asked for so many
        return Request(
            ids=ids,
            start=start,
            sampling=body.sampling(seed),
            seeded=body.seed is not None,
            max_tokens=tokens,
            stop=(*body.stops, *stops),
            stop_at_eot=not body.ignore_eos,
            samples=body.n or 1,
            logprobs=logprobs,
            gates=body.gates,
            cache=body.cache_prompt,
            snapshot=body.save_state,
            owner=owner,
        )

    def _echoed(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    # Answering.

    async def stream(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        choices = self._choices(job)
        with_usage = job.body.stream_options is not None and job.body.stream_options.include_usage
        tickets: dict[int, Ticket] = {}
        async with aclosing(self._parts(job)) as parts:
            async for number, ticket, deltas in parts:
                tickets[number] = ticket
                yield b"".join([await self._chunk(job, choices, number, ticket, one, with_usage) for one in deltas])
        self._answered(tickets)
        if with_usage:
            yield event({**job.format.head(chunk=True), "choices": [], "usage": self._usage(job, choices, tickets)})
        yield DONE

    async def whole(self, job: Job) -> AsyncGenerator[bytes, None]:
        """One JSON object."""
        choices = self._choices(job)
        tickets: dict[int, Ticket] = {}
        async with aclosing(self._parts(job)) as parts:
            async for number, ticket, deltas in parts:
                tickets[number] = ticket
                for delta in deltas:
                    await self._take(job, choices, number, delta)
        self._answered(tickets)
        shown = [job.format.choice(one, one.text, one.tokens, chunk=False) for one in choices]
        yield dumps({
            **job.format.head(chunk=False), "choices": shown, "usage": self._usage(job, choices, tickets),
            "hgrn2": extras(tickets[0], self.state_bytes),
        })  # fmt: skip

    async def read(self, body: StateRequest, owner: str) -> Saved:
        """`POST /v1/states`: read a text and save where it ends."""
        start = await self.start(body.state, owner)
        if not body.prompt and start is not None:
            return await asyncio.to_thread(self.states.add, start, owner, name=body.name, parent=body.state)
        ids = await self.ids(body.prompt, start)
        sampling = CompletionRequest().sampling(0)
        wanted = Request(ids=ids, start=start, sampling=sampling, max_tokens=0, snapshot=True, owner=owner)
        made: Snapshot | None = None
        async with aclosing(self.driver.answer(wanted)) as answer:
            async for _, (delta, *_) in answer:
                made = delta.snapshot
        assert made is not None  # it was asked for
        return await asyncio.to_thread(self.states.add, made, owner, name=body.name, parent=body.state)

    async def _parts(self, job: Job) -> AsyncGenerator[Part, None]:
        """What comes of every prompt, as it comes."""
        if len(job.requests) == 1:
            async with aclosing(self.driver.answer(job.requests[0])) as answer:
                async for ticket, deltas in answer:
                    yield 0, ticket, deltas
            return
        news: asyncio.Queue[Part | Exception | None] = asyncio.Queue()

        async def follow(number: int, request: Request) -> None:
            try:
                async with aclosing(self.driver.answer(request)) as answer:
                    async for ticket, deltas in answer:
                        news.put_nowait((number, ticket, deltas))
                news.put_nowait(None)
            except Exception as error:
                news.put_nowait(error)

        tasks = [asyncio.create_task(follow(n, request)) for n, request in enumerate(job.requests)]
        try:
            going = len(tasks)
            while going:
                part = await news.get()
                if isinstance(part, Exception):
                    raise part
                if part is None:
                    going -= 1
                else:
                    yield part
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _answered(self, tickets: dict[int, Ticket]) -> None:
        for ticket in tickets.values():
            self.metrics.answered(ticket, self.engine.clock())

    def _choices(self, job: Job) -> list[Choice]:
        choices = [Choice(n) for n in range(len(job.requests) * (job.body.n or 1))]
        for n, prompt in enumerate(job.prompts):
            for one in choices[n * (job.body.n or 1) : (n + 1) * (job.body.n or 1)]:
                one.text = prompt
        return choices

    async def _take(self, job: Job, choices: list[Choice], number: int, delta: Delta) -> tuple[Choice, str]:
        """Add a delta to its choice; returns what it adds to the text."""
        one = choices[number * (job.body.n or 1) + delta.sample]
        text = delta.text
        if text and not one.begun:
            text, one.begun = text.removeprefix(job.lead), True
        if job.body.stream and job.prompts and not one.told:
            text = one.text + text
        one.text += text if not job.body.stream else ""
        one.count, one.ended = max(one.count, delta.count), delta.ended
        if not job.body.stream:
            one.tokens.extend(delta.tokens)
        if delta.ended is not None:
            self.metrics.ended(delta.ended)
            if delta.snapshot is not None and job.body.save_state:
                saved = await asyncio.to_thread(self.states.add, delta.snapshot, job.owner, parent=job.body.state)
                one.state = saved.id
        return one, text

    async def _chunk(
        self, job: Job, choices: list[Choice], number: int, ticket: Ticket, delta: Delta, with_usage: bool
    ) -> bytes:
        one, text = await self._take(job, choices, number, delta)
        tokens = list(delta.tokens)
        made = {**job.format.head(chunk=True), "choices": [job.format.choice(one, text, tokens, chunk=True)]}
        if with_usage:
            made["usage"] = None
        told = {"gates": job.format.gates(one, tokens)} if job.body.gates else {}
        own = choices[number * (job.body.n or 1) : (number + 1) * (job.body.n or 1)]
        if delta.ended is not None and all(other.ended is not None for other in own):
            told |= extras(ticket, self.state_bytes)
        if told:
            made["hgrn2"] = told
        return event(made)

    def _usage(self, job: Job, choices: list[Choice], tickets: dict[int, Ticket]) -> dict[str, object]:
        before = sum(len(request.ids) - (request.start is not None) for request in job.requests)
        return usage(before, sum(ticket.cached for ticket in tickets.values()), sum(one.count for one in choices))
