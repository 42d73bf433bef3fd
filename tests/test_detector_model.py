"""The detector's network and the graph that it is exported to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from handmesh.detector import HandDetector
from handmesh.model.detector import STRIDE, DetectorNetwork, deployed, export_detector
from handmesh.runtime import load_graph

WIDTH, HEIGHT = 128, 96
FLOAT16_TOLERANCE = 0.02  # probabilities: parameters are rounded to 11 bits, layer after layer
FLOAT16_TOLERANCE_PX = 0.5
EXACT = 1e-5  # probabilities, two float32 implementations of one graph


def _network(seed: int = 0) -> DetectorNetwork:
    """Untrained, but with statistics as after training, and heads that answer something."""
    torch.manual_seed(seed)
    network = DetectorNetwork()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
    for head in (network.centre, network.box, network.right):
        torch.nn.init.normal_(head.weight, std=0.1)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(_frames(seed, count=2))
    return network.eval()


def _frames(seed: int, count: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=1).repeat(8, axis=2))


def _export(network: DetectorNetwork, path: Path) -> Path:
    return export_detector(network, path, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectorNetwork, Path]:
    network = _network()
    return network, _export(network, tmp_path_factory.mktemp("detector") / "detector.onnx")


def _run(path: Path, frame: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["heatmap", "boxes", "right"], {"frame": frame.numpy()})


def test_output_has_one_cell_per_stride() -> None:
    output = _network()(_frames(1, count=2))
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    assert output.centre.shape == output.right.shape == (2, 1, rows, columns)
    assert output.boxes.shape == (2, 4, rows, columns)
    assert ((output.boxes[:, :2] + output.boxes[:, 2:]) > 0).all()  # no box is inside out


def test_batch_equals_singles() -> None:
    network, frames = _network(), _frames(2, count=3)
    with torch.no_grad():
        together = network(frames).boxes
        apart = torch.cat([network(frame[None]).boxes for frame in frames])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8),
        torch.zeros(1, HEIGHT, WIDTH, 3),
        torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8),
    ],
)
def test_other_frames_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        DetectorNetwork()(frames)


def test_only_peaks_survive() -> None:
    network = _network()
    heatmap, _, _ = deployed(network)(_frames(3))
    dense = torch.sigmoid(network(_frames(3)).centre)[0, 0].detach().numpy()
    padded = np.pad(dense, 1, constant_values=-1.0)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max((2, 3))
    expected = np.where(dense >= around, dense, 0.0)
    np.testing.assert_allclose(heatmap[0, 0].numpy(), expected, atol=EXACT)
    assert 0 < (expected > 0).sum() <= dense.size / 2


def test_deploying_leaves_the_model_alone() -> None:
    network = _network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    deployed(network)(_frames(4))
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_graph_equals_network_with_rounded_parameters(exported: tuple[DetectorNetwork, Path]) -> None:
    network, path = exported
    for seed in (5, 6):
        _, boxes, right = _run(path, _frames(seed))
        _, boxes_torch, right_torch = deployed(network)(_frames(seed))
        assert np.abs(boxes - boxes_torch.numpy()).max() < FLOAT16_TOLERANCE_PX
        assert np.abs(right - right_torch.numpy()).max() < FLOAT16_TOLERANCE


def test_graph_suppresses_like_the_network(exported: tuple[DetectorNetwork, Path]) -> None:
    network, path = exported
    heatmap = _run(path, _frames(7))[0]
    wanted = deployed(network)(_frames(7))[0].numpy()
    both = (heatmap > 0) & (wanted > 0)
    assert both.sum() >= 0.9 * (wanted > 0).sum()
    assert np.abs(heatmap - wanted)[both].max() < FLOAT16_TOLERANCE


def test_graph_follows_the_contract(exported: tuple[DetectorNetwork, Path]) -> None:
    _, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (frame,) = session.get_inputs()
    assert (frame.name, frame.type, frame.shape) == ("frame", "tensor(uint8)", [1, HEIGHT, WIDTH, 3])
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    shapes = {output.name: (output.type, output.shape) for output in session.get_outputs()}
    assert shapes == {
        "heatmap": ("tensor(float)", [1, 1, rows, columns]),
        "boxes": ("tensor(float)", [1, 4, rows, columns]),
        "right": ("tensor(float)", [1, 1, rows, columns]),
    }
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["handmesh"])
    assert metadata["kind"] == "detector"
    assert (metadata["input_width"], metadata["input_height"], metadata["stride"]) == (WIDTH, HEIGHT, STRIDE)


def test_parameters_are_folded_and_stored_in_half_precision(exported: tuple[DetectorNetwork, Path]) -> None:
    import onnx

    network, path = exported
    count = sum(p.numel() for p in network.parameters())
    assert path.stat().st_size < 2.1 * count + 200_000  # two bytes each, and the graph itself
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert not any(node.metadata_props or node.doc_string for node in graph.node)  # no traces of this machine


def test_a_trained_box_comes_back_through_the_detector(tmp_path: Path) -> None:
    """Heads that always answer the same box: a frame of the network's own size gives it around each peak."""
    network = _network()
    for head in (network.centre, network.box, network.right):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        network.centre.bias.fill_(3.0)
        network.right.bias.fill_(-3.0)
    detector = HandDetector(load_graph(_export(network, tmp_path / "flat.onnx"), "detector"), max_iou=1.0)
    found = detector(_frames(8)[0].numpy())
    assert len(found) == (HEIGHT // STRIDE) * (WIDTH // STRIDE)  # a plateau has no larger neighbour
    side = STRIDE * np.exp(1.6)
    for hand in found:
        np.testing.assert_allclose(hand.box[2:] - hand.box[:2], side, rtol=1e-2)
        assert hand.side == "left"
        assert hand.score == pytest.approx(1 / (1 + np.exp(-3.0)), abs=1e-3)
    centers = np.stack([(hand.box[:2] + hand.box[2:]) / 2 for hand in found])
    assert np.unique(centers[:, 0]).round(2).tolist()[:2] == [3.5, 11.5]


def test_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="multiples of 32"):
        export_detector(DetectorNetwork(), path, 100, 96)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
