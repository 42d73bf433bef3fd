"""The web application: pictures and recordings over HTTP, streams over WebSocket, and the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response, WebSocket
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

import handmesh
from handmesh.records import Camera
from handmesh.server.access import Access, Gate, accept
from handmesh.server.engine import Engine
from handmesh.server.files import MEDIA_TYPES, ExportFormat, HandsFormat, write_file
from handmesh.server.pictures import read_picture_bytes
from handmesh.server.source import ServerSource, Viewer
from handmesh.server.stream import Limits, Stream, greeting
from handmesh.server.wire import HandFrame, decode_all, encode, without_mesh

PAGE = Path(__file__).parent / "page"

T = TypeVar("T")

_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BUSY_CODE = 1013  # of WebSockets: try again later
BODY_S = 60.0
"""So long the body of a request may take to come: it holds one of few places."""

router = APIRouter(prefix="/v1")


class Service:
    """What the routes share: the engine, the server's own source, limits, and how much is going on."""

    def __init__(self, engine: Engine, source: ServerSource | None, limits: Limits) -> None:
        self.engine, self.source, self.limits = engine, source, limits
        self.streams = self.pictures = self.exports = 0

    async def close(self) -> None:
        """Let the source and the engine's thread go."""
        if self.source is not None:
            await asyncio.to_thread(self.source.close)
        await asyncio.to_thread(self.engine.close)


def create_app(
    engine: Engine,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    source: ServerSource | None = None,
) -> FastAPI:
    """The application on an engine, which it closes at its own end together with the source."""
    access = access or Access()
    service = Service(engine, source, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(import_module, "trimesh")  # the first file shall not wait for it
        yield
        await service.close()

    app = FastAPI(
        title="handmesh",
        version=handmesh.__version__,
        description="A picture in, 3D hand meshes out. Streams: see demos/README.md.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.router.default = StaticFiles(directory=PAGE, html=True)  # mounted, it would answer wrong methods by 404
    app.add_middleware(Gate, access=access)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """What the server is: its version, its own source of frames if it has one, and its limits."""
    service: Service = request.app.state.service
    return {
        "name": "handmesh",
        "version": handmesh.__version__,
        "source": None if service.source is None else service.source.name,
        "max_hands": service.engine.max_hands,
        "limits": asdict(service.limits),
    }


@router.post(
    "/hands",
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A JPEG or PNG, as it is.",
            "content": {"image/jpeg": _BYTES, "image/png": _BYTES},
        }
    },
    responses={
        200: {
            "description": "The hands.",
            "content": {kind: {} for kind in ("application/json", "model/gltf-binary", "application/octet-stream")},
        },
        404: {"description": "No hand was found, and the format cannot say so (all but json and binary)."},
        408: {"description": "The picture takes too long to come."},
        413: {"description": "The picture has too many bytes."},
        415: {"description": "The picture comes in a form: it must be the body itself."},
        422: {"description": "The picture or an option cannot be used."},
        503: {"description": "Too many requests are waiting."},
    },
)
async def hands(
    request: Request,
    format: Annotated[HandsFormat, Query(description="json, a file of meshes, or the streams' binary")] = "json",
    mesh: Annotated[bool, Query(description="with vertices and faces, in json and binary")] = True,
    fx: Annotated[float | None, Query(description="focal length, px; give all four or none")] = None,
    fy: float | None = None,
    cx: float | None = None,
    cy: float | None = None,
) -> Response:
    """The hands of one picture."""
    service: Service = request.app.state.service
    if max(service.pictures, service.engine.waiting) >= service.limits.waiting:  # before a body fills the memory
        raise HTTPException(503, "too many pictures are waiting: try again in a moment", {"Retry-After": "1"})

    def work() -> tuple[bytes, str]:
        picture = read_picture_bytes(data, service.limits.picture_pixels)
        camera = _camera((fx, fy, cx, cy), picture) or service.engine.camera_of(picture)
        found = service.engine.estimator(picture, camera=camera)
        if format == "binary":
            return encode(HandFrame(found if mesh else [without_mesh(hand) for hand in found], camera, 0.0)), format
        return write_file([HandFrame(found, camera, 0.0)], format, mesh=mesh)

    service.pictures += 1
    try:
        data = await read_body(request, service.limits.picture_bytes)
        content, kind = await _or_refuse(service.engine.run(work))
    finally:
        service.pictures -= 1
    return Response(content, media_type=MEDIA_TYPES[kind], headers=_as_file(kind, "hands"))


@router.post(
    "/export",
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "Binary messages of a stream, one after another as they came: one with meshes, or a clip.",
            "content": {"application/octet-stream": _BYTES},
        }
    },
    responses={
        200: {"description": "The file; bvh of several hands is a zip."},
        404: {"description": "There is no hand in the recording."},
        408: {"description": "The recording takes too long to come."},
        413: {"description": "The recording has too many bytes."},
        415: {"description": "The recording comes in a form: it must be the body itself."},
        422: {"description": "The recording is damaged, or the format does not fit it."},
        503: {"description": "Too many recordings are being written."},
    },
)
async def export(
    request: Request,
    format: Annotated[ExportFormat, Query(description="a clip fits all but obj and ply")] = "glb",
) -> Response:
    """A file of what a stream sent: the hands of one frame, or of a clip."""
    service: Service = request.app.state.service
    if service.exports >= service.limits.exports:
        raise HTTPException(503, "other recordings are being written: try again in a moment", {"Retry-After": "2"})

    def work() -> tuple[bytes, str]:
        return write_file(
            list(decode_all(data, service.engine.faces)), format, model=service.engine.estimator.hand_model
        )

    service.exports += 1
    try:
        data = await read_body(request, service.limits.export_bytes)
        content, kind = await _or_refuse(asyncio.to_thread(work))
    finally:
        service.exports -= 1
    return Response(content, media_type=MEDIA_TYPES[kind], headers=_as_file(kind, "hands"))


@router.websocket("/stream")
async def stream(socket: WebSocket) -> None:
    """A client's frames in, their hands out: see `handmesh.server.stream`."""
    service: Service = socket.app.state.service
    async with _greeted(socket, service) as welcome:
        if welcome:
            await Stream(socket, service.engine, service.limits).serve()


@router.websocket("/source")
async def source(socket: WebSocket) -> None:
    """The hands of the server's own camera or clip."""
    service: Service = socket.app.state.service
    async with _greeted(socket, service) as welcome:
        if welcome and service.source is None:
            await socket.close(1008, "this server has no source of its own: start it with --source")
        elif welcome and service.source is not None:
            await Viewer(socket, service.source, service.limits).serve()


@asynccontextmanager
async def _greeted(socket: WebSocket, service: Service) -> AsyncIterator[bool]:
    """Accept, greet and count a client, and give True; turn it away and give False where too many are there."""
    await accept(socket)
    if service.streams >= service.limits.streams:
        await socket.close(_BUSY_CODE, f"{service.streams} streams are open, no more are allowed")
        yield False
        return
    service.streams += 1
    try:
        with contextlib.suppress(WebSocketDisconnect):  # while it is greeted
            source_name = None if service.source is None else service.source.name
            await socket.send_json(greeting(service.engine.faces, source_name))
            yield True
    finally:
        service.streams -= 1


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, or 413 as soon as it is longer than ``limit`` bytes, 408 where it takes too long, 415 for
    a form."""
    body = bytearray()
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(
            415, "send the file as the body itself, not as a form (curl --data-binary @FILE, not --form)"
        )

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > limit:
                raise HTTPException(413, f"at most {limit} bytes are taken")

    try:
        await asyncio.wait_for(read(), BODY_S)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the body has not come within {BODY_S:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body has not come to its end") from error  # which nobody reads any more
    return bytes(body)


def _camera(intrinsics: Sequence[float | None], picture: np.ndarray) -> Camera | None:
    given = [value for value in intrinsics if value is not None]
    if not given:
        return None
    if len(given) < 4:
        raise ValueError("give all four of fx, fy, cx and cy, or none")
    return Camera(*given, width=picture.shape[1], height=picture.shape[0])


async def _or_refuse(work: Awaitable[T]) -> T:
    """The result of work, whose complaints about what the client sent become HTTP's."""
    try:
        return await work
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except LookupError as error:
        raise HTTPException(404, str(error)) from error


def _as_file(kind: str, name: str) -> dict[str, str] | None:
    return None if kind in ("json", "binary") else {"Content-Disposition": f'attachment; filename="{name}.{kind}"'}
