"""Answers that come bit by bit: sent as they come, given up when the client is gone or takes nothing any more."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hgrn2.serve.errors import ApiError
from hgrn2.serve.formats import dumps, event


class Json(Response):
    """A JSON value in ASCII."""

    def __init__(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(dumps(value), status, headers, media_type="application/json")


def failed(error: ApiError) -> Json:
    """An error as an answer."""
    return Json(error.body(), error.status, error.headers())


class Answer(Response):
    """The parts of an iterator: JSON, or server-sent events if `stream`.

    The status goes out with the first part, so that a request that is refused is told so; what fails later ends a
    stream with an error event.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None], *, stream: bool, seconds: float) -> None:
        """`seconds`: how long the client may take for a part."""
        kind = "text/event-stream" if stream else "application/json"
        super().__init__(media_type=kind, headers={"cache-control": "no-store"} if stream else None)
        self._parts, self._stream, self._seconds = parts, stream, seconds
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or until nobody listens."""
        sending = asyncio.create_task(self._send(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                if not task.done():
                    task.cancel()
            done = await asyncio.gather(sending, gone, return_exceptions=True)
        if isinstance(done[0], Exception) and not isinstance(done[0], TimeoutError | ConnectionError):
            raise done[0]

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._parts) as parts:
            try:
                first = await anext(parts)
            except ApiError as error:
                await failed(error)(scope, receive, send)
                return
            await self._within(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._body(send, first)
            try:
                async for part in parts:
                    await self._body(send, part)
            except ApiError as error:
                await self._body(send, event(error.body()))
        await self._body(send, b"", more=False)

    async def _body(self, send: Send, data: bytes, *, more: bool = True) -> None:
        await self._within(send, {"type": "http.response.body", "body": data, "more_body": more})

    async def _within(self, send: Send, message: Any) -> None:
        await asyncio.wait_for(send(message), self._seconds)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
