"""Where a hand network's time goes, layer by layer, as onnxruntime runs it after its own folding and fusing.

The graph that onnxruntime has optimised for this processor is written out, its nodes get names of their own, and it is
run with onnxruntime's profiler on one thread. Nodes are sorted into stages by the source graph's weights. Shares are of
the nodes' own times; `network_ms` is the processor time of a run without the profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from handmesh.assets import weights_path
from handmesh.atomic import written_whole
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import in_turns, repeated, summary
from handmesh.runtime import INT8_SUFFIX, load_graph

STAGES = ("input", "stem", "stage 1", "stage 2", "stage 3", "stage 4", "final convolution", "head", "hand model")
"""In the order of the data."""

SLOWEST = 15
SMALL_SHARE = 0.01  # operators that take less make up one row of the table
WARM_UP = 10  # runs

_WEIGHT_STAGES = (
    (re.compile(r"network\.backbone\.stem\."), lambda _: "stem"),
    (re.compile(r"network\.backbone\.stages\.(\d)\."), lambda match: f"stage {int(match[1]) + 1}"),
    (re.compile(r"network\.backbone\.final_conv\."), lambda _: "final convolution"),
    (re.compile(r"network\.head\."), lambda _: "head"),
    (re.compile(r"network\.hand_model\."), lambda _: "hand model"),
)
_ADDED = re.compile(r"(_nchwc|_token_\d+|_(De)?[Qq]uantizeLinear(_Output)?(_out\d+)?)+$")
"""What onnxruntime and its quantiser put behind the names of nodes and tensors."""


@dataclass(frozen=True)
class Layer:
    """One node of the optimised graph: median milliseconds of a run and multiply-accumulates (0 where it has none)."""

    name: str
    operator: str
    stage: str
    output: tuple[int, ...]  # shape
    ms: float
    macs: int


def stage_of_weight(name: str) -> str | None:
    """The stage that a tensor of the exported graph belongs to by its name; None for other tensors."""
    for pattern, stage in _WEIGHT_STAGES:
        match = pattern.match(name)
        if match is not None:
            return stage(match)
    return None


def follow(nodes: Sequence[onnx.NodeProto], known: Callable[[onnx.NodeProto], str | None]) -> list[str]:
    """The stage of every node in data order: what `known` says of it, else the latest stage among its inputs."""
    stages: list[str] = []
    of_tensor: dict[str, str] = {}
    for node in nodes:
        before = [of_tensor[name] for name in node.input if name in of_tensor]
        stage = known(node) or max(before, key=STAGES.index, default=STAGES[0])
        stages.append(stage)
        of_tensor |= dict.fromkeys(node.output, stage)
    return stages


def stages_of(source: onnx.GraphProto, optimised: onnx.GraphProto) -> list[str]:
    """The stage of every node of an optimised graph, found by the names that are left of the exported one."""

    def by_weight(node: onnx.NodeProto) -> str | None:
        found = [stage for name in node.input if (stage := stage_of_weight(name)) is not None]
        return max(found, key=STAGES.index, default=None)

    of_name = {}
    for node, stage in zip(source.node, follow(source.node, by_weight), strict=True):
        of_name |= dict.fromkeys((node.name, *node.output), stage)
    of_name.pop("", None)

    def by_name(node: onnx.NodeProto) -> str | None:
        for name in (node.name, *node.output):
            plain = _ADDED.sub("", name)
            if plain in of_name:
                return of_name[plain]
        return None

    return follow(optimised.node, by_name)


def macs(node: onnx.NodeProto, weights: dict[str, tuple[int, ...]], inputs: list[Any], output: Sequence[int]) -> int:
    """Multiply-accumulates of a convolution or matrix product; 0 for other nodes.

    `weights` are shapes of the graph's constants, `inputs` and `output` the shapes of one run.
    """
    if node.op_type in ("Conv", "FusedConv", "QLinearConv"):
        shape = weights[node.input[3 if node.op_type == "QLinearConv" else 1]]
        return math.prod(output) * math.prod(shape[1:])
    if node.op_type in ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul"):
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(output) * inputs[0][-2 if turned else -1]
    return 0


def session_options(*, optimise: bool = True) -> onnxruntime.SessionOptions:
    """One thread, as `handmesh.runtime` sets it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def optimised_model(path: Path, folder: Path) -> onnx.ModelProto:
    """What onnxruntime makes of a network file on this processor; written to `folder`."""
    options = session_options()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def profile(path: Path, crops: NDArray[np.uint8], runs: int) -> list[Layer]:
    """Medians of every layer over so many runs on crops (N, S, S, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        model = optimised_model(path, Path(folder))
        stages = stages_of(onnx.load(str(path)).graph, model.graph)
        names = [node.name.removeprefix("node_") for node in model.graph.node]
        for number, node in enumerate(model.graph.node):
            node.name = f"layer_{number}"
        options = session_options(optimise=False)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + runs):
            session.run(None, {"crop": crops})
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, Any] = {}
    for event in events:
        name, kernel, _ = event["name"].partition("_kernel_time")
        if event.get("cat") == "Node" and kernel:
            taken[name].append(event["dur"] / 1e3)
            facts[name] = event["args"]
    weights = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    layers = []
    for node, name, stage in zip(model.graph.node, names, stages, strict=True):
        if node.name not in taken:  # onnxruntime has left it out after all
            continue
        inputs, outputs = (_shapes(facts[node.name][key]) for key in ("input_type_shape", "output_type_shape"))
        output = tuple(outputs[0]) if outputs else ()
        ms = float(np.median(taken[node.name][WARM_UP:]))
        layers.append(Layer(name, node.op_type, stage, output, ms, macs(node, weights, inputs, output)))
    return layers


def _shapes(described: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for entry in described for shape in entry.values()]


def grouped(layers: Sequence[Layer], key: str) -> dict[str, dict[str, float]]:
    """Time, share of it, multiply-accumulates and GFLOP/s (two operations each) by "stage" or "operator"."""
    total = sum(layer.ms for layer in layers)
    members: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        members[getattr(layer, key)].append(layer)
    rows = {}
    for name, group in members.items():
        ms, count = sum(layer.ms for layer in group), sum(layer.macs for layer in group)
        rows[name] = {"layers": len(group), "ms": ms, "share": ms / total, "macs": count}
        if count:
            rows[name]["gflops"] = 2e-6 * count / ms
    order = STAGES.index if key == "stage" else lambda name: -rows[name]["ms"]
    return {name: rows[name] for name in sorted(rows, key=order)}


def profile_precisions(weights: str, runs: int) -> dict[str, Any]:
    """The profile of weights known by name or given as a file, and of their int8 twin where they have one."""
    files = {"f32": weights_path(weights)}
    twin = files["f32"].with_name(f"{files['f32'].stem}{INT8_SUFFIX}.onnx")
    if twin.is_file():
        files["int8"] = twin
    graphs = {name: load_graph(path, "hand", threads=1) for name, path in files.items()}
    size = int(graphs["f32"].number("input_size"))
    crops = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    contenders = {name: repeated(partial(graph, crop=crops), time.process_time) for name, graph in graphs.items()}
    times = in_turns(contenders, turns=max(1, runs // 10), runs=10)
    result: dict[str, Any] = {"weights": weights, "crop_px": size, "threads": 1, "runs": runs, "precisions": {}}
    for name, path in files.items():
        layers = profile(path, crops, runs)
        slowest = sorted(layers, key=lambda layer: -layer.ms)[:SLOWEST]
        result["precisions"][name] = {
            "network_ms": summary(times[name])["median_ms"],
            "layers_ms": sum(layer.ms for layer in layers),
            "macs": sum(layer.macs for layer in layers),
            "stages": grouped(layers, "stage"),
            "operators": grouped(layers, "operator"),
            "slowest": [asdict(layer) for layer in slowest],
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Stages and operators as Markdown, each precision by itself."""
    lines = []
    for precision, found in result["precisions"].items():
        lines += [f"{precision}: {found['network_ms']:.2f} ms, {found['macs'] / 1e6:.0f} M multiply-accumulates", ""]
        for key in ("stages", "operators"):
            lines += [f"| {key} | ms | share | M MACs | GFLOP/s |", "|---|---|---|---|---|"]
            small = [name for name, row in found[key].items() if key == "operators" and row["share"] < SMALL_SHARE]
            for name, row in found[key].items():
                if name in small:
                    continue
                rate = f"{row['gflops']:.0f}" if "gflops" in row else ""
                lines.append(f"| {name} | {row['ms']:.3f} | {row['share']:.1%} | {row['macs'] / 1e6:.1f} | {rate} |")
            if small:
                ms, share = (sum(found[key][name][what] for name in small) for what in ("ms", "share"))
                lines.append(f"| {len(small)} others | {ms:.3f} | {share:.1%} | | |")
            lines.append("")
    return "\n".join(lines[:-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Profile a hand network and its int8 twin layer by layer in onnxruntime, by stage and by operator."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast", help="name of weights or an .onnx file (%(default)s)")
    parser.add_argument("--runs", type=int, default=200, help="runs of each network (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file, .json; the table goes beside it as .md")
    options = parser.parse_args(argv)
    result = profile_precisions(options.weights, options.runs)
    print(table(result))  # noqa: T201 (a command)
    if options.out is not None:
        write_result(options.out, result)
        with written_whole(options.out.with_suffix(".md")) as temporary:
            temporary.write_text(table(result) + "\n")
