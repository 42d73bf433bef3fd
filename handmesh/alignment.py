"""Bringing one point set onto another before measuring: root alignment and similarity Procrustes (numpy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Similarity:
    """``p -> scale * rotation @ p + translation``: scale (...), rotation (..., 3, 3), translation (..., 3)."""

    scale: NDArray[np.floating]
    rotation: NDArray[np.floating]
    translation: NDArray[np.floating]

    def apply(self, points: ArrayLike) -> NDArray[np.floating]:
        """Points (..., N, 3) moved."""
        turned = np.asarray(points) @ np.swapaxes(self.rotation, -1, -2)
        return self.scale[..., None, None] * turned + self.translation[..., None, :]


def fit_similarity(source: ArrayLike, target: ArrayLike, *, reflection: bool = False) -> Similarity:
    """The similarity that moves ``source`` (..., N, 3) onto ``target`` (..., N, 3) with the least squared distance.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. The
    rotation is proper (determinant +1) unless ``reflection`` allows a mirror where that fits better, which is what
    FreiHAND's own script does. A source of one repeated point has no scale or rotation: it is only translated.
    Raises ``ValueError`` for shapes that differ or values that are not finite.
    """
    source, target = np.asarray(source), np.asarray(target)
    if source.shape != target.shape or source.ndim < 2 or source.shape[-1] != 3 or source.shape[-2] == 0:
        raise ValueError(
            f"source and target must be point sets (..., N, 3) of one shape but are {source.shape} and {target.shape}"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("source and target must be finite but hold NaN or infinity")
    source_mean, target_mean = source.mean(axis=-2), target.mean(axis=-2)
    centered = source - source_mean[..., None, :]
    U, singular, Vt = np.linalg.svd(
        np.swapaxes(target - target_mean[..., None, :], -1, -2) @ centered
    )  # (..., 3, 3), (..., 3), (..., 3, 3)
    signs = np.ones_like(singular)
    if not reflection:
        signs[..., 2] = np.where(np.linalg.det(U @ Vt) < 0.0, -1.0, 1.0)
    rotation = U * signs[..., None, :] @ Vt
    spread = np.square(centered).sum(axis=(-2, -1))
    flat = spread <= np.finfo(spread.dtype).tiny
    scale = np.where(flat, 1.0, (singular * signs).sum(axis=-1) / np.where(flat, 1.0, spread)).astype(spread.dtype)
    translation = target_mean - scale[..., None] * (rotation @ source_mean[..., None])[..., 0]
    return Similarity(scale, rotation, translation)


def align_similarity(source: ArrayLike, target: ArrayLike, *, reflection: bool = False) -> NDArray[np.floating]:
    """``source`` (..., N, 3) after the best similarity onto ``target``: what PA-MPJPE and PA-MPVPE are measured on."""
    return fit_similarity(source, target, reflection=reflection).apply(source)


def align_root(points: ArrayLike, root: int = 0) -> NDArray[np.floating]:
    """Points (..., N, 3) relative to point number ``root``."""
    points = np.asarray(points)
    return points - points[..., root : root + 1, :]
