"""Every layer is counted once, in the stage that its weights name, with the multiplications that its shapes say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="profiling needs the train extra")

from graphs import save_small_network  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from handmesh.assets import weights_path  # noqa: E402
from handmesh.evaluation import layer_profile  # noqa: E402

STAGES = ["stem", "stage 1", "stage 4", "head", "hand model"]


@pytest.fixture
def network(tmp_path):
    """A convolution in each of two stages, a depthwise one, a linear layer and a product: 16 x 16 crops."""
    rng = np.random.default_rng(0)
    weights = {
        "network.backbone.stem.0.weight": rng.normal(size=(16, 3, 3, 3)),
        "network.backbone.stages.0.weight": rng.normal(size=(16, 1, 3, 3)),
        "network.backbone.stages.3.weight": rng.normal(size=(32, 16, 1, 1)),
        "network.head.weight": rng.normal(size=(10, 32)),
        "network.hand_model.shapes": rng.normal(size=(10, 33)),
    }
    names = list(weights)
    nodes = [
        helper.make_node("Transpose", ["crop"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["image"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", names[0]], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Gelu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", names[1]], ["c"], group=16, pads=[1] * 4),
        helper.make_node("Conv", ["c", names[2]], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", names[3]], ["betas"], transB=1),
        helper.make_node("MatMul", ["betas", names[4]], ["vertices"]),
    ]
    inputs = [helper.make_tensor_value_info("crop", TensorProto.UINT8, ["N", 16, 16, 3])]
    outputs = [helper.make_tensor_value_info("vertices", TensorProto.FLOAT, ["N", 33])]
    return save_small_network(tmp_path / "profiled.onnx", nodes, inputs, outputs, weights)


def test_layers_stand_in_their_stages_with_their_multiplications(network):
    layers = layer_profile.profile(network, np.zeros((1, 16, 16, 3), np.uint8), runs=3)
    by_stage = layer_profile.grouped(layers, "stage")
    assert list(by_stage) == ["input", *STAGES]
    # Outputs times inputs of each: 8 x 8 cells of three convolutions, then two matrices.
    counts = [64 * 16 * 27, 64 * 16 * 9, 64 * 32 * 16, 10 * 32, 10 * 33]
    assert [by_stage[name]["macs"] for name in STAGES] == counts
    assert by_stage["input"]["macs"] == 0
    assert "gflops" not in by_stage["input"]
    assert sum(row["share"] for row in by_stage.values()) == pytest.approx(1.0)
    assert sum(row["layers"] for row in by_stage.values()) == len(layers)
    by_operator = layer_profile.grouped(layers, "operator")
    assert by_operator["Gelu"]["layers"] == 1
    assert sum(row["macs"] for row in by_operator.values()) == sum(counts)
    stem = by_stage["stem"]
    assert stem["gflops"] == pytest.approx(2e-6 * stem["macs"] / stem["ms"])


def test_the_command_writes_its_result_and_the_table_beside_it(network, tmp_path, capsys):
    out = tmp_path / "result.json"
    layer_profile.main(["--weights", str(network), "--runs", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["precisions"]) == ["f32"]  # no twin lies beside it
    assert result["crop_px"] == 16
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out
    assert "| stem |" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", ["fast", "fast_int8"])
def test_the_shipped_network_has_all_stages_and_the_known_number_of_multiplications(name):
    layers = layer_profile.profile(weights_path(name), np.zeros((1, 128, 128, 3), np.uint8), runs=1)
    assert list(layer_profile.grouped(layers, "stage")) == list(layer_profile.STAGES)
    sizes = json.loads((Path(__file__).parent.parent / "eval/results/network_size.json").read_text())["rows"]
    (expected,) = (row["macs"] for row in sizes if (row["variant"], row["head"]) == ("t8", "tokens"))
    assert sum(layer.macs for layer in layers) == pytest.approx(expected, rel=0.01)
