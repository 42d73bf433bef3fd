"""Counting id switches and side flips on made-up tracks, and none of them on a short rendered crossing."""

from __future__ import annotations

from dataclasses import replace

import graphs
import numpy as np
import pytest

from handmesh import HandMeshEstimator, HandTracker
from handmesh.evaluation.tracking import judge_identity, match_frame, measure_identity
from handmesh.records import Camera
from handmesh.synthesis.crossing import FPS, Scene, Truth, render_clip
from handmesh.video import open_source

CAMERA = Camera(500, 500, 319.5, 255.5, 640, 512)


@pytest.fixture
def pair(estimator, dim_frame):
    """A right hand on the left and a left hand on the right of the picture, as a tracker gives them out."""
    frame = graphs.draw_hand(graphs.draw_hand(dim_frame, (160, 250), 120), (460, 250), 120, "left")
    hands = estimator(frame, boxes=[[100, 190, 220, 310], [400, 190, 520, 310]], sides=["right", "left"])
    return [replace(hand, track_id=number) for number, hand in enumerate(hands)]


def truth_of(pair, frames: int, seen=None) -> Truth:
    pixels = np.tile(np.stack([hand.joints_2d for hand in pair]), (frames, 1, 1, 1))
    share = np.ones((frames, 2)) if seen is None else np.asarray(seen, float)
    return Truth(np.zeros((frames, 2, 21, 3)), pixels, share, CAMERA, FPS, np.zeros(10))


def test_a_steady_pair_has_no_fault(pair):
    counts = judge_identity([pair, pair[::-1], pair], truth_of(pair, 3))
    assert counts == {"hands": 6, "found": 6, "extra": 0, "id_switches": 0, "side_flips": 0, "wrong_sides": 0}


def test_exchanged_numbers_are_two_switches_and_flips(pair):
    right, left = pair
    swapped = [
        replace(right, track_id=1, side="left"),
        replace(left, track_id=0, side="right"),
    ]
    counts = judge_identity([pair, swapped, swapped], truth_of(pair, 3))
    assert (counts["id_switches"], counts["side_flips"], counts["wrong_sides"]) == (2, 2, 4)


def test_a_number_lost_in_an_absence_is_a_switch_and_a_hand_out_of_sight_is_not_missed(pair):
    right, left = pair
    back = [right, replace(left, track_id=7)]
    counts = judge_identity([pair, [right], back], truth_of(pair, 3, [[1, 1], [1, 0.2], [1, 1]]))
    assert (counts["hands"], counts["found"], counts["id_switches"], counts["side_flips"]) == (5, 5, 1, 0)


def test_what_is_on_no_hand_is_extra(pair):
    right, left = pair
    ghost = replace(left, joints_2d=left.joints_2d + np.array((0, 170)))
    counts = judge_identity([[right, ghost]], truth_of(pair, 1))
    assert (counts["hands"], counts["found"], counts["extra"]) == (2, 1, 1)
    with pytest.raises(ValueError, match="2 frames were tracked, but the truth has 1"):
        judge_identity([pair, pair], truth_of(pair, 1))


def test_hands_are_matched_by_the_smallest_sum(pair):
    right, left = pair
    pixels = np.stack([right.joints_2d, right.joints_2d + np.array((50, 0))])
    between = replace(left, joints_2d=right.joints_2d + np.array((20, 0)))
    matched = match_frame([between, right], pixels, np.array([True, True]))
    assert matched == {0: right, 1: between}


def test_numbers_stay_on_a_short_rendered_crossing(tmp_path):
    """The published weights, and two rendered hands that pass each other within a second."""
    torch = pytest.importorskip("torch")
    from handmesh.assets import load_hand_model
    from handmesh.model.hand_model import HandModel
    from handmesh.synthesis.scene import Studio

    torch.manual_seed(0)
    arrays = load_hand_model()
    near, far = 0.46, 0.6
    scene = Scene(
        "short",
        ((0, -0.13, 0.09, near), (0.3, -0.13, 0.09, near), (1.1, 0.13, 0.09, near), (1.3, 0.13, 0.09, near)),
        ((0, 0.13, 0.1, far), (0.3, 0.13, 0.1, far), (1.1, -0.13, 0.1, far), (1.3, -0.13, 0.1, far)),
        1.3,
        seed=1,
    )
    render_clip(tmp_path, scene, Camera.from_fov(640, 480, 60.0), Studio(arrays, [], size=640), HandModel(arrays))
    truth = Truth.load(tmp_path / "short.npz")
    tracker = HandTracker(HandMeshEstimator.from_pretrained(threads=1))
    with open_source(tmp_path / "short.mp4") as source:
        counts = judge_identity([tracker(frame, time_s) for frame, time_s in source], truth)
    assert truth.seen.min() < 0.3  # one hand hides the other
    assert (counts["id_switches"], counts["side_flips"], counts["wrong_sides"]) == (0, 0, 0)
    assert counts["found"] > 0.8 * counts["hands"]


def test_a_folder_of_clips_is_measured_whole(estimator, tmp_path, monkeypatch):
    """Each clip by a new tracker, and the counts add up; what is there is not rendered again."""
    from handmesh.video import VideoWriter

    frame = graphs.draw_hand(
        graphs.draw_hand(np.zeros((512, 640, 3), np.uint8), (160, 250), 120), (460, 250), 120, "left"
    )
    hands = estimator(frame, boxes=[[100, 190, 220, 310], [400, 190, 520, 310]], sides=["right", "left"])
    for variant in (0, 2):
        folder = tmp_path / str(variant)
        folder.mkdir()
        with VideoWriter(folder / "hands_touch.mp4", FPS) as writer:
            for _ in range(4):
                writer.write(frame)
        truth = truth_of(hands, 4)
        camera = np.array([500, 500, 319.5, 255.5, 640, 512])
        np.savez(
            folder / "hands_touch.npz",
            joints=truth.joints,
            joints_2d=truth.joints_2d,
            seen=truth.seen,
            camera=camera,
            fps=FPS,
            betas=truth.betas,
        )
    result = measure_identity(estimator, tmp_path, ["hands_touch"], (0, 2))
    assert list(result["clips"]) == ["0/hands_touch", "2/hands_touch"]
    assert result["total"]["hands"] == 16
    assert result["total"]["found"] == 16
    assert result["total"]["id_switches"] == result["total"]["extra"] == 0
    with pytest.raises(ValueError, match="there is no scene waving"):
        measure_identity(estimator, tmp_path, ["waving"], (0,))
