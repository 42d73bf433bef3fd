"""Changes to an exported ONNX graph that keep its function: faster nodes, smaller weights, nothing of the exporter.

Every weight of the network keeps its name and its values in the file, so that it can be read back into torch. What a
pass computes from weights alone (a cast, a slice) is folded by the runtimes when they open the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

HALF = "_float16"
SMALL_TENSOR = 256  # values; smaller ones, and vectors, stay float32


def strip(model: onnx.ModelProto) -> None:
    """Drop what an exporter says of its machine: stack traces and file names in node metadata."""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def store_float16(model: onnx.ModelProto) -> None:
    """Keep large float32 initialisers in float16 and cast them back in the graph, but not the hand's geometry."""
    casts = []
    for initializer in list(model.graph.initializer):
        values = numpy_helper.to_array(initializer)
        # Half a tenth of a millimetre would be lost; of pose correctives, which are millimetres themselves, nothing.
        geometry = "hand_model." in initializer.name and not initializer.name.endswith(".posedirs")
        if values.dtype != np.float32 or values.ndim < 2 or values.size < SMALL_TENSOR or geometry:
            continue
        name = initializer.name
        stored = numpy_helper.from_array(values.astype(np.float16), name + HALF)
        initializer.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=onnx.TensorProto.FLOAT))
    replace_nodes(model, [*casts, *model.graph.node])


def split_depth_multipliers(model: onnx.ModelProto) -> None:
    """Turn grouped convolutions with several outputs a channel into depthwise ones, for which runtimes have kernels.

    FastViT's patch embeddings double their channels so. Where a pointwise convolution follows, output k of all
    channels is one depthwise convolution with its own part of the pointwise one, and the parts are added. Elsewhere
    (the last convolution, on the smallest map) the input's channels are repeated.
    """
    weights = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in model.graph.node:
        outputs_a_channel = _depth_multiplier(node, weights)
        if node.output[0] in done:
            continue
        if outputs_a_channel == 1:
            nodes.append(node)
            continue
        users = [other for other in model.graph.node if node.output[0] in other.input]
        if len(users) == 1 and _is_pointwise(users[0], weights):
            nodes += _split_pair(node, users[0], outputs_a_channel)
            done.add(users[0].output[0])
        else:
            nodes += _repeat_input(model, node, outputs_a_channel, weights[node.input[1]][0])
    replace_nodes(model, nodes)


def _depth_multiplier(node: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> int:
    """Outputs for each input channel of a convolution in which every channel is a group; else 1."""
    shape = weights.get(node.input[1]) if node.op_type == "Conv" else None
    groups = _attribute(node, "group", 1)
    return shape[0] // groups if shape is not None and shape[1] == 1 and groups > 1 else 1


def _is_pointwise(node: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> bool:
    shape = weights.get(node.input[1]) if node.op_type == "Conv" else None
    return shape is not None and set(shape[2:]) == {1} and _attribute(node, "group", 1) == 1


def _split_pair(depthwise: onnx.NodeProto, pointwise: onnx.NodeProto, count: int) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    parts: list[str] = []
    for k in range(count):
        result = f"{depthwise.output[0]}_{k}"
        inputs = [depthwise.input[0]]
        for name in depthwise.input[1:]:
            inputs.append(_every(nodes, name, k, count, axis=0))
        nodes.append(_like(depthwise, inputs, result))
        part = f"{pointwise.output[0]}_{k}"
        bias = list(pointwise.input[2:]) if k == 0 else []
        nodes.append(_like(pointwise, [result, _every(nodes, pointwise.input[1], k, count, axis=1), *bias], part))
        parts.append(part)
    total = parts[0]
    for k, part in enumerate(parts[1:], start=1):
        name = pointwise.output[0] if k == count - 1 else f"{pointwise.output[0]}_sum{k}"
        nodes.append(helper.make_node("Add", [total, part], [name]))
        total = name
    return nodes


def _every(nodes: list[onnx.NodeProto], weight: str, first: int, step: int, axis: int) -> str:
    """Append a node that takes every `step`-th slice of a weight along an axis; returns its result's name."""
    numbers = []
    for word, value in (("start", first), ("end", np.iinfo(np.int64).max), ("axis", axis), ("step", step)):
        numbers.append(f"{weight}_{first}_{word}")
        tensor = numpy_helper.from_array(np.array([value], np.int64), numbers[-1])
        nodes.append(helper.make_node("Constant", [], [numbers[-1]], value=tensor))
    name = f"{weight}_{first}"
    nodes.append(helper.make_node("Slice", [weight, *numbers], [name]))
    return name


def _repeat_input(model: onnx.ModelProto, node: onnx.NodeProto, count: int, outputs: int) -> list[onnx.NodeProto]:
    order, repeated = f"{node.output[0]}_order", f"{node.output[0]}_repeated"
    model.graph.initializer.append(numpy_helper.from_array(np.arange(outputs) // count, order))
    gather = helper.make_node("Gather", [node.input[0], order], [repeated], axis=1)
    conv = _like(node, [repeated, *node.input[1:]], node.output[0])
    del conv.attribute[[attribute.name for attribute in conv.attribute].index("group")]
    conv.attribute.append(helper.make_attribute("group", outputs))
    return [gather, conv]


def _like(node: onnx.NodeProto, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    """The same operation on other inputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(output)
    copy.name = output
    return copy


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give a graph these nodes in place of its own, of which they may hold some."""
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def approximate_gelu(model: onnx.ModelProto) -> None:
    """Compute GELU through tanh: faster, and at most 0.0005 from the exact one. For graphs that round more anyway."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))


def divide_weights(model: onnx.ModelProto) -> None:
    """Divide a convolution's weights, once, where its input would be divided for each channel in every run.

    The image's standard deviation goes this way. Its mean must stay: outside of the image a convolution sees zeros,
    which stand for the mean colour.
    """
    shapes = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(value.name for value in model.graph.output)
    divided: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in divided and _attribute(node, "group", 1) == 1:
            division = divided[node.input[0]]
            weight = f"{node.input[1]}_divided"
            # (channels, 1, 1) broadcasts over weights (outputs, channels, height, width) as over images.
            nodes.remove(division)
            nodes.append(helper.make_node("Div", [node.input[1], division.input[1]], [weight]))
            nodes.append(_like(node, [division.input[0], weight, *node.input[2:]], node.output[0]))
            continue
        nodes.append(node)
        if node.op_type == "Div" and shapes.get(node.input[1], ())[1:] == (1, 1) and uses[node.output[0]] == 1:
            divided[node.output[0]] = node
    replace_nodes(model, nodes)


PASSES: tuple[Callable[[onnx.ModelProto], None], ...] = (strip, split_depth_multipliers, divide_weights)
"""What every exported graph goes through, in order; `store_float16` where asked for. Int8 twins: `approximate_gelu`."""
