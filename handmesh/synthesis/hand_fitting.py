"""Fit one hand model's parameters to the joints, and where there is one to the surface, of hands of any other model.

The way between the open hand and MANO, both ways, and from bare keypoints to either. Bone directions give the start
(`pose_fitting`); then rotations, betas and the wrist's place are refined on distances. Where models disagree (about
where in the flesh a joint lies, about proportions that ten betas cannot reach) an error stays: every fit says its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmesh.assets import HandModelArrays
from handmesh.model.hand_model import HandModel, only_keypoints
from handmesh.model.rotations import rotmat_to_sixd, sixd_to_rotmat
from handmesh.normals import vertex_normals
from handmesh.synthesis.anatomy import HandAnatomy
from handmesh.synthesis.pose_fitting import fit_poses

CHUNK = 256
KEYPOINT_STEPS = 300
SURFACE_ROUNDS, SURFACE_STEPS = 4, 40

_ROTATION_PRIOR, _BETA_PRIOR = 0.1, 0.02  # mm^2: what holds back twists and shapes that no point asks for
_FAR_MM = 5.0  # surface distances beyond this count ever less: parts that only one of the hands has
_GRID = 4  # steps along a triangle's sides when a surface is filled with points to measure distances

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HandFit:
    """N fitted hands in the axes and at the place of the points they were fitted to.

    rotations (N, 16, 3, 3) and betas (N, 10) of the model; translation (N, 3) m: the wrist; keypoints (N, 21, 3) and
    vertices (N, V, 3) m; keypoint_error_mm (N,): mean distance to the given keypoints; surface_error_mm (N,): mean
    distance of the given vertices from the fitted surface, NaN where none were given.
    """

    rotations: Array
    betas: Array
    translation: Array
    keypoints: Array
    vertices: Array
    keypoint_error_mm: Array
    surface_error_mm: Array


def fit_hands(
    model: HandModelArrays,
    keypoints: Array,
    surface: Array | None = None,
    *,
    progress: Callable[[int], object] | None = None,
) -> HandFit:
    """Fit right hands (N, 21, 3) m in FreiHAND's order, any axes, and their vertices (N, P, 3) of any mesh.

    progress(count) is called with the number of hands that came to be done. Raises ValueError for other shapes and for
    values that are not finite.
    """
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (21, 3) or len(keypoints) == 0:
        raise ValueError(f"keypoints must be (N, 21, 3) with at least one hand, got {keypoints.shape}")
    if surface is not None and (surface.ndim != 3 or surface.shape[::2] != (len(keypoints), 3)):
        raise ValueError(f"vertices must be ({len(keypoints)}, P, 3), as many as keypoints, got {surface.shape}")
    if not np.isfinite(keypoints).all() or not (surface is None or np.isfinite(surface).all()):
        raise ValueError("keypoints and vertices must be finite but hold NaN or infinity")
    fitter = _Fitter(model)
    parts = []
    for start in range(0, len(keypoints), CHUNK):
        chunk = slice(start, start + CHUNK)
        parts.append(fitter.fit(keypoints[chunk], None if surface is None else surface[chunk]))
        if progress is not None:
            progress(len(parts[-1].betas))
    return HandFit(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(HandFit)))


@dataclass
class _Unknowns:
    """What is optimised: rotations (N, 16, 6), betas (N, 10), the wrist (N, 3) in mm."""

    sixd: Tensor
    betas: Tensor
    wrist_mm: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.sixd, self.betas, self.wrist_mm]


class _Fitter:
    def __init__(self, model: HandModelArrays) -> None:
        self.arrays = model
        self.anatomy = HandAnatomy.from_arrays(model)
        self.skeleton = HandModel(only_keypoints(model))
        self.mesh = HandModel(model)
        inside = np.ones(len(model.v_template), bool)
        inside[_border(model.faces) if model.wrist_loop is None else model.wrist_loop] = False
        self.inside = torch.from_numpy(inside)

    def fit(self, keypoints: Array, surface: Array | None) -> HandFit:
        # Centred and in millimetres, so that float32 is fine enough.
        centre = keypoints.mean(1, keepdims=True)
        points = torch.tensor((keypoints - centre) * 1e3, dtype=torch.float32)
        start = fit_poses(self.anatomy, keypoints - centre)
        with torch.no_grad():
            rotations = self.anatomy.rotations(torch.tensor(start.angles, dtype=torch.float32))
        rotations[:, 0] = torch.tensor(start.orientations, dtype=torch.float32)
        unknowns = _Unknowns(rotmat_to_sixd(rotations), torch.zeros(len(points), 10), points[:, 0].clone())
        self._refine(unknowns, rotations, points, KEYPOINT_STEPS, 0.04)
        vertices = None if surface is None else torch.tensor((surface - centre) * 1e3, dtype=torch.float32)
        for _ in range(SURFACE_ROUNDS if vertices is not None else 0):
            assert vertices is not None
            self._refine(unknowns, rotations, points, SURFACE_STEPS, 0.01, vertices)
        return self._result(unknowns, keypoints, surface, centre)

    def _refine(
        self,
        unknowns: _Unknowns,
        start: Tensor,
        points: Tensor,
        steps: int,
        rate: float,
        surface: Tensor | None = None,
    ) -> None:
        """Minimise squared distances to keypoints (N, 21, 3) mm, and of vertices (N, P, 3) mm from the surface."""
        nearest = None if surface is None else self._nearest(unknowns, surface)
        for tensor in unknowns.tensors:
            tensor.requires_grad_(True)
        groups = [
            {"params": [unknowns.sixd], "rate": rate},
            {"params": [unknowns.betas], "rate": 2 * rate},
            {"params": [unknowns.wrist_mm], "rate": 25 * rate},
        ]
        optimiser = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.98))
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * (1 - step / steps) + 0.01 * group["rate"]
            rotations = sixd_to_rotmat(unknowns.sixd)
            vertices, keypoints = self._posed_mm(self.skeleton if nearest is None else self.mesh, rotations, unknowns)
            loss = (keypoints - points).square().sum(-1).mean(-1).sum()
            loss = loss + _ROTATION_PRIOR * (rotations - start).square()[:, 1:].sum()
            loss = loss + _BETA_PRIOR * unknowns.betas.square().sum()
            if nearest is not None and surface is not None:
                loss = loss + self._surface_loss(vertices, surface, *nearest)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for tensor in unknowns.tensors:
            tensor.requires_grad_(False)

    def _posed_mm(self, model: HandModel, rotations: Tensor, unknowns: _Unknowns) -> tuple[Tensor, Tensor]:
        hand = model(rotations, unknowns.betas)
        shift = unknowns.wrist_mm[:, None] - 1e3 * hand.keypoints[:, :1]
        return 1e3 * hand.vertices + shift, 1e3 * hand.keypoints + shift

    @torch.no_grad()
    def _nearest(self, unknowns: _Unknowns, surface: Tensor) -> tuple[Tensor, Tensor]:
        """For vertices (N, P, 3) the nearest one of the model (N, P) and its normal (N, P, 3)."""
        from scipy.spatial import KDTree

        vertices, _ = self._posed_mm(self.mesh, sixd_to_rotmat(unknowns.sixd), unknowns)
        ids, normals = [], []
        for hand, points in zip(vertices.numpy(), surface.numpy(), strict=True):
            found = KDTree(hand).query(points)[1]
            ids.append(found)
            normals.append(vertex_normals(hand, self.arrays.faces)[found])
        return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(normals))

    def _surface_loss(self, vertices: Tensor, surface: Tensor, ids: Tensor, normals: Tensor) -> Tensor:
        """Squared distances from the surface's tangent planes, robustly; the open border at the wrist is left out."""
        near = vertices.gather(1, ids[..., None].expand(-1, -1, 3))
        offset = surface - near
        weight = self.inside[ids] / (1 + offset.detach().square().sum(-1) / _FAR_MM**2) ** 2
        return (weight * (offset * normals).sum(-1).square()).mean(-1).sum()

    @torch.no_grad()
    def _result(self, unknowns: _Unknowns, keypoints: Array, surface: Array | None, centre: Array) -> HandFit:
        rotations = sixd_to_rotmat(unknowns.sixd)
        posed = self._posed_mm(self.mesh, rotations, unknowns)
        vertices, found = (1e-3 * points.double().numpy() + centre for points in posed)
        error = np.linalg.norm(found - keypoints, axis=-1).mean(-1) * 1e3
        apart = np.full(len(keypoints), np.nan)
        if surface is not None:
            apart = np.array(
                [surface_distance_mm(s, v, self.arrays.faces) for s, v in zip(surface, vertices, strict=True)]
            )
        translation = found[:, 0].copy()
        return HandFit(
            rotations.double().numpy(), unknowns.betas.double().numpy(), translation, found, vertices, error, apart
        )


def surface_distance_mm(points: Array, vertices: Array, faces: NDArray[np.integer]) -> float:
    """Mean distance of points (P, 3) m from a mesh's surface, in mm: to the nearest of fifteen points a triangle."""
    from scipy.spatial import KDTree

    steps = [(i, j) for i in range(_GRID + 1) for j in range(_GRID + 1 - i)]
    shares = np.array([(i, j, _GRID - i - j) for i, j in steps]) / _GRID  # (15, 3)
    filled = np.einsum("sk,fkd->fsd", shares, vertices[faces]).reshape(-1, 3)
    return float(KDTree(filled).query(points)[0].mean() * 1e3)


def _border(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """Vertices of edges that only one triangle has; none for a closed mesh."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    pairs, counts = np.unique(edges, axis=0, return_counts=True)
    return np.unique(pairs[counts == 1]).astype(np.int64)
