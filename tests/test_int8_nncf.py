"""What nncf may quantise, what becomes int8, and what is said where nncf is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="the comparison needs the train extra")
openvino = pytest.importorskip("openvino", reason="the comparison needs the nncf extra")

from graphs import save_small_network  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from handmesh.evaluation import int8_nncf  # noqa: E402

INT8_TOLERANCE = 0.1  # of the largest output; activations have 255 steps, attention and the square double what is lost


@pytest.fixture
def network(tmp_path):
    """Three convolutions, the middle one depthwise; attention over cells and a product behind it."""
    rng = np.random.default_rng(0)
    weights = {
        "stem": rng.normal(size=(16, 3, 3, 3)) / 500,
        "depthwise": rng.normal(size=(16, 1, 3, 3)) / 3,
        "mixing": rng.normal(size=(16, 16, 1, 1)) / 4,
        "leave": rng.normal(size=(64, 5)),
    }
    nodes = [
        helper.make_node("Transpose", ["crop"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["image"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", "stem"], ["a"], "first", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], "second", group=16, pads=[1] * 4),
        helper.make_node("Conv", ["c", "mixing"], ["d"], "third"),
        helper.make_node("Flatten", ["d"], ["e"], axis=2),
        helper.make_node("Softmax", ["e"], ["f"], "attention", axis=-1),
        helper.make_node("MatMul", ["f", "leave"], ["g"], "product"),
        helper.make_node("Mul", ["g", "g"], ["vertices"], "square"),
    ]
    inputs = [helper.make_tensor_value_info("crop", TensorProto.UINT8, ["N", 16, 16, 3])]
    outputs = [helper.make_tensor_value_info("vertices", TensorProto.FLOAT, ["N", 16, 5])]
    return save_small_network(tmp_path / "small.onnx", nodes, inputs, outputs, weights)


def test_what_follows_attention_stays_in_float(network):
    model = openvino.Core().read_model(network)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    names, types = int8_nncf.kept_in_float(model, "features")
    left = {nodes[name].get_type_name() for name in names}
    assert {"Softmax", "MatMul", "Multiply"} <= left
    assert not left & {"Convolution", "GroupConvolution", "Relu"}
    more, more_types = int8_nncf.kept_in_float(model, "ours")
    (first,) = set(more) - set(names)
    assert list(nodes[first].input_value(1).get_shape()) == [16, 3, 3, 3]
    assert set(more_types) - set(types) == {"GroupConvolution"}
    assert int8_nncf.kept_in_float(model, "all") == ([], [])


@pytest.mark.parametrize(
    ("layers", "quantised"),
    [("ours", {"Convolution": 1}), ("features", {"Convolution": 2, "GroupConvolution": 1})],
)
def test_nncf_quantises_the_layers_that_it_may(network, tmp_path, layers, quantised, caplog):
    pytest.importorskip("nncf", reason="needs the nncf extra")
    from handmesh.runtime import load_graph

    crops = np.random.default_rng(1).integers(0, 256, (16, 16, 16, 3), np.uint8)
    target = tmp_path / "int8.xml"
    assert int8_nncf.quantise_openvino(network, target, crops[:12], layers) == quantised
    expected = load_graph(network, "hand")(crop=crops[12:])["vertices"]
    graph = load_graph(target, "hand", runtime="openvino")
    assert graph.metadata == {"kind": "hand", "input_size": 16, "precision": "int8"}
    error = np.abs(graph(crop=crops[12:])["vertices"] - expected).max() / np.abs(expected).max()
    assert 0 < error < INT8_TOLERANCE
    assert caplog.handler.level == 0  # handlers that others share are left alone


def test_missing_nncf_is_named(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'handmesh\[nncf\]'"):
        int8_nncf.quantise_openvino(network, tmp_path / "a.xml", np.zeros((1, 16, 16, 3), np.uint8), "ours")
    assert list(tmp_path.iterdir()) == [network]
