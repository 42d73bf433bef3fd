"""The hand model in torch: shape coefficients and joint rotations in, a skinned mesh and its joints out.

Linear blend skinning with shape and pose blend shapes as in MANO (Romero, Tzionas and Black, "Embodied Hands", SIGGRAPH
Asia 2017), for any model in MANO's layout, whatever its vertex count. It is written to agree with `smplx.MANO` given
``use_pca=False, flat_hand_mean=True``: rotations are absolute (no mean pose is added), the global rotation turns the
hand about its root joint, the translation is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from handmesh.assets import HandModelArrays
from handmesh.skeleton import FINGERTIPS, KEYPOINTS, MANO_JOINTS, permutation

SAME_SHAPE_M = 2e-6  # a pose shape that moves all vertices together by less is rounding


class ShapedHand(NamedTuple):
    """A hand of some shape in the zero pose, metres, model axes."""

    vertices: Tensor  # (..., 3, V): a plane for each axis, so that skinning runs along whole rows
    joints: Tensor  # (..., 16, 3) in MANO's order


class HandMeshBatch(NamedTuple):
    """Posed hands, metres."""

    vertices: Tensor  # (..., V, 3)
    joints: Tensor  # (..., 16, 3) in MANO's order
    keypoints: Tensor  # (..., 21, 3) in FreiHAND's order


class HandModel(nn.Module):
    """Shape and pose to mesh. Stateless: its buffers are the model's constants and stay out of checkpoints."""

    template: Tensor
    shapedirs: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    pose_features: Tensor | None
    posedirs: Tensor | None
    weights: Tensor
    chain_order: Tensor
    joint_order: Tensor
    fingertips: Tensor
    keypoint_order: Tensor
    faces: Tensor

    def __init__(self, arrays: HandModelArrays, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

        def constant(name: str, tensor: Tensor | None) -> None:
            if tensor is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.register_buffer(name, tensor, persistent=False)

        def planes(values: np.ndarray) -> Tensor:
            """(V, 3, K) to (K, 3 * V), all x before all y before all z."""
            return torch.tensor(values, dtype=torch.float64).permute(2, 1, 0).flatten(1)

        v_template = torch.tensor(arrays.v_template, dtype=torch.float64)  # (V, 3)
        shapedirs = torch.tensor(arrays.shapedirs, dtype=torch.float64).movedim(-1, 0)  # (10, V, 3)
        J_regressor = torch.tensor(arrays.J_regressor, dtype=torch.float64)  # (16, V)
        constant("template", v_template.T.flatten())  # (3 * V,)
        constant("shapedirs", planes(arrays.shapedirs))  # (10, 3 * V)
        # Joints are linear in the vertices, hence in betas: regress them once here, not in every call.
        constant("joint_template", (J_regressor @ v_template).flatten())  # (16 * 3,)
        constant("joint_shapedirs", (J_regressor @ shapedirs).flatten(1))  # (10, 16 * 3)
        features, posedirs = _pose_shapes(planes(arrays.posedirs))
        constant("pose_features", features)  # (135, K)
        constant("posedirs", posedirs)  # (K, 3 * V)
        self.parents = tuple(int(parent) for parent in arrays.parents)
        self.levels = _levels(self.parents)
        chain = [joint for level in self.levels for joint in level]
        constant("chain_order", torch.tensor(chain, dtype=torch.int64))  # (16,) root first, then its children, ...
        constant("joint_order", torch.tensor(np.argsort(chain), dtype=torch.int64))  # (16,) and back
        constant("weights", torch.tensor(arrays.weights, dtype=torch.float64)[:, chain].T)  # (16, V), rows by level
        constant("fingertips", torch.tensor(arrays.fingertips, dtype=torch.int64))  # (5,)
        order = permutation((*MANO_JOINTS, *FINGERTIPS), KEYPOINTS)
        constant("keypoint_order", torch.tensor(order, dtype=torch.int64))  # (21,)
        constant("faces", torch.tensor(arrays.faces, dtype=torch.int64))  # (F, 3)

    @property
    def vertex_count(self) -> int:
        return len(self.template) // 3

    def shape(self, betas: Tensor) -> ShapedHand:
        """Shape coefficients (..., 10), in standard deviations, to the hand in its zero pose."""
        if betas.shape[-1] != self.shapedirs.shape[0]:
            raise ValueError(f"betas must be (..., {self.shapedirs.shape[0]}), got {tuple(betas.shape)}")
        vertices = (betas @ self.shapedirs + self.template).unflatten(-1, (3, -1))
        joints = (betas @ self.joint_shapedirs + self.joint_template).unflatten(-1, (-1, 3))
        return ShapedHand(vertices, joints)

    def pose(self, shaped: ShapedHand, rotations: Tensor) -> HandMeshBatch:
        """Turn every joint of a shaped hand by rotations (..., 16, 3, 3): the global one, then local ones.

        The leading shapes of hand and rotations must broadcast.
        """
        if rotations.shape[-3:] != (len(self.parents), 3, 3):
            raise ValueError(f"rotations must be (..., {len(self.parents)}, 3, 3), got {tuple(rotations.shape)}")
        vertices = shaped.vertices  # (..., 3, V)
        if self.posedirs is not None:
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            feature = (rotations[..., 1:, :, :] - identity).flatten(-3)  # (..., 135)
            if self.pose_features is not None:
                feature = feature @ self.pose_features  # (..., K)
            vertices = vertices + (feature @ self.posedirs).unflatten(-1, (3, -1))
        rest = shaped.joints
        if rotations.shape[:-3] != rest.shape[:-2]:
            lead = torch.broadcast_shapes(rotations.shape[:-3], rest.shape[:-2])
            rotations, rest = rotations.expand(*lead, -1, -1, -1), rest.expand(*lead, -1, -1)
        rest = rest.index_select(-2, self.chain_order)[..., None]  # (..., 16, 3, 1)
        turns, shifts = self._chain(rotations.index_select(-3, self.chain_order), rest)
        joints = (turns @ rest + shifts).squeeze(-1).index_select(-2, self.joint_order)
        # Two matrix products blend the joints' motions for all vertices.
        blended_turns = (turns.flatten(-2).mT @ self.weights).unflatten(-2, (3, 3))  # (..., 3, 3, V)
        blended_shifts = shifts.squeeze(-1).mT @ self.weights  # (..., 3, V)
        posed = (blended_turns * vertices[..., None, :, :]).sum(-2) + blended_shifts
        vertices = posed.mT.contiguous()  # (..., V, 3)
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

    def _chain(self, rotations: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """How each joint moves the resting hand: a rotation (..., 16, 3, 3), then a shift (..., 16, 3, 1).

        `rotations` are local and `rest` (..., 16, 3, 1) are the resting joints; all three are ordered by level, and
        a level of the tree is one product.
        """
        about_joint = torch.cat((rotations, rest - rotations @ rest), dim=-1)  # (..., 16, 3, 4)
        corner = torch.zeros(4, 4, dtype=rest.dtype, device=rest.device)
        corner[3, 3] = 1.0
        local = torch.nn.functional.pad(about_joint, (0, 0, 0, 1)) + corner  # (..., 16, 4, 4)
        root, *deeper = local.split([len(level) for level in self.levels], dim=-3)
        motions = [root]
        for matrices in deeper:  # a level's joints stand in the order of their parents
            motions.append(motions[-1] @ matrices)
        motion = torch.cat(motions, dim=-3)[..., :3, :]
        return motion[..., :3], motion[..., 3:]


def _pose_shapes(posedirs: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Pose correctives (135, 3 * V) as features (135, K) times shapes (K, 3 * V), as few as give the same hand.

    (None, None) where they are all zero; (None, posedirs) where a detour over features would win nothing.
    """
    if not posedirs.any():
        return None, None
    features, sizes, shapes = torch.linalg.svd(posedirs, full_matrices=False)
    kept = int((sizes > SAME_SHAPE_M).sum())
    if 2 * kept > len(posedirs):
        return None, posedirs
    return features[:, :kept] * sizes[:kept], shapes[:kept]


def _levels(parents: Sequence[int]) -> list[list[int]]:
    """Joints by their distance from the root, joint 0, in the order of their parents; fingers do not fork."""
    levels = [[0], [joint for joint, parent in enumerate(parents) if parent == 0]]
    while sum(map(len, levels)) < len(parents):
        levels.append([parents.index(joint) for joint in levels[-1]])
    return levels


def only_keypoints(arrays: HandModelArrays) -> HandModelArrays:
    """The same hand with 21 vertices: the fingertips and, for the regressor, one at each joint."""
    tips, regressor = arrays.fingertips, arrays.J_regressor

    def reduce(field: np.ndarray) -> np.ndarray:
        return np.concatenate([field[tips], np.tensordot(regressor, field, axes=1)])

    count = len(tips) + len(regressor)
    return HandModelArrays(
        v_template=reduce(arrays.v_template),
        shapedirs=reduce(arrays.shapedirs),
        posedirs=np.concatenate([arrays.posedirs[tips], np.zeros((len(regressor), *arrays.posedirs.shape[1:]))]),
        J_regressor=np.eye(count)[len(tips) :],
        weights=np.concatenate([arrays.weights[tips], np.eye(len(regressor))]),
        parents=arrays.parents,
        faces=np.array([[0, 1, 2]]),
        hands_components=arrays.hands_components,
        hands_mean=arrays.hands_mean,
        fingertips=np.arange(len(tips)),
    )
