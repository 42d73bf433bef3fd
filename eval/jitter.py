"""Trembling (mean joint acceleration, mm/frame^2) and lag of tracked hands on videos of one hand.

python eval/jitter.py VIDEO... --mediapipe-python peer/bin/python --out eval/results/jitter.json

Compares single frames, our tracker without and with its filters, and, where a Python with mediapipe 0.10.21 is named,
MediaPipe's single frames and tracked hands, as they are and through the same kind of filters at the same lag.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from handmesh import HandMeshEstimator
from handmesh.evaluation.jitter import MOVING, STILL, WINDOW, compare
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line
from handmesh.video import VideoFileSource, open_source

SHOWN = ("single_frames", "tracked_unsmoothed", "tracked_1", "peer_frames", "peer", "peer_at_our_lag")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of .mp4")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--max-frames", type=int, default=None)
    parser.add_argument("--mediapipe-python", type=Path, help="a Python with mediapipe 0.10.21")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    estimator = HandMeshEstimator.from_pretrained(args.weights, threads=args.threads)
    videos = [one for path in args.videos for one in (sorted(path.glob("*.mp4")) if path.is_dir() else [path])]
    if not videos:
        raise ValueError(f"there is no .mp4 in {', '.join(map(str, args.videos))}")
    result: dict[str, Any] = {}
    for video in videos:
        with open_source(video) as source:
            if not isinstance(source, VideoFileSource):
                raise ValueError(f"{video} is no video file")
            clip, fps = list(source)[: args.max_frames], source.fps
        peer = None if args.mediapipe_python is None else mediapipe(args.mediapipe_python, video, len(clip))
        facts = result[video.name] = compare(estimator, clip, fps, peer)
        print(f"{video.name}: {facts['still_frames']} still and {facts['moving_frames']} moving of {len(clip)} frames")
        for name in SHOWN:
            if name in facts:
                print(f"  {name:20}", "  ".join(f"{key} {value:.3g}" for key, value in facts[name].items()))
    protocol = (
        "mean length of the second difference of 21 joints over three frames in a row, from the wrist and in the "
        f"camera (60 degrees of view assumed); still and moving: keypoints go less than {STILL} and more than {MOVING} "
        f"sizes of the hand a frame over {2 * WINDOW + 1} frames; lag against the same method's unsmoothed hands"
    )
    write_result(args.out, {**network_facts(estimator.network), "protocol": protocol, "clips": result})


def mediapipe(python: Path, video: Path, frames: int) -> Callable[[bool], list[list[Any]]]:
    """What MediaPipe finds in a video, in another process."""

    def run(tracked: bool) -> list[list[Any]]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "tracks.npz"
            script = Path(__file__).with_name("mediapipe_tracks.py")
            command = [str(python), str(script), str(video), str(out), *([] if tracked else ["--frames-alone"])]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            with np.load(out) as content:
                rows = dict(content)
        hands: list[list[Any]] = [[] for _ in range(frames)]
        for frame, world, pixels, score in zip(
            rows["frame"], rows["world"], rows["pixels"], rows["score"], strict=True
        ):
            if frame < frames:
                hands[frame].append((world, pixels, float(score)))
        return hands

    return run


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
