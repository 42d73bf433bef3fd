"""Bending a hand until its joints meet the keypoints seen: a few damped Gauss-Newton steps under joint limits.

A network's keypoints are better than its joint angles. Starting from its pose, the steps turn the wrist and the fifteen
joints and move the hand so that the joints project onto the keypoints, held near the network's pose and inside the
range that recorded poses keep to. Bones are taken from the hand itself, so any hand model's hands can be refined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import ASSETS
from handmesh.kinematics import TIP_PARENTS
from handmesh.records import Camera, PosedHand, Side
from handmesh.skeleton import KEYPOINTS, MANO_JOINTS, MANO_KEYPOINTS, MANO_PARENTS, permutation
from handmesh.smoothing import rotmat_to_rotvec, rotvec_to_rotmat

POSE_BANK = ASSETS / "pose_bank.npz"

_JOINTS = len(MANO_JOINTS)
_ORDER = list(permutation(MANO_KEYPOINTS, KEYPOINTS))  # keypoint k is point _ORDER[k] of joints and tips
_PARENTS = (*MANO_PARENTS, *TIP_PARENTS)
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Refinement:
    """How to refine. Angles in radians, in which a standard deviation is an ordinary disagreement.

    Attributes:
        steps: of Gauss and Newton.
        keypoint_share: how far keypoints lie off in the mean, as a share of the hand's size in the picture; those that
            lie off by much more count for little (Cauchy's weights).
        joint: how far the network's joint angles lie off.
        wrist: the same for the wrist.
        limit: how far a joint may well go beyond its range.
    """

    steps: int = 3
    keypoint_share: float = 0.05
    joint: float = 0.3
    wrist: float = 0.3
    limit: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 but is {self.steps}")
        for name in ("keypoint_share", "joint", "wrist", "limit"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive but is {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class JointRange:
    """Where recorded hands' joints are: per joint (15 of MANO's) an own frame of axes (15, 3, 3), one axis a row, and
    the lowest and highest component of its rotation vector along each, (15, 3) rad."""

    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@lru_cache(maxsize=1)
def recorded_range(margin: float = 0.1) -> JointRange:
    """The range of the package's pose bank (right hands), widened by ``margin`` rad at both ends."""
    with np.load(POSE_BANK) as bank:
        poses = bank["poses"].astype(np.float64)  # (N, 15, 3)
    centred = poses - poses.mean(axis=0)
    _, axes = np.linalg.eigh(np.einsum("nji,njk->jik", centred, centred))
    axes = np.swapaxes(axes, -1, -2)
    along = np.einsum("jai,nji->nja", axes, poses)
    low, high = np.percentile(along, (0.2, 99.8), axis=0)
    return JointRange(axes, low - margin, high + margin)


def refine(
    hand: PosedHand,
    side: Side,
    translation: NDArray[np.floating],
    joints_2d: NDArray[np.floating],
    camera: Camera,
    how: Refinement = Refinement(),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations (16, 3, 3) of the hand's own side's model and a translation (3,) m that fit keypoints (21, 2) px.

    ``hand`` and ``translation`` are where to start from, in camera axes.
    """
    flip = _MIRROR if side == "left" else np.ones(3)
    turned = np.outer(flip, flip)
    rotations = hand.rotations.astype(np.float64) * turned
    bones = _bones(hand.joints.astype(np.float64) * flip, rotations)
    rays = camera.rays(joints_2d)[:, :2] * flip[:2]
    place = np.asarray(translation, np.float64) * flip
    focal = 0.5 * (camera.fx + camera.fy)
    size_px = focal * float(np.ptp(rays, axis=0).max())
    start, keypoint_px = rotations, max(how.keypoint_share * size_px, 0.5)
    for _ in range(how.steps):
        step = _step(rotations, start, bones, place, rays, focal / keypoint_px, how)
        rotations = rotvec_to_rotmat(step[:48].reshape(16, 3)) @ rotations
        place = place + step[48:]
        place[2] = max(place[2], 0.05)
    return rotations * turned, place * flip


def _bones(joints: NDArray[np.float64], rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(21, 3) of joints and tips: each point from its parent, in the parent's axes."""
    points = np.empty_like(joints)
    points[_ORDER] = joints
    turns = _turns(rotations)
    bones = np.zeros_like(points)
    for child, parent in enumerate(_PARENTS):
        if parent >= 0:
            bones[child] = (points[child] - points[parent]) @ turns[parent]
    return bones


def _turns(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    turns = rotations.copy()
    for joint, parent in enumerate(MANO_PARENTS[1:], start=1):
        turns[joint] = turns[parent] @ rotations[joint]
    return turns


def _step(
    rotations: NDArray[np.float64],
    start: NDArray[np.float64],
    bones: NDArray[np.float64],
    place: NDArray[np.float64],
    rays: NDArray[np.float64],
    sharpness: float,
    how: Refinement,
) -> NDArray[np.float64]:
    """One step (51,): small rotations of the sixteen joints in their parents' axes, and of the place."""
    turns = _turns(rotations)
    points = np.zeros((21, 3))
    for child, parent in enumerate(_PARENTS):
        if parent >= 0:
            points[child] = points[parent] + turns[parent] @ bones[child]
    # d point / d small rotation of joint j about axis a of its parent: (a x (point - joint)) for what hangs on it.
    above = np.concatenate([np.eye(3)[None], turns[list(MANO_PARENTS[1:])]])  # (16, 3, 3) columns are the axes
    arms = points[:, None] - points[None, :_JOINTS]  # (21, 16, 3)
    moved = np.cross(np.swapaxes(above, -1, -2)[None], arms[:, :, None]) * _HANGS[:, :, None, None]  # (21, 16, 3, 3)
    derivative = np.concatenate([moved.reshape(21, 48, 3), np.broadcast_to(np.eye(3), (21, 3, 3))], axis=1)[_ORDER]
    seen = points[_ORDER] + place
    depth = np.maximum(seen[:, 2], 0.02)
    errors = (rays - seen[:, :2] / depth[:, None]) * sharpness  # (21, 2) in standard deviations
    flat = (derivative[..., :2] - seen[:, None, :2] / depth[:, None, None] * derivative[..., 2:]) / depth[:, None, None]
    weights = np.sqrt(1.0 / (1.0 + (errors**2).sum(axis=1) / 9.0))
    A = (flat * sharpness * weights[:, None, None]).transpose(0, 2, 1).reshape(42, 51)
    b = (errors * weights[:, None]).reshape(42)
    normal, right = A.T @ A, A.T @ b
    _hold(normal, right, rotations, start, how)
    normal[range(48, 51), range(48, 51)] += 1e-6 * np.trace(normal) / 51
    return np.linalg.solve(normal, right)


def _hold(
    normal: NDArray[np.float64],
    right: NDArray[np.float64],
    rotations: NDArray[np.float64],
    start: NDArray[np.float64],
    how: Refinement,
) -> None:
    """Add to the equations what holds joints near the start and inside their range."""
    strength = np.repeat([how.wrist, *[how.joint] * 15], 3) ** -2.0
    gone = rotmat_to_rotvec(rotations @ np.swapaxes(start, -1, -2)).ravel()
    normal[range(48), range(48)] += strength
    right[:48] -= strength * gone
    reach = recorded_range()
    along = np.einsum("jai,ji->ja", reach.axes, rotmat_to_rotvec(rotations[1:]))
    beyond = np.maximum(along - reach.high, 0.0) + np.minimum(along - reach.low, 0.0)
    for joint, axis in np.argwhere(beyond != 0.0):
        rows = slice(3 * joint + 3, 3 * joint + 6)
        direction = reach.axes[joint, axis] / how.limit
        normal[rows, rows] += np.outer(direction, direction)
        right[rows] -= direction * beyond[joint, axis] / how.limit


def _hanging() -> NDArray[np.float64]:
    """(21, 16) 1 where a joint or tip hangs on a joint other than itself."""
    hangs = np.zeros((21, _JOINTS))
    for point in range(21):
        parent = _PARENTS[point]
        while parent >= 0:
            hangs[point, parent] = 1.0
            parent = _PARENTS[parent]
    return hangs


_HANGS = _hanging()
