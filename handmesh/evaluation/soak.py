"""A long live session: does its memory stay flat, and its pictures as fresh as at first?"""

from __future__ import annotations

import argparse
import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.glass import Clock, PacedCapture
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.timing import summary
from handmesh.live import LiveSession
from handmesh.tracker import HandTracker
from handmesh.video import CameraSource, open_source

_TABLE = Path("/proc/self/statm")


def resident_mb() -> float:
    """Resident memory of this process in MB; Linux only."""
    return int(_TABLE.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(
    estimator: HandMeshEstimator, minutes: float, fps: float, out: Path, *, every_s: float = 1.0
) -> dict[str, Any]:
    """Play the sample clip live, over and over; memory and the age of pictures for each tenth of the session."""
    if 60 * minutes < 20 * every_s:
        raise ValueError(f"{minutes:g} minutes are too short to see growth: give at least {every_s / 3:.2g}")
    with open_source("sample") as source:
        frames = [frame for frame, _ in source]
    capture = PacedCapture(frames, fps)
    clock = Clock(capture, refresh_s=0.001)
    memory: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            memory.append(resident_mb())

    with CameraSource(0, open_capture=lambda _: capture) as source:
        session = LiveSession(HandTracker(estimator), out, window=clock, say=lambda _: None)  # pyright: ignore
        watcher, timer = threading.Thread(target=watch), threading.Timer(60 * minutes, session.press, "q")
        watcher.start()
        timer.start()
        begun_s, worked_s = time.perf_counter(), time.process_time()
        try:
            report = session.play(source)
        finally:  # or the process would never end
            over.set()
            timer.cancel()
        share = (time.process_time() - worked_s) / (time.perf_counter() - begun_s)
        watcher.join()
    tenths = [
        {"memory_mb": float(np.median(part)), "age_median_ms": float(np.median(ages))}
        for part, ages in zip(np.array_split(memory, 10), np.array_split(clock.ages_ms, 10), strict=True)
    ]
    second, last = tenths[1], tenths[-1]  # the first tenth warms up
    return {
        "minutes": minutes,
        "camera_fps": fps,
        "shown_fps": report.fps,
        "frames": report.frames,
        "cores_used": share,
        "peak_memory_mb": max(memory),
        "memory_growth_mb": last["memory_mb"] - second["memory_mb"],
        "age_growth_ms": last["age_median_ms"] - second["age_median_ms"],
        "age_when_shown": summary(clock.ages_ms),
        "tenths": tenths,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run a live session for minutes and see whether memory and latency stay flat."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fps", type=float, default=30.0, help="of the camera (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    options = parser.parse_args(argv)
    if not _TABLE.is_file():
        raise SystemExit("the soak test reads /proc, which only Linux has")
    estimator = HandMeshEstimator.from_pretrained(options.weights)
    result = soak(estimator, options.minutes, options.fps, options.out.parent)
    write_result(options.out, {**network_facts(estimator.network), **result})
    for key, value in itertools.islice(result.items(), 8):
        print(f"{key}: {value:.4g}")  # noqa: T201 (a command)


if __name__ == "__main__":
    main()
