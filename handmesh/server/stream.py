"""WebSocket streams: a client's frames in and their hands out, or the hands of the server's own source out.

A client sends each frame as one binary message, a little-endian double with the frame's time in seconds followed by a
JPEG or PNG, and options as JSON text (`StreamOptions`) at any time. It gets a greeting (`greeting`), then a binary
message (`handmesh.server.wire`) or JSON text a frame, and ``{"type": "error", "message": ..., "lost": ...}`` where a
frame or an option is wrong or, with ``lost`` true, the server's source gives nothing for now. A frame that comes while
another is worked on replaces those that wait: the freshest wins.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

import anyio
import numpy as np
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from handmesh.records import DEFAULT_FOV_DEG, Camera
from handmesh.server.access import Bucket
from handmesh.server.engine import Engine, Newest
from handmesh.server.pictures import read_picture_bytes
from handmesh.server.wire import VERSION, HandFrame, encode, frame_to_json, without_mesh
from handmesh.skeleton import KEYPOINT_BONES, KEYPOINTS
from handmesh.smoothing import Smoothing
from handmesh.tracker import HandTracker

Format = Literal["json", "binary"]
_TIME = struct.Struct("<d")


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        picture_bytes: of an encoded picture.
        picture_pixels: of a picture, decoded.
        export_bytes: of a recording to export.
        messages_per_s: of one stream; it is closed where they go on to be more.
        streams: open at once, of all clients.
        waiting: jobs that wait for the estimator, or pictures on their way to it, past which pictures are refused.
        exports: recordings that come and are written at once.
    """

    picture_bytes: int = 8_000_000
    picture_pixels: int = 16_000_000
    export_bytes: int = 100_000_000
    messages_per_s: float = 120.0
    streams: int = 4
    waiting: int = 8
    exports: int = 2


@dataclass(frozen=True)
class StreamOptions:
    """How a stream answers; a client changes any of them by a JSON object of these names."""

    format: Format = "json"
    mesh: bool = True
    """Send vertices, not just joints and parameters."""
    smoothing: bool = True
    """Of a client's own frames; the server's own source has one setting for all."""
    picture: bool = False
    """Send the frames of the server's own source too, as JPEG; in binary messages only."""
    fov_deg: float = DEFAULT_FOV_DEG
    """Field of view assumed across the longer side where neither client nor server knows the camera."""
    camera: Camera | None = None
    """Intrinsics as an object fx, fy, cx, cy, width, height (px of the frames as sent) and, where the lens bends
    straight lines, OpenCV's distortion; null for the server's."""

    def updated(self, text: str) -> StreamOptions:
        """These options with a client's changes. Raises ``ValueError`` that says what is wrong with them."""
        try:
            changes = json.loads(text, parse_int=float)  # a whole number may be too large for what computes with it
        except (ValueError, RecursionError) as error:
            raise ValueError(f"options must be a JSON object, but this is no JSON: {text[:80]!r}") from error
        known = {option.name for option in fields(self)}
        if not isinstance(changes, dict) or not changes.keys() <= known:
            raise ValueError(f"options must be a JSON object with names among {', '.join(sorted(known))}")
        for name, value in changes.items():
            if isinstance(getattr(self, name), bool) and not isinstance(value, bool):
                raise ValueError(f"the option {name} must be true or false, not {value!r}")
        if changes.get("format", "json") not in get_args(Format):
            raise ValueError(f'the option format must be "json" or "binary", not {changes["format"]!r}')
        if isinstance(changes.get("camera"), dict):
            changes["camera"] = _camera(changes["camera"])
        elif changes.get("camera") is not None:
            raise ValueError("the option camera must be an object or null")
        fov_deg = changes.get("fov_deg", self.fov_deg)
        if isinstance(fov_deg, bool) or not isinstance(fov_deg, int | float) or not 5 <= fov_deg <= 170:
            raise ValueError(f"the option fov_deg must be a number from 5 to 170, not {fov_deg!r}")
        return replace(self, **changes)


def _camera(values: dict[str, Any]) -> Camera:
    numbers = {name: values.get(name) for name in ("fx", "fy", "cx", "cy", "width", "height")}
    distortion = values.get("distortion", [])
    lens = distortion if isinstance(distortion, list) else [distortion]
    for name, value in [*numbers.items(), *(("distortion", value) for value in lens)]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"camera.{name} must be a number, not {value!r}")
    return Camera(**numbers, distortion=lens)  # pyright: ignore[reportArgumentType]


def greeting(faces: np.ndarray, source: str | None) -> dict[str, Any]:
    """The first message of a stream: the protocol's version and what does not change from frame to frame."""
    return {
        "type": "hello",
        "version": VERSION,
        "source": source,
        "keypoint_names": list(KEYPOINTS),
        "bones": [list(bone) for bone in KEYPOINT_BONES],
        "faces": faces.tolist(),
        "faces_of": "right hands, wound outwards; a left hand's are the same with each triangle turned round",
    }


def parse_frame(message: bytes, limits: Limits) -> tuple[float, bytes]:
    """A client's frame: its time and its encoded picture. Raises ``ValueError`` for what is none."""
    if len(message) <= _TIME.size:
        raise ValueError("a frame is a little-endian double, its time in seconds, followed by a JPEG or PNG")
    if len(message) - _TIME.size > limits.picture_bytes:
        raise ValueError(f"the picture has {len(message)} bytes; at most {limits.picture_bytes} are taken")
    (time_s,) = _TIME.unpack_from(message)
    if not math.isfinite(time_s):
        raise ValueError("a frame's time must be a finite number of seconds")
    return time_s, message[_TIME.size :]


class Stream:
    """A client's own frames through a tracker of its own."""

    def __init__(self, socket: WebSocket, engine: Engine, limits: Limits) -> None:
        self._socket, self._engine, self._limits = socket, engine, limits
        self._options = StreamOptions()
        self._inbox: Newest[tuple[float, bytes]] = Newest()
        self._tracker: HandTracker | None = None
        self._smoothing = Smoothing()
        self._last_s = -math.inf

    async def serve(self) -> None:
        """Answer until either side ends."""
        await converse(self._socket, self._limits, self._hear, self._answer)

    def _hear(self, message: Message) -> None:
        if message.get("bytes") is not None:
            self._inbox.put(parse_frame(message["bytes"], self._limits))
        else:
            self._options = self._options.updated(message["text"])

    async def _answer(self) -> None:
        while True:
            time_s, data = await self._inbox.get()
            try:
                reply = await self._engine.run(partial(self._process, time_s, data))
            except ValueError as error:
                await say_error(self._socket, str(error))
            else:
                await send(self._socket, reply)

    def _process(self, time_s: float, data: bytes) -> bytes | str:
        """On the engine's thread."""
        options, began_s = self._options, time.perf_counter()
        picture = read_picture_bytes(data, self._limits.picture_pixels)
        decoded_s = time.perf_counter()
        if self._tracker is None:
            self._tracker = self._engine.tracker()
            self._smoothing = self._tracker.smoothing or self._smoothing
        if time_s <= self._last_s:  # another video, or a clock that was set back
            self._tracker.reset()
        self._tracker.smoothing = self._smoothing if options.smoothing else None
        camera = options.camera or self._engine.camera_of(picture, options.fov_deg)
        hands = self._tracker(picture, time_s, camera)
        self._last_s = time_s
        frame = HandFrame(
            hands,
            camera,
            time_s,
            self._inbox.dropped,
            1000 * (decoded_s - began_s),
            1000 * (time.perf_counter() - decoded_s),
        )
        return packed(frame, options)


def packed(frame: HandFrame, options: StreamOptions) -> bytes | str:
    """A frame's hands as the options want them."""
    if options.format == "binary":
        hands = frame.hands if options.mesh else [without_mesh(hand) for hand in frame.hands]
        return encode(replace(frame, hands=hands, picture=frame.picture if options.picture else b""))
    hands = [replace(hand, faces=np.zeros((0, 3), np.int32)) for hand in frame.hands]  # the greeting has them
    answer = frame_to_json(replace(frame, hands=hands), mesh=options.mesh)
    return json.dumps({"type": "hands", **answer}, separators=(",", ":"))


async def send(socket: WebSocket, reply: bytes | str) -> None:
    """Send bytes as a binary message, text as text."""
    if isinstance(reply, bytes):
        await socket.send_bytes(reply)
    else:
        await socket.send_text(reply)


async def say_error(socket: WebSocket, message: str, *, lost: bool = False) -> None:
    """Tell a client what is wrong with what it sent, or that the source it watches is ``lost`` for now."""
    await socket.send_json({"type": "error", "message": message, "lost": lost})


async def converse(
    socket: WebSocket, limits: Limits, hear: Callable[[Message], None], answer: Callable[[], Awaitable[None]]
) -> None:
    """Give a client's messages to ``hear``, and tell the client its ``ValueError``, beside ``answer``, until either
    side ends. A client that sends too many is cut off."""
    flooded = False

    async def read() -> None:
        nonlocal flooded
        bucket = Bucket(limits.messages_per_s)
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            if bucket.take(time.monotonic()) > 0:
                flooded = True
                return
            try:
                hear(message)
            except ValueError as error:
                await say_error(socket, str(error))

    await until_first_ends(read, answer)
    if flooded:
        await socket.close(1008, f"more than {limits.messages_per_s:g} messages a second")


async def until_first_ends(*parts: Callable[[], Awaitable[None]]) -> None:
    """Run the sides of a conversation until one ends, then stop the others. A client that leaves is no error."""

    async def run(part: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await part()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for part in parts:
            group.start_soon(run, part)
