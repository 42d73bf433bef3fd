"""Recorded hand poses, fitted to a hand model and shipped as a small file of rotation vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handmesh.assets import ASSETS

POSE_BANK = ASSETS / "pose_bank.npz"

Array = np.ndarray


def load_pose_bank(path: Path = POSE_BANK) -> Array | None:
    """(N, 15, 3) float32 rotation vectors (rad) of the 15 finger joints in MANO's order, or None without a bank."""
    if not path.exists():
        return None
    with np.load(path) as file:
        poses = file["poses"].astype(np.float32)
    if poses.ndim != 3 or poses.shape[1:] != (15, 3):
        raise ValueError(f"{path}: poses must be (N, 15, 3), got {poses.shape}")
    return poses
