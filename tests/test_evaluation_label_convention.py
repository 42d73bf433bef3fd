"""What stays the same between two trackers' points is found exactly, whatever the pose, the side and the camera."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hands import sphere_hand
from samples import mirrored, posed_hand

from handmesh.evaluation.label_convention import as_theirs, errors_2d, fit_offsets, hand_axes, match_hands, spots_of
from handmesh.model.conventions import MEDIAPIPE_OFFSETS_MM
from handmesh.placement import solve_translation
from handmesh.records import Camera
from handmesh.smoothing import rotvec_to_rotmat

RNG = np.random.default_rng(3)
OFFSETS = RNG.normal(0, 0.08, (21, 3))


@pytest.fixture(scope="module")
def samples():
    made = [posed_hand(seed) for seed in range(40)]
    return [mirrored(sample) if number % 3 == 0 else sample for number, sample in enumerate(made)]


def theirs(samples, offsets, noise_px=0.0):
    """What a tracker with these offsets sees."""
    exact = match_hands(
        samples,
        np.arange(len(samples)),
        np.stack([s.joints_2d for s in samples]),
        np.stack([s.joints for s in samples]),
    )
    hands = []
    for hand, sample in zip(exact, samples, strict=True):
        moved = as_theirs(hand, offsets)
        K = sample.intrinsics
        # Where the wrist stands: the joints' own projection tells it.
        rays = (sample.joints_2d - K[:2, 2]) / K[0, 0]
        A = np.concatenate(
            [np.stack([np.eye(3)[0] - x * np.eye(3)[2], np.eye(3)[1] - y * np.eye(3)[2]]) for x, y in rays]
        )
        b = np.concatenate([r * j[2] - j[:2] for r, j in zip(rays, sample.joints, strict=True)])
        wrist = np.linalg.lstsq(A, b, rcond=None)[0]
        # A point of theirs stands as deep as our joint, as the fit assumes.
        pixels = K[:2, 2] + K[0, 0] * (moved + wrist)[:, :2] / (sample.joints + wrist)[:, 2:]
        hands.append(dataclasses.replace(hand, pixels=pixels + RNG.normal(0, noise_px, (21, 2))))
    return hands


def test_axes_are_orthonormal_turn_with_the_hand_and_mirror_with_it(samples):
    turn = rotvec_to_rotmat(np.array([[0.3, -1.2, 0.7]]))[0]
    for sample in samples:
        axes = hand_axes(sample.joints, sample.side)
        np.testing.assert_allclose(np.swapaxes(axes, 1, 2) @ axes, np.tile(np.eye(3), (21, 1, 1)), atol=1e-9)
        np.testing.assert_allclose(hand_axes(sample.joints @ turn.T, sample.side), turn @ axes, atol=1e-9)
        flip = np.array([-1.0, 1.0, 1.0])
        other = "left" if sample.side == "right" else "right"
        np.testing.assert_allclose(hand_axes(sample.joints * flip, other), flip[:, None] * axes, atol=1e-9)


def estimated(sample, camera, translation):
    """The sample's hand as an estimator that errs nowhere gives it."""
    joints_2d = camera.project(sample.joints + translation)
    hand = sphere_hand(sample.side, camera=camera)
    return dataclasses.replace(hand, joints=sample.joints, translation=translation, joints_2d=joints_2d)


def test_mediapipes_spots_on_a_hand_are_those_that_the_fit_finds(samples):
    """What the fit of another tracker's pixels gives as offsets comes back when its spots are put on hands by them."""
    offsets = MEDIAPIPE_OFFSETS_MM.numpy() / 95
    for sample, hand in zip(samples, theirs(samples, offsets), strict=True):
        (fx, _, cx), (_, fy, cy), _ = sample.intrinsics
        camera = Camera(fx, fy, cx, cy, 224, 224)
        place = solve_translation(sample.joints[None], sample.joints_2d[None], camera)[0]
        spots = spots_of(estimated(sample, camera, place), "mediapipe")
        np.testing.assert_allclose(spots.joints, as_theirs(hand, offsets), atol=1e-6)
        # The fit takes a spot to be as deep as its joint: a few millimetres of half a metre.
        np.testing.assert_allclose(spots.mesh_2d, hand.pixels, atol=0.03 * np.ptp(sample.joints_2d, axis=0).max())
        np.testing.assert_allclose(spots.joints_2d, spots.mesh_2d, atol=1e-4)
        ours = spots_of(estimated(sample, camera, place), "freihand")
        np.testing.assert_allclose(ours.mesh_2d, sample.joints_2d, atol=0.01)


def test_no_difference_is_found_as_none(samples):
    hands = theirs(samples, np.zeros((21, 3)))
    assert np.abs(fit_offsets(hands)).max() < 1e-6
    assert errors_2d(hands, np.zeros((21, 3))).max() < 1e-6


def test_a_constant_difference_is_found_exactly_and_explains_all(samples):
    hands = theirs(samples, OFFSETS)
    found = fit_offsets(hands)
    assert np.abs(found - OFFSETS).max() < 1e-5
    assert errors_2d(hands, found).max() < 1e-5 < errors_2d(hands, np.zeros((21, 3))).min()


def test_noise_and_wrong_hands_hardly_matter(samples):
    hands = theirs(samples, OFFSETS, noise_px=1.0)
    hands[0] = dataclasses.replace(hands[0], pixels=hands[0].pixels + 30)
    assert np.abs(fit_offsets(hands) - OFFSETS).mean() < 0.02


def test_of_two_found_hands_the_one_in_place_is_taken_and_far_ones_are_left_out(samples):
    first, second = samples[0], samples[1]
    pixels = np.stack([first.joints_2d + 300, first.joints_2d + 2, second.joints_2d + 300])
    hands = match_hands(samples, np.array([0, 0, 1]), pixels, np.zeros((3, 21, 3)))
    assert [hand.row for hand in hands] == [0]
    np.testing.assert_array_equal(hands[0].pixels, pixels[1])
