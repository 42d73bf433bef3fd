"""Hands found ahead of the display: one thread tracks the freshest frame while another draws and shows the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.records import HandMesh
from handmesh.video import FrameSource

Track = Callable[[NDArray[np.uint8], float], list[HandMesh]]
"""A frame (H, W, 3) and its time in seconds -> its hands; a `HandTracker` is one."""


class TrackedFrame(NamedTuple):
    """A frame with its hands."""

    frame: NDArray[np.uint8]  # (H, W, 3) RGB
    time_s: float
    hands: list[HandMesh]
    read_ms: float  # waited for the frame
    hands_ms: float  # tracked


def track_ahead(source: FrameSource, track: Track) -> Generator[TrackedFrame, None, None]:
    """The frames of a source with their hands, tracked in a thread of its own that is at most one frame ahead.

    The thread asks for a frame when the one before has been fetched. A camera then gives its newest: who fetches slowly
    misses frames but never lags behind. What the source or the tracker raises is raised here, after the frames before
    it. Closing the iterator ends the thread, of a camera at its next frame.
    """
    ahead = _Ahead(source, track)
    ahead.thread.start()
    try:
        yield from ahead.frames()
    finally:
        ahead.stop()


class _Ahead:
    def __init__(self, source: FrameSource, track: Track) -> None:
        self._source, self._track = source, track
        self._change = threading.Condition()
        self._ready: TrackedFrame | None = None
        self._error: BaseException | None = None
        self._ended = self._stopping = self._tracking = False
        self.thread = threading.Thread(target=self._run, name="hands", daemon=True)

    def frames(self) -> Iterator[TrackedFrame]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ready is not None or self._ended)
                ready, self._ready = self._ready, None
                self._change.notify_all()
            if ready is not None:
                yield ready
            elif self._error is not None:
                raise self._error
            else:
                return

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._tracking)  # the tracker is the caller's again
        if not self._source.live:  # a silent camera answers only when it is closed
            self.thread.join()

    def _run(self) -> None:
        try:
            frames = iter(self._source)
            while self._wanted():
                asked_s = time.perf_counter()
                try:
                    frame, time_s = next(frames)
                except StopIteration:
                    return
                read_s = time.perf_counter()
                with self._change:
                    if self._stopping:
                        return
                    self._tracking = True
                hands = self._track(frame, time_s)
                found_s = time.perf_counter()
                with self._change:
                    self._tracking = False
                    self._ready = TrackedFrame(frame, time_s, hands, 1e3 * (read_s - asked_s), 1e3 * (found_s - read_s))
                    self._change.notify_all()
        except BaseException as error:  # whatever it is, it belongs to whoever fetches
            self._error = error
        finally:
            with self._change:
                self._ended, self._tracking = True, False
                self._change.notify_all()

    def _wanted(self) -> bool:
        """Wait until the last frame has been fetched; False where nobody fetches any more."""
        with self._change:
            self._change.wait_for(lambda: self._ready is None or self._stopping)
            return not self._stopping
