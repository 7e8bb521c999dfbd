"""The process around the routes: a model is loaded, a socket opened, signals end what is running cleanly."""

import asyncio
import contextlib
import gc
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from hgrn2.errors import UserError
from hgrn2.files import read_text
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.serve.driver import Driver
from hgrn2.serve.engine import Engine
from hgrn2.serve.listening import address_of, is_loopback, opened
from hgrn2.serve.settings import MIB, EngineConfig, HttpConfig
from hgrn2.serve.states import StateStore
from hgrn2.serve.templates import find_template
from hgrn2.settings import refuse

try:
    import uvicorn

    from hgrn2.serve.app import make_app
    from hgrn2.serve.protocol import limited
    from hgrn2.serve.service import Service
except ImportError as error:
    raise UserError(f"serving needs {error.name}: pip install 'hgrn2[serve]'") from None

KEY_VARIABLE = "HGRN2_API_KEY"
SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served and how."""

    model: Path
    name: str | None
    """The model's id; None: the folder's name."""
    keys: tuple[str, ...]
    states: Path | None
    """The folder of saved states; None: a temporary one, gone in the end."""
    template: Path | None
    device: str
    threads: int | None
    quantization: QuantizeConfig | None
    engine: EngineConfig
    http: HttpConfig


def serve(served: Served, *, told: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `told` gets the address once it listens.

    Raises:
        UserError: what cannot be loaded or listened on; another address than this machine's without keys.
    """
    config = served.http
    loopback = is_loopback(config.host)
    refuse(not loopback and not served.keys, f"--host {config.host} is heard by other machines: give --keys FILE")
    if served.threads is not None:
        torch.set_num_threads(served.threads)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(opened(config.host, config.port))
        loaded = load(served.model, served.device, quantization=served.quantization, warn=warn)
        generator = Generator(loaded.model, loaded.need_tokenizer())
        engine = Engine(generator.model, generator.tokenizer, served.engine)
        if generator.model.device.type == "cpu" and not engine.slots.exact:
            warn("texts may differ in their last bits with what is written beside them: products do so on this machine")
        folder = served.states or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hgrn2-states-")))
        store = StateStore(
            folder, generator.model, generator.tokenizer, max_states=config.max_states,
            max_bytes=config.states_mb * MIB, int8=config.states_int8,
        )  # fmt: skip
        name = served.name or (loaded.found.run or loaded.found.folder).resolve().name
        template = find_template(loaded.found.tokenizer, served.template)
        service = Service(generator, Driver(engine), store, template, name, loaded.example())
        shown = address_of(listening)
        run_app(service, config, served.keys, listening, lambda: told(f"serving {name} at {shown}"))


def run_app(
    service: Service, config: HttpConfig, keys: Sequence[str], listening: socket.socket, ready: Callable[[], None]
) -> None:
    """Answer on a socket until a signal; `ready` is called when it does."""
    server = make_server(service, config, keys)
    server.ready = ready
    gc.collect()
    gc.freeze()  # what is there now stays: looking for garbage among it would hold up texts
    asyncio.run(server.serve(sockets=[listening]))


def make_server(service: Service, config: HttpConfig, keys: Sequence[str]) -> "Server":
    """The server of a service, to be given a socket."""
    settings = uvicorn.Config(
        make_app(service, config, keys),
        http=limited(config.max_connections, config.send_seconds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=config.max_header_bytes,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(config.grace_seconds) + 10,
    )
    return Server(settings, service.driver, config.grace_seconds)


class Server(uvicorn.Server):
    """Uvicorn's, whose signals first let texts end."""

    ready: Callable[[], None] | None = None
    """Called once it listens."""

    def __init__(self, config: uvicorn.Config, driver: Driver, grace: float) -> None:
        super().__init__(config)
        self._driver, self._grace = driver, grace
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started and self.ready is not None:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends it once all texts have, the second at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._driver.drain(self._grace))


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of a file, one per line (lines that begin with # are none), and that of the environment."""
    lines = [] if path is None else read_text(path, MIB).splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    keys += [key for key in [os.environ.get(KEY_VARIABLE, "").strip()] if key]
    short = [key for key in keys if len(key) < SHORTEST_KEY or not key.isascii()]
    refuse(bool(short), f"a key must have at least {SHORTEST_KEY} ASCII characters")
    refuse(path is not None and not keys, f"{path} holds no key")
    return tuple(dict.fromkeys(keys))
