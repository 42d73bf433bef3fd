"""Passes over exported graphs: same function, better nodes, weights that keep their names."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from handmesh.model.graph_passes import HALF, split_depth_multipliers, store_float16, strip

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
