"""The field's measures of a hand mesh and its keypoints (numpy, metres in, millimetres out)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handmesh.alignment import align_root, align_similarity


def pa_error_mm(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean distance after Procrustes alignment, per set: (N, P, 3) m twice -> (N,) mm (PA-MPJPE, PA-MPVPE)."""
    aligned = align_similarity(predicted.astype(np.float64), truth.astype(np.float64))
    return np.linalg.norm(aligned - truth, axis=-1).mean(-1) * 1e3


def root_error_mm(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean distance after moving the first points onto each other, per set: (N, P, 3) m twice -> (N,) mm."""
    return np.linalg.norm(align_root(predicted) - align_root(truth), axis=-1).mean(-1) * 1e3


def keypoint_error(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.floating]:
    """2D distances (N, P) of (N, P, 2) keypoints as shares of the longer side of the true keypoints' tight box."""
    side = (truth.max(1) - truth.min(1)).max(-1)
    return np.linalg.norm(predicted - truth, axis=-1) / side[:, None]


def pck(errors: NDArray[np.floating], threshold: float) -> float:
    """Share of correct keypoints: those whose error is below `threshold` (same unit)."""
    return float((errors < threshold).mean())
