"""Tracking ahead of the display: every frame in order, fresh ones only of cameras, errors where they belong."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import numpy as np
import pytest

from handmesh.ahead import track_ahead
from handmesh.video import FrameSource

WAIT_S = 20.0  # only a deadlock takes so long


class Numbers(FrameSource):
    """Frames that hold their number; `served` counts them."""

    def __init__(self, count: int, error: BaseException | None = None, *, live: bool = False) -> None:
        super().__init__("numbers", 30.0, count)
        self.live, self.count, self.error, self.served = live, count, error, 0

    def __iter__(self):
        for number in range(self.count):
            self.served += 1
            yield np.full((2, 2, 3), number, np.uint8), float(number)
        if self.error is not None:
            raise self.error


def number_of(frame: np.ndarray) -> int:
    return int(frame[0, 0, 0])


@pytest.mark.parametrize("live", [False, True])
def test_every_frame_comes_in_order_with_its_hands(live):
    calls = []

    def track(frame, time_s):
        calls.append((number_of(frame), time_s, threading.current_thread().name))
        return []

    found = list(track_ahead(Numbers(20, live=live), track))
    assert [(number_of(item.frame), item.time_s) for item in found] == [(n, float(n)) for n in range(20)]
    assert calls == [(n, float(n), "hands") for n in range(20)]
    assert all(item.hands_ms >= 0 and item.read_ms >= 0 for item in found)


def test_the_next_frame_is_tracked_while_the_last_is_shown_and_no_more():
    source, tracked = Numbers(10), threading.Semaphore(0)

    def track(frame, time_s):
        tracked.release()
        return []

    with closing(track_ahead(source, track)) as frames:
        next(frames)
        assert tracked.acquire(timeout=WAIT_S)
        assert tracked.acquire(timeout=WAIT_S)  # the second, without being asked for
        time.sleep(0.05)
        assert source.served == 2
    assert threading.active_count() == 1 or all(thread.name != "hands" for thread in threading.enumerate())


@pytest.mark.parametrize("live", [False, True])
def test_nothing_is_tracked_once_it_is_closed(live):
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def track(frame, time_s):
        begun.release()
        time.sleep(0.1 * number_of(frame))
        ended.release()
        return []

    with closing(track_ahead(Numbers(10, live=live), track)) as frames:
        next(frames)
        assert begun.acquire(timeout=WAIT_S)
        assert begun.acquire(timeout=WAIT_S)
    assert ended.acquire(blocking=False)
    assert ended.acquire(blocking=False)


@pytest.mark.parametrize("error", [ValueError("damaged"), KeyboardInterrupt()])
def test_what_the_source_raises_comes_after_its_frames(error):
    frames = track_ahead(Numbers(3, error), lambda frame, time_s: [])
    assert [number_of(next(frames).frame) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(frames)


def test_what_the_tracker_raises_is_raised_to_who_fetches():
    def track(frame, time_s):
        if number_of(frame) == 2:
            raise RuntimeError("broken")
        return []

    frames = track_ahead(Numbers(5), track)
    assert [number_of(next(frames).frame) for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="broken"):
        next(frames)
