"""Two calibrated views of one hand: keypoints by epipolar geometry, single-view depths against triangulated ones.

python eval/stereo.py --videos CAM0.mp4 CAM1.mp4 --intrinsics C0.dat C1.dat --poses RT0.dat RT1.dat \\
    --out eval/results/stereo.json

The videos show the same frames. The files hold titled matrices: "intrinsic:" and "distortion:"; "R:" and "T:", which
take points of the rig into the camera. The rig's unit is not needed: one scale is fitted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh import HandMeshEstimator
from handmesh.evaluation.jitter import series_of_hands, track_clip
from handmesh.evaluation.report import write_result
from handmesh.evaluation.stereo import SAME_HAND_PX, compare_views, read_view
from handmesh.video import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (("videos", "of the same frames"), ("intrinsics", "text files"), ("poses", "text files")):
        parser.add_argument(f"--{name}", type=Path, nargs=2, required=True, help=f"two, {text}")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--max-frames", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights, threads=args.threads)
    views, hands = [], []
    for video, intrinsics, pose in zip(args.videos, args.intrinsics, args.poses, strict=True):
        with open_source(video) as source:
            clip = [pair for _, pair in zip(range(args.max_frames or 10**9), source, strict=False)]
        height, width = clip[0][0].shape[:2]
        views.append(read_view(intrinsics, pose, width, height))
        hands.append(series_of_hands(track_clip(estimator, clip, None, views[-1].camera)))
        print(f"{video.name}: a hand in {int(hands[-1].found.sum())} of {len(clip)} frames", flush=True)
    result = compare_views(views[0], views[1], (hands[0], hands[1]))
    for name, value in result.items():
        print(name, value)
    protocol = (
        "each view tracked by itself without filters, calibrated lens; triangulation by least squares on undistorted "
        f"rays; frames with more than {SAME_HAND_PX:g} px of mean reprojection error show different hands and are left "
        "out; metres_a_unit: the one scale that fits the root joints' depths of both views best; own_scale: a view's "
        "by itself, as a share of it"
    )
    write_result(
        args.out,
        {"weights": args.weights, "videos": [video.name for video in args.videos], "protocol": protocol, **result},
    )


if __name__ == "__main__":
    main()
