"""Errors in the camera on made-up hands, and on clips of a stub hand whose truth is what the stub answers."""

from __future__ import annotations

import graphs
import numpy as np
import pytest

from handmesh.assets import load_hand_model
from handmesh.evaluation.camera_space import ROOT, measure_camera_space, place_errors
from handmesh.evaluation.remember import remembering
from handmesh.placement import project_joints
from handmesh.records import Camera
from handmesh.synthesis.crossing import FIELDS_OF_VIEW_DEG, FPS
from handmesh.video import VideoWriter

WIDTH, HEIGHT = 640, 512


def test_errors_of_hands_moved_by_known_lengths():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.03, (4, 21, 3))
    truth[:, [0, ROOT], 2] = 0.5
    found = truth.copy()
    found[:, :, 2] += np.array([0.01, -0.02, 0.03, 0.08])[:, None]
    facts = place_errors(found, truth)
    assert facts["hands"] == 4
    for name in ("wrist_depth", "root_depth"):
        assert facts[f"{name}_median_mm"] == pytest.approx(25)
        assert facts[f"{name}_mean_mm"] == pytest.approx(35)
        assert facts[f"{name}_median_percent"] == pytest.approx(5)
        assert facts[f"{name}_bias_percent"] == pytest.approx(4)
    assert facts["joints_median_mm"] == pytest.approx(25)
    assert facts["wrist_mean_mm"] == pytest.approx(35)
    assert place_errors(truth, truth)["joints_mean_mm"] == 0.0
    with pytest.raises(ValueError, match="no hands"):
        place_errors(truth[:0], truth[:0])


def test_a_wider_camera_than_assumed_makes_hands_too_far(make_estimator, tmp_path):
    """Depth goes with the focal length: what 72 degrees see is taken for farther by the ratio of the tangents."""
    estimator = make_estimator(detector=False)
    estimator.hand_model = load_hand_model()
    frame = graphs.draw_hand(np.zeros((HEIGHT, WIDTH, 3), np.uint8), (200, 250), 120)
    for variant in (0, 1):
        camera = Camera.from_fov(WIDTH, HEIGHT, FIELDS_OF_VIEW_DEG[variant])
        (hand,) = estimator(frame, boxes=[[140, 190, 260, 310]], sides=["right"], camera=camera)
        folder = tmp_path / str(variant)
        folder.mkdir()
        with VideoWriter(folder / "hands_touch.mp4", FPS) as writer:
            for _ in range(3):
                writer.write(frame)
        joints = np.tile(hand.joints + hand.translation, (3, 2, 1, 1))
        np.savez(
            folder / "hands_touch.npz",
            joints=joints,
            joints_2d=np.tile(project_joints(hand.joints, hand.translation, camera), (3, 2, 1, 1)),
            seen=np.tile([1.0, 0.5], (3, 1)),  # the left one is never seen whole
            camera=np.array([camera.fx, camera.fy, camera.cx, camera.cy, WIDTH, HEIGHT]),
            fps=FPS,
            betas=np.zeros(10),
        )
    result = measure_camera_space(estimator, tmp_path, ["hands_touch"], (0, 1), every=2)
    assert estimator.betas is None
    narrow, wide = result["by_field_of_view_deg"]["60"], result["by_field_of_view_deg"]["72"]
    assert narrow["true"]["guessed"]["hands"] == wide["true"]["guessed"]["hands"] == 2
    assert result["all"]["true"]["guessed"]["hands"] == 4
    for row in (narrow["true"], narrow["default"], wide["true"]):
        assert row["guessed"]["wrist_depth_median_percent"] < 2.0
    ratio = np.tan(np.radians(36)) / np.tan(np.radians(30))
    assert wide["default"]["guessed"]["wrist_depth_bias_percent"] == pytest.approx(100 * (ratio - 1), abs=2.0)


def test_a_network_that_remembers_runs_once_for_each_crop(make_estimator):
    estimator = make_estimator(detector=False)
    runs = []
    network = estimator.network

    def counted(inputs):
        runs.append(len(inputs["crop"]))
        return network.run(inputs)

    counting = remembering(type(network)(network.path, network.metadata, counted))
    first = np.zeros((1, graphs.CROP_SIZE, graphs.CROP_SIZE, 3), np.uint8)
    for crop in (first, first.copy(), first + 1, first):
        answer = counting(crop=crop)
        expected = network(crop=crop)
        assert all(np.array_equal(answer[name], expected[name]) for name in expected)
    assert runs == [1, 1]
