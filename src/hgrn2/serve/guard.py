"""What stands before every route: keys, sizes, slow bodies, how many at once, and names of hosts."""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hgrn2.serve.answers import failed
from hgrn2.serve.errors import ApiError
from hgrn2.serve.settings import MIB, HttpConfig

OPEN = ("/health",)  # answered without a key, beside the page's files
PRIVATE = ("/v1", "/metrics", "/docs", "/openapi.json")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """ASGI middleware. It puts the owner of a request into `scope["owner"]`: of equal keys the same, and of no use to
    anyone who reads it."""

    def __init__(
        self, app: ASGIApp, *, config: HttpConfig, keys: Sequence[str], closing: Callable[[], bool],
        answered: Callable[[int], None],
    ) -> None:  # fmt: skip
        """`answered` is told the status of every answer."""
        self.app, self.config, self.closing, self.answered = app, config, closing, answered
        self.keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answered(message["status"])
            await send(message)

        try:
            owner = self._admit(scope)
        except ApiError as error:
            await failed(error)(scope, receive, noted)
            return
        scope["owner"] = owner
        self.running[owner] += 1
        try:
            body = await self._body(receive)
            if body is not None:
                await self.app(scope, _again(body, receive), noted)
        except ApiError as error:  # a body that is too long or too slow
            await failed(error)(scope, receive, noted)
        finally:
            self.running[owner] -= 1
            if not self.running[owner]:
                del self.running[owner]

    def _admit(self, scope: Scope) -> str:
        headers, path = Headers(scope=scope), scope["path"]
        if not self.keys:
            self._check_host(headers.get("host", ""))
        private = path.startswith(PRIVATE)
        owner = self._owner(headers) if private else ""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.config.max_body_mb * MIB:
            raise ApiError(413, self._too_large, code="body_too_large")
        if private and self.closing():
            raise ApiError(503, "the server is shutting down", code="closing", retry=5)
        if private and self.running[owner] >= self.config.streams_per_key:
            message = f"{self.config.streams_per_key} requests are being answered already; try again when one has ended"
            raise ApiError(429, message, code="too_many_streams", retry=1)
        return owner

    def _owner(self, headers: Headers) -> str:
        if not self.keys:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        mine = hashlib.sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(mine, one) for one in self.keys]  # all of them: how long it takes tells nothing
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(401, "give a key of this server as Authorization: Bearer KEY", code="invalid_api_key")
        return mine.hex()[:16]

    def _check_host(self, host: str) -> None:
        """A page in a browser may have a name of its own lead here: without keys only this machine's are heard."""
        name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
        if name.strip("[]") not in (*LOOPBACK, self.config.host):
            raise ApiError(403, f"this server is not named {name!r:.60}", code="unknown_host")

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, within its size and time; None where the client has left."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.config.send_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.config.max_body_mb * MIB:
                        raise ApiError(413, self._too_large, code="body_too_large")
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            message = f"the body did not come within {self.config.send_seconds:g} seconds"
            raise ApiError(408, message, code="slow_body") from None

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.config.max_body_mb} MiB"


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what comes after it: that the client has left."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
