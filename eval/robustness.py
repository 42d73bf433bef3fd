"""Robustness of hand-network weights: 15 corruptions x 5 severities, and splits out of the ordinary.

    handmesh data synthesize runs/unseen --split evaluation --count 300 --seed 7 --unseen-shapes
    python eval/robustness.py --data runs/synth --unseen runs/unseen --out eval/results/robustness.json

The corrupted crops are made on the first run (about a second of CPU time a hand) and kept in --crops; after that,
weights of the same crop size take about a minute. Writes the table beside the JSON file, as .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from handmesh import HandMeshEstimator
from handmesh.atomic import written_whole
from handmesh.datasets.freihand_files import FreiHandSplit
from handmesh.evaluation.report import network_facts, write_result
from handmesh.evaluation.robustness import (
    CLEAN,
    KINDS,
    TestHands,
    corruption_errors,
    make_crops,
    measure_conditions,
    spread_rows,
)
from handmesh.evaluation.synthetic import measure_rendered
from handmesh.mistakes import in_one_line
from handmesh.runtime import load_graph

REFERENCE = Path(__file__).parent / "results" / "robustness_reference.json"

#: name -> where `measure_rendered` says it
SPLITS = {
    "all": ("all",),
    "something before the hand": ("occluded", "yes"),
    "something in the hand": ("held", "yes"),
    "gloves": ("gloved", "yes"),
    "end-on views": ("view", "end"),
}
UNSEEN = "unseen hand shapes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a set in FreiHAND's layout with an evaluation split")
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--hands", type=int, default=100, help="corrupted hands (%(default)s)")
    parser.add_argument("--crops", type=Path, default=Path("runs/robustness"), help="keeps corrupted crops")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="result of the reference network")
    parser.add_argument("--no-reference", action="store_true", help="errors alone, as of a reference to be")
    parser.add_argument("--workers", type=int, help="processes that make crops (default: one per core)")
    parser.add_argument("--threads", type=int, default=None, help="of the network")
    parser.add_argument("--unseen", type=Path, help="a set rendered with --unseen-shapes, as one more split")
    parser.add_argument("--split-hands", type=int, default=1000, help="hands of the splits together (%(default)s)")
    parser.add_argument("--no-splits", action="store_true", help="corruptions only, as for the published archive")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()

    graph = load_graph(args.weights, "hand", threads=args.threads)
    size = int(graph.number("input_size"))
    hands = TestHands(args.data, size, spread_rows(args.data, args.hands))
    centre = centre_mm(hands)
    reference = None if args.no_reference else read_reference(args.reference, len(hands.rows), centre)
    folder = args.crops / f"{args.data.resolve().name}_{size}px"
    with tqdm(total=len(hands.rows), desc="corrupted hands") as bar:
        make_crops(hands, folder, workers=args.workers, progress=lambda done, _: bar.update(done - bar.n))
    facts = {
        "weights": Path(args.weights).name,
        "sha256": network_facts(graph)["weights_sha256"],
        "crop_px": size,
        "hands": len(hands.rows),
        "centre_mm": centre,
        "errors": measure_conditions(graph, hands, folder),
    }
    if reference is not None:
        facts["reference"] = {key: reference[key] for key in ("weights", "sha256")}
        facts["against_reference"] = {
            name: corruption_errors(facts["errors"], reference["errors"], name) for name in ("pa_mpjpe_mm", "2d")
        }
    if not args.no_splits:
        facts["splits"] = measure_splits(args)
    write_result(args.out, facts)
    text = table(facts)
    with written_whole(args.out.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    print(text)


def centre_mm(hands: TestHands) -> list[float]:
    """Where the hands' joints stand in the camera on average, x, y and z: other hands have another one."""
    joints = FreiHandSplit.open(hands.root, "evaluation").joints
    assert joints is not None  # TestHands are labelled
    return (1e3 * joints[list(hands.rows)].mean((0, 1))).round(2).tolist()


def read_reference(path: Path, hands: int, centre: list[float]) -> dict:
    """The result of a reference network on the same hands, or an end of the program that says what is wrong."""
    if not path.is_file():
        raise SystemExit(f"error: there is no result {path} to compare with; --no-reference does without")
    stored = json.loads(path.read_text())
    if stored["hands"] != hands:
        raise SystemExit(
            f"error: {path} has {stored['hands']} hands, this run {hands}: give --hands {stored['hands']}, another "
            "--reference, or --no-reference"
        )
    if not np.allclose(stored["centre_mm"], centre, atol=0.05):
        raise SystemExit(
            f"error: {path} is of other hands: measure the reference on these with --no-reference and give it as "
            "--reference, or leave it out with --no-reference"
        )
    return stored


def measure_splits(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Errors of the SPLITS of the set, and of the set of unseen shapes, by name."""
    estimator = HandMeshEstimator.from_pretrained(args.weights, detector=None, threads=args.threads)
    found = measure_rendered(estimator, args.data, limit=args.split_hands)
    rows = {}
    for name, keys in SPLITS.items():
        row = found
        for key in keys:
            row = row.get(key, {"hands": 0})
        rows[name] = row
    if args.unseen is not None:
        rows[UNSEEN] = measure_rendered(estimator, args.unseen)["all"]
    return {name: row for name, row in rows.items() if row["hands"]}


def table(facts: dict) -> str:
    """The result as Markdown."""
    errors = facts["errors"]
    scores = facts.get("against_reference", {}).get("pa_mpjpe_mm", {})
    lines = [
        f"{facts['weights']}, {facts['hands']} hands, {facts['crop_px']} px crops; clean: PA-MPJPE "
        f"{errors[CLEAN]['pa_mpjpe_mm'][0]:.2f} mm, 2D error {errors[CLEAN]['2d'][0]:.3f}.",
        "",
        "| corruption | PA-MPJPE mm at severity 1 to 5 | mean | 2D error, mean | against reference |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        values = errors[kind]["pa_mpjpe_mm"]
        flat = errors[kind]["2d"]
        lines.append(
            f"| {kind.replace('_', ' ')} | {' '.join(f'{value:.1f}' for value in values)} | "
            f"{sum(values) / len(values):.2f} | {sum(flat) / len(flat):.3f} | "
            f"{f'{scores[kind]:.3f}' if scores else ''} |"
        )
    if scores:
        lines += [
            "",
            f"Mean corruption error {scores['mce']:.3f} of the reference ({facts['reference']['weights']}, "
            f"sha256 {facts['reference']['sha256'][:8]}), relative {scores['relative_mce']:.3f}.",
        ]
    if "splits" in facts:
        lines += ["", "| split | hands | PA-MPJPE mm | 2D error |", "|---|---|---|---|"]
        for name, row in facts["splits"].items():
            error = f"{row['pa_mpjpe_mm']:.2f} ± {row['pa_mpjpe_mm_se']:.2f}"
            lines.append(f"| {name} | {row['hands']} | {error} | {row['2d']:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
