"""Where hands stand in the camera, against the truth of the rendered crossing clips.

python eval/camera_space.py CLIPS --out eval/results/camera_space.json

With the true intrinsics and the assumed ones; with the hand's shape guessed, made of one measured length, and true.
CLIPS is a folder for the clips (8 scenes in 3 variants of 60, 72 and 50 degrees of view); those that it lacks are
rendered first, which takes minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh.evaluation.camera_space import measure_camera_space
from handmesh.evaluation.remember import remembering_estimator
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of VARIANT/NAME.mp4 and .npz")
    parser.add_argument("--every", type=int, default=5, help="measure every so many frames (%(default)s)")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = remembering_estimator(args.weights, args.threads)
    result = measure_camera_space(
        estimator, args.clips, every=args.every, progress=lambda label, hands: print(label, hands, "hands", flush=True)
    )
    for camera, shapes in result["all"].items():
        for shape, row in shapes.items():
            print(f"{camera:8} {shape:10}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    protocol = (
        f"every {args.every} frames, hands seen whole, true boxes and sides, single frames; default: 60 degrees across "
        "the longer side; one_length: the network's median shape of a clip made as long as the true hand; root: the "
        "middle finger's first joint; absolute errors"
    )
    write_result(args.out, {**network_facts(estimator.network), "protocol": protocol, **result})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
