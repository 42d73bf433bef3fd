"""Forearm and sleeve: two tubes grown from the open wrist of the hand mesh."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from handmesh.synthesis.skin import FOREARM_TEXELS, SLEEVE_TEXELS
from handmesh.synthesis.texels import HAND_TEXELS

# Distance of each ring of forearm vertices from the wrist, metres for a hand of average size.
RINGS_M = np.array([0.0, 0.005, 0.012, 0.022, 0.035, 0.052, 0.075, 0.105, 0.145, 0.19, 0.25, 0.33, 0.42])
SLEEVE_RINGS = 9

Array = np.ndarray


@dataclass(frozen=True)
class Tube:
    """vertices (V, 3) m, uv (V, 2) atlas texels, faces (F, 3): rings of n + 1 vertices, the seam doubled."""

    vertices: Array
    uv: Array
    faces: Array


def _tube(rings: Array, u0: float, width: float, rows: Array) -> Tube:
    """rings (R, n, 3) -> tube; rows (R,) texel row of each ring."""
    count, n = rings.shape[:2]
    closed = np.concatenate([rings, rings[:, :1]], 1)
    u = u0 + 1 + np.linspace(0, width - 3, n + 1)
    uv = np.stack([np.tile(u, count), np.repeat(rows, n + 1)], 1)
    start = np.arange(count - 1)[:, None] * (n + 1) + np.arange(n)
    a, b = start.ravel(), start.ravel() + n + 1
    faces = np.concatenate([np.stack([a, b, a + 1], 1), np.stack([a + 1, b, b + 1], 1)])
    return Tube(closed.reshape(-1, 3).astype(np.float32), uv.astype(np.float32), faces.astype(np.int32))


def _bend(rng: np.random.Generator) -> Array:
    """(3,) rotation vector of the forearm about the wrist in canonical hand axes: flexion, twist, deviation."""
    return np.clip(rng.normal(0, [0.38, 0.08, 0.16]), -0.9, 0.9)


def _rotate(rotvec: Array) -> Array:
    import cv2

    return cv2.Rodrigues(np.asarray(rotvec, np.float64))[0]


def grow_forearm(loop: Array, frame: Array, scale: float, rng: np.random.Generator) -> tuple[Tube, Array]:
    """Extend the wrist loop (n, 3) along the arm. frame (3, 3): rows are the hand's canonical axes where it is
    now; scale: hand size / average. Returns the tube and its rings (R + 1, n, 3), the last one shrunk to a point."""
    centre = loop.mean(0)
    local = (loop - centre) @ frame.T
    # The arm is seen to swell slowly towards the elbow and to be flatter than round.
    bend, swell = _bend(rng), rng.uniform(1.1, 2.6)
    rings, at = [local], np.zeros(3)
    for before, distance in pairwise(RINGS_M):
        turn = _rotate(bend * min(1.0, distance / 0.045))
        at = at + turn @ np.array([0.0, -(distance - before) * scale, 0.0])
        growth = 1 + swell * min(max(0.0, distance - 0.03), 0.22)
        flat = local - local * np.array([0.0, min(1.0, distance / 0.02), 0.0])
        rings.append(flat @ turn.T * growth + at)
    rings.append(np.tile(at, (len(loop), 1)))  # closes the far end
    stacked = np.stack(rings) @ frame + centre
    # The texture covers the first quarter of a metre; beyond, its last row is drawn out.
    rows = np.append(np.clip(RINGS_M / 0.25, 0, 1), 1.0) * (HAND_TEXELS - 2)
    return _tube(stacked, HAND_TEXELS, FOREARM_TEXELS, rows), stacked


def sew_sleeve(rings: Array, rng: np.random.Generator) -> Tube:
    """A loose tube round the forearm's rings (R, n, 3) that starts at the wrist or further up."""
    start = rng.uniform(0.004, 0.09) if rng.uniform() < 0.75 else rng.uniform(0.09, 0.16)
    loose, flare = rng.uniform(1.1, 1.45), rng.uniform(-0.15, 0.2)
    where = np.linspace(start, RINGS_M[-1], SLEEVE_RINGS)
    out = []
    for i, distance in enumerate(where):
        k = min(int(np.searchsorted(RINGS_M, distance)), len(RINGS_M) - 1)
        t = (distance - RINGS_M[k - 1]) / (RINGS_M[k] - RINGS_M[k - 1])
        ring = (1 - t) * rings[k - 1] + t * rings[k]
        middle = ring.mean(0)
        width = (loose + flare * (1 - i / SLEEVE_RINGS)) * (1 + rng.normal(0, 0.025))
        wobble = 1 + rng.normal(0, 0.025, (len(ring), 1))
        out.append(middle + (ring - middle) * width * (0.5 * wobble + 0.5 * np.roll(wobble, 1, 0)))
    # The hem turns inwards, so that one looks into a dark cuff instead of at a paper edge.
    middle = out[0].mean(0)
    hem = middle + (out[0] - middle) * 0.8 + 0.3 * (out[1].mean(0) - middle)
    rows = np.concatenate([[0.0], np.linspace(4, HAND_TEXELS - 2, SLEEVE_RINGS)])
    return _tube(np.stack([hem, *out]), HAND_TEXELS + FOREARM_TEXELS, SLEEVE_TEXELS, rows)
