"""The one estimator of a server, on the one thread that may use it; and a mailbox that holds only the newest item."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator, check_camera, has_proportions
from handmesh.records import DEFAULT_FOV_DEG, Camera
from handmesh.tracker import HandTracker

T = TypeVar("T")


class Engine:
    """Runs jobs that need the estimator one after another, in the order they come, on a thread of its own.

    A network already uses all cores for one frame, so more estimators side by side would be no faster. A stream has a
    tracker of its own on the shared estimator and at most one job waiting, so streams take turns.
    """

    def __init__(self, estimator: HandMeshEstimator, max_hands: int = 2) -> None:
        self.estimator = estimator
        self.max_hands = max_hands
        self.waiting = 0
        """Jobs handed over by `run` that are not done."""
        rest = np.tile(np.eye(3), (1, 16, 1, 1))
        self.faces = estimator.pose(rest, np.zeros((1, 10)), ["right"])[0].faces
        """(F, 3) vertex indices of a right hand's mesh."""
        self.tracker()  # settings out of range are noticed now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="handmesh-engine")

    def tracker(self) -> HandTracker:
        """A new tracker. Call it in jobs only."""
        return HandTracker(self.estimator, self.max_hands)

    def camera_of(self, picture: NDArray[np.uint8], fov_deg: float = DEFAULT_FOV_DEG) -> Camera:
        """The estimator's camera if a client's picture (H, W, 3) has its proportions, else one assumed."""
        known = self.estimator.camera
        if known is not None and has_proportions(known, picture):
            return check_camera(None, picture, known)
        return Camera.from_fov(picture.shape[1], picture.shape[0], fov_deg)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Hand a job over from any thread."""
        return self._thread.submit(job)

    async def run(self, job: Callable[[], T]) -> T:
        """Hand a job over from the event loop and wait for its result."""
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self.submit(job))
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Finish the job that runs, drop those that wait, and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class Newest(Generic[T]):
    """A mailbox of one place, for one event loop: what comes pushes out what was there, and counts it as dropped."""

    def __init__(self) -> None:
        self.dropped = 0
        self._item: T | None = None
        self._filled = asyncio.Event()

    def put(self, item: T) -> None:
        """Leave an item for the reader."""
        self.dropped += self._item is not None
        self._item = item
        self._filled.set()

    async def get(self) -> T:
        """Take the newest item, waiting for one where there is none."""
        await self._filled.wait()
        item, self._item = self._item, None
        self._filled.clear()
        assert item is not None
        return item
