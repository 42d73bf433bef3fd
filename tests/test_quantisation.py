"""Which int8 twins are kept: faster ones that lose next to nothing; nothing is left of the others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantising needs the train extra")

from handmesh.evaluation import quantisation
from handmesh.evaluation.timing import in_turns, summary
from handmesh.model.deploy import register_weights


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"original")
    register_weights(tmp_path, "mine", tmp_path / "mine.onnx", {"kind": "hand"})
    return tmp_path


@pytest.mark.parametrize(("loses", "ratio", "kept"), [(False, 0.6, True), (True, 0.6, False), (False, 1.0, False)])
def test_a_twin_is_kept_if_it_wins(folder, monkeypatch, loses, ratio, kept):
    def quantise(source, target, data, calibrate):
        assert (source.name, calibrate) == ("mine.onnx", 7)
        target.write_bytes(b"twin")
        return {"loses": loses, "one_thread": {"ratio": ratio}}

    monkeypatch.setitem(quantisation.QUANTISERS, "hand", quantise)
    out = folder / "result.json"
    quantisation.main(["mine", "--data", "nowhere", "--folder", str(folder), "--calibrate", "7", "--out", str(out)])
    assert json.loads(out.read_text())["kept"] is kept
    assert (folder / "mine_int8.onnx").exists() is kept
    entries = json.loads((folder / "weights.json").read_text())
    assert set(entries) == ({"mine", "mine_int8"} if kept else {"mine"})
    if kept:
        assert (entries["mine_int8"]["kind"], entries["mine_int8"]["precision"]) == ("hand", "int8")


def test_a_failure_leaves_the_twin_that_was_there(folder, monkeypatch):
    (folder / "mine_int8.onnx").write_bytes(b"earlier")
    register_weights(folder, "mine_int8", folder / "mine_int8.onnx", {"kind": "hand", "precision": "int8"})
    before = (folder / "weights.json").read_text()
    with pytest.raises(FileNotFoundError):
        quantisation.main(["mine", "--data", str(folder / "nowhere"), "--folder", str(folder)])

    def interrupted(source, target, data, calibrate):
        target.write_bytes(b"twin")
        raise KeyboardInterrupt

    monkeypatch.setitem(quantisation.QUANTISERS, "hand", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantisation.main(["mine", "--data", "any", "--folder", str(folder)])
    assert (folder / "mine_int8.onnx").read_bytes() == b"earlier"
    assert (folder / "weights.json").read_text() == before


def test_a_twin_that_cannot_be_entered_leaves_the_one_that_was_there(folder, monkeypatch):
    (folder / "mine_int8.onnx").write_bytes(b"earlier")
    register_weights(folder, "mine_int8", folder / "mine_int8.onnx", {"kind": "hand", "precision": "int8"})
    before = (folder / "weights.json").read_text()

    def quantise(source, target, data, calibrate):
        target.write_bytes(b"twin")
        return {"loses": False, "one_thread": {"ratio": 0.6}}

    def interrupted(registry, entries):
        raise KeyboardInterrupt

    monkeypatch.setitem(quantisation.QUANTISERS, "hand", quantise)
    monkeypatch.setattr("handmesh.model.deploy._write_registry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantisation.main(["mine", "--data", "any", "--folder", str(folder)])
    assert (folder / "mine_int8.onnx").read_bytes() == b"earlier"
    assert (folder / "weights.json").read_text() == before


def test_only_hand_networks_and_detectors_of_a_table_have_twins(folder):
    register_weights(folder, "poses", folder / "mine.onnx", {"kind": "hand_model"})
    for name in ("poses", "unknown"):
        with pytest.raises(ValueError, match=f"no hand network or detector '{name}'"):
            quantisation.registered_kind(folder, name)
    with pytest.raises(FileNotFoundError, match=r"weights\.json"):
        quantisation.registered_kind(folder / "elsewhere", "mine")


def test_two_networks_are_compared_by_their_errors_and_their_distance():
    import torch

    from handmesh.assets import load_hand_model
    from handmesh.model.hand_model import HandModel
    from handmesh.model.regressor import wrist_relative_hand

    rotations, betas = torch.eye(3).expand(40, 16, 3, 3), torch.zeros(40, 10)
    vertices, joints = (t.numpy() for t in wrist_relative_hand(HandModel(load_hand_model()), rotations, betas))
    points = np.random.default_rng(0).uniform(-1, 1, (40, 21, 2)).astype(np.float32)
    batch = SimpleNamespace(
        crops=torch.zeros(40, 4, 4, 3, dtype=torch.uint8),
        rotations=rotations,
        betas=betas,
        joints_2d=torch.from_numpy(points),
    )

    def network(shift: float):
        def run(crop):
            assert len(crop) <= 32
            rows = slice(0, len(crop))  # all hands are alike
            return {
                "vertices": vertices[rows] + np.float32([0, 0, shift]),
                "joints": joints[rows] * np.float32([1, 1, 1 + 10 * shift]),
                "joints_2d": np.tile(points[:1], (len(crop), 1, 1)),
            }

        return run

    found = quantisation.compare(network(0.0), network(0.002), batch)  # pyright: ignore
    assert found["hands"] == 40
    assert found["f32"]["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-3)
    assert found["vertices_apart_mm"]["mean"] == pytest.approx(2.0, rel=1e-3)
    assert found["change"]["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-3)  # a shift is aligned away
    assert found["change"]["pa_mpjpe_mm"] > 0.01  # a stretch is not
    assert found["change"]["2d"] == 0


def test_contenders_take_turns_and_the_first_turn_does_not_count():
    calls = []

    def contender(name):
        def runs(count):
            calls.append(name)
            return [float(len(calls))] * count

        return runs

    times = in_turns({"a": contender("a"), "b": contender("b")}, turns=2, runs=3)
    assert calls == ["a", "b"] * 3
    assert times == {"a": [3.0] * 3 + [5.0] * 3, "b": [4.0] * 3 + [6.0] * 3}
    assert summary([1.0, 2.0, 9.0])["median_ms"] == 2.0


def test_networks_of_another_hand_model_are_not_measured_on_rendered_hands():
    with pytest.raises(ValueError, match="hands of 778 vertices"):
        quantisation.errors({"vertices": np.zeros((2, 778, 3))}, SimpleNamespace())
