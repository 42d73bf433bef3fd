"""Post-training quantisation: a published float graph and some of its inputs -> the same graph computing in int8.

Convolutions that mix channels hold nearly all multiplications, and the large linear layers behind them as many weights:
they are computed in int8 (weights for each output channel apart, activations for each tensor). What is small or
sensitive stays in float: the first layer, which sees pixels, depthwise convolutions, the attention of keypoints, the
last steps to joint rotations, and the hand model.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from handmesh.atomic import written_whole
from handmesh.model.graph_passes import approximate_gelu, store_float16

Feed = Mapping[str, NDArray[Any]]
Choose = Callable[[tuple[int, ...], int], bool]
"""(weight's shape (outputs, inputs a group, height, width), groups) -> compute this convolution in int8?"""

_LARGE_LINEAR = 60_000  # weights; smaller layers take no time

_ACTIVATIONS = ("Relu", "Clip")  # a range of the int8 output is all that remains of them


def mixes_channels(shape: tuple[int, ...], groups: int) -> bool:
    """Convolutions that are neither depthwise nor the first layer."""
    return groups == 1 and shape[1] > 3


def all_but_the_first(shape: tuple[int, ...], groups: int) -> bool:
    """Depthwise convolutions too: for networks made for int8, whose activations are bounded."""
    return groups > 1 or shape[1] > 3


def quantise_graph(source: Path, target: Path, feeds: Sequence[Feed], choose: Choose = mixes_channels) -> list[str]:
    """Write the int8 twin of an exported ONNX file, whole or not at all; returns the layers that became int8.

    `feeds` are inputs of batch size 1 or more over which the range of every activation is taken. Weights use seven of
    their eight bits, so that processors without VNNI instructions, which add products in 16 bits, cannot overflow.

    Raises:
        ValueError: no feed, or no layer that `choose` takes.
    """
    if not feeds:
        raise ValueError("quantising needs inputs to measure the range of activations on, got none")
    metadata = {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props}
    with tempfile.TemporaryDirectory() as folder:
        folded, quantised = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        graph = onnx.load(str(folded)).graph
        layers = _layers(graph, choose)
        if not layers:
            raise ValueError(f"{source} has no layer that int8 would serve")
        quantize_static(
            folded,
            quantised,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", *_ACTIVATIONS, "Add"],
            nodes_to_quantize=[*layers, *_between(graph, layers)],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(str(quantised))
    approximate_gelu(model)
    store_float16(model)
    del model.metadata_props[:]
    description = json.loads(metadata["handmesh"]) | {"precision": "int8"}
    onnx.helper.set_model_props(model, {"handmesh": json.dumps(description)})
    onnx.checker.check_model(model)
    with written_whole(target) as temporary:
        onnx.save(model, str(temporary))
    return layers


def _layers(graph: onnx.GraphProto, choose: Choose) -> list[str]:
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type == "Conv":
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            wanted = choose(shapes[node.input[1]], groups)
        else:
            shape = shapes.get(node.input[1], ()) if node.op_type == "Gemm" else ()
            wanted = len(shape) == 2 and math.prod(shape) > _LARGE_LINEAR and "hand_model" not in node.input[1]
        if wanted:
            layers.append(node.name)
    return layers


def _between(graph: onnx.GraphProto, layers: Sequence[str]) -> list[str]:
    """Activations right after these layers, and sums of nothing but their results: no need to leave int8 for them."""
    results = {output for node in graph.node if node.name in layers for output in node.output}
    names = []
    for node in graph.node:
        follows = node.op_type in _ACTIVATIONS and node.input[0] in results
        if follows or (node.op_type == "Add" and set(node.input) <= results):
            names.append(node.name)
            results |= set(node.output)
    return names


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._rest: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        feed = next(self._rest, None)
        return None if feed is None else dict(feed)
