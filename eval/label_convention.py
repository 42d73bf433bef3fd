"""Where MediaPipe puts its 21 points on our rendered hands, and how well both it and we find them there.

peer/bin/python eval/mediapipe_tracks.py SYNTH/evaluation/rgb/%08d.jpg labels.npz --frames-alone --max-hands 2
python eval/label_convention.py SYNTH --labels labels.npz --out eval/results/label_convention.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from handmesh import HandMeshEstimator
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.evaluation.label_convention import as_theirs, errors_2d, fit_offsets, match_hands
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line
from handmesh.model.conventions import PALM_MM
from handmesh.records import box_of_keypoints
from handmesh.skeleton import KEYPOINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a set rendered by `handmesh data synthesize --split evaluation`")
    parser.add_argument("--labels", type=Path, required=True, help=".npz of eval/mediapipe_tracks.py")
    parser.add_argument("--weights", default="fast", help="name or .onnx file of our hand network")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    dataset = FreiHandDataset(args.root, "evaluation")
    with np.load(args.labels) as labels:
        hands = match_hands(dataset, labels["frame"], labels["pixels"], labels["world"])
    estimator = HandMeshEstimator.from_pretrained(args.weights, threads=args.threads)
    halves, none = (hands[::2], hands[1::2]), np.zeros((21, 3))
    offsets, again = (fit_offsets(half) for half in halves)
    everywhere = fit_offsets(hands)
    ours_2d, ours_3d = [], []
    for hand in hands:
        box = box_of_keypoints(hand.joints_2d)
        (found,) = estimator(dataset[hand.row].image, boxes=[box], sides=[hand.side], camera=hand.camera)
        ours_2d.append(found.joints_2d)
        ours_3d.append(found.joints)
    truth, truth_2d = np.stack([hand.joints for hand in hands]), np.stack([hand.joints_2d for hand in hands])
    moved, world = np.stack([as_theirs(hand, everywhere) for hand in hands]), np.stack([hand.world for hand in hands])
    facts = {
        "set": args.root.name,
        **network_facts(estimator.network),
        "protocol": "hands on which MediaPipe 0.10.21 (single frames) finds one; 2d: mean distance of 21 points as a "
        "share of the hand's box, after_offsets: of the half that they were not fitted on; ours: true boxes and sides",
        "hands": len(hands),
        "of": len(dataset),
        "offsets_mm": {name: (row * PALM_MM).tolist() for name, row in zip(KEYPOINTS, everywhere, strict=True)},
        "palm_mm": PALM_MM,
        "halves_differ_mm": float(np.abs(offsets - again).mean() * PALM_MM),
        "labels_2d": float(errors_2d(halves[1], none).mean()),
        "labels_2d_after_offsets": float(errors_2d(halves[1], offsets).mean()),
        "ours_2d": float(keypoint_error(np.stack(ours_2d), truth_2d).mean()),
        "labels_pa_mpjpe_mm": float(np.mean(pa_error_mm(world, truth))),
        "labels_pa_mpjpe_mm_after_offsets": float(np.mean(pa_error_mm(world, moved))),
        "ours_pa_mpjpe_mm": float(np.mean(pa_error_mm(np.stack(ours_3d).astype(float), truth))),
    }
    write_result(args.out, facts)
    print({name: value for name, value in facts.items() if isinstance(value, float | int)})


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
