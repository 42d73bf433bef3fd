"""Passes over exported graphs: same function, better nodes, weights that keep their names."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from handmesh.model.graph_passes import (
    HALF,
    approximate_gelu,
    divide_weights,
    split_depth_multipliers,
    store_float16,
    strip,
)

ROUND_OFF = 1e-5  # sums of at most 147 products of order 1 in another order


def patch_embedding(count: int, *, pointwise: bool) -> onnx.ModelProto:
    """A 3x3 convolution with `count` outputs for each of 4 channels, then a pointwise one or a sigmoid."""
    rng = np.random.default_rng(0)
    weights = {
        "grouped": rng.normal(size=(4 * count, 1, 3, 3)),
        "grouped_bias": rng.normal(size=4 * count),
        "mixing": rng.normal(size=(5, 4 * count, 1, 1)),
        "mixing_bias": rng.normal(size=5),
    }
    first = helper.make_node("Conv", ["x", "grouped", "grouped_bias"], ["h"], group=4, strides=[2, 2], pads=[1] * 4)
    if pointwise:
        second = helper.make_node("Conv", ["h", "mixing", "mixing_bias"], ["y"])
    else:
        second = helper.make_node("Sigmoid", ["h"], ["y"])
    graph = helper.make_graph(
        [first, second],
        "patch",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None, 4, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_depth_multipliers_become_depthwise_convolutions(count, pointwise):
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)
    model = patch_embedding(count, pointwise=pointwise)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = answer(model, x)
    split_depth_multipliers(model)
    np.testing.assert_allclose(answer(model, x), expected, atol=ROUND_OFF)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, values in before.items():
        np.testing.assert_array_equal(kept[name], values)
    grouped = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1].startswith("grouped")]
    channels_in = 4 * count if not pointwise else 4  # one output a channel
    assert {attribute.i for node in grouped for attribute in node.attribute if attribute.name == "group"} == {
        channels_in
    }
    assert len(grouped) == (count if pointwise else 1)


def normalised_convolution(*, group: int = 1, also_returned: bool = False) -> onnx.ModelProto:
    """(x - mean) / deviation, then a padded convolution."""
    rng = np.random.default_rng(0)
    constants = {
        "mean": rng.normal(size=(4, 1, 1)),
        "deviation": rng.uniform(0.2, 3.0, (4, 1, 1)),
        "weight": rng.normal(size=(8, 4 // group, 3, 3)),
        "bias": rng.normal(size=8),
    }
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["image"]),
        helper.make_node("Conv", ["image", "weight", "bias"], ["z"], pads=[1] * 4, group=group),
        helper.make_node("Gelu", ["z"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 8])]
    if also_returned:
        nodes.append(helper.make_node("Relu", ["image"], ["positive"]))
        outputs.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["N", 4, 8, 8]))
    graph = helper.make_graph(
        nodes,
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_images_are_divided_through_the_weights_of_the_first_convolution():
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)
    model = normalised_convolution()
    weight = numpy_helper.to_array(model.graph.initializer[2])
    expected = answer(model, x)
    divide_weights(model)
    np.testing.assert_allclose(answer(model, x), expected, atol=ROUND_OFF)
    assert [node.op_type for node in model.graph.node] == ["Sub", "Div", "Conv", "Gelu"]
    assert list(model.graph.node[1].input) == ["weight", "deviation"]
    assert model.graph.node[2].input[0] == "centred"
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[2]), weight)  # as torch reads it


@pytest.mark.parametrize("changed", [{"group": 4}, {"also_returned": True}])
def test_images_are_divided_where_weights_cannot_be(changed):
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)
    model = normalised_convolution(**changed)
    expected = answer(model, x)
    divide_weights(model)
    assert list(model.graph.node[1].input) == ["centred", "deviation"]
    np.testing.assert_array_equal(answer(model, x), expected)


def test_gelu_through_tanh_is_near_the_exact_one():
    x = np.random.default_rng(1).normal(size=(50, 4, 8, 8)).astype(np.float32)
    model = normalised_convolution()
    expected = answer(model, x)
    approximate_gelu(model)
    assert 0 < np.abs(answer(model, x) - expected).max() < 5e-4


def test_float16_storage_is_cast_back_and_leaves_small_arrays_alone():
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    model = patch_embedding(20, pointwise=True)
    expected = answer(model, x)
    store_float16(model)
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}
    assert stored == {
        "grouped" + HALF: np.float16,
        "grouped_bias": np.float32,
        "mixing" + HALF: np.float16,
        "mixing_bias": np.float32,
    }
    error = np.abs(answer(model, x) - expected).max()
    assert 0 < error < 0.05  # sums of 80 products of sums of 9, each weight off by up to 2^-11


def test_nothing_of_the_exporters_machine_is_left():
    model = patch_embedding(1, pointwise=True)
    model.graph.node[0].doc_string = "File /home/somebody/model.py"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack", "/home/somebody"
    strip(model)
    assert b"somebody" not in model.SerializeToString()
