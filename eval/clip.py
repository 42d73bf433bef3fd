"""Track a clip and measure it against labels of some of its frames.

python eval/clip.py VIDEO --labels FOLDER --every 10 --out eval/results/clip.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh import HandMeshEstimator, HandTracker
from handmesh.evaluation.photos import measure_clip
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="folder of photos with labels.json")
    parser.add_argument("--every", type=int, default=1, help="photo number n is frame n * EVERY")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--max-hands", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights)
    tracker = HandTracker(estimator, max_hands=args.max_hands)
    result = measure_clip(tracker, args.video, args.labels, every=args.every)
    print(" ".join(f"{key}={value:.4g}" for key, value in result.items()))
    protocol = (
        "tracked with the tracker's defaults, no intrinsics; measures as in photos_test.json, 2d of the tracked mesh"
    )
    facts = {"clip": args.video.name, **network_facts(estimator.network), "protocol": protocol}
    write_result(args.out, {**facts, **result})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
