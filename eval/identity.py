"""Numbers and sides of two hands on the rendered crossing clips: id switches, side flips, wrong sides, hands found.

python eval/identity.py CLIPS --out eval/results/identity.json

CLIPS is a folder for the clips (8 scenes in 3 variants); those that it lacks are rendered first, which takes minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh import HandMeshEstimator
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.tracking import NEAR, SEEN, measure_identity
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of VARIANT/NAME.mp4 and .npz")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--detector", default="detector", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights, detector=args.detector, threads=args.threads)
    result = measure_identity(
        estimator, args.clips, progress=lambda label, counts: print(f"{label:35}", counts, flush=True)
    )
    print(f"{'total':35}", result["total"])
    protocol = (
        "two hands tracked with the tracker's defaults and no intrinsics; hands: true hands with at least "
        f"{SEEN:.0%} of their keypoints in the picture and not behind the other hand, summed over frames; found: "
        f"those with a hand given out within {NEAR:.0%} of their size; extra: hands given out on no hand; "
        "id_switches: a true hand has another number than before, also after an absence; side_flips: another side "
        "than before; wrong_sides: frames with the wrong side"
    )
    facts = {**network_facts(estimator.network), "detector": args.detector, "protocol": protocol}
    write_result(args.out, {**facts, **result})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
