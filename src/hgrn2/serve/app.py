"""The routes."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from hgrn2 import __version__
from hgrn2.export.config import PAGE_POLICY
from hgrn2.serve.answers import Answer, Json, failed
from hgrn2.serve.errors import ApiError, invalid
from hgrn2.serve.guard import Guard
from hgrn2.serve.memory import compared, remembered
from hgrn2.serve.metrics import CONTENT_TYPE
from hgrn2.serve.schema import ChatRequest, CompareRequest, CompletionRequest, ForkRequest, StateRequest
from hgrn2.serve.service import Service
from hgrn2.serve.settings import HttpConfig

STATIC = Path(__file__).parent / "static"
log = logging.getLogger("hgrn2.serve")


def owner_of(request: Request) -> str:
    """Whose request it is; see `Guard`."""
    return request.scope["owner"]


Owner = Annotated[str, Depends(owner_of)]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "an error, in OpenAI's shape"}
    for status in (400, 401, 403, 404, 405, 408, 409, 413, 429, 503)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
UPLOAD = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
MADE: dict[int | str, dict[str, Any]] = {201: {"description": "the state that was made"}}


class Page(StaticFiles):
    """The page's files, with what a browser may do with them: no request to anywhere else, in no frame."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file; asked for anew each time, so that another version is seen at once."""
        response = await super().get_response(path, scope)
        response.headers.update({
            "Content-Security-Policy": f"{PAGE_POLICY}; frame-ancestors 'none'", "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
        })  # fmt: skip
        return response


def make_app(service: Service, config: HttpConfig, keys: Sequence[str] = (), *, static: Path = STATIC) -> FastAPI:
    """The application; the engine's thread runs from its start to its end.

    Args:
        service: answers with one model.
        config: limits of what is taken from clients.
        keys: of clients; none: everyone who reaches the server is served.
        static: the page's files.
    """

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.driver.start()
        yield
        await service.driver.drain(config.grace_seconds)

    app = FastAPI(title="hgrn2", version=__version__, lifespan=life, redoc_url=None, responses=ERRORS)
    app.state.service = service
    _completions(app, service, config)
    _states(app, service)
    _about(app, service)
    if static.is_dir():
        app.mount("/", Page(directory=static, html=True), name="page")
    _errors(app)
    _described(app, service.name)
    app.add_middleware(
        Guard, config=config, keys=keys, closing=lambda: service.engine.closing, answered=service.metrics.status
    )
    if config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors), allow_methods=["*"], allow_headers=["*"]
        )  # fmt: skip
    return app


def _completions(app: FastAPI, service: Service, config: HttpConfig) -> None:
    @app.post("/v1/completions", responses=STREAM)
    async def completions(body: CompletionRequest, owner: Owner) -> Response:
        job = await service.completion(body, owner)
        parts = service.stream(job) if body.stream else service.whole(job)
        return Answer(parts, stream=bool(body.stream), seconds=config.send_seconds)

    @app.post("/v1/chat/completions", responses=STREAM)
    async def chat(body: ChatRequest, owner: Owner) -> Response:
        job = await service.chat(body, owner)
        parts = service.stream(job) if body.stream else service.whole(job)
        return Answer(parts, stream=bool(body.stream), seconds=config.send_seconds)


def _states(app: FastAPI, service: Service) -> None:
    store = service.states

    @app.get("/v1/states")
    async def states(owner: Owner) -> Response:
        return Json({"object": "list", "data": [saved.shown(service.name) for saved in store.all(owner)]})

    @app.post("/v1/states", status_code=201, responses=MADE)
    async def read(body: StateRequest, owner: Owner) -> Response:
        return Json((await service.read(body, owner)).shown(service.name), 201)

    @app.post("/v1/states/load", status_code=201, responses=MADE, openapi_extra=UPLOAD)
    async def load(request: Request, owner: Owner, name: str = "") -> Response:
        data = await request.body()
        return Json((await asyncio.to_thread(store.upload, data, owner, name)).shown(service.name), 201)

    @app.post("/v1/states/compare")
    async def compare(body: CompareRequest, owner: Owner) -> Response:
        snapshots = [await asyncio.to_thread(store.load, key, owner) for key in (body.a, body.b)]
        found = await asyncio.to_thread(compared, service.generator.model, *snapshots)
        return Json({"a": body.a, "b": body.b, **found})

    @app.get("/v1/states/{key}")
    async def state(key: str, owner: Owner) -> Response:
        return Json(store.get(key, owner).shown(service.name))

    @app.delete("/v1/states/{key}")
    async def delete(key: str, owner: Owner) -> Response:
        await asyncio.to_thread(store.delete, key, owner)
        return Json({"id": key, "object": "state", "deleted": True})

    @app.post("/v1/states/{key}/fork", status_code=201, responses=MADE)
    async def fork(key: str, owner: Owner, body: Annotated[ForkRequest | None, Body()] = None) -> Response:
        name = "" if body is None else body.name
        return Json((await asyncio.to_thread(store.fork, key, owner, name)).shown(service.name), 201)

    @app.get("/v1/states/{key}/file", responses=BYTES)
    async def file(key: str, owner: Owner) -> Response:
        path = store.file(key, owner)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @app.get("/v1/states/{key}/memory")
    async def memory(key: str, owner: Owner) -> Response:
        snapshot = await asyncio.to_thread(store.load, key, owner)
        return Json({"id": key, **await asyncio.to_thread(remembered, service.generator.model, snapshot)})


def _about(app: FastAPI, service: Service) -> None:
    engine = service.engine
    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "hgrn2"}
    model |= {"hgrn2": service.about}

    @app.get("/v1/models")
    async def models() -> Response:
        return Json({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != service.name:
            raise ApiError(404, f"there is no model {name!r} here; this server has {service.name!r}", param="model")
        return Json(model)

    @app.get("/health")
    async def health() -> Response:
        closing = engine.closing
        value = {
            "status": "closing" if closing else "ok", "model": service.name, "slots": engine.slots.size,
            "writing": engine.writing, "reading": engine.reading, "waiting": engine.waiting,
            "exact": engine.slots.exact, "state_bytes": service.state_bytes,
            "token_bytes": engine.budget.token_bytes, "context": engine.budget.context or None,
        }  # fmt: skip
        return Json(value, 503 if closing else 200)

    @app.get("/metrics", responses={200: {"content": {CONTENT_TYPE: {}}}})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _described(app: FastAPI, name: str) -> None:
    """What /openapi.json says beside what the routes do: which model there is, and that 400 is what others call 422."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = made()
            for methods in described["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            for kind in ("CompletionRequest", "ChatRequest"):
                described["components"]["schemas"][kind]["properties"]["model"]["enum"] = [name, None]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> Response:
        return failed(error)

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> Response:
        message, param = invalid(next(iter(error.errors()), {}))
        return failed(ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        status, path = error.status_code, request.url.path
        known = any(isinstance(route, APIRoute) and route.path_regex.match(path) for route in app.routes)
        if status in (404, 405):  # the page's files answer for every path
            status = 405 if known else 404
        said = {
            404: f"there is no route {path!r:.100}",
            405: f"{request.method:.20} does not go with {path!r:.100}",
        }.get(status, str(error.detail))
        return Json(ApiError(status, said).body(), status, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return failed(ApiError(500, "this server failed over the request; its log says more"))
