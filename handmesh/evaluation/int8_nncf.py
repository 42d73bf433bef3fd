"""OpenVINO's own way to int8 (its toolkit nncf) beside our int8 twin, which onnxruntime's quantiser makes.

Both are calibrated on the same crops and measured on the same hands; networks run on one thread, in turns. nncf is
measured three times, as LAYERS says: from what our twin quantises to all that it can.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import weights_path
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.sample import Batch
from handmesh.evaluation.quantisation import answers, errors
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import in_turns, repeated, summary
from handmesh.evaluation.validation import fixed_batch
from handmesh.runtime import METADATA_KEY, Graph, load_graph

if TYPE_CHECKING:
    import openvino

Layers = Literal["ours", "features", "all"]
LAYERS: dict[Layers, str] = {
    "ours": "depthwise and first convolutions and the head's products in float, as in our twin",
    "features": "all convolutions in int8",
    "all": "everything that it can quantise in int8, rotations and hand model too",
}
"""What nncf may quantise. The first two leave float whatever follows the keypoints' attention, as our twin does, whose
only other difference is that the head's large linear layers are in int8."""


def quantise_openvino(source: Path, target: Path, crops: NDArray[np.uint8], layers: Layers) -> dict[str, int]:
    """Write the int8 form that nncf makes of an exported ONNX file as OpenVINO IR (.xml, with a .bin beside it).

    `crops` (N, S, S, 3) are what ranges are fitted on. Returns how many operations of each kind read quantised weights.

    Raises:
        ModuleNotFoundError: nncf or OpenVINO is not installed.
    """
    try:
        import nncf  # pyright: ignore[reportMissingImports]
        import openvino
        from openvino.passes import ConstantFolding, Manager
    except ImportError as error:
        raise ModuleNotFoundError("quantising for OpenVINO needs nncf: pip install 'handmesh[nncf]'") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own set_log_level changes handlers that others share
    model = openvino.Core().read_model(source)
    folding = Manager()  # nncf takes only constants for weights, not what is computed from them
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    feeds = nncf.Dataset([{"crop": crops[i : i + 1]} for i in range(len(crops))])
    names, types = kept_in_float(model, layers)
    quantised = nncf.quantize(
        model,
        feeds,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(crops),
        ignored_scope=nncf.IgnoredScope(names=names, types=types, validate=False),
    )
    place = ["framework", METADATA_KEY]
    description = json.loads(model.get_rt_info(place).value) | {"precision": "int8"}
    quantised.set_rt_info(json.dumps(description), place)
    openvino.save_model(quantised, target, compress_to_fp16=False)
    return _quantised_layers(quantised)


def kept_in_float(model: openvino.Model, layers: Layers) -> tuple[list[str], list[str]]:
    """Names and types of the operations that nncf is to leave alone."""
    if layers == "all":
        return [], []
    names: list[str] = []
    behind: set[str] = set()
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        follows = any(value.get_node().get_friendly_name() in behind for value in node.input_values())
        if follows or node.get_type_name() == "Softmax":
            behind.add(name)
            names.append(name)
    if layers == "features":
        return names, ["MatMul"]
    first = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")
    return [*names, first.get_friendly_name()], ["MatMul", "GroupConvolution"]


def _quantised_layers(model: openvino.Model) -> dict[str, int]:
    """Operations by type whose weights (their second input) come out of a quantiser."""
    counts: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        behind = node.input_value(1).get_node()
        while behind.get_type_name() in ("Reshape", "Multiply", "Subtract", "Convert"):
            behind = behind.input_value(0).get_node()
        stored = behind.get_type_name() == "Constant" and str(behind.get_element_type()).endswith("int8_t'>")
        if behind.get_type_name() == "FakeQuantize" or stored:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def measure(contenders: dict[str, Graph], reference: str, batch: Batch) -> dict[str, Any]:
    """Errors of every network on a batch with exact labels, and what changes against the reference's.

    `vertices_apart_mm` is how far a network and the reference put the same vertex apart, on average.
    """
    crops = batch.crops.numpy()
    found = {name: answers(graph, crops) for name, graph in contenders.items()}
    plain = errors(found[reference], batch)
    rows = {}
    for name, answer in found.items():
        measured = errors(answer, batch)
        apart = np.linalg.norm(answer["vertices"] - found[reference]["vertices"], axis=-1).mean() * 1e3
        change = {key: measured[key] - plain[key] for key in plain}
        rows[name] = {**measured, "change": change, "vertices_apart_mm": float(apart)}
    return rows


def compare(weights: str, data: Path, calibrate: int, limit: int, turns: int) -> dict[str, Any]:
    """Quantise with nncf, then measure errors and times of all forms of a hand network that OpenVINO can run.

    Raises:
        ValueError: the weights have no int8 twin, or `data` is too small or no rendered set.
    """
    dataset = FreiHandDataset(data, "evaluation")
    if len(dataset) <= calibrate or dataset.rotations is None:
        raise ValueError(f"{data} must hold more than {calibrate} rendered hands with their rotations")
    open_graph = partial(load_graph, weights, "hand", threads=1)
    contenders = {
        "onnxruntime f32": open_graph(precision="f32"),
        "onnxruntime int8 (our twin)": open_graph(precision="int8"),
        "openvino f32": open_graph(runtime="openvino", precision="f32"),
        "openvino bf16": open_graph(runtime="openvino", precision="bf16"),
        "openvino int8 (our twin)": open_graph(runtime="openvino", precision="int8"),
    }
    size = int(contenders["onnxruntime f32"].number("input_size"))
    fitting = fixed_batch(dataset, size, range(calibrate)).crops.numpy()
    rows = np.linspace(calibrate, len(dataset) - 1, min(limit, len(dataset) - calibrate)).astype(int)
    measuring = fixed_batch(dataset, size, rows.tolist())
    layers, megabytes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in LAYERS:
            name = f"openvino int8 (nncf, {kind})"
            target = Path(folder) / f"{kind}.xml"
            layers[name] = quantise_openvino(weights_path(weights), target, fitting, kind)
            megabytes[name] = sum(file.stat().st_size for file in Path(folder).glob(f"{target.stem}.*")) / 1e6
            contenders[name] = load_graph(target, "hand", runtime="openvino", threads=1)
        found = measure(contenders, "onnxruntime f32", measuring)
        runs = {
            name: repeated(partial(graph, crop=measuring.crops.numpy()[:1]), time.process_time)
            for name, graph in contenders.items()
        }
        times = in_turns(runs, turns=turns, runs=10)
    for name, row in found.items():
        row["median_ms"] = summary(times[name])["median_ms"]
        if name in layers:
            row |= {"layers_in_int8": layers[name], "megabytes": megabytes[name]}
    return {
        "weights": weights,
        "calibrated_on": calibrate,
        "hands": len(rows),
        "nncf": LAYERS,
        "timed": "processor time of one run on one thread",
        "networks": found,
    }


def table(result: dict[str, Any]) -> str:
    """Times and errors as Markdown."""
    lines = ["| network | ms | PA-MPVPE mm | change | vertices moved, mm |", "|---|---|---|---|---|"]
    for name, row in result["networks"].items():
        numbers = f"{row['median_ms']:.2f} | {row['pa_mpvpe_mm']:.2f} | {row['change']['pa_mpvpe_mm']:+.3f}"
        lines.append(f"| {name} | {numbers} | {row['vertices_apart_mm']:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Quantise a hand network with nncf and compare it with the int8 twin that onnxruntime's quantiser made."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast", help="name of weights with an int8 twin (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="a rendered set with an evaluation split")
    parser.add_argument("--calibrate", type=int, default=128, help="pictures to fit ranges on (%(default)s)")
    parser.add_argument("--limit", type=int, default=500, help="hands to measure on (%(default)s)")
    parser.add_argument("--turns", type=int, default=20, help="turns that count (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file, .json")
    options = parser.parse_args(argv)
    result = compare(options.weights, options.data, options.calibrate, options.limit, options.turns)
    print(table(result))  # noqa: T201 (a command)
    if options.out is not None:
        write_result(options.out, result)
