"""Placing hands: exact from exact pixels, robust to astray ones, never behind the camera."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from handmesh.placement import MAX_DEPTH_M, MIN_DEPTH_M, project_joints, solve_translation
from handmesh.records import Camera

CAMERA = Camera(600.0, 610.0, 310.0, 250.0, 640, 512)
MIRROR = np.array([-1.0, 1.0, 1.0])


def random_joints(rng, n=20) -> np.ndarray:
    joints = rng.uniform(-0.09, 0.09, (n, 21, 3))
    joints[:, 0] = 0.0
    return joints


def test_translation_is_found_exactly_from_true_projections():
    rng = np.random.default_rng(0)
    joints = random_joints(rng)
    translation = np.stack([rng.uniform(-0.3, 0.3, 20), rng.uniform(-0.3, 0.3, 20), rng.uniform(0.15, 3, 20)], -1)
    pixels = CAMERA.project(joints + translation[:, None])
    np.testing.assert_allclose(solve_translation(joints, pixels, CAMERA), translation, atol=1e-6)


def test_translation_bears_keypoints_gone_astray():
    rng = np.random.default_rng(1)
    joints, translation = random_joints(rng), np.array([0.1, -0.05, 0.6])
    pixels = CAMERA.project(joints + translation) + rng.normal(scale=0.5, size=(20, 21, 2))
    pixels[:, [4, 8, 12]] += 80.0
    error = np.linalg.norm(solve_translation(joints, pixels, CAMERA) - translation, axis=-1)
    assert error.max() < 0.015  # plain least squares errs by more than 30 mm here
    assert np.linalg.norm(solve_translation(joints, pixels, CAMERA, steps=0) - translation, axis=-1).min() > 0.03


def test_translation_scales_with_the_focal_length():
    joints = random_joints(np.random.default_rng(2)) * (1, 1, 0.1)
    pixels = CAMERA.project(joints + np.array([0.0, 0.0, 0.8]))
    twice = replace(CAMERA, fx=2 * CAMERA.fx, fy=2 * CAMERA.fy)
    depth = solve_translation(joints, pixels, twice)[:, 2]
    np.testing.assert_allclose(depth, 1.6, rtol=0.02)


def test_translation_is_the_mirrored_one_for_mirrored_points():
    rng = np.random.default_rng(3)
    joints = random_joints(rng)
    pixels = rng.uniform(100, 400, (20, 21, 2))
    mirrored = solve_translation(joints * MIRROR, pixels * (-1, 1) + (639, 0), CAMERA.mirrored())
    np.testing.assert_allclose(mirrored, solve_translation(joints, pixels, CAMERA) * MIRROR, atol=1e-6)


@pytest.mark.parametrize("kind", ["one point", "upside down", "noise", "huge"])
def test_impossible_keypoints_still_stand_before_the_camera(kind, caplog):
    rng = np.random.default_rng(4)
    joints = random_joints(rng)
    pixels = CAMERA.project(joints + np.array([0.0, 0.0, 0.6]))
    pixels = {
        "one point": np.full_like(pixels, 200.0),
        "upside down": 2 * pixels.mean(1, keepdims=True) - pixels,
        "noise": rng.uniform(-1e3, 1e3, pixels.shape),
        "huge": 1e5 * (pixels - 200),
    }[kind]
    with caplog.at_level(logging.DEBUG, "handmesh.placement"):
        translation = solve_translation(joints, pixels, CAMERA)
    assert np.isfinite(translation).all()
    assert (joints[..., 2] + translation[:, None, 2] >= MIN_DEPTH_M - 1e-9).all()
    assert "placed by their size" in caplog.text


@pytest.mark.parametrize("shrunk", [1e-3, 1e-8])
def test_hands_whose_picture_is_nearly_a_point_stand_at_the_greatest_depth(shrunk):
    joints = random_joints(np.random.default_rng(7)) * (1, 1, 1e-3)
    pixels = CAMERA.project(joints + np.array([0.0, 0.0, 0.6]))
    pixels = pixels.mean(1, keepdims=True) + shrunk * (pixels - pixels.mean(1, keepdims=True))
    np.testing.assert_allclose(solve_translation(joints, pixels, CAMERA)[:, 2], MAX_DEPTH_M, rtol=0.01)


def test_hands_placed_by_their_size_stand_where_they_are_seen():
    """Upside down they fit no perspective; their middle and their extent in the picture still count."""
    joints = random_joints(np.random.default_rng(8)) * (1, 1, 0.1)
    translation = np.array([0.2, -0.1, 0.6])
    pixels = CAMERA.project(joints + translation)
    pixels = 2 * pixels.mean(1, keepdims=True) - pixels
    found = solve_translation(joints, pixels, CAMERA)
    np.testing.assert_allclose(found[:, 2], 0.6, rtol=0.03)
    seen = CAMERA.project(joints + found[:, None])
    np.testing.assert_allclose(seen.mean(1), pixels.mean(1), atol=2.0)


def test_hands_that_do_not_fit_their_keypoints_keep_their_distance():
    """Least squares alone brought a hand of a wrong pose so near that it filled the picture."""
    joints, translation = random_joints(np.random.default_rng(5), 50), np.array([0.0, 0.0, 0.6])
    other_hands = random_joints(np.random.default_rng(6), 50)
    depth = solve_translation(joints, CAMERA.project(other_hands + translation), CAMERA)[:, 2]
    assert 0.4 < depth.min() < depth.max() < 0.9


def test_joints_at_the_camera_plane_project_somewhere():
    joints = np.zeros((21, 3))
    joints[1] = [0.05, 0.0, -1.0]
    pixels = project_joints(joints, np.array([0.0, 0.0, 0.5]), CAMERA)
    np.testing.assert_allclose(pixels[0], [310, 250])
    np.testing.assert_allclose(pixels[1], [310 + 600 * 0.05 / MIN_DEPTH_M, 250])


def test_no_hand_has_no_place():
    assert solve_translation(np.zeros((0, 21, 3)), np.zeros((0, 21, 2)), CAMERA).shape == (0, 3)
