"""int8 twins: near their originals, whole or absent, with the sensitive layers left alone."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import save_small_network
from onnx import TensorProto, helper

from handmesh.model.graph_passes import store_float16
from handmesh.model.quantise import all_but_the_first, quantise_graph

INT8_TOLERANCE = 0.05  # of the largest output after three layers; activations have 255 steps, weights 127


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Three convolutions: of pixels, of each channel, and across channels; a large and a small linear layer behind,
    a GELU between them.

    float16 weights as we export them.
    """
    rng = np.random.default_rng(0)
    weights = {
        "stem": rng.normal(size=(32, 3, 3, 3)) / 5,
        "depthwise": rng.normal(size=(32, 1, 3, 3)) / 3,
        "mixing": rng.normal(size=(32, 32, 1, 1)) / 6,
        "large": rng.normal(size=(2048, 32)) / 6,
        "small": rng.normal(size=(8, 2048)) / 45,
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], "stem", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], "depthwise", group=32, pads=[1] * 4),
        helper.make_node("Conv", ["c", "mixing"], ["d"], "mixing"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "large"], ["g"], "large", transB=1),
        helper.make_node("Gelu", ["g"], ["h"], "gelu"),
        helper.make_node("Gemm", ["h", "small"], ["y"], "small", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])]
    return save_small_network(
        tmp_path_factory.mktemp("original") / "small.onnx", nodes, inputs, outputs, weights, store=store_float16
    )


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(1).uniform(0, 1, (24, 3, 16, 16)).astype(np.float32)


def answer(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


@pytest.mark.parametrize(
    ("settings", "layers"),
    [({}, ["mixing", "large"]), ({"choose": all_but_the_first}, ["depthwise", "mixing", "large"])],
)
def test_twin_answers_like_its_original(original, inputs, tmp_path, settings, layers):
    target = tmp_path / "small_int8.onnx"
    assert quantise_graph(original, target, [{"x": x[None]} for x in inputs[:16]], **settings) == layers
    assert list(tmp_path.iterdir()) == [target]
    expected, found = answer(original, inputs[16:]), answer(target, inputs[16:])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < INT8_TOLERANCE
    model = onnx.load(str(target))
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert [name for name, kind in stored.items() if kind == TensorProto.INT8 and name.endswith("_quantized")] == [
        f"{layer}_quantized" for layer in layers
    ]
    (gelu,) = (node for node in model.graph.node if node.op_type == "Gelu")
    assert helper.get_node_attr_value(gelu, "approximate") == b"tanh"
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert properties == {"handmesh": {"kind": "hand", "input_size": 16, "precision": "int8"}}


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(original, inputs, tmp_path):
    with pytest.raises(ValueError, match="got none"):
        quantise_graph(original, tmp_path / "a.onnx", [])
    bare = tmp_path / "bare.onnx"
    model = onnx.load(str(original))
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 16, 16]))
    onnx.save(model, str(bare))
    with pytest.raises(ValueError, match=r"bare\.onnx has no layer"):
        quantise_graph(bare, tmp_path / "a.onnx", [{"x": inputs[:1]}])
    assert list(tmp_path.iterdir()) == [bare]


def test_a_twin_of_an_exported_network_opens_in_both_runtimes(original, inputs, tmp_path):
    from handmesh.runtime import load_graph

    quantise_graph(original, tmp_path / "twin.onnx", [{"x": x[None]} for x in inputs])
    expected = load_graph(tmp_path / "twin.onnx", "hand", precision="int8")(x=inputs[:2])["y"]
    found = load_graph(tmp_path / "twin.onnx", "hand", precision="int8", runtime="openvino")(x=inputs[:2])["y"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < INT8_TOLERANCE
