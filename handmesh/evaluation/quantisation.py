"""`handmesh quantise`: the int8 twin of exported hand weights, what it costs and gains, kept if it wins."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import ASSETS, load_hand_model
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.sample import Batch
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.evaluation.report import write_result
from handmesh.evaluation.validation import fixed_batch
from handmesh.model.deploy import forget_weights, register_weights
from handmesh.model.hand_model import HandModel
from handmesh.model.quantise import quantise_graph
from handmesh.model.regressor import wrist_relative_hand
from handmesh.runtime import INT8_SUFFIX, Graph, load_graph

MAX_LOSS_MM = 0.3
"""Of PA-MPVPE; int8 weights that lose more are not kept."""

_log = logging.getLogger(__name__)


def answers(graph: Graph, crops: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a hand network says of crops (N, S, S, 3), run in batches."""
    parts = [graph(crop=crops[i : i + 32]) for i in range(0, len(crops), 32)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def errors(answer: dict[str, NDArray[Any]], batch: Batch) -> dict[str, float]:
    """PA-MPVPE and PA-MPJPE in mm and the 2D keypoint error as a share of the box, against exact labels."""
    vertices, joints = wrist_relative_hand(HandModel(load_hand_model()), batch.rotations, batch.betas)
    return {
        "pa_mpvpe_mm": float(pa_error_mm(answer["vertices"], vertices.numpy()).mean()),
        "pa_mpjpe_mm": float(pa_error_mm(answer["joints"], joints.numpy()).mean()),
        "2d": float(keypoint_error(answer["joints_2d"], batch.joints_2d.numpy()).mean()),
    }


def compare(plain: Graph, quantised: Graph, batch: Batch) -> dict[str, Any]:
    """Errors of both networks over a batch with exact labels, and how far they put the same vertex apart."""
    crops = batch.crops.numpy()
    first, second = answers(plain, crops), answers(quantised, crops)
    apart_mm = np.linalg.norm(first["vertices"] - second["vertices"], axis=-1) * 1e3
    f32, int8 = errors(first, batch), errors(second, batch)
    return {
        "hands": len(crops),
        "f32": f32,
        "int8": int8,
        "change": {name: int8[name] - f32[name] for name in f32},
        "vertices_apart_mm": {"mean": float(apart_mm.mean()), "p99": float(np.percentile(apart_mm, 99))},
    }


def time_side_by_side(graphs: dict[str, Graph], crop: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """Median milliseconds of one run of each graph, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 5):
        for name, graph in graphs.items():
            before = time.perf_counter()
            graph(crop=crop)
            if number >= 5:
                times[name].append(1e3 * (time.perf_counter() - before))
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the int8 twin NAME_int8 of exported weights, measure it on rendered hands, and keep it if it wins."""
    parser = argparse.ArgumentParser(prog="handmesh quantise", description=main.__doc__)
    parser.add_argument("name", nargs="?", default="fast", help="exported weights of the folder (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="folder with a rendered evaluation split")
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where the weights lie (the package)")
    parser.add_argument("--calibrate", type=int, default=128, help="hands to fit ranges on; the others measure")
    parser.add_argument("--out", type=Path, help="result file, .json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().setLevel(logging.INFO)

    source, target = (args.folder / f"{args.name}{suffix}.onnx" for suffix in ("", INT8_SUFFIX))
    plain = load_graph(source, "hand", threads=1)
    dataset = FreiHandDataset(args.data, "evaluation")
    if len(dataset) <= args.calibrate or dataset.rotations is None:
        raise ValueError(f"{args.data} must hold more than {args.calibrate} rendered hands with their rotations")
    size = int(plain.number("input_size"))
    fitting = fixed_batch(dataset, size, range(args.calibrate)).crops.numpy()
    measuring = fixed_batch(dataset, size, range(args.calibrate, len(dataset)))
    layers = quantise_graph(source, target, [{"crop": fitting[i : i + 1]} for i in range(len(fitting))])

    quantised = load_graph(target, "hand", threads=1)
    result = compare(plain, quantised, measuring)
    median_ms = time_side_by_side({"f32": plain, "int8": quantised}, measuring.crops.numpy()[:1], 200)
    result |= {"layers_in_int8": len(layers), "one_thread_median_ms": median_ms}
    result["megabytes"] = {"f32": source.stat().st_size / 1e6, "int8": target.stat().st_size / 1e6}
    wins = result["change"]["pa_mpvpe_mm"] < MAX_LOSS_MM and median_ms["int8"] < median_ms["f32"]
    result["kept"] = wins
    _log.info("%s", result)
    if wins:
        facts = {"kind": "hand", "precision": "int8", "pa_mpvpe_change_mm": result["change"]["pa_mpvpe_mm"]}
        register_weights(args.folder, args.name + INT8_SUFFIX, target, facts)
    else:
        forget_weights(args.folder, args.name + INT8_SUFFIX)
        target.unlink(missing_ok=True)
        _log.warning("int8 does not win here: %s is not kept", target.name)
    if args.out is not None:
        write_result(args.out, {"weights": args.name, **result})


if __name__ == "__main__":
    main()
