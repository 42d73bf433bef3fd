"""Refinement on hands whose truth is known: it finds them again, keeps to joint limits and shrugs off strays."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.alignment import align_similarity
from handmesh.assets import load_hand_model
from handmesh.kinematics import RestHand
from handmesh.records import Camera, PosedHand, mirror_rotations
from handmesh.refine import POSE_BANK, Refinement, recorded_range, refine
from handmesh.smoothing import rotmat_to_rotvec, rotvec_to_rotmat

CAMERA = Camera(600.0, 605.0, 320.0, 240.0, 640, 480)
LENS = Camera(600.0, 605.0, 320.0, 240.0, 640, 480, distortion=(-0.25, 0.08, 1e-3, -1e-3))
PLACE = np.array([0.02, 0.05, 0.5])
NEAR = PLACE + np.array([0.01, -0.01, 0.03])
EAGER = Refinement(steps=20, keypoint_share=1e-2, joint=10.0, wrist=10.0, limit=10.0)


def true_hand(seed: int) -> tuple[RestHand, np.ndarray]:
    """A hand of some shape in a recorded pose, fingers up, palm to the camera."""
    rng = np.random.default_rng(seed)
    with np.load(POSE_BANK) as bank:
        pose = bank["poses"][rng.integers(len(bank["poses"]))].astype(float)
    upright = Rotation.from_euler("zy", [90, rng.uniform(-40, 40)], degrees=True).as_matrix()
    rotations = np.concatenate([upright[None], rotvec_to_rotmat(pose)])
    return RestHand.from_model(load_hand_model(), rng.normal(0, 1, 10), "right"), rotations


def posed(rest: RestHand, rotations: np.ndarray) -> PosedHand:
    joints = rest.turned(rotations)[1]
    return PosedHand(rotations, np.zeros(10), rest.vertices, joints, rest.faces)


def disturbed(rotations: np.ndarray, rng: np.random.Generator, angle: float) -> np.ndarray:
    return rotvec_to_rotmat(rng.normal(0, angle, (16, 3))) @ rotations


def error_px(rest: RestHand, rotations: np.ndarray, place: np.ndarray, wanted: np.ndarray, camera=CAMERA) -> float:
    return float(np.linalg.norm(camera.project(rest.turned(rotations)[1] + place) - wanted, axis=-1).mean())


@pytest.mark.parametrize("camera", [CAMERA, LENS])
@pytest.mark.parametrize("seed", range(4))
def test_joints_meet_the_keypoints(seed, camera):
    rest, truth = true_hand(seed)
    rng = np.random.default_rng(100 + seed)
    wanted = camera.project(rest.turned(truth)[1] + PLACE)
    start = disturbed(truth, rng, 0.15)
    before = error_px(rest, start, NEAR, wanted, camera)
    rotations, place = refine(posed(rest, start), "right", NEAR, wanted, camera, EAGER)
    assert error_px(rest, rotations, place, wanted, camera) < 0.03 * before
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)


def test_true_keypoints_bring_the_joints_nearer_in_space():
    gains = []
    for seed in range(8):
        rest, truth = true_hand(seed)
        joints = rest.turned(truth)[1]
        wanted = CAMERA.project(joints + PLACE)
        start = disturbed(truth, np.random.default_rng(seed), 0.2)
        rotations, _ = refine(posed(rest, start), "right", PLACE, wanted, CAMERA)
        errors = [
            np.linalg.norm(align_similarity(rest.turned(turns)[1], joints) - joints, axis=-1).mean()
            for turns in (start, rotations)
        ]
        gains.append(errors[1] / errors[0])
    assert np.mean(gains) < 0.6
    assert max(gains) < 1.0


def test_a_left_hand_is_a_right_one_in_the_mirror():
    rest, truth = true_hand(1)
    start = disturbed(truth, np.random.default_rng(0), 0.2)
    wanted = CAMERA.project(rest.turned(truth)[1] + PLACE)
    rotations, place = refine(posed(rest, start), "right", PLACE, wanted, CAMERA)
    mirrored_keypoints = np.stack([CAMERA.width - 1 - wanted[:, 0], wanted[:, 1]], axis=-1)
    left = posed(rest, start).mirrored()
    found, where = refine(left, "left", PLACE * [-1, 1, 1], mirrored_keypoints, CAMERA.mirrored())
    np.testing.assert_allclose(found, mirror_rotations(rotations), atol=1e-8)
    np.testing.assert_allclose(where, place * [-1, 1, 1], atol=1e-8)


def test_a_hand_that_fits_stays_as_it_is():
    rest, truth = true_hand(2)
    wanted = CAMERA.project(rest.turned(truth)[1] + PLACE)
    rotations, place = refine(posed(rest, truth), "right", PLACE, wanted, CAMERA)
    np.testing.assert_allclose(rotations, truth, atol=1e-4)
    np.testing.assert_allclose(place, PLACE, atol=1e-5)


def test_one_stray_keypoint_bends_nothing_much():
    rest, truth = true_hand(3)
    wanted = CAMERA.project(rest.turned(truth)[1] + PLACE)
    stray = wanted.copy()
    stray[12] += [120, -90]
    rotations, place = refine(posed(rest, truth), "right", PLACE, stray, CAMERA)
    errors = np.linalg.norm(CAMERA.project(rest.turned(rotations)[1] + place) - wanted, axis=-1)
    assert np.median(errors) < 3.0


def test_fingers_are_not_bent_beyond_what_hands_do():
    rest, truth = true_hand(4)
    reach = recorded_range()
    truth[0] = Rotation.from_euler("y", 90, degrees=True).as_matrix() @ truth[0]  # from the side, bending can be seen
    joint, axis = 1, 2  # the index finger's second joint about the axis that it bends about most
    backwards = -1.5 * np.sign(reach.high[joint, axis] + reach.low[joint, axis]) * reach.axes[joint, axis]
    broken = truth.copy()
    broken[joint + 1] = rotvec_to_rotmat(backwards[None])[0]
    wanted = CAMERA.project(rest.turned(broken)[1] + PLACE)

    def excess(limit: float) -> float:
        how = Refinement(steps=10, keypoint_share=0.02, limit=limit)
        rotations, _ = refine(posed(rest, broken), "right", PLACE, wanted, CAMERA, how)
        along = (reach.axes @ rotmat_to_rotvec(rotations[1:])[..., None])[joint, axis, 0]
        return float(max(along - reach.high[joint, axis], reach.low[joint, axis] - along))

    assert excess(0.02) < 0.1
    assert excess(100.0) > 1.0


def test_recorded_poses_are_within_their_own_range():
    reach = recorded_range()
    np.testing.assert_allclose(reach.axes @ np.swapaxes(reach.axes, -1, -2), np.tile(np.eye(3), (15, 1, 1)), atol=1e-9)
    assert (reach.low < reach.high).all()
    with np.load(POSE_BANK) as bank:
        along = np.einsum("jai,nji->nja", reach.axes, bank["poses"].astype(float))
    assert ((along >= reach.low) & (along <= reach.high)).mean() > 0.99


def test_an_estimator_refines_what_it_finds(make_estimator, dim_frame):
    estimator = make_estimator()
    frame = graphs.draw_hand(dim_frame, (300, 200), 128)
    (plain,) = estimator(frame)
    estimator.refinement = Refinement()
    (refined,) = estimator(frame)
    assert (refined.side, refined.score) == (plain.side, plain.score)
    np.testing.assert_array_equal(refined.joints_2d, plain.joints_2d)
    assert np.abs(refined.hand_pose - plain.hand_pose).max() > 0.01
    assert np.isfinite(refined.translation).all()


@pytest.mark.parametrize("change", [{"steps": 0}, {"joint": 0.0}, {"keypoint_share": -1.0}, {"limit": float("nan")}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Refinement(**change)
