"""The hand model in torch: shape coefficients and joint rotations in, a skinned mesh and its joints out.

Linear blend skinning with shape and pose blend shapes as in MANO (Romero, Tzionas and Black, "Embodied Hands", SIGGRAPH
Asia 2017), for any model in MANO's layout, whatever its vertex count. It is written to agree with `smplx.MANO` given
``use_pca=False, flat_hand_mean=True``: rotations are absolute (no mean pose is added), the global rotation turns the
hand about its root joint, the translation is zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmesh.assets import HandModelArrays
from handmesh.skeleton import FINGERTIPS, KEYPOINTS, MANO_JOINTS, permutation


class ShapedHand(NamedTuple):
    """A hand of some shape in the zero pose, metres, model axes."""

    vertices: Tensor  # (..., V, 3)
    joints: Tensor  # (..., 16, 3) in MANO's order


class HandMeshBatch(NamedTuple):
    """Posed hands, metres."""

    vertices: Tensor  # (..., V, 3)
    joints: Tensor  # (..., 16, 3) in MANO's order
    keypoints: Tensor  # (..., 21, 3) in FreiHAND's order


class HandModel(nn.Module):
    """Shape and pose to mesh. Stateless: its buffers are the model's constants and stay out of checkpoints."""

    v_template: Tensor
    shapedirs: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    posedirs: Tensor | None
    weights: Tensor
    fingertips: Tensor
    keypoint_order: Tensor
    faces: Tensor

    def __init__(self, arrays: HandModelArrays, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

        def constant(name: str, tensor: Tensor | None) -> None:
            if tensor is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.register_buffer(name, tensor, persistent=False)

        v_template = torch.tensor(arrays.v_template, dtype=torch.float64)  # (V, 3)
        shapedirs = torch.tensor(arrays.shapedirs, dtype=torch.float64).movedim(-1, 0)  # (10, V, 3)
        J_regressor = torch.tensor(arrays.J_regressor, dtype=torch.float64)  # (16, V)
        posedirs = torch.tensor(arrays.posedirs, dtype=torch.float64).movedim(-1, 0)  # (135, V, 3)
        constant("v_template", v_template)
        constant("shapedirs", shapedirs.flatten(1))  # (10, V * 3)
        # Joints are linear in the vertices, hence in betas: regress them once here, not in every call.
        constant("joint_template", J_regressor @ v_template)  # (16, 3)
        constant("joint_shapedirs", (J_regressor @ shapedirs).flatten(1))  # (10, 16 * 3)
        constant("posedirs", posedirs.flatten(1) if posedirs.any() else None)  # (135, V * 3)
        constant("weights", torch.tensor(arrays.weights, dtype=torch.float64))  # (V, 16)
        constant("fingertips", torch.tensor(arrays.fingertips, dtype=torch.int64))  # (5,)
        order = permutation((*MANO_JOINTS, *FINGERTIPS), KEYPOINTS)
        constant("keypoint_order", torch.tensor(order, dtype=torch.int64))  # (21,)
        constant("faces", torch.tensor(arrays.faces, dtype=torch.int64))  # (F, 3)
        self.parents = tuple(int(parent) for parent in arrays.parents)

    def shape(self, betas: Tensor) -> ShapedHand:
        """Shape coefficients (..., 10), in standard deviations, to the hand in its zero pose."""
        if betas.shape[-1] != self.shapedirs.shape[0]:
            raise ValueError(f"betas must be (..., {self.shapedirs.shape[0]}), got {tuple(betas.shape)}")
        vertices = self.v_template + (betas @ self.shapedirs).unflatten(-1, (-1, 3))
        joints = self.joint_template + (betas @ self.joint_shapedirs).unflatten(-1, (-1, 3))
        return ShapedHand(vertices, joints)

    def pose(self, shaped: ShapedHand, rotations: Tensor) -> HandMeshBatch:
        """Turn every joint of a shaped hand by rotations (..., 16, 3, 3): the global one, then local ones.

        The leading shapes of hand and rotations must broadcast.
        """
        if rotations.shape[-3:] != (len(self.parents), 3, 3):
            raise ValueError(f"rotations must be (..., {len(self.parents)}, 3, 3), got {tuple(rotations.shape)}")
        vertices = shaped.vertices
        if self.posedirs is not None:
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            feature = (rotations[..., 1:, :, :] - identity).flatten(-3)  # (..., 135)
            vertices = vertices + (feature @ self.posedirs).unflatten(-1, (-1, 3))
        rest = shaped.joints
        if rotations.shape[:-3] != rest.shape[:-2]:
            lead = torch.broadcast_shapes(rotations.shape[:-3], rest.shape[:-2])
            rotations, rest = rotations.expand(*lead, -1, -1, -1), rest.expand(*lead, -1, -1)
        turns, joints = self._chain(rotations, rest)
        offsets = joints - (turns @ rest[..., None]).squeeze(-1)  # (..., 16, 3)
        # One matrix product blends the rotations' columns and the offset for all vertices.
        columns = torch.cat((turns.transpose(-1, -2).flatten(-2), offsets), dim=-1)  # (..., 16, 12)
        blended = self.weights @ columns  # (..., V, 12)
        vertices = (
            blended[..., 0:3] * vertices[..., 0:1]
            + blended[..., 3:6] * vertices[..., 1:2]
            + blended[..., 6:9] * vertices[..., 2:3]
            + blended[..., 9:12]
        )
        return HandMeshBatch(vertices, joints, self.keypoints(vertices, joints))

    def forward(self, rotations: Tensor, betas: Tensor) -> HandMeshBatch:
        """Rotations (..., 16, 3, 3) in MANO's joint order and betas (..., 10) to posed hands.

        Raises ValueError if the trailing shapes are others. Leading shapes broadcast.
        """
        return self.pose(self.shape(betas), rotations)

    def keypoints(self, vertices: Tensor, joints: Tensor) -> Tensor:
        """Vertices (..., V, 3) and joints (..., 16, 3) to the 21 keypoints (..., 21, 3) in FreiHAND's order."""
        tips = vertices.index_select(-2, self.fingertips)
        return torch.cat((joints, tips), dim=-2).index_select(-2, self.keypoint_order)

    def _chain(self, rotations: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Local rotations (..., 16, 3, 3) and rest joints (..., 16, 3) to global rotations and posed joints."""
        turns = [rotations[..., 0, :, :]]
        positions = [joints[..., 0, :]]
        for child, parent in enumerate(self.parents[1:], start=1):
            bone = joints[..., child, :] - joints[..., parent, :]
            positions.append(positions[parent] + (turns[parent] @ bone[..., None]).squeeze(-1))
            turns.append(turns[parent] @ rotations[..., child, :, :])
        return torch.stack(turns, dim=-3), torch.stack(positions, dim=-2)
