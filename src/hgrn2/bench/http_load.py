"""Clients of a server, as light as can be: the machine that they share with it has few cores. Only for streams of our
own server and for JSON."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from hgrn2.errors import UserError


@dataclass
class Answered:
    """One answer as it came, in seconds of the performance counter."""

    asked: float
    times: list[float] = field(default_factory=list)
    """When each event with a choice came."""
    tokens: int = 0
    fault: str | None = None
    """Why there is no answer."""

    @property
    def first(self) -> float:
        """Seconds to the first event."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class Client:
    """A connection that is kept."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def stream(self, body: dict[str, Any], path: str = "/v1/completions") -> Answered:
        """Ask for a stream and note when its events come."""
        wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answered = Answered(time.perf_counter())
        try:
            status, pieces = await self._ask("POST", path, wanted)
            if status != 200:
                answered.fault = (b"".join([piece async for piece in pieces])).decode()[:200]
                return answered
            async for piece in pieces:
                now, events = time.perf_counter(), piece.split(b"\n\n")
                for event in events:
                    if b'"usage":{' in event:
                        answered.tokens = json.loads(event[6:])["usage"]["completion_tokens"]
                    elif b'"choices":[{' in event:
                        answered.times.append(now)
                    elif event.startswith(b'data: {"error"'):
                        answered.fault = event.decode()
        except (OSError, asyncio.IncompleteReadError) as error:
            answered.fault = str(error) or type(error).__name__
            await self.close()
        return answered

    async def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for a JSON value; an error is a `UserError`."""
        status, pieces = await self._ask(method, path, body)
        data = json.loads(b"".join([piece async for piece in pieces]))
        if status >= 400:
            raise UserError(f"{method} {path}: {data['error']['message']}")
        return data

    async def close(self) -> None:
        """Let the connection go."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, AsyncIterator[bytes]]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-length: {len(data)}\r\n"
        head += "content-type: application/json\r\n\r\n"
        self._writer.write(head.encode() + data)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(b" ")[1]), self._pieces(self._reader, headers)

    async def _pieces(self, reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
        if b"content-length" in headers:
            yield await reader.readexactly(int(headers[b"content-length"]))
            return
        while size := int((await reader.readline()).strip(), 16):
            piece = await reader.readexactly(size + 2)
            yield piece[:-2]
        await reader.readline()
