"""The same weights on crops of other sizes: what runs, what cannot, and what is not made twice."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the curve needs the train extra")

from handmesh.evaluation import input_size  # noqa: E402
from handmesh.model.regressor import HandRegressor, NetworkConfig  # noqa: E402


@pytest.fixture(scope="module")
def network():
    return HandRegressor(NetworkConfig(input_size=64)).eval()


def test_the_same_weights_see_crops_of_another_size(network):
    larger = input_size.at_size(network, 96)
    assert (network.config.input_size, larger.config.input_size) == (64, 96)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), larger.parameters(), strict=True))
    crops = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = larger(crops)
    assert prediction.head.heatmaps.shape == (1, 21, 12, 12)
    assert torch.isfinite(prediction.vertices).all()


def test_sizes_that_cannot_run_are_named_and_networks_that_are_there_are_kept(network, tmp_path, monkeypatch):
    made = []

    def export(resized, path, *, name):
        made.append((resized.config.input_size, name))
        path.write_bytes(b"network")

    monkeypatch.setattr(input_size, "load_torch_network", lambda _: network)
    monkeypatch.setattr(input_size, "export_hand_network", export)
    (tmp_path / "hand_64.onnx").write_bytes(b"from before")
    found, impossible = input_size.export_sizes(tmp_path / "w.onnx", (64, 96, 112), tmp_path)
    assert made == [(96, "hand_96")]
    assert found == {size: tmp_path / f"hand_{size}.onnx" for size in (64, 96)}
    assert list(impossible) == ["112"]
    assert "multiple of 32" in impossible["112"]
    assert (tmp_path / "hand_64.onnx").read_bytes() == b"from before"
