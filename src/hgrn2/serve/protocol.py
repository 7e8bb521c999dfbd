"""Uvicorn's HTTP/1.1 with what it leaves open: too many connections, slow headers, errors in OpenAI's shape."""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hgrn2.serve.errors import error_body
from hgrn2.serve.formats import dumps


class Protocol(H11Protocol):
    """One connection."""

    most: ClassVar[int] = 1024
    seconds: ClassVar[float] = 30.0
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes; a request must be whole within its time from the first of them."""
        if self._waits:
            self._watch()
        super().data_received(data)
        if not self._waits:
            self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP: an error in the shape of all others, or, within an answer, the end of the connection."""
        self._unwatch()
        body = dumps(error_body(400, f"{msg[:1].lower()}{msg[1:].rstrip('.')}"))
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]  # fmt: skip
        try:
            parts = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
            self.transport.close()
        except h11.LocalProtocolError:
            self.transport.abort()

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._slow is None:
            self._slow = self.loop.call_later(self.seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        self._slow = None
        if self._waits:
            self.transport.close()


def limited(connections: int, seconds: float) -> type[Protocol]:
    """The protocol of one server: connections at the same time, and how long headers may take."""
    return type("Protocol", (Protocol,), {"most": connections, "seconds": seconds})
