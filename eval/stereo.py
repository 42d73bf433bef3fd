"""Two calibrated views of one hand: keypoints by epipolar geometry, single-view depths against triangulated ones.

python eval/stereo.py --videos CAM0.mp4 CAM1.mp4 --intrinsics C0.dat C1.dat --poses RT0.dat RT1.dat \\
    --out eval/results/stereo.json

The videos show the same frames. The files hold titled matrices: "intrinsic:" and "distortion:"; "R:" and "T:", which
take points of the rig into the camera. The rig's unit is not needed: one scale is fitted.

With `--labels`, two files that `eval/mediapipe_tracks.py --frames-alone` wrote for these videos, MediaPipe's keypoints
are triangulated as well: where both views agree they are a real hand's truth in 3D, and both it and we are held to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from handmesh import HandMeshEstimator
from handmesh.evaluation.jitter import series_of_hands, track_clip
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.stereo import (
    HAND_SIZE_MM,
    SAME_HAND_PX,
    TRUSTED_PX,
    compare_labelled,
    compare_views,
    read_view,
    trusted_labels,
)
from handmesh.mistakes import in_one_line
from handmesh.video import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (("videos", "of the same frames"), ("intrinsics", "text files"), ("poses", "text files")):
        parser.add_argument(f"--{name}", type=Path, nargs=2, required=True, help=f"two, {text}")
    parser.add_argument("--labels", type=Path, nargs=2, help=".npz files of eval/mediapipe_tracks.py")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--max-frames", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights, threads=args.threads)
    views, hands, clips = [], [], []
    for video, intrinsics, pose in zip(args.videos, args.intrinsics, args.poses, strict=True):
        with open_source(video) as source:
            clip = [pair for _, pair in zip(range(args.max_frames or 10**9), source, strict=False)]
        clips.append([frame for frame, _ in clip])
        height, width = clip[0][0].shape[:2]
        views.append(read_view(intrinsics, pose, width, height))
        hands.append(series_of_hands(track_clip(estimator, clip, None, views[-1].camera)))
        print(f"{video.name}: a hand in {int(hands[-1].found.sum())} of {len(clip)} frames", flush=True)
    result = compare_views(views[0], views[1], (hands[0], hands[1]))
    if args.labels:
        frames, pixels, guesses = read_labels(args.labels, len(clips[0]))
        labels = trusted_labels(views[0], views[1], frames, pixels)
        trusted = np.isin(frames, labels.frames)
        result["labelled"] = {
            "frames": len(labels.frames),
            "views": compare_labelled(
                estimator,
                (views[0], views[1]),
                (clips[0], clips[1]),
                labels,
                (guesses[0][trusted], guesses[1][trusted]),
            ),
        }
    for name, value in result.items():
        print(name, value)
    protocol = (
        "each view tracked by itself without filters, calibrated lens; triangulation by least squares on undistorted "
        f"rays; frames with more than {SAME_HAND_PX:g} px of mean reprojection error show different hands and are left "
        "out; metres_a_unit: the one scale that fits the root joints' depths of both views best; own_scale: a view's "
        "by itself, as a share of it; labelled: MediaPipe 0.10.21 on single frames, triangulated, where all keypoints "
        f"agree (mean below {TRUSTED_PX:g} px, none off by thrice as much), for a hand of {HAND_SIZE_MM:g} mm from the "
        "wrist to the middle knuckle; ours in the labels' boxes, sides not given, MediaPipe's spots on our hands "
        "(label_convention.json; raw: our own joints); labeller: MediaPipe's 3D of one view"
    )
    facts = {**network_facts(estimator.network), "videos": [video.name for video in args.videos], "protocol": protocol}
    write_result(args.out, {**facts, **result})


def read_labels(files: list[Path], frames: int) -> tuple[np.ndarray, tuple, tuple]:
    """Frames with a label in both files, and their pixels (N, 21, 2) and joints (N, 21, 3) m, a pair each."""
    tables = [np.load(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table["frame"].size and table["frame"].max() >= frames:
            raise SystemExit(f"{file} is of a longer clip: it labels frame {table['frame'].max()} of {frames}")
    both = np.intersect1d(tables[0]["frame"], tables[1]["frame"])
    rows = [np.searchsorted(table["frame"], both) for table in tables]
    pixels, world = (
        tuple(table[name][row] for table, row in zip(tables, rows, strict=True)) for name in ("pixels", "world")
    )
    return both, pixels, world


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
