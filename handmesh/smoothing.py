"""The one-euro filter, on vectors and on rotations.

Casiez, Roussel, Vogel, "1 € Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems",
CHI 2012: a first-order low-pass filter whose cutoff rises with the speed of what it follows, so that a hand at rest
does not tremble and a fast one does not lag. At rest it lags by about ``1 / (2 pi min_cutoff_hz)`` seconds; at speed v
by ``1 / (2 pi (min_cutoff_hz + beta v))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DERIVATIVE_CUTOFF_HZ = 1.0
"""Cutoff of the low-pass filter on the speed; the paper's own choice."""


@dataclass(frozen=True)
class OneEuro:
    """How strongly to filter: the cutoff at rest in hertz, and how many hertz each unit of speed adds to it."""

    min_cutoff_hz: float
    beta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_cutoff_hz) and self.min_cutoff_hz > 0.0):
            raise ValueError(f"min_cutoff_hz must be a positive number but is {self.min_cutoff_hz}")
        if not (math.isfinite(self.beta) and self.beta >= 0.0):
            raise ValueError(f"beta must be zero or a positive number but is {self.beta}")

    def weight(self, speed: NDArray[np.float64], dt_s: float) -> NDArray[np.float64]:
        """Share of the new value, 0 to 1, for something moving at ``speed`` per second."""
        return _low_pass_weight(self.min_cutoff_hz + self.beta * speed, dt_s)


@dataclass(frozen=True)
class Smoothing:
    """The tracker's three filters.

    The defaults lag by 110 to 160 ms at rest, where only trembling is lost, and by less than half a frame of 30 a
    second for fingers that have been turning at 5 rad/s or a hand that has been crossing a fifth of the view in a
    second.
    """

    rotation: OneEuro = OneEuro(min_cutoff_hz=1.0, beta=2.0)
    """Speed in rad/s."""
    translation: OneEuro = OneEuro(min_cutoff_hz=1.5, beta=50.0)
    """Speed of x/z and y/z, each per second: a sideways hand is not held back by a noisy depth."""
    depth: OneEuro = OneEuro(min_cutoff_hz=1.0, beta=4.0)
    """Speed of ln z per second."""


class VectorFilter:
    """One-euro filter of each number of an array by its own speed. State: the last value, its speed and time."""

    def __init__(self, config: OneEuro) -> None:
        self.config = config
        self._time_s: float | None = None
        self._raw = self._smooth = self._speed = np.zeros(0)

    def __call__(self, values: ArrayLike, time_s: float) -> NDArray[np.float64]:
        """The filtered values, of the shape of ``values``. The first come back unchanged.

        Raises ``ValueError`` if time does not advance or the shape changes.
        """
        raw = np.array(values, np.float64)  # a copy: callers may write to theirs
        if self._time_s is None:
            self._smooth, self._speed = raw, np.zeros_like(raw)
        else:
            dt_s = _elapsed(self._time_s, time_s)
            _check_shape(raw, self._raw)
            share = _low_pass_weight(DERIVATIVE_CUTOFF_HZ, dt_s)
            self._speed = self._speed + share * ((raw - self._raw) / dt_s - self._speed)
            weight = self.config.weight(np.abs(self._speed), dt_s)
            self._smooth = self._smooth + weight * (raw - self._smooth)
        self._time_s, self._raw = time_s, raw
        return self._smooth.copy()


class SettlingMean:
    """The weighted mean of all that came: it settles on one value, as a person's hand keeps its shape."""

    def __init__(self) -> None:
        self._mean = np.zeros(0)
        self._weight = 0.0

    def __call__(self, values: ArrayLike, weight: float = 1.0) -> NDArray[np.float64]:
        """The mean with ``values`` of this weight taken in. Raises ``ValueError`` if the shape changes."""
        raw = np.asarray(values, np.float64)
        if self._weight == 0.0:
            self._mean = raw.copy()
        _check_shape(raw, self._mean)
        self._weight += weight
        if self._weight > 0.0:
            self._mean = self._mean + weight / self._weight * (raw - self._mean)
        return self._mean.copy()


class RotationFilter:
    """One-euro filter on SO(3), each rotation by its own angular speed.

    The smoothed rotation moves along the geodesic towards the new one; the angular velocity, a vector in the parent's
    axes, is low-pass filtered before its length is taken, so that trembling cancels. Turning all inputs by one fixed
    rotation turns the outputs by it.
    """

    def __init__(self, config: OneEuro) -> None:
        self.config = config
        self._time_s: float | None = None
        self._raw = self._smooth = self._velocity = np.zeros(0)

    def __call__(self, rotations: ArrayLike, time_s: float) -> NDArray[np.float64]:
        """Rotation matrices (N, 3, 3) filtered. The first come back unchanged.

        Raises ``ValueError`` if time does not advance or the shape changes.
        """
        raw = np.array(rotations, np.float64)  # a copy: callers may write to theirs
        if raw.ndim != 3 or raw.shape[1:] != (3, 3):
            raise ValueError(f"rotations must have shape (N, 3, 3) but have {raw.shape}")
        if self._time_s is None:
            self._smooth, self._velocity = raw, np.zeros((len(raw), 3))
        else:
            dt_s = _elapsed(self._time_s, time_s)
            _check_shape(raw, self._raw)
            share = _low_pass_weight(DERIVATIVE_CUTOFF_HZ, dt_s)
            before = np.stack([self._raw, self._smooth])
            turned, gap = rotmat_to_rotvec(raw @ before.swapaxes(-1, -2))
            self._velocity = self._velocity + share * (turned / dt_s - self._velocity)
            weight = self.config.weight(np.linalg.norm(self._velocity, axis=-1), dt_s)
            self._smooth = rotvec_to_rotmat(weight[:, None] * gap) @ self._smooth
        self._time_s, self._raw = time_s, raw
        return self._smooth.copy()


def rotmat_to_rotvec(rotations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotation matrices (..., 3, 3), or nearly so, to rotation vectors (..., 3) of angles up to pi.

    By way of unit quaternions q: the matrix gives all of 4 q q^T, whose longest row is q without loss of digits at any
    angle. (scipy's conversion is as exact, but takes several times as long for sixteen rotations.)
    """
    m = np.asarray(rotations, np.float64).reshape(-1, 9)
    products = m @ _QUATERNION_PRODUCTS + _QUATERNION_ONES  # 4 q q^T with q = (w, x, y, z), row by row
    longest = products[:, ::5].argmax(axis=-1)  # of the diagonal
    q = products.reshape(-1, 4, 4)[np.arange(len(m)), longest]
    q = np.where(q[:, :1] < 0.0, -q, q)
    sine = np.sqrt(np.square(q[:, 1:]).sum(-1))
    angle = 2.0 * np.arctan2(sine, q[:, 0])
    # Near no rotation angle / sine tends to 2 / w, with q not yet normalised.
    ratio = np.where(sine > 1e-9 * q[:, 0], angle / np.maximum(sine, 1e-300), 2.0 / np.maximum(q[:, 0], 1e-300))
    return (q[:, 1:] * ratio[:, None]).reshape(*np.shape(rotations)[:-2], 3)


def _quaternion_products() -> NDArray[np.float64]:
    """(9, 16) from a rotation matrix row by row to 4 q q^T - 1 on the diagonal, row by row."""
    table = np.zeros((3, 3, 4, 4))
    signs = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))  # of the trace's terms, for w w, x x, y y, z z
    for row, terms in enumerate(signs):
        for axis, sign in enumerate(terms):
            table[axis, axis, row, row] = sign
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        for a, b in ((0, i + 1), (i + 1, 0)):
            table[k, j, a, b], table[j, k, a, b] = 1, -1
        for a, b in ((j + 1, k + 1), (k + 1, j + 1)):
            table[k, j, a, b] = table[j, k, a, b] = 1
    return table.reshape(9, 16)


_QUATERNION_PRODUCTS = _quaternion_products()
_QUATERNION_ONES = np.eye(4).ravel()


def rotvec_to_rotmat(rotvecs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotation vectors (..., 3) to rotation matrices (..., 3, 3), by Rodrigues' formula."""
    v = np.asarray(rotvecs, np.float64)
    half = np.maximum(0.5 * np.sqrt(np.square(v).sum(-1)), 1e-12)[..., None, None]  # sin t / t is 1 there already
    by_half = np.sin(half) / half
    cross = (v @ _CROSS).reshape(*v.shape, 3)
    return _ONE + by_half * np.cos(half) * cross + 0.5 * by_half * by_half * (cross @ cross)


_ONE = np.eye(3)
_CROSS = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]], float)
"""(3, 9) from a vector to the matrix of the cross product with it, row by row."""


def _low_pass_weight(cutoff_hz: NDArray[np.float64] | float, dt_s: float) -> NDArray[np.float64]:
    step = 2.0 * math.pi * dt_s * np.asarray(cutoff_hz, np.float64)
    return step / (1.0 + step)


def _elapsed(before_s: float, now_s: float) -> float:
    if not now_s > before_s:
        raise ValueError(f"timestamps must increase, in seconds: {now_s} came after {before_s}")
    return now_s - before_s


def _check_shape(values: NDArray, before: NDArray) -> None:
    if values.shape != before.shape:
        raise ValueError(f"a filter keeps one shape: it has seen {before.shape} and now got {values.shape}")
