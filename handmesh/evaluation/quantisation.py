"""`handmesh quantise`: the int8 twin of exported weights, what it costs and gains, kept if it wins."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import ASSETS, load_hand_model
from handmesh.datasets.detection import VALIDATION_SETS
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.sample import Batch
from handmesh.detector import HandDetector, Letterbox
from handmesh.evaluation.detection import composed_frames, evaluate
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import in_turns, repeated, summary
from handmesh.evaluation.validation import fixed_batch
from handmesh.model.deploy import forget_weights, register_weights
from handmesh.model.hand_model import HandModel
from handmesh.model.quantise import all_but_the_first, quantise_graph
from handmesh.model.regressor import wrist_relative_hand
from handmesh.runtime import INT8_SUFFIX, Graph, load_graph

MAX_LOSS_MM = 0.3
"""Of PA-MPVPE; int8 hand networks that lose more are not kept."""

MAX_LOSS_AP50 = 0.01
"""Of average precision; int8 detectors that lose more are not kept."""

CALIBRATION_SETS = ("lebanese_gestures", "grocery_holding")
"""Photos that detectors train on."""

_log = logging.getLogger(__name__)


def answers(graph: Graph, crops: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a hand network says of crops (N, S, S, 3), run in batches."""
    parts = [graph(crop=crops[i : i + 32]) for i in range(0, len(crops), 32)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def errors(answer: dict[str, NDArray[Any]], batch: Batch) -> dict[str, float]:
    """PA-MPVPE and PA-MPJPE in mm and the 2D keypoint error as a share of the box, against exact labels.

    Raises ValueError for a network of another hand model than the open one, whose hands the labels are.
    """
    hand_model = HandModel(load_hand_model())
    found = answer["vertices"].shape[-2]
    if found != hand_model.vertex_count:
        raise ValueError(
            f"the network gives hands of {found} vertices, but rendered hands have {hand_model.vertex_count}: "
            "only networks of the open hand model can be measured on them"
        )
    vertices, joints = wrist_relative_hand(hand_model, batch.rotations, batch.betas)
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


def time_side_by_side(graphs: dict[str, Graph], **inputs: NDArray[Any]) -> dict[str, Any]:
    """Milliseconds of one run of the graphs "f32" and "int8", taken in turns, and the ratio of their medians."""
    times = in_turns({name: repeated(partial(graph, **inputs)) for name, graph in graphs.items()}, turns=20, runs=10)
    medians = {name: summary(values)["median_ms"] for name, values in times.items()}
    return {"median_ms": medians, "ratio": medians["int8"] / medians["f32"]}


def quantise_hand(source: Path, target: Path, data: Path, calibrate: int) -> dict[str, Any]:
    """Make and measure the int8 twin of a hand network on a rendered evaluation split.

    Raises ValueError or FileNotFoundError where that split is not there, or too small.
    """
    dataset = FreiHandDataset(data, "evaluation")
    if len(dataset) <= calibrate or dataset.rotations is None:
        raise ValueError(f"{data} must hold more than {calibrate} rendered hands with their rotations")
    plain = load_graph(source, "hand", threads=1)
    size = int(plain.number("input_size"))
    fitting = fixed_batch(dataset, size, range(calibrate)).crops.numpy()
    measuring = fixed_batch(dataset, size, range(calibrate, len(dataset)))
    layers = quantise_graph(source, target, [{"crop": fitting[i : i + 1]} for i in range(len(fitting))])
    quantised = load_graph(target, "hand", threads=1)
    result = compare(plain, quantised, measuring)
    times = time_side_by_side({"f32": plain, "int8": quantised}, crop=measuring.crops.numpy()[:1])
    loses = result["change"]["pa_mpvpe_mm"] >= MAX_LOSS_MM
    return result | {"layers_in_int8": len(layers), "one_thread": times, "loses": loses}


def quantise_detector(source: Path, target: Path, data: Path, calibrate: int) -> dict[str, Any]:
    """Make the int8 twin of a hand detector on composed frames of training photos, measure it on validation photos."""
    plain = load_graph(source, "detector", threads=1)
    width, height = (int(plain.number(f"input_{side}")) for side in ("width", "height"))
    letterbox = Letterbox.fit(640, 480, width, height)
    frames = islice(composed_frames(data, CALIBRATION_SETS, seed=5), calibrate)
    feeds = [{"frame": letterbox.apply(frame.image)[None]} for frame in frames]
    layers = quantise_graph(source, target, feeds, all_but_the_first)
    quantised = load_graph(target, "detector", threads=1)
    measuring = list(composed_frames(data, VALIDATION_SETS))
    f32, int8 = (asdict(evaluate(HandDetector(graph, threshold=0.02), measuring)) for graph in (plain, quantised))
    times = time_side_by_side({"f32": plain, "int8": quantised}, **feeds[0])
    loses = int8["ap50"] < f32["ap50"] - MAX_LOSS_AP50
    return {"layers_in_int8": len(layers), "f32": f32, "int8": int8, "one_thread": times, "loses": loses}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the int8 twin of exported weights, measure it, and keep it if it is faster and loses next to nothing."""
    parser = argparse.ArgumentParser(prog="handmesh quantise", description=main.__doc__)
    parser.add_argument("name", nargs="?", default="fast", help="a hand network or detector (%(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="for hand networks a folder with a rendered evaluation split, for detectors one of labelled photos",
    )
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where the weights lie (the package)")
    parser.add_argument("--calibrate", type=int, default=128, help="pictures to fit ranges on (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file, .json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # the quantiser itself is talkative
    logging.getLogger("handmesh").setLevel(logging.INFO)

    kind = registered_kind(args.folder, args.name)
    source, target = (args.folder / f"{args.name}{suffix}.onnx" for suffix in ("", INT8_SUFFIX))
    with tempfile.TemporaryDirectory() as folder:  # an earlier twin stays in use until this one is judged
        twin = Path(folder) / target.name
        result = QUANTISERS[kind](source, twin, args.data, args.calibrate)
        result["megabytes"] = {"f32": source.stat().st_size / 1e6, "int8": twin.stat().st_size / 1e6}
        result["kept"] = not result.pop("loses") and result["one_thread"]["ratio"] < 1.0
        _log.info("%s", json.dumps(result, indent=1))
        if result["kept"]:
            register_weights(args.folder, target.stem, twin, {"kind": kind, "precision": "int8"})
        else:
            forget_weights(args.folder, target.stem)
            _log.warning("int8 does not win here: there is no %s", target.name)
    if args.out is not None:
        write_result(args.out, {"weights": args.name, **result})


QUANTISERS = {"hand": quantise_hand, "detector": quantise_detector}


def registered_kind(folder: Path, name: str) -> str:
    """What `weights.json` says of a name, one of QUANTISERS; FileNotFoundError or ValueError if it does not."""
    registry = folder / "weights.json"
    if not registry.is_file():
        raise FileNotFoundError(f"no {registry}: `handmesh export` writes weights with such a table")
    kind = json.loads(registry.read_text()).get(name, {}).get("kind")
    if kind not in QUANTISERS:
        raise ValueError(f"{registry} has no hand network or detector {name!r}")
    return kind


if __name__ == "__main__":
    main()
