"""Anatomical axes of any MANO-like right hand: flexion, abduction and twist angles instead of raw rotations.

Everything is derived from the model's own arrays, so it works for the embedded hand and for MANO alike. The
canonical hand axes are x towards the thumb, y along the fingers, z out of the palm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from handmesh.assets import HandModelArrays

FINGER_COUNT = 5
FLEX, ABDUCT, TWIST = 0, 1, 2
# First joint (of the 16) of thumb, index, middle, ring, little in MANO's order.
FIRST_JOINT = (13, 1, 4, 10, 7)
# Where a flexing thumb heads for: across the palm, towards the base of the little finger (fractions of hand axes).
_THUMB_TARGET = np.array([-0.33, 0.95, 0.35])

Tensor = torch.Tensor


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class HandAnatomy:
    """Rest geometry and joint axes in the model's own axes.

    joints (16, 3) m from the wrist; tips (5, 3) m thumb..little; frame (3, 3) rows = canonical x, y, z in model
    axes; axes (16, 3, 3) unit rotation axes (flexion, abduction, twist) of each joint; rest (16, 3) rad: the
    angles that the rest pose already has; radii (16,) m: flesh around each bone.
    """

    joints: np.ndarray
    tips: np.ndarray
    frame: np.ndarray
    axes: np.ndarray
    rest: np.ndarray
    radii: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: HandModelArrays) -> HandAnatomy:
        """Measure a hand model (its template, i.e. betas = 0)."""
        template = np.asarray(arrays.v_template, np.float64)
        regressor = arrays.J_regressor
        joints = np.asarray(regressor @ template, np.float64)
        wrist = joints[0].copy()
        joints, template = joints - wrist, template - wrist
        tips = template[np.asarray(arrays.fingertips, int)]
        frame = _canonical_frame(joints)
        axes, rest = _joint_axes(joints, tips, frame)
        radii = _bone_radii(template, np.asarray(arrays.weights), joints, tips)
        return cls(joints, tips, frame, axes, rest, radii)

    def rotations(self, angles: Tensor) -> Tensor:
        """(..., 16, 3) absolute anatomical angles in rad -> (..., 16, 3, 3) local rotations, identity at the root.

        Fingers: flexion 0 is straight on from the bone before, abduction 0 is parallel to the hand's y axis and
        positive towards the little finger. Thumb: angles are relative to the rest pose.
        """
        axes = torch.as_tensor(self.axes, dtype=angles.dtype, device=angles.device)
        relative = angles - torch.as_tensor(self.rest, dtype=angles.dtype, device=angles.device)
        flex = _axis_angle(axes[:, FLEX], relative[..., FLEX])
        abduct = _axis_angle(axes[:, ABDUCT], relative[..., ABDUCT])
        twist = _axis_angle(axes[:, TWIST], relative[..., TWIST])
        local = abduct @ flex @ twist  # (..., 16, 3, 3)
        root = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(*local.shape[:-3], 1, 3, 3)
        return torch.cat([root, local[..., 1:, :, :]], dim=-3)

    def keypoints(self, rotations: Tensor) -> Tensor:
        """(..., 16, 3, 3) local rotations -> (..., 21, 3) m from the wrist, of the average-shaped hand.

        Only the skeleton is moved: this is what pose sampling needs thousands of times; meshes come from
        :class:`handmesh.model.hand_model.HandModel`.
        """
        joints = torch.as_tensor(self.joints, dtype=rotations.dtype, device=rotations.device)
        tips = torch.as_tensor(self.tips, dtype=rotations.dtype, device=rotations.device)
        root = rotations[..., 0, :, :]
        points = [torch.zeros(*rotations.shape[:-3], 3, dtype=rotations.dtype, device=rotations.device)]
        for finger, first in enumerate(FIRST_JOINT):
            turn, at, before = root, points[0], joints[0]
            for joint in range(first, first + 3):
                at = at + turn @ (joints[joint] - before)
                turn = turn @ rotations[..., joint, :, :]
                before = joints[joint]
                points.append(at)
            points.append(at + turn @ (tips[finger] - before))
        return torch.stack(points, dim=-2)  # (..., 21, 3)


def _canonical_frame(joints: np.ndarray) -> np.ndarray:
    knuckles = joints[[1, 4, 7, 10]]
    along = _unit(knuckles.mean(0))
    across = joints[1] - joints[7]
    across = _unit(across - along * (across @ along))
    return np.stack([across, along, np.cross(across, along)])


def _joint_axes(joints: np.ndarray, tips: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = frame
    axes, rest = np.zeros((16, 3, 3)), np.zeros((16, 3))
    axes[0] = frame
    reach = np.linalg.norm(joints[4])
    thumb_target = (_THUMB_TARGET * reach) @ frame
    for finger, first in enumerate(FIRST_JOINT):
        chain = [joints[first], joints[first + 1], joints[first + 2], tips[finger]]
        for k in range(3):
            direction = _unit(chain[k + 1] - chain[k])
            if finger == 0:
                flex = _unit(np.cross(direction, thumb_target - chain[k]))
            else:
                straight = chain[3] - chain[0]
                flex = _unit(np.cross(straight - z * (straight @ z), z))
                before = y if k == 0 else _unit(chain[k] - chain[k - 1])
                rest[first + k, FLEX] = _elevation(direction, z) - _elevation(before, z) * (k > 0)
                if k == 0:
                    rest[first, ABDUCT] = np.arctan2(-(straight @ x), straight @ y)
            axes[first + k] = np.stack([flex, _unit(np.cross(flex, direction)), direction])
    return axes, rest


def _elevation(direction: np.ndarray, z: np.ndarray) -> float:
    return float(np.arcsin(np.clip(direction @ z, -1.0, 1.0)))


def _bone_radii(v: np.ndarray, weights: np.ndarray, joints: np.ndarray, tips: np.ndarray) -> np.ndarray:
    owner = weights.argmax(1)
    radii = np.full(16, 0.012)
    for finger, first in enumerate(FIRST_JOINT):
        chain = [joints[first], joints[first + 1], joints[first + 2], tips[finger]]
        for k in range(3):
            mine = v[owner == first + k] - chain[k]
            direction = _unit(chain[k + 1] - chain[k])
            along = mine @ direction
            length = np.linalg.norm(chain[k + 1] - chain[k])
            middle = (along > 0.2 * length) & (along < 0.8 * length)
            if middle.sum() >= 4:
                off = mine[middle] - along[middle, None] * direction
                radii[first + k] = np.median(np.linalg.norm(off, axis=1))
    return radii


def _axis_angle(axis: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues with fixed unit axes: (J, 3) and (..., J) -> (..., J, 3, 3)."""
    zero = torch.zeros_like(axis[:, 0])
    x, y, z = axis.unbind(-1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    identity = torch.eye(3, dtype=angle.dtype, device=angle.device)
    s, c = torch.sin(angle)[..., None, None], torch.cos(angle)[..., None, None]
    return identity + s * skew + (1 - c) * (skew @ skew)
