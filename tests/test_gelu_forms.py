"""The forms of GELU that are timed are the functions that they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="the comparison needs the train extra")

import onnx
from onnx import TensorProto, helper

from handmesh.evaluation.gelu_forms import FORMS, opened

ROUND_OFF = 1e-6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    "erf": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "tanh": lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "sigmoid 1.702": lambda x: x * sigmoid(1.702 * x),
    "sigmoid 1": lambda x: x * sigmoid(x),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_its_function_in_place_of_another(tmp_path, form):
    nodes = [helper.make_node("Gelu", ["x"], ["y"], approximate="tanh"), helper.make_node("Neg", ["y"], ["z"])]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xz")
    graph = helper.make_graph(nodes, "gelu", [x], [z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(tmp_path / "gelu.onnx"))
    values = np.linspace(-4, 4, 101, dtype=np.float32)
    found = opened(tmp_path / "gelu.onnx", form)(x=values)["z"]
    np.testing.assert_allclose(found, -FUNCTIONS[form](values.astype(float)), atol=ROUND_OFF)
