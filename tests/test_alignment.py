"""Procrustes alignment against its laws and against a plain twin."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from handmesh.alignment import align_root, align_similarity, fit_similarity

M = np.diag([-1.0, 1.0, 1.0])


def align_plainly(source, target):
    """As FreiHAND's script goes about it: normalise both, orthogonal Procrustes (mirrors allowed), undo."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    size_a, size_b = np.linalg.norm(a), np.linalg.norm(b)
    R, scale = orthogonal_procrustes(b / size_b, a / size_a)
    return a / size_a @ R.T * scale * size_b + target_mean


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 21, 3))


def test_a_known_similarity_is_found(points):
    rng = np.random.default_rng(1)
    R, t, s = graphs.random_rotations(rng, 4).astype(float), rng.normal(size=(4, 3)), np.array([0.1, 1, 3, 20])
    target = s[:, None, None] * points @ np.swapaxes(R, -1, -2) + t[:, None]
    found = fit_similarity(points, target)
    np.testing.assert_allclose(found.scale, s)
    np.testing.assert_allclose(found.rotation, R, atol=1e-6)  # R is made in float32
    np.testing.assert_allclose(found.apply(points), target, atol=1e-5)


def test_mirrored_points_align_only_if_mirrors_are_allowed(points):
    mirrored = points @ M
    assert np.abs(align_similarity(points, mirrored, reflection=True) - mirrored).max() < 1e-12
    proper = fit_similarity(points, mirrored)
    np.testing.assert_allclose(np.linalg.det(proper.rotation), 1.0)
    assert np.linalg.norm(proper.apply(points) - mirrored, axis=-1).mean() > 0.5


def test_equals_the_plain_way(points):
    target = np.random.default_rng(2).normal(size=points.shape)
    found = align_similarity(points, target, reflection=True)
    for i in range(len(points)):
        np.testing.assert_allclose(found[i], align_plainly(points[i], target[i]), atol=1e-12)


@pytest.mark.parametrize("mirror", [np.eye(3), M])
def test_no_nearby_similarity_is_better(points, mirror):
    rng = np.random.default_rng(3)
    source, target = points[0], points[0] @ mirror + 0.3 * rng.normal(size=(21, 3))
    best = fit_similarity(source, target)
    least = np.square(best.apply(source) - target).sum()
    for _ in range(200):
        w = 0.01 * rng.normal(size=3)
        nearby = type(best)(
            best.scale * (1 + 0.01 * rng.normal()),
            Rotation.from_rotvec(w).as_matrix() @ best.rotation,
            best.translation + 0.01 * rng.normal(size=3),
        )
        assert np.square(nearby.apply(source) - target).sum() >= least


def test_batch_equals_singles_and_keeps_float32(points):
    target = np.random.default_rng(2).normal(size=points.shape)
    together = align_similarity(points.reshape(2, 2, 21, 3), target.reshape(2, 2, 21, 3)).reshape(points.shape)
    for i in range(len(points)):
        np.testing.assert_allclose(together[i], align_similarity(points[i], target[i]), atol=1e-12)
    assert align_similarity(points.astype(np.float32), target.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("source", [np.zeros((5, 3)), np.full((5, 3), 7.0)])
def test_one_repeated_point_is_moved_onto_the_mean(source):
    target = np.arange(15.0).reshape(5, 3) ** 1.5
    np.testing.assert_allclose(align_similarity(source, target), np.tile(target.mean(0), (5, 1)))


def test_points_on_a_line_align_properly():
    line = np.linspace(-1, 1, 9)[:, None] * [1.0, 2.0, 3.0]
    target = np.linspace(-2, 2, 9)[:, None] * [3.0, -1.0, 0.5] + 1
    found = fit_similarity(line, target)
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1.0)
    np.testing.assert_allclose(found.apply(line), target, atol=1e-9)


def test_root_alignment_moves_the_root_to_zero(points):
    moved = align_root(points, root=9)
    assert not moved[:, 9].any()
    np.testing.assert_allclose(moved - moved[:, :1], points - points[:, :1], atol=1e-12)
    np.testing.assert_array_equal(align_root(points)[:, 0], 0)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.zeros((5, 3)), np.zeros((6, 3))),
        (np.zeros((5, 2)), np.zeros((5, 2))),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.zeros((5, 3)), np.full((5, 3), np.nan)),
    ],
)
def test_unfit_point_sets_are_refused(source, target):
    with pytest.raises(ValueError, match="source and target must"):
        fit_similarity(source, target)
