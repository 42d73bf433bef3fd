"""Would another form of GELU be faster in onnxruntime, and what would it cost? Nothing is trained again.

Every GELU of an exported hand network and of its int8 twin is written anew: with tanh (Hendrycks and Gimpel, "Gaussian
Error Linear Units", 2016, who give both approximations), as x * sigmoid(1.702 x), and as x * sigmoid(x). The last is
another function; with 1.702 moved into the weights around it, it would be the one before, so only its time counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from handmesh.assets import weights_path
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.evaluation.int8_nncf import measure
from handmesh.evaluation.layer_profile import session_options
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import in_turns, repeated, summary
from handmesh.evaluation.validation import fixed_batch
from handmesh.model.graph_passes import replace_nodes
from handmesh.runtime import INT8_SUFFIX, Graph

Form = Literal["erf", "tanh", "sigmoid 1.702", "sigmoid 1"]
FORMS: tuple[Form, ...] = get_args(Form)


def rewrite(model: onnx.ModelProto, form: Form) -> None:
    """Write every GELU of a graph in another form, in place."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += _gelu(node, form) if node.op_type == "Gelu" else [node]
    factor = numpy_helper.from_array(np.array(1.702, np.float32), "gelu_factor")
    model.graph.initializer.append(factor)
    replace_nodes(model, nodes)


def _gelu(node: onnx.NodeProto, form: Form) -> list[onnx.NodeProto]:
    (x,), (y,) = node.input, node.output
    if form in ("erf", "tanh"):
        return [helper.make_node("Gelu", [x], [y], name=node.name, approximate="tanh" if form == "tanh" else "none")]
    scaled, before = x, []
    if form == "sigmoid 1.702":
        scaled = f"{y}_scaled"
        before = [helper.make_node("Mul", [x, "gelu_factor"], [scaled])]
    gate = helper.make_node("Sigmoid", [scaled], [f"{y}_gate"])
    return [*before, gate, helper.make_node("Mul", [x, f"{y}_gate"], [y])]


def opened(path: Path, form: Form) -> Graph:
    """A network file with its GELUs in this form, on one thread."""
    model = onnx.load(str(path))
    rewrite(model, form)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Any) -> dict[str, NDArray[Any]]:
        return dict(zip(names, map(np.asarray, session.run(names, dict(inputs))), strict=True))

    return Graph(path, {}, run)


def compare(weights: str, data: Path, limit: int, turns: int) -> dict[str, Any]:
    """Times and errors of all forms, in float32 and where there is a twin int8, each against the exact one."""
    dataset = FreiHandDataset(data, "evaluation")
    rows = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int)
    plain = weights_path(weights)
    files = {"f32": plain, "int8": plain.with_name(f"{plain.stem}{INT8_SUFFIX}.onnx")}
    graphs = {name: {form: opened(path, form) for form in FORMS} for name, path in files.items() if path.is_file()}
    (entry,) = (value for value in onnx.load(str(plain)).graph.input if value.name == "crop")
    batch = fixed_batch(dataset, entry.type.tensor_type.shape.dim[1].dim_value, rows.tolist())
    crop = batch.crops.numpy()[:1]
    runs = {
        f"{name}/{form}": repeated(partial(graph, crop=crop), time.process_time)
        for name, forms in graphs.items()
        for form, graph in forms.items()
    }
    times = in_turns(runs, turns=turns, runs=10)
    networks: dict[str, Any] = {}
    for name, forms in graphs.items():
        errors = measure({form: forms[form] for form in FORMS if form != "sigmoid 1"}, "erf", batch)
        first = summary(times[f"{name}/erf"])["median_ms"]
        for form in FORMS:
            median = summary(times[f"{name}/{form}"])["median_ms"]
            networks[f"{name}/{form}"] = {"median_ms": median, "saves": 1 - median / first, **errors.get(form, {})}
    timed = "processor time of one run on one thread"
    return {"weights": weights, "hands": len(rows), "timed": timed, "networks": networks}


def table(result: dict[str, Any]) -> str:
    """Times and errors as Markdown."""
    lines = ["| GELU | ms | saves | PA-MPVPE mm | vertices moved, mm |", "|---|---|---|---|---|"]
    for name, row in result["networks"].items():
        error = f"{row['pa_mpvpe_mm']:.3f} | {row['vertices_apart_mm']:.3f}" if "pa_mpvpe_mm" in row else " | "
        lines.append(f"| {name} | {row['median_ms']:.2f} | {row['saves']:.1%} | {error} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare forms of GELU in a hand network: milliseconds and millimetres."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast", help="name of weights or an .onnx file (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="a rendered set with an evaluation split")
    parser.add_argument("--limit", type=int, default=500, help="hands to measure on (%(default)s)")
    parser.add_argument("--turns", type=int, default=20, help="turns that count (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file, .json")
    options = parser.parse_args(argv)
    result = compare(options.weights, options.data, options.limit, options.turns)
    print(table(result))  # noqa: T201 (a command)
    if options.out is not None:
        write_result(options.out, result)
