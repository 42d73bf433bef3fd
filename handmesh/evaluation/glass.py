"""From camera to display: how old a picture is when the live view shows it, and whether it grows older with time.

A synthetic camera delivers the sample clip at its own pace and writes each frame's number into a corner; a window that
is no window reads it there and looks at the clock. What real glass adds (exposure, the camera's buffer, the screen's
refresh) is not in it.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.timing import summary
from handmesh.live import LiveSession
from handmesh.tracker import HandTracker
from handmesh.video import CameraSource, open_source

_BITS, _CELL_PX = 24, 4


def write_number(frame: NDArray[np.uint8], number: int) -> None:
    """Write a number into the lower right corner, a square of `_CELL_PX` px for each bit."""
    bits = [(number >> bit) & 1 for bit in range(_BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, _CELL_PX)
    frame[-_CELL_PX:, -len(row) :] = row[None, :, None]


def read_number(frame: NDArray[np.uint8]) -> int:
    """What `write_number` wrote."""
    middle = frame[-_CELL_PX // 2, -_BITS * _CELL_PX + _CELL_PX // 2 :: _CELL_PX, 0]
    return sum(int(value > 127) << bit for bit, value in enumerate(middle))


class PacedCapture:
    """Stands for `cv2.VideoCapture`: a clip over and over, a frame every 1 / fps seconds, with its number in it."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]], fps: float) -> None:
        self._frames, self._fps = frames, fps
        self._begun_s = time.perf_counter()
        self._next = 0
        self.taken_s: list[float] = []

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return True

    def get(self, what: int) -> float:
        return self._fps if what == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        """Wait for the next frame's moment; frames whose moment has passed are lost, as on a camera."""
        elapsed = time.perf_counter() - self._begun_s
        self._next = max(self._next, int(elapsed * self._fps))
        time.sleep(max(0.0, self._next / self._fps - elapsed))
        self.taken_s += [time.perf_counter()] * (self._next + 1 - len(self.taken_s))
        frame = np.asarray(cv2.cvtColor(self._frames[self._next % len(self._frames)], cv2.COLOR_RGB2BGR), np.uint8)
        write_number(frame, self._next)
        self._next += 1
        return True, frame

    def release(self) -> None:
        pass


class Clock:
    """Stands for the window: notes how old every picture is that it is given."""

    def __init__(self, capture: PacedCapture, refresh_s: float) -> None:
        self.ages_ms: list[float] = []
        self._capture, self._refresh_s = capture, refresh_s

    def show(self, frame: NDArray[np.uint8], wait_s: float) -> str:
        self.ages_ms.append(1e3 * (time.perf_counter() - self._capture.taken_s[read_number(frame)]))
        time.sleep(self._refresh_s)  # a window that waits for keys and for the screen
        return ""

    def close(self) -> None:
        pass


def glass_to_glass(estimator: HandMeshEstimator, fps: float, seconds: float, out: Path) -> dict[str, Any]:
    """Play the clip live for some seconds; ages of the pictures shown, and of the last quarter against the first."""
    if not seconds >= 1:
        raise ValueError(f"seconds must be at least 1, not {seconds:g}")
    with open_source("sample") as source:
        frames = [frame for frame, _ in source]
    capture = PacedCapture(frames, fps)
    clock = Clock(capture, refresh_s=0.001)
    with CameraSource(0, open_capture=lambda _: capture) as source:
        session = LiveSession(HandTracker(estimator), out, window=clock, say=lambda _: None)  # pyright: ignore
        timer = threading.Timer(seconds, session.press, "q")
        timer.start()
        try:
            report = session.play(source)
        finally:
            timer.cancel()
    quarter = len(clock.ages_ms) // 4
    first, last = (float(np.median(part)) for part in (clock.ages_ms[:quarter], clock.ages_ms[-quarter:]))
    return {
        "camera_fps": fps,
        "shown_fps": report.fps,
        "frames_with_hand": report.frames_with_hand / report.frames,
        "age_when_shown": summary(clock.ages_ms),
        "first_quarter_median_ms": first,
        "last_quarter_median_ms": last,
        "stages_ms": report.stages_ms,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the live view's latency from a synthetic camera to a synthetic display."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast")
    parser.add_argument("--threads", type=int, help="of the networks (the cores)")
    parser.add_argument("--fps", type=float, nargs="+", default=[30.0, 60.0], help="of the camera (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each rate (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    options = parser.parse_args(argv)
    estimator = HandMeshEstimator.from_pretrained(options.weights, threads=options.threads)
    rows = [glass_to_glass(estimator, fps, options.seconds, options.out.parent) for fps in options.fps]
    write_result(options.out, {**network_facts(estimator.network), "rates": rows})
    for row in rows:
        age = row["age_when_shown"]
        print(  # noqa: T201 (a command)
            f"camera at {row['camera_fps']:g} a second: {row['shown_fps']:.1f} shown, "
            f"{age['median_ms']:.1f} ms old (90 % below {age['p90_ms']:.1f})"
        )


if __name__ == "__main__":
    main()
