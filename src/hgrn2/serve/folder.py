"""`hgrn2 serve --static`: the files of an `hgrn2 export web` folder for a browser on this machine, and nothing else."""

import asyncio
import json
import mimetypes
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from hgrn2.errors import UserError
from hgrn2.export.config import PAGE_POLICY
from hgrn2.files import read_text
from hgrn2.serve.listening import address_of, is_loopback, opened
from hgrn2.serve.settings import MIB
from hgrn2.settings import refuse

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import Response
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles
    from starlette.types import Scope
except ImportError as error:
    raise UserError(f"serving needs {error.name}: pip install 'hgrn2[serve]'") from None

FORMAT, DESCRIPTION = "hgrn2-web-1", "model.json"
TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
    ".json": "application/json", ".svg": "image/svg+xml", ".wasm": "application/wasm",
    ".onnx": "application/octet-stream", ".data": "application/octet-stream",
}  # fmt: skip
"""What a browser must be told of them: modules and wasm are run under these types only, whatever the system knows."""
HOSTS = ["127.0.0.1", "localhost", "[::1]"]


class Server(uvicorn.Server):
    """Uvicorn's, which ends at a signal and does not raise it again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers end, the second does not."""
        self.force_exit = self.should_exit
        self.should_exit = True


class Files(StaticFiles):
    """Files of one folder: no list of them, no link out of it, nothing that the export has not written."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        super().__init__(directory=folder, html=True)
        self.names = names

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file of the folder, or 404."""
        name = "index.html" if path in (".", "") else path.replace("\\", "/")
        if scope["method"] in ("GET", "HEAD") and name not in self.names:
            return Response("there is no such file\n", 404, media_type="text/plain")
        response = await super().get_response(path, scope)
        response.headers.update({
            "Content-Security-Policy": f"{PAGE_POLICY}; frame-ancestors 'none'", "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
        })  # fmt: skip
        return response


def make_app(folder: Path) -> Starlette:
    """The application of a folder.

    Raises:
        UserError: a folder that `hgrn2 export web` has not made.
    """
    for suffix, kind in TYPES.items():
        mimetypes.add_type(kind, suffix)
    files = Mount("/", Files(folder.resolve(), _names(folder)))
    return Starlette(routes=[files], middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])


def serve_folder(folder: Path, host: str, port: int, told: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `told` gets the address once it listens.

    Raises:
        UserError: no such folder, another address than this machine's, a port that is taken.
    """
    refuse(not is_loopback(host), f"--static is for this machine; put the folder on any server of files for {host}")
    app = make_app(folder)
    with opened(host, port) as listening:
        settings = uvicorn.Config(app, ws="none", lifespan="off", log_level="warning", server_header=False)
        told(f"serving {folder} at {address_of(listening)}")
        asyncio.run(Server(settings).serve(sockets=[listening]))


def _names(folder: Path) -> set[str]:
    """What the export says that it has written."""
    wanted = f"{folder} is no folder that hgrn2 export web has made"
    refuse(not (folder / DESCRIPTION).is_file(), f"{wanted}: it lacks {DESCRIPTION}")
    try:
        described = json.loads(read_text(folder / DESCRIPTION, MIB))
        good = described["format"] == FORMAT
        names = {DESCRIPTION, *described["files"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{wanted}: {DESCRIPTION} is damaged") from None
    refuse(not good, f"{wanted}: {DESCRIPTION} has another format")
    lacking = sorted(name for name in names if not (folder / name).is_file())
    refuse(bool(lacking), f"{folder} is not whole: it lacks {', '.join(lacking[:3])}")
    return names
