"""The server's own camera or clip: one thread plays it while anybody listens, and lets the camera go after that."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import cv2
from starlette.types import Message
from starlette.websockets import WebSocket

from handmesh.estimator import check_camera
from handmesh.server.engine import Engine, Newest
from handmesh.server.osc import OscSender
from handmesh.server.stream import Limits, StreamOptions, converse, packed, say_error, send
from handmesh.server.wire import HandFrame
from handmesh.tracker import HandTracker
from handmesh.video import Frame, FrameSource

_log = logging.getLogger(__name__)

RETRY_S, FAILED_RETRY_S = 2.0, 10.0
_JPEG_QUALITY = 80

Listener = Callable[[HandFrame | str], None]
"""Takes each frame's hands, or a message about what is wrong. Called on the source's thread."""


class ServerSource:
    """A source of frames of which all listeners get the hands.

    ``open_source`` opens it, again and again: a clip starts anew at its end, a camera that is lost or busy is tried for
    every two seconds, and after an error that nobody expected every ten. Listeners are told. The source is open only
    while somebody listens; an `OscSender` listens all the time.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        open_source: Callable[[], FrameSource],
        *,
        osc: OscSender | None = None,
    ) -> None:
        self.name = name
        self._engine, self._open, self._osc = engine, open_source, osc
        self._listeners: dict[Listener, Callable[[], bool]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stop.set()
        self._thread: threading.Thread | None = None
        self._source: FrameSource | None = None
        self._dropped = 0
        if osc is not None:
            self.listen(lambda frame: osc.send(frame) if isinstance(frame, HandFrame) else osc.lose())

    def listen(self, listener: Listener, wants_picture: Callable[[], bool] = lambda: False) -> None:
        """Send hands there too, with the pictures where it wants them; opens the source for the first listener."""
        with self._lock:
            self._listeners[listener] = wants_picture
            if self._stop.is_set():
                self._stop = threading.Event()
                arguments = (self._stop, self._thread)
                self._thread = threading.Thread(target=self._play, args=arguments, name="handmesh-source")
                self._thread.start()

    def leave(self, listener: Listener) -> None:
        """Send nothing there any more; after the last listener the source is let go, soon."""
        with self._lock:
            self._listeners.pop(listener, None)
            if not self._listeners:
                self._stop.set()

    def close(self) -> None:
        """Drop all listeners and wait until the source is let go. May take a moment; nobody may listen after that."""
        with self._lock:
            self._listeners.clear()
            self._stop.set()
            thread, source = self._thread, self._source
        if source is not None and source.live:
            source.close()  # ends the wait for a camera that delivers nothing
        if thread is not None:
            thread.join()
        osc, self._osc = self._osc, None
        if osc is not None:
            osc.close()

    def _play(self, stop: threading.Event, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()  # it may still hold the camera
        while not stop.is_set():
            try:
                with self._open() as source:
                    with self._lock:
                        self._source = source
                    self._play_once(source, stop)
                    if not source.live:
                        stop.wait(1 / source.fps)  # the last frame's own time
            except (OSError, ValueError) as error:
                _log.warning("%s", error)
                self._tell(str(error))
                stop.wait(RETRY_S)
            except Exception as error:  # our own mistake or a library's
                _log.exception("the source %s has failed", self.name)
                reason = f"{type(error).__name__}: {error}"
                self._tell(f"the source has failed ({reason}); it is opened anew in {FAILED_RETRY_S:g} s")
                stop.wait(FAILED_RETRY_S)

    def _play_once(self, source: FrameSource, stop: threading.Event) -> None:
        tracker = self._engine.submit(self._engine.tracker).result()
        began_s = time.perf_counter()  # the clock of cameras
        moment = time.perf_counter()
        for frame, time_s in source:
            decode_ms = 1000 * (time.perf_counter() - moment)
            if not source.live:
                time_s += began_s
                late_s = time.perf_counter() - time_s
                stop.wait(max(-late_s, 0.0))
                if late_s > 1 / source.fps:
                    self._dropped += 1
                    moment = time.perf_counter()
                    continue
            if stop.is_set():
                return
            self._tell(self._engine.submit(partial(self._find, tracker, frame, time_s, decode_ms)).result())
            moment = time.perf_counter()

    def _find(self, tracker: HandTracker, frame: Frame, time_s: float, decode_ms: float) -> HandFrame:
        """On the engine's thread."""
        camera = check_camera(None, frame, self._engine.estimator.camera)
        began_s = time.perf_counter()
        hands = tracker(frame, time_s, camera)
        hands_ms = 1000 * (time.perf_counter() - began_s)
        with self._lock:
            wanted = any(wants() for wants in self._listeners.values())
        picture = _jpeg(frame) if wanted else b""
        return HandFrame(hands, camera, time_s, self._dropped, decode_ms, hands_ms, picture)

    def _tell(self, frame: HandFrame | str) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(frame)


def _jpeg(frame: Frame) -> bytes:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes() if done else b""


class Viewer:
    """A client that watches the server's own source."""

    def __init__(self, socket: WebSocket, source: ServerSource, limits: Limits) -> None:
        self._socket, self._source, self._limits = socket, source, limits
        self._options = StreamOptions()
        self._inbox: Newest[HandFrame | str] = Newest()

    async def serve(self) -> None:
        """Send hands until either side ends."""
        loop = asyncio.get_running_loop()

        def listener(frame: HandFrame | str) -> None:
            loop.call_soon_threadsafe(self._inbox.put, frame)

        self._source.listen(listener, lambda: self._options.picture)
        try:
            await converse(self._socket, self._limits, self._hear, self._answer)
        finally:
            self._source.leave(listener)

    def _hear(self, message: Message) -> None:
        if message.get("text") is None:
            raise ValueError("this stream shows the server's own source and takes options only, as JSON text")
        self._options = self._options.updated(message["text"])

    async def _answer(self) -> None:
        while True:
            frame = await self._inbox.get()
            if isinstance(frame, str):
                await say_error(self._socket, frame, lost=True)
                continue
            frame = replace(frame, dropped=frame.dropped + self._inbox.dropped)
            await send(self._socket, packed(frame, self._options))
