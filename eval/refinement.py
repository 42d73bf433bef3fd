"""What refinement on keypoints gains in 2D and aligned 3D error, and its cost in milliseconds.

python eval/refinement.py --rendered SYNTH --photos FOLDER ... --out eval/results/refinement.json

SYNTH is a set in FreiHAND's layout whose evaluation split has labels; photo folders have a labels.json, whose 3D is
another tracker's guess. Boxes and sides are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from handmesh.evaluation.refinement import measure_refinement, photographed_hands, rendered_hands
from handmesh.evaluation.remember import remembering_estimator
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rendered", type=Path, help="folder of a set in FreiHAND's layout")
    parser.add_argument("--count", type=int, default=300, help="so many of its pictures (%(default)s)")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="photo folders with labels.json")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    if args.rendered is None and not args.photos:
        parser.error("give --rendered, --photos or both")
    estimator = remembering_estimator(args.weights, args.threads)
    sets = {} if args.rendered is None else {args.rendered.name: rendered_hands(args.rendered, args.count)}
    sets |= {folder.name: photographed_hands(folder) for folder in args.photos}
    result = {}
    for name, hands in sets.items():
        result[name] = measure_refinement(estimator, hands)
        print(name, result[name], flush=True)
    protocol = (
        "given boxes and sides; 2d_keypoints: the network's keypoints, 2d: the mesh's joints in the picture, mean "
        "errors as shares of the hand's box; pa_mpjpe_mm against rendered truth, on photos against another tracker's "
        "labels, all of the spots that these name on our hand (label_convention.json); "
        "cost_ms: median of what an estimate takes longer with the network's answer at hand"
    )
    write_result(args.out, {**network_facts(estimator.network), "protocol": protocol, "sets": result})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
