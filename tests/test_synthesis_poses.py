"""Anatomy, gestures and pose sampling: limits hold, fingers do not cut through each other, contacts touch."""

import numpy as np
import pytest
import torch

from handmesh.assets import load_hand_model
from handmesh.model.hand_model import HandModel
from handmesh.synthesis.anatomy import ABDUCT, FIRST_JOINT, FLEX, HandAnatomy
from handmesh.synthesis.gestures import FINGER_SHAPES, GESTURES, Gesture
from handmesh.synthesis.pose_bank import load_pose_bank
from handmesh.synthesis.pose_fitting import fit_poses, spread_out
from handmesh.synthesis.poses import (
    MAX_PENETRATION_M,
    SphereModel,
    angle_limits,
    gesture_angles,
    relax,
    sample_orientations,
    sample_poses,
)

TOUCH_TOLERANCE_M = 0.004  # spheres keep tips apart that wish to come closer


@pytest.fixture(scope="module")
def arrays():
    return load_hand_model()


@pytest.fixture(scope="module")
def anatomy(arrays):
    return HandAnatomy.from_arrays(arrays)


def test_canonical_frame_is_a_right_hand(anatomy):
    np.testing.assert_allclose(anatomy.frame @ anatomy.frame.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(anatomy.frame) == pytest.approx(1.0)
    thumb_tip, index_base, little_base = anatomy.tips[0], anatomy.joints[1], anatomy.joints[7]
    x, y, _ = anatomy.frame
    assert (index_base - little_base) @ x > 0.03
    assert thumb_tip @ x > index_base @ x
    assert min(tip @ y for tip in anatomy.tips[1:]) > max(j @ y for j in anatomy.joints[[1, 4, 7, 10]])


def test_rest_angles_give_the_rest_pose(anatomy):
    rotations = anatomy.rotations(torch.tensor(anatomy.rest))
    np.testing.assert_allclose(rotations.numpy(), np.broadcast_to(np.eye(3), (16, 3, 3)), atol=1e-12)


def test_zero_angles_make_straight_parallel_fingers(anatomy):
    points = anatomy.keypoints(anatomy.rotations(torch.zeros(16, 3, dtype=torch.float64))).numpy() @ anatomy.frame.T
    for finger in range(1, 5):
        bones = np.diff(points[1 + 4 * finger : 5 + 4 * finger], axis=0)
        bones /= np.linalg.norm(bones, axis=1, keepdims=True)
        np.testing.assert_allclose(bones[:, 2], 0.0, atol=0.03)  # in the plane of the palm
        assert bones[:, 1].min() > 0.97


@pytest.mark.parametrize("finger", [1, 2, 3, 4])
def test_flexion_curls_towards_the_palm_and_abduction_towards_the_little_finger(anatomy, finger):
    flexed, sideways = torch.zeros(16, 3), torch.zeros(16, 3)
    flexed[FIRST_JOINT[finger], FLEX] = 0.5
    sideways[FIRST_JOINT[finger], ABDUCT] = 0.3
    tips = [
        anatomy.keypoints(anatomy.rotations(a))[4 + 4 * finger].numpy() @ anatomy.frame.T
        for a in (torch.zeros(16, 3), flexed, sideways)
    ]
    assert tips[1][2] > tips[0][2] + 0.02
    assert tips[2][0] < tips[0][0] - 0.01


def test_skeleton_agrees_with_the_hand_model(anatomy, arrays):
    """The quick keypoints are the hand model's own, but for the blend-skinned tips."""
    rng = np.random.default_rng(0)
    rotations = torch.tensor(sample_poses(anatomy, 8, rng).rotations)
    mesh = HandModel(arrays)(rotations, torch.zeros(8, 10))
    expected = (mesh.keypoints - mesh.keypoints[:, :1]).detach()
    quick = anatomy.keypoints(rotations)
    inner = [i for i in range(21) if i == 0 or i % 4]
    torch.testing.assert_close(quick[:, inner], expected[:, inner], atol=1e-5, rtol=0)
    assert (quick - expected).norm(dim=-1).max() < 0.006


def test_samples_are_rotations_without_self_penetration(anatomy):
    poses = sample_poses(anatomy, 60, np.random.default_rng(1))
    r = poses.rotations.astype(np.float64)
    np.testing.assert_allclose(r @ r.swapaxes(-1, -2), np.broadcast_to(np.eye(3), r.shape), atol=1e-5)
    np.testing.assert_allclose(r[:, 0], np.broadcast_to(np.eye(3), (60, 3, 3)), atol=1e-7)
    depth = SphereModel(anatomy).penetration(anatomy.keypoints(torch.tensor(poses.rotations)))
    assert float(depth.max()) < MAX_PENETRATION_M + 1e-5
    assert {"blend", "random"} <= set(poses.names)


def test_relaxing_keeps_limits_and_leaves_clean_poses_alone(anatomy):
    rng = np.random.default_rng(2)
    spheres, nothing = SphereModel(anatomy), (np.zeros((0, 3), int), np.zeros(0))
    open_hand = np.radians(gesture_angles(GESTURES[0], rng, 0.0))
    wild = open_hand + rng.normal(0, 1.0, (16, 3))
    relaxed, _ = relax(anatomy, spheres, np.stack([open_hand, wild]), nothing)
    np.testing.assert_allclose(relaxed[0], open_hand, atol=1e-6)
    low, high = angle_limits()
    assert (relaxed >= low - 1e-6).all()
    assert (relaxed <= high + 1e-6).all()


@pytest.mark.parametrize("name", ["ok", "pinch", "thumb_little"])
def test_contacts_touch(anatomy, name):
    gesture = next(g for g in GESTURES if g.name == name)
    angles = np.radians(gesture_angles(gesture, np.random.default_rng(3), 0.3))[None]
    pairs = np.array([(0, c.first, c.second) for c in gesture.contacts])
    wanted = np.array([1e-3 * c.distance_mm for c in gesture.contacts])
    relaxed, _ = relax(anatomy, SphereModel(anatomy), angles, (pairs, wanted))
    points = anatomy.keypoints(anatomy.rotations(torch.tensor(relaxed)))[0].numpy()
    apart = np.linalg.norm(points[pairs[:, 1]] - points[pairs[:, 2]], axis=1)
    np.testing.assert_allclose(apart, wanted, atol=TOUCH_TOLERANCE_M)


def test_orientations_mostly_face_the_camera(anatomy):
    turns = sample_orientations(anatomy, 2000, np.random.default_rng(4)).astype(np.float64)
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-5)
    palm = turns @ anatomy.frame[2]
    fingers = turns @ anatomy.frame[1]
    assert (np.abs(palm[:, 2]) > 0.6).mean() > 0.45
    assert (fingers[:, 1] < -0.3).mean() > 0.45  # up in the picture
    assert (fingers[:, 2] > 0.72).mean() < 0.05  # forearm in front of the hand
    for axis in range(3):  # and yet every direction occurs
        assert palm[:, axis].min() < -0.9
        assert palm[:, axis].max() > 0.9


def test_same_generator_state_same_poses(anatomy):
    first, second = (sample_poses(anatomy, 12, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.rotations, second.rotations)
    np.testing.assert_array_equal(first.names, second.names)


def test_bank_is_small_valid_and_used(anatomy):
    bank = load_pose_bank()
    assert bank is not None
    assert len(bank) > 2000
    assert np.isfinite(bank).all()
    assert np.linalg.norm(bank, axis=-1).max() < np.radians(135)
    poses = sample_poses(anatomy, 400, np.random.default_rng(6), bank=bank)
    assert 50 < (poses.names == "recorded").sum() < 150
    depth = SphereModel(anatomy).penetration(anatomy.keypoints(torch.tensor(poses.rotations)))
    assert float(depth.max()) < MAX_PENETRATION_M + 1e-5


def test_hands_that_meet_collide_by_the_depth_of_their_flesh(anatomy):
    spheres = SphereModel(anatomy)
    flat = anatomy.keypoints(torch.eye(3).expand(16, 3, 3)).numpy()
    thickest = 2 * float(spheres.radii.max())
    assert spheres.collision(flat, flat) == pytest.approx(thickest, abs=1e-4)
    palm = 0.02 * anatomy.frame[2]
    assert spheres.collision(flat, flat + palm) == pytest.approx(thickest - 0.02, abs=1e-4)
    assert spheres.collision(flat, flat + 2 * palm) == 0.0


def test_fitting_recovers_poses_from_turned_scaled_keypoints(anatomy):
    rng = np.random.default_rng(7)
    poses = sample_poses(anatomy, 12, rng)
    points = anatomy.keypoints(torch.tensor(poses.rotations)).numpy()
    turns = sample_orientations(anatomy, 12, rng)
    seen = 1.3 * np.einsum("nij,nkj->nki", turns, points) + 0.4
    seen[::2, 0] = np.nan  # recordings without a wrist
    fit = fit_poses(anatomy, seen.astype(np.float32))
    assert np.median(fit.error_deg) < 2.0
    assert fit.error_deg.max() < 8.0


def test_spread_out_picks_the_corners_first():
    points = np.concatenate([np.zeros((50, 2)), [[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]])
    assert set(spread_out(points, 4, np.random.default_rng(0))) >= {50, 51, 52}


def test_misspelt_gestures_are_refused(anatomy):
    assert "z" not in FINGER_SHAPES
    with pytest.raises(ValueError, match="four of"):
        Gesture("bad", 1.0, "ozzo", 0.0, "out")
    with pytest.raises(ValueError, match="thumb shape"):
        Gesture("bad", 1.0, "oooo", 0.0, "nowhere")
    with pytest.raises(ValueError, match="no gesture"):
        sample_poses(anatomy, 1, np.random.default_rng(0), names=("wave",))
