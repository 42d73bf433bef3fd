"""A hand model's skeleton: joints of a shape, turned by rotations (numpy; meshes come from the graphs).

For files that carry a skeleton instead of a mesh a frame, and for fits that turn joints thousands of times a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays
from handmesh.records import Side
from handmesh.skeleton import FINGERS, KEYPOINTS, MANO_JOINTS, MANO_KEYPOINTS, MANO_PARENTS, permutation

TIP_PARENTS: tuple[int, ...] = tuple(MANO_JOINTS.index(f"{finger}3") for finger in FINGERS)
"""The joint that each of the five fingertips hangs on."""

_KEYPOINT_ORDER = list(permutation(MANO_KEYPOINTS, KEYPOINTS))
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class RestHand:
    """A hand of one shape and side in the zero pose, metres from its wrist, in its model's axes.

    ``joints`` (16, 3) in MANO's order, ``tips`` (5, 3) thumb to little, ``vertices`` (V, 3), ``weights`` (V, 16),
    ``faces`` (F, 3) wound outwards.
    """

    side: Side
    joints: NDArray[np.float64]
    tips: NDArray[np.float64]
    vertices: NDArray[np.float64]
    weights: NDArray[np.float32]
    faces: NDArray[np.int32]

    @classmethod
    def from_model(cls, model: HandModelArrays, betas: NDArray[np.floating], side: Side) -> RestHand:
        """The shape ``betas`` (10,) of a right-hand model, mirrored for a left hand."""
        vertices = model.v_template + model.shapedirs.astype(np.float64) @ np.asarray(betas, np.float64)
        joints = model.J_regressor.astype(np.float64) @ vertices
        flip = _MIRROR if side == "left" else np.ones(3)
        vertices, joints = (vertices - joints[0]) * flip, (joints - joints[0]) * flip
        faces = np.ascontiguousarray(model.faces[:, ::-1]) if side == "left" else model.faces
        return cls(side, joints, vertices[model.fingertips], vertices, model.weights, faces)

    @property
    def bones(self) -> NDArray[np.float64]:
        """(16, 3) each joint from its parent; zero for the wrist."""
        return self.joints - self.joints[[max(parent, 0) for parent in MANO_PARENTS]]

    @property
    def tip_bones(self) -> NDArray[np.float64]:
        """(5, 3) each fingertip from the last joint of its finger."""
        return self.tips - self.joints[list(TIP_PARENTS)]

    def turned(self, rotations: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Joints' global rotations (..., 16, 3, 3) and the 21 keypoints (..., 21, 3) from the wrist, FreiHAND's order.

        ``rotations`` (..., 16, 3, 3): the first global, the others relative to the parent. Fingertips are taken to
        hang on their last joint alone.
        """
        local = np.asarray(rotations, np.float64)
        turns, places = np.empty_like(local), np.zeros((*local.shape[:-3], 16, 3))
        turns[..., 0, :, :] = local[..., 0, :, :]
        bones = self.bones
        for child, parent in enumerate(MANO_PARENTS[1:], start=1):
            turns[..., child, :, :] = turns[..., parent, :, :] @ local[..., child, :, :]
            places[..., child, :] = places[..., parent, :] + turns[..., parent, :, :] @ bones[child]
        tips = list(TIP_PARENTS)
        ends = places[..., tips, :] + (turns[..., tips, :, :] @ self.tip_bones[..., None])[..., 0]
        return turns, np.concatenate([places, ends], axis=-2)[..., _KEYPOINT_ORDER, :]
