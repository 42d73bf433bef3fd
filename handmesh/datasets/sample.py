"""What a dataset gives (one annotated hand in an image) and what training eats (a batch of crops with targets)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from handmesh.records import Convention, Side

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HandSample:
    """One annotated hand in an image. What is not known of it is None."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    joints_2d: np.ndarray  # (21, 2) px, FreiHAND's order
    side: Side
    intrinsics: np.ndarray | None = None  # (3, 3) px; None: unknown camera
    joints: np.ndarray | None = None  # (21, 3) m from the wrist, camera axes
    rotations: np.ndarray | None = None  # (16, 3, 3) of the hand model, camera axes
    betas: np.ndarray | None = None  # (10,)
    mask: np.ndarray | None = None  # (H, W) uint8, 255 where the hand is seen
    alpha: np.ndarray | None = None  # (H, W) uint8, 255 where anything stands before the background
    trust_2d: float = 1.0  # weight of the keypoints, 0..1
    trust_3d: float = 1.0  # weight of `joints`, 0..1
    exact_depth: bool = True  # False: the depths of `joints` are another tracker's guess
    alone: bool = False  # the image is known to show no other hand
    stretched: bool = False  # the image has lost its proportions: no hand in 3D projects to `joints_2d`
    side_known: bool = True  # False: whoever labelled it was not sure of `side`
    convention: Convention = "freihand"  # whose spots `joints_2d` are


class Batch(NamedTuple):
    """N crops with targets and their weights (0: unknown), in the crop's virtual camera, right-hand frame."""

    crops: torch.Tensor  # (N, S, S, 3) uint8 RGB
    joints_2d: torch.Tensor  # (N, 21, 2) normalised crop coordinates
    joints: torch.Tensor  # (N, 21, 3) m from the wrist
    rotations: torch.Tensor  # (N, 16, 3, 3)
    betas: torch.Tensor  # (N, 10)
    mask: torch.Tensor  # (N, S / 8, S / 8) share of the cell that shows the hand, 0..1
    presence: torch.Tensor  # (N,) 1: a hand is there
    right: torch.Tensor  # (N,) 1: the hand in the crop as given is a right hand
    weight_2d: torch.Tensor  # (N,)
    weight_projection: torch.Tensor  # (N,) of the mesh's joints on `joints_2d`
    weight_3d: torch.Tensor  # (N,)
    exact_depth: torch.Tensor  # (N,) 1: the depths of `joints` were measured, 0: guessed
    weight_parameters: torch.Tensor  # (N,) for rotations, betas and the vertices that they pose
    weight_mask: torch.Tensor  # (N,)
    weight_right: torch.Tensor  # (N,)
    mediapipe: torch.Tensor  # (N,) 1: `joints_2d` are MediaPipe's spots, not ours


@dataclass(frozen=True)
class Target:
    """One row of a Batch, in numpy."""

    crop: np.ndarray
    joints_2d: np.ndarray
    joints: np.ndarray
    rotations: np.ndarray
    betas: np.ndarray
    mask: np.ndarray
    presence: float
    right: float
    weight_2d: float
    weight_projection: float
    weight_3d: float
    exact_depth: float
    weight_parameters: float
    weight_mask: float
    weight_right: float
    mediapipe: float


def collate(targets: list[Target]) -> Batch:
    """Stack rows into a batch; all but the crops become float32."""
    import torch

    columns = []
    for field in fields(Target):
        column = np.stack([np.asarray(getattr(target, field.name)) for target in targets])
        columns.append(torch.from_numpy(column if column.dtype == np.uint8 else column.astype(np.float32)))
    return Batch(*columns)
