"""Where a hand stands: between joints about the wrist, a camera and the pixels where the joints are seen."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from handmesh.records import Camera

MIN_DEPTH_M = 0.02
"""No joint is placed nearer to the camera than this."""

MAX_DEPTH_M = 100.0
"""A hand whose picture is a mere point is placed here."""

CLOSE = 1e-4
"""Solved well enough: a hand's depth is known to some 3 %."""

_log = logging.getLogger(__name__)


def solve_translation(
    joints: NDArray[np.floating], joints_2d: NDArray[np.floating], camera: Camera, steps: int = 6
) -> NDArray[np.float64]:
    """Where hands stand so that their joints project onto their keypoints: (N, 3) metres.

    ``joints`` (N, 21, 3) metres from the wrist in camera axes, ``joints_2d`` (N, 21, 2) px. With the ray (u, v, 1) of
    a keypoint, ``X + tx = u (Z + tz)`` and ``Y + ty = v (Z + tz)`` are linear in the translation. They are solved in
    the least-squares sense, each step weighing them by Cauchy's weights of the last step's errors in pixels, so that
    single keypoints gone astray count for little, until a step moves the hand by less than ``CLOSE`` of its depth.

    Where that puts a joint behind ``MIN_DEPTH_M``, or half of them farther from their keypoints than a mere point
    would be (keypoints that fit no pose of these joints), the depth comes from the ratio of the two point sets' sizes
    instead, which is always positive; the log says so.
    """
    joints = np.asarray(joints, np.float64)
    rays = camera.rays(joints_2d)[..., :2]  # (N, 21, 2)
    focal = np.array([camera.fx, camera.fy])
    solved = [_solve_one(*hand, focal, steps) for hand in zip(joints, rays, strict=True)]
    translation = np.array([place for place, _ in solved]).reshape(-1, 3)
    nearest = joints[..., 2].min(axis=-1) + translation[:, 2]
    fits = np.array([fit for _, fit in solved], bool)
    lost = ~((nearest >= MIN_DEPTH_M) & (nearest <= MAX_DEPTH_M) & fits)
    if lost.any():
        _log.debug("%d of %d hands are placed by their size: their keypoints fit no perspective", lost.sum(), len(lost))
        translation[lost] = _translation_by_size(joints[lost], rays[lost])
    return translation


def _solve_one(joints: NDArray, rays: NDArray, focal: NDArray, steps: int) -> tuple[tuple[float, float, float], bool]:
    """The translation of one hand from joints (21, 3) and rays (21, 2); one by one, in plain floats, is the faster.

    Also whether at least half of the joints are seen nearer to their rays than the rays' middle is. Linear equations
    draw a hand that fits badly towards the camera, where it would fill the picture.
    """
    depths, u_v = joints[:, 2], rays.T
    b = u_v * depths - joints[:, :2].T
    # A keypoint's part in the normal equations is its weight times these.
    moments = np.empty((7, len(joints)))
    moments[0] = 1.0
    moments[1:3], moments[3] = u_v, np.square(u_v).sum(0)
    moments[4:6], moments[6] = b, (u_v * b).sum(0)
    # Times the translation and 1, these are a keypoint's errors in x and y, in pixels where it is at depth 1.
    misses = np.zeros((2, len(joints), 4))
    misses[0, :, 0] = misses[1, :, 1] = 1.0
    misses[..., 2], misses[..., 3] = -u_v, -b
    misses *= focal[:, None, None]
    place, median_sq = _weighted_solve(moments, moments[0]), 0.0
    for _ in range(steps):
        depth = np.maximum(depths + place[2], MIN_DEPTH_M)
        x, y = (misses @ (*place, 1.0)) / depth
        errors_sq = x * x + y * y
        median_sq = np.partition(errors_sq, 10)[10]  # of 21; np.median takes ten times as long
        usual_sq = max(4.0 * median_sq, 0.0625)  # twice the median, at least a quarter of a pixel
        before, place = place, _weighted_solve(moments, 1.0 / (depth * depth * (1.0 + errors_sq / usual_sq)))
        if abs(place[2] - before[2]) < CLOSE * place[2]:
            break
    spread_sq = (focal * focal) @ u_v.var(1)
    return place, bool(median_sq <= spread_sq)


def _weighted_solve(moments: NDArray, weights: NDArray) -> tuple[float, float, float]:
    """Least-squares translation from the keypoints' moments (7, 21) under weights (21,).

    The normal equations [w 0 -u; 0 w -v; -u -v u_v] t = [x, y, -r], in weighted sums, solved for the depth first.
    """
    w, u, v, u_v, x, y, r = (moments @ weights).tolist()
    if not w > 0.0:  # keypoints that are not finite
        return math.nan, math.nan, math.nan
    # A hair of damping keeps the equations solvable when all keypoints coincide.
    spread = u_v - (u * u + v * v) / w + 1e-12 * (2.0 * w + u_v)
    z = ((u * x + v * y) / w - r) / spread
    return (x + u * z) / w, (y + v * z) / w, z


def _translation_by_size(joints: NDArray, rays: NDArray) -> NDArray[np.float64]:
    """Weak-perspective translation (N, 3): the depth at which joints (N, 21, 3) look as large as rays (N, 21, 2)."""
    flat = joints[..., :2]
    size = np.linalg.norm(flat - flat.mean(axis=-2, keepdims=True), axis=(-2, -1))
    size_seen = np.linalg.norm(rays - rays.mean(axis=-2, keepdims=True), axis=(-2, -1))
    farthest = np.full_like(size, MAX_DEPTH_M)
    depth = np.divide(size, size_seen, out=farthest, where=size_seen > size / MAX_DEPTH_M)
    depth = np.maximum(depth, MIN_DEPTH_M - joints[..., 2].min(axis=-1))
    xy = rays.mean(axis=-2) * depth[:, None] - flat.mean(axis=-2)
    return np.concatenate([xy, depth[:, None]], axis=-1)


def project_joints(joints: NDArray, translation: NDArray, camera: Camera) -> NDArray[np.float64]:
    """Joints (21, 3) standing at ``translation`` in pixels (21, 2); none counts as nearer than ``MIN_DEPTH_M``."""
    points = joints.astype(np.float64) + translation
    points[:, 2] = np.maximum(points[:, 2], MIN_DEPTH_M)
    return camera.project(points)
