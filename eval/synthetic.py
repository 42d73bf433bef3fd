"""Measure weights on a rendered split: 2D and 3D errors, over all and by skin tone, view, pose and what hides the hand.

python eval/synthetic.py runs/synth --split evaluation --out eval/results/synthetic_evaluation.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from handmesh import HandMeshEstimator
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.synthetic import measure_rendered
from handmesh.mistakes import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a set rendered by `handmesh data synthesize`")
    parser.add_argument("--split", choices=["training", "evaluation"], default="evaluation")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--pose-graph", default="hand_model", help="the hand model's graph, name or .onnx file")
    parser.add_argument("--limit", type=int, help="measure this many evenly spread images only")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    estimator = HandMeshEstimator.from_pretrained(args.weights, detector=None, pose_graph=args.pose_graph)
    with tqdm(unit="hand") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = measure_rendered(estimator, args.root, args.split, args.limit, advance)
    print("all", _line(result["all"]))
    for fact, rows in result.items():
        for group, row in rows.items() if fact not in ("all", "pose_class") else ():
            print(f"{fact} {group}", _line(row))
    facts = {"set": args.root.name, "split": args.split, **network_facts(estimator.network)}
    write_result(args.out, {**facts, "protocol": "single frames; true boxes, sides and cameras given", **result})


def _line(row: dict[str, float]) -> str:
    return " ".join(f"{key}={value:.4g}" for key, value in row.items())


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
