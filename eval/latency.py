"""Time the parts of the live view on this machine: medians and 90th percentiles in milliseconds.

python eval/latency.py --threads 2 --out eval/results/latency.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from handmesh import HandMeshEstimator, HandTracker
from handmesh.evaluation.report import write_result
from handmesh.render import Overlay
from handmesh.video import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="fast", help="name or .onnx file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()

    estimator = HandMeshEstimator.from_pretrained(args.weights, threads=args.threads)
    with open_source("sample") as source:
        clip = list(source)
    frame = clip[10][0]
    hands = estimator(frame)
    if not hands:
        raise SystemExit("no hand found in the sample clip: the weights are unusable")
    box, overlay = hands[0].box[None], Overlay()
    tracker = HandTracker(estimator)
    frames = iter(clip)
    result = {
        "one_hand_crop_to_mesh": timed(lambda: estimator(frame, boxes=box, sides=["right"]), args.rounds),
        "detector": timed(lambda: estimator.detect(frame), args.rounds),
        "overlay_one_hand_640x480": timed(lambda: overlay.draw(frame, hands[:1]), args.rounds),
        "tracked_frame_of_the_sample": timed(lambda: tracker(*next(frames)), len(clip) - 5),
    }
    for name, row in result.items():
        print(f"{name}: median {row['median_ms']:.2f} ms, 90 % below {row['p90_ms']:.2f} ms")
    write_result(args.out, {"weights": args.weights, "threads": args.threads, **result})


def timed(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time `rounds` calls after five for warming up."""
    times = []
    for number in range(rounds + 5):
        before = time.perf_counter()
        run()
        if number >= 5:
            times.append(1e3 * (time.perf_counter() - before))
    return {"median_ms": statistics.median(times), "p90_ms": float(np.percentile(times, 90)), "rounds": rounds}


if __name__ == "__main__":
    main()
