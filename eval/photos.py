"""Measure the shipped weights on labelled photos: 2D error, PCK, agreement in 3D, with given boxes and end to end.

python eval/photos.py FOLDER [FOLDER ...] --split test --out eval/results/photos_test.json
python eval/photos.py FOLDER [FOLDER ...] --split validation --hand-free FOLDER [FOLDER ...] --out FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh import HandMeshEstimator
from handmesh.evaluation.photos import count_on_none, measure_photos
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="photo folders with labels.json")
    parser.add_argument("--split", choices=["validation", "test"], required=True, help="what the folders are used as")
    parser.add_argument("--hand-free", type=Path, nargs="+", default=[], help="pictures in which to find no hand")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights)
    result = measure_photos(estimator, args.folders)
    for kind, rows in result.items():
        for name, row in rows.items():
            print(kind, name, " ".join(f"{key}={value:.4g}" for key, value in row.items()))
    if args.hand_free:
        result["hand_free"] = count_on_none(estimator, args.hand_free)
        print("hand-free pictures", result["hand_free"])
    protocol = (
        "labels with a spread below .05; crops: their boxes and sides given; frames: found by the detector, matched "
        "where boxes overlap; 2d: mean distance of 21 keypoints as a share of the longer side of the label's box, "
        "2d_mesh: of the mesh; pck: share within .05 and .1; pa_mpjpe_pseudo_mm: against the labels' own 3D; all of "
        "the spots that the labels name on our hand (MediaPipe's, label_convention.json); _raw: of our own keypoints; "
        "hand_free: single pictures without hands that training keeps out"
    )
    write_result(args.out, {"split": args.split, **network_facts(estimator.network), "protocol": protocol, **result})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
