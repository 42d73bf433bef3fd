"""Frames a second over many files: workers and batches against one file, and one frame, after the other.

python eval/throughput.py --out eval/results/throughput.json          # add --ray for a Ray cluster on this machine

The work is the bundled clip: its frames as pictures, and pieces of it as videos. Every way goes over the same files in
turn, round after round; what counts is the median of its rates, and of the ratios to the plain way of the same round.
The plain way is one process that opens the networks with all threads, before the clock starts, and calls them frame by
frame. A job is timed as its user sees it, the workers' start included; how long that takes is told apart (a job over
one file), and so is the rate without it, which is that of a long job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from handmesh import HandMeshEstimator, HandTracker
from handmesh.bulk.job import Engine, run_job
from handmesh.bulk.worker import Task
from handmesh.evaluation.report import write_result
from handmesh.mistakes import in_one_line
from handmesh.runtime import usable_cores
from handmesh.video import VideoWriter, open_source, read_picture, write_picture

Files = Sequence[str]
Way = Callable[[Files], int]
"""Works on files and says how many frames there were."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60, help="of each video")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="time a Ray cluster on this machine too")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    load_before = os.getloadavg()[0]
    work = {name: getattr(args, name) for name in ("pictures", "videos", "frames", "workers", "rounds")}
    with tempfile.TemporaryDirectory() as name:
        pictures, videos = write_work(Path(name), args.pictures, args.videos, args.frames)
        estimator = HandMeshEstimator.from_pretrained()
        result = {
            "pictures": compare(Task("image"), partial(look_at_pictures, estimator), pictures, args),
            "videos": compare(Task("video"), partial(follow_videos, estimator), videos, args),
        }
    load = {"before": load_before, "after": os.getloadavg()[0]}
    write_result(
        args.out, {"protocol": " ".join((__doc__ or "").split()), "work": work, "load_average": load, **result}
    )


def write_work(folder: Path, pictures: int, videos: int, frames: int) -> tuple[list[str], list[str]]:
    """The clip's frames as so many pictures, and as so many videos of so many frames."""
    with open_source("sample") as source:
        clip = [frame for frame, _ in source]
    picture_files = [str(folder / f"{number}.jpg") for number in range(pictures)]
    for number, file in enumerate(picture_files):
        write_picture(file, clip[number * len(clip) // pictures])
    video_files = [str(folder / f"{number}.mp4") for number in range(videos)]
    for number, file in enumerate(video_files):
        start = number * max(len(clip) - frames, 0) // max(videos - 1, 1)
        with VideoWriter(file, 30.0) as writer:
            for frame in clip[start : start + frames]:
                writer.write(frame)
    return picture_files, video_files


def look_at_pictures(estimator: HandMeshEstimator, files: Files) -> int:
    for file in files:
        estimator(read_picture(file))
    return len(files)


def follow_videos(estimator: HandMeshEstimator, files: Files) -> int:
    frames = 0
    for file in files:
        tracker = HandTracker(estimator)
        with open_source(file) as source:
            for frame, time_s in source:
                tracker(frame, time_s)
                frames += 1
    return frames


def compare(task: Task, plain: Way, files: Files, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The rates of every way over the same files."""
    ways: dict[str, Way] = {"one by one": plain}
    for workers in sorted({1, args.workers}):
        for batch in (1, task.batch):
            way = partial(run_fresh_job, replace(task, batch=batch), "local", workers)
            ways[f"{workers} worker{'s' if workers > 1 else ''}, batch {batch}"] = way
    if args.ray:
        ways[f"ray, {args.workers} workers, batch {task.batch}"] = partial(run_fresh_job, task, "ray", args.workers)
    times: dict[str, list[float]] = {name: [] for name in ways}
    starts: dict[str, list[float]] = {name: [] for name in ways}
    frames = 0
    for _ in range(args.rounds):
        for name, way in ways.items():
            frames, seconds = timed(way, files)
            times[name].append(seconds)
            starts[name].append(0.0 if way is plain else timed(way, files[:1])[1])
    rows = {name: summary(frames, times[name], starts[name], times["one by one"]) for name in ways}
    for name, row in rows.items():
        print(f"{task.kind}, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    return rows


def run_fresh_job(task: Task, engine: Engine, workers: int, files: Files) -> int:
    with tempfile.TemporaryDirectory() as out:
        report = run_job(files, task, Path(out) / "results", engine=engine, workers=workers)
    if report.failed:
        raise SystemExit(f"failed: {report.failed}")
    return report.frames


def timed(way: Way, files: Files) -> tuple[int, float]:
    started_s = time.perf_counter()
    return way(files), time.perf_counter() - started_s


def summary(frames: int, times: list[float], starts: list[float], plain: list[float]) -> dict[str, float]:
    """Medians over the rounds; without the start counts what is left when a job over one file is taken away."""
    lasting = [max(total - start, 1e-9) for total, start in zip(times, starts, strict=True)]
    return {
        "frames_per_s": frames / statistics.median(times),
        "ratio": statistics.median(one / total for one, total in zip(plain, times, strict=True)),
        "start_s": statistics.median(starts),
        "frames_per_s_without_start": frames / statistics.median(lasting),
        "ratio_without_start": statistics.median(one / total for one, total in zip(plain, lasting, strict=True)),
    }


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
