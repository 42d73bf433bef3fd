"""Where other trackers put their 21 keypoints on our hand: what they call wrist, knuckles and tips are other spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handmesh.skeleton import FINGER_KNUCKLES, FINGERS, KEYPOINTS

if TYPE_CHECKING:
    from handmesh.model.regressor import Prediction

_WRIST, _INDEX, _MIDDLE, _LITTLE = (KEYPOINTS.index(name) for name in ("wrist", "index1", "middle1", "little1"))

MEDIAPIPE_OFFSETS_MM = torch.tensor(
    [
        [2.9, 15.4, 1.9],  # wrist: nearer the fingers
        [2.9, -4.3, 11.5],  # thumb, from its root to its tip
        [-2.4, 4.8, -0.4],
        [-2.7, -4.6, 0.2],
        [-1.2, -10.0, 0.4],
        [-4.4, -6.6, 2.4],  # index: the knuckle nearer the wrist, the tip short of the end
        [-1.3, 0.0, 3.6],
        [-0.5, -0.6, 3.1],
        [-0.2, -8.7, 1.1],
        [-0.3, -6.6, 4.3],  # middle
        [1.2, -1.8, 3.4],
        [0.5, -3.7, 3.6],
        [0.8, -9.4, 2.5],
        [-0.1, -6.2, 5.3],  # ring
        [0.6, -0.3, 2.9],
        [0.4, -2.6, 2.5],
        [1.1, -10.7, 1.5],
        [1.5, -5.6, 3.3],  # little
        [0.0, -0.4, 3.1],
        [0.5, 0.0, 2.4],
        [1.5, -6.9, 0.8],
    ],
    dtype=torch.float64,
)
"""(21, 3) from our joints to MediaPipe's (0.10.21), in `bone_axes`, for a hand whose size is `PALM_MM`. Fitted to the
rendered evaluation set by eval/label_convention.py."""

PALM_MM = 95.0


def mediapipe_spots(joints: Tensor) -> Tensor:
    """How far MediaPipe would put its keypoints from the joints (N, 21, 3) of right hands: (N, 21, 3)."""
    offsets = MEDIAPIPE_OFFSETS_MM.to(joints) / PALM_MM
    return hand_size(joints) * torch.einsum("njab,jb->nja", bone_axes(joints), offsets)


def hand_size(joints: Tensor) -> Tensor:
    """Distance wrist to middle knuckle of joints (N, 21, 3), shape (N, 1, 1), never zero."""
    return (joints[:, _MIDDLE] - joints[:, _WRIST]).norm(dim=-1).clamp_min(1e-3)[:, None, None]


@torch.no_grad()
def label_moves(mediapipe: Tensor, prediction: Prediction) -> Tensor:
    """How far labels name other spots than ours on the predicted hands, (N, 21, 2) in crop coordinates: zero but where
    they name MediaPipe's (mediapipe (N,) is 1)."""
    moves = prediction.head.camera[:, None, :1] * mediapipe_spots(prediction.joints)[..., :2]
    return mediapipe[:, None, None] * moves


def bone_axes(joints: Tensor) -> Tensor:
    """(..., 21, 3, 3) axes, as columns, in which each joint of right hands (..., 21, 3) keeps its place as they move.

    x points to the index side, y along the bone before the joint (at wrist and knuckles from the wrist to the fingers),
    z out of the palm's or the back's plane.
    """
    across = _unit(joints[..., _INDEX, :] - joints[..., _LITTLE, :])
    along = _orthogonal(joints[..., list(FINGER_KNUCKLES), :].mean(-2) - joints[..., _WRIST, :], across)
    normal = torch.linalg.cross(across, along)
    axes = [torch.stack([across, along, normal], dim=-1)] * len(KEYPOINTS)
    for finger in FINGERS:
        for before, name in zip(
            (f"{finger}{k}" for k in (1, 2, 3)), (f"{finger}2", f"{finger}3", f"{finger}_tip"), strict=True
        ):
            joint = KEYPOINTS.index(name)
            bone = _unit(joints[..., joint, :] - joints[..., KEYPOINTS.index(before), :])
            # The thumb may lie along the palm's x axis, the other fingers do not.
            x = _unit(torch.linalg.cross(bone, normal)) if finger == "thumb" else _orthogonal(across, bone)
            axes[joint] = torch.stack([x, bone, torch.linalg.cross(x, bone)], dim=-1)
    return torch.stack(axes, dim=-3)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def _orthogonal(vectors: Tensor, to: Tensor) -> Tensor:
    """The unit vectors of what of `vectors` is orthogonal to the unit vectors `to`."""
    return _unit(vectors - (vectors * to).sum(-1, keepdim=True) * to)
