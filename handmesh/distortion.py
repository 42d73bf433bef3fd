"""Lens distortion after Brown and Conrady, with OpenCV's coefficients k1, k2, p1, p2[, k3[, k4, k5, k6]].

A ray (x, y, 1) meets the image plane at ``(x', y') = f (x, y) + (2 p1 xy + p2 (r2 + 2 x2), p1 (r2 + 2 y2) + 2 p2 xy)``
with ``f = (1 + k1 r2 + k2 r4 + k3 r6) / (1 + k4 r2 + k5 r4 + k6 r6)`` (OpenCV's documentation, "Camera calibration and
3D reconstruction"). The polynomial was fitted inside a picture and turns back somewhere outside of it; from there on
the plane is only scaled, so that every ray keeps one place and every place one ray.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LENGTHS = (0, 4, 5, 8)
"""How many coefficients may be given; none is a pinhole."""

_TURNS_BACK = 0.1  # the radius counts as turning back where it grows by less than this share of the ray's
_WIDEST = 3.0  # tan of half the widest field of view that is looked at
_NEWTON_STEPS = 12
_START_RADII = 64  # of the table that Newton's method starts from
_EDGE_STEPS = 6


def valid_radius(coefficients: tuple[float, ...]) -> float:
    """The radius of rays (x, y, 1) up to which the distortion grows with the ray."""
    r = np.linspace(0.0, _WIDEST, 3001)
    with np.errstate(all="ignore"):
        distorted = r * _radial(r * r, _eight(coefficients))[0]
        grows = np.diff(distorted) > _TURNS_BACK * np.diff(r)
    return float(r[-1] if grows.all() else r[int(np.argmin(grows))])


def distort(xy: NDArray[np.float64], coefficients: tuple[float, ...], radius: float) -> NDArray[np.float64]:
    """Rays' x and y (..., 2) at depth 1 to distorted ones; ``radius`` is the `valid_radius` of the coefficients."""
    inside = np.minimum(1.0, radius / np.maximum(np.linalg.norm(xy, axis=-1, keepdims=True), 1e-12))
    return _distort(xy * inside, _eight(coefficients))[0] / inside


def undistort(xy: NDArray[np.float64], coefficients: tuple[float, ...], radius: float) -> NDArray[np.float64]:
    """The inverse of `distort`, by Newton's method; exact within the valid radius."""
    k = _eight(coefficients)
    size = np.maximum(np.linalg.norm(xy, axis=-1, keepdims=True), 1e-12)
    direction = np.where(size > 1e-12, xy / size, (1.0, 0.0))  # any, at the centre
    inside = np.minimum(1.0, _reach(direction, radius, k) / size)
    wanted = xy * inside
    radii = np.linspace(0.0, radius, _START_RADII)
    rays = direction * np.interp(size * inside, radii * _radial(radii * radii, k)[0], radii)
    for _ in range(_NEWTON_STEPS):
        reached, (a, b, d) = _distort(rays, k)
        error = reached - wanted
        if np.abs(error).max(initial=0.0) < 1e-12:
            break
        determinant = a * d - b * b
        step = np.stack([d * error[..., 0] - b * error[..., 1], a * error[..., 1] - b * error[..., 0]], axis=-1)
        rays = rays - step / np.where(np.abs(determinant) < 1e-6, 1e-6, determinant)[..., None]
        rays = rays * np.minimum(1.0, radius / np.maximum(np.linalg.norm(rays, axis=-1, keepdims=True), 1e-12))
    return rays / inside


def _reach(direction: NDArray, radius: float, k: tuple[float, ...]) -> NDArray:
    """How far from the centre the rays of the valid radius are seen, (..., 1), in these directions (..., 2) there.

    Tangential distortion turns rays, so that the one which is seen in a direction has to be looked for.
    """
    ray = direction
    for _ in range(_EDGE_STEPS):
        ray = _unit(ray + direction - _unit(_distort(radius * ray, k)[0]))
    return np.linalg.norm(_distort(radius * ray, k)[0], axis=-1, keepdims=True)


def _unit(xy: NDArray) -> NDArray:
    return xy / np.linalg.norm(xy, axis=-1, keepdims=True)


def _distort(xy: NDArray, k: tuple[float, ...]) -> tuple[NDArray, tuple[NDArray, NDArray, NDArray]]:
    """Distorted points (..., 2) and the entries xx, xy, yy of the symmetric derivative."""
    x, y = xy[..., 0], xy[..., 1]
    p1, p2 = k[2:4]
    r2 = x * x + y * y
    f, slope = _radial(r2, k)
    moved = np.stack(
        [f * x + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), f * y + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=-1
    )
    a = f + 2 * slope * x * x + 2 * p1 * y + 6 * p2 * x
    b = 2 * slope * x * y + 2 * p1 * x + 2 * p2 * y
    d = f + 2 * slope * y * y + 6 * p1 * y + 2 * p2 * x
    return moved, (a, b, d)


def _radial(r2: NDArray, k: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """The radial factor at squared radii and its derivative by them."""
    k1, k2, _, _, k3, k4, k5, k6 = k
    over = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    under = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    over_slope = k1 + r2 * (2 * k2 + r2 * 3 * k3)
    under_slope = k4 + r2 * (2 * k5 + r2 * 3 * k6)
    return over / under, (over_slope * under - over * under_slope) / (under * under)


def _eight(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return (*coefficients, *(0.0,) * (8 - len(coefficients)))
