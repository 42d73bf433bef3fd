"""Where another tracker puts its keypoints on our hand: by how much its 21 points differ from our joints in every pose.

Trackers call different spots of a hand its wrist, knuckles and tips. On rendered hands, whose joints are known, what of
the difference stays the same in the bones' own axes is this convention; the rest is error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from handmesh.datasets.mixture import HandDataset
from handmesh.evaluation.metrics import keypoint_error
from handmesh.model.conventions import MEDIAPIPE_OFFSETS_MM, PALM_MM, bone_axes
from handmesh.placement import solve_translation
from handmesh.records import Camera, Convention, HandMesh, Side
from handmesh.skeleton import KEYPOINTS

Array = NDArray[np.float64]

SAME_HAND = 0.15
"""Points farther from a hand's joints than this share of its box, on average, are another hand's or plainly wrong."""

_OUTLIER = 0.06  # hand sizes; larger residuals pull no more than one of this size
_ROUNDS = 10
_WRIST, _MIDDLE = KEYPOINTS.index("wrist"), KEYPOINTS.index("middle1")
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class KnownHand:
    """A hand whose joints are known, and what a tracker says of it.

    joints: (21, 3) m from the wrist, camera axes. joints_2d, pixels: (21, 2) px, true and the tracker's. world: (21, 3)
    m the tracker's own 3D points, in the image's axes.
    """

    row: int  # of its data set
    side: Side
    joints: Array
    joints_2d: Array
    camera: Camera
    pixels: Array
    world: Array

    @cached_property
    def axes(self) -> Array:
        """(21, 3, 3) `hand_axes` of the true joints."""
        return hand_axes(self.joints, self.side)

    @cached_property
    def px_a_size(self) -> Array:
        """(21, 1) how many pixels a hand's size spans at each joint's depth."""
        place = solve_translation(self.joints[None], self.joints_2d[None], self.camera)[0]
        return self.camera.fx * _size(self.joints) / (self.joints[:, 2:] + place[2])


@dataclass(frozen=True)
class Spots:
    """Where a convention's keypoints lie on an estimated hand.

    joints_2d (21, 2) px by the network's keypoints, mesh_2d (21, 2) px by the mesh; joints (21, 3) m from our wrist.
    """

    joints_2d: Array
    mesh_2d: Array
    joints: Array


def spots_of(hand: HandMesh, convention: Convention) -> Spots:
    """What an estimated hand is held against by keypoints of that convention."""
    joints = hand.joints.astype(np.float64)
    mesh_2d = hand.camera.project(joints + hand.translation)
    joints_2d = np.asarray(hand.joints_2d, np.float64)
    if convention == "freihand":
        return Spots(joints_2d, mesh_2d, joints)
    theirs = _moved(joints, hand_axes(joints, hand.side), MEDIAPIPE_OFFSETS_MM.numpy() / PALM_MM)
    theirs_2d = hand.camera.project(theirs + hand.translation)
    return Spots(joints_2d + theirs_2d - mesh_2d, theirs_2d, theirs)


def match_hands(dataset: HandDataset, frames: NDArray[np.integer], pixels: Array, world: Array) -> list[KnownHand]:
    """The hands of a rendered set on which a tracker has found one: `frames` (M,) are rows of the set, with its points
    (M, 21, 2) px and (M, 21, 3) m."""
    hands = []
    for row in np.unique(frames):
        sample = dataset[int(row)]
        if sample.joints is None or sample.intrinsics is None:
            raise ValueError("the set must know joints and intrinsics, as rendered ones do")
        (fx, _, cx), (_, fy, cy), _ = sample.intrinsics
        height, width = sample.image.shape[:2]
        own = np.flatnonzero(frames == row)
        apart = keypoint_error(pixels[own], np.tile(sample.joints_2d, (len(own), 1, 1))).mean(-1)
        best = own[int(apart.argmin())]
        if apart.min() < SAME_HAND:
            camera = Camera(fx, fy, cx, cy, width, height)
            hands.append(
                KnownHand(int(row), sample.side, sample.joints, sample.joints_2d, camera, pixels[best], world[best])
            )
    return hands


def hand_axes(joints: Array, side: Side) -> Array:
    """(21, 3, 3) `bone_axes` of the joints (21, 3) of one hand; a left one has those of its mirror image, mirrored."""
    flip = _MIRROR if side == "left" else np.ones(3)
    return flip[:, None] * bone_axes(torch.from_numpy(joints.astype(np.float64) * flip)).numpy()


def fit_offsets(hands: Sequence[KnownHand]) -> Array:
    """(21, 3) where the tracker's points lie from our joints, in `bone_axes`, in hand sizes (wrist to middle knuckle).

    Fitted to its pixels alone, as a tracker's depth is a guess; robust least squares.
    """
    axes = np.stack([hand.axes[:, :2] for hand in hands])  # (N, 21, 2, 3) from offsets to the picture
    residual = np.stack([(hand.pixels - hand.joints_2d) / hand.px_a_size for hand in hands])  # (N, 21, 2)
    offsets = np.zeros((21, 3))
    for joint in range(21):
        A, b = axes[:, joint].reshape(-1, 3), residual[:, joint].reshape(-1)
        weight = np.ones(len(b))
        for _ in range(_ROUNDS):
            root = np.sqrt(weight)
            offsets[joint] = np.linalg.lstsq(A * root[:, None], b * root, rcond=None)[0]
            weight = np.minimum(1.0, _OUTLIER / np.abs(b - A @ offsets[joint]).clip(1e-9))
    return offsets


def errors_2d(hands: Sequence[KnownHand], offsets: Array) -> Array:
    """(N,) mean distance of a tracker's pixels from our joints moved by `offsets`, as a share of the hand's box."""
    moved = [h.joints_2d + h.px_a_size * np.einsum("jab,jb->ja", h.axes[:, :2], offsets) for h in hands]
    side = np.array([np.ptp(hand.joints_2d, axis=0).max() for hand in hands])
    return np.linalg.norm([h.pixels - m for h, m in zip(hands, moved, strict=True)], axis=-1).mean(-1) / side


def as_theirs(hand: KnownHand, offsets: Array) -> Array:
    """(21, 3) m our joints moved to where the tracker has its points."""
    return _moved(hand.joints, hand.axes, offsets)


def _moved(joints: Array, axes: Array, offsets: Array) -> Array:
    """Joints (21, 3) moved by offsets (21, 3) in hand sizes and in their axes (21, 3, 3)."""
    return joints + _size(joints) * np.einsum("jab,jb->ja", axes, offsets)


def _size(points: Array) -> float:
    return float(np.linalg.norm(points[_MIDDLE] - points[_WRIST]))
