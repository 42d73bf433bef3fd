"""The hand model's texture space: what part of a hand each texel lies on, baked once from the model's own arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handmesh.assets import HandModelArrays
from handmesh.synthesis.anatomy import ABDUCT, FIRST_JOINT, FLEX, HandAnatomy

HAND_TEXELS = 448
_MARGIN = 4

Array = np.ndarray


@dataclass(frozen=True)
class TexelMap:
    """Per-texel facts, flat over the T texels that the hand uses, plus the way back into the square texture.

    rows (S, S) int: index of the nearest used texel; position (T, 3) m in canonical hand axes; palm (T,) 0 back
    .. 1 palm; finger (T,) -1 palm, 0..4 thumb..little; joint (T,) dominating joint of the 16; along (T,) mm past
    that finger's first joint; crease, palm_lines, knuckle, nail, nail_edge, tip (T,) strengths 0..1;
    uv (U, 2) texel coordinates of the model's texture vertices.
    """

    rows: Array
    position: Array
    palm: Array
    finger: Array
    joint: Array
    along: Array
    crease: Array
    palm_lines: Array
    knuckle: Array
    nail: Array
    nail_edge: Array
    tip: Array
    uv: Array


def open_faces(arrays: HandModelArrays) -> Array:
    """(F,) bool: faces of the hand's skin, without the lid that closes the wrist."""
    if arrays.wrist_loop is None:
        raise ValueError("this hand model does not name its wrist_loop: no forearm can be attached to it")
    faces = np.asarray(arrays.faces)
    on_loop = np.zeros(len(arrays.v_template), bool)
    on_loop[arrays.wrist_loop] = True
    outside = np.zeros(len(on_loop), bool)  # vertices with a neighbour that is off the loop
    for k in range(3):
        others = faces[:, [(k + 1) % 3, (k + 2) % 3]]
        outside[faces[:, k][~on_loop[others].all(1)]] = True
    lid = ~on_loop & ~outside
    return np.logical_not(lid[faces].any(axis=1))


def texel_coordinates(arrays: HandModelArrays) -> Array:
    """(U, 2) float32 coordinates of the model's texture vertices in the HAND_TEXELS square, aspect kept."""
    if arrays.uv is None or arrays.uv_faces is None:
        raise ValueError("this hand model has no texture coordinates (uv, uv_faces): skin cannot be painted on it")
    uv = np.asarray(arrays.uv, np.float64)
    used = uv[np.unique(arrays.uv_faces[open_faces(arrays)])]
    scale = (HAND_TEXELS - 1 - 2 * _MARGIN) / (used.max(0) - used.min(0)).max()
    return ((uv - used.min(0)) * scale + _MARGIN).astype(np.float32)


def bake_texels(arrays: HandModelArrays, anatomy: HandAnatomy) -> TexelMap:
    """Interpolate the model's geometry over its texture and paint the anatomical landmarks."""
    from scipy.ndimage import distance_transform_edt

    uv = texel_coordinates(arrays)
    template = np.asarray(arrays.v_template, np.float64)
    wrist = np.asarray(arrays.J_regressor @ template)[0]
    vertices = (template - wrist) @ anatomy.frame.T
    weights = np.asarray(arrays.weights, np.float64)
    palmar = weights @ np.concatenate([[[0.0, 0.0, 1.0]], anatomy.axes[1:, ABDUCT] @ anatomy.frame.T])
    normals = _normals(vertices, np.asarray(arrays.faces))
    side = (normals * palmar).sum(1) / np.maximum(np.linalg.norm(palmar, axis=1), 1e-9)
    features = np.concatenate([vertices, side[:, None], weights], axis=1)
    skin = open_faces(arrays)
    baked, used = _rasterise(uv, np.asarray(arrays.uv_faces)[skin], np.asarray(arrays.faces)[skin], features)
    rows = np.zeros(used.shape, np.int32)
    rows[used] = np.arange(used.sum())
    nearest = np.empty((2, *used.shape), np.int32)
    distance_transform_edt(~used, return_distances=False, return_indices=True, indices=nearest)
    rows = rows[nearest[0], nearest[1]]
    flat = baked[used]
    return _landmarks(anatomy, rows, flat[:, :3], flat[:, 3], flat[:, 4:], uv)


def _normals(v: Array, faces: Array) -> Array:
    face_normals = np.cross(v[faces[:, 1]] - v[faces[:, 0]], v[faces[:, 2]] - v[faces[:, 0]])
    normals = np.zeros_like(v)
    for k in range(3):
        np.add.at(normals, faces[:, k], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _rasterise(uv: Array, uv_faces: Array, faces: Array, features: Array) -> tuple[Array, Array]:
    size = HAND_TEXELS
    baked = np.zeros((size, size, features.shape[1]), np.float32)
    used = np.zeros((size, size), bool)
    for uv_face, face in zip(uv_faces, faces, strict=True):
        a, b, c = uv[uv_face].astype(np.float64)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-9:
            continue
        low = np.maximum(np.floor(np.min([a, b, c], axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(np.max([a, b, c], axis=0)).astype(int) + 1, size - 1)
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        w1 = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        w2 = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        w0 = 1 - w1 - w2
        inside = np.minimum(np.minimum(w0, w1), w2) > -1e-6
        if not inside.any():
            continue
        weights = np.stack([w0, w1, w2], -1)[inside]
        baked[y[inside], x[inside]] = weights @ features[face]
        used[y[inside], x[inside]] = True
    return baked, used


def _landmarks(anatomy: HandAnatomy, rows, position, side, weights, uv) -> TexelMap:
    joint = weights.argmax(1)
    finger = np.full(len(joint), -1)
    for f, first in enumerate(FIRST_JOINT):
        finger[(joint >= first) & (joint < first + 3)] = f
    palm = 1 / (1 + np.exp(-3.5 * side))
    joints, tips = anatomy.joints @ anatomy.frame.T, anatomy.tips @ anatomy.frame.T
    axes = anatomy.axes @ anatomy.frame.T
    zero = np.zeros(len(joint))
    crease, knuckle, nail, edge, tip, along = (zero.copy() for _ in range(6))
    for f, first in enumerate(FIRST_JOINT):
        chain = [joints[first], joints[first + 1], joints[first + 2], tips[f]]
        mine = finger == f
        for k in (1, 2):
            direction = _unit(chain[k + 1] - chain[k])
            mm = 1e3 * ((position - chain[k]) @ direction)
            folds = ((-1.0, 1.0), (1.3, 0.7)) if k == 1 else ((0.0, 0.9),)
            for offset, strength in folds:
                crease += mine * strength * np.exp(-(((mm - offset) / 0.7) ** 2))
            knuckle += mine * np.exp(-((mm / 5.0) ** 2)) * (0.5 + 0.5 * np.cos(mm * 2 * np.pi / 2.3))
        direction = _unit(chain[1] - chain[0])
        past = (position - chain[0]) @ direction
        along[mine] = 1e3 * past[mine]
        if f:
            base = 0.48 * np.linalg.norm(chain[1] - chain[0])
            crease += mine * 0.9 * np.exp(-(((past - base) * 1e3 / 0.9) ** 2))
        last, direction = first + 2, _unit(tips[f] - chain[2])
        length = np.linalg.norm(tips[f] - chain[2])
        s = ((position - chain[2]) @ direction) / length
        across = np.abs((position - chain[2]) @ axes[last, FLEX])
        here = mine & (joint == last)
        width = np.percentile(across[here & (s > 0.5) & (s < 0.8)], 95) + 1e-6
        shape = ((s - 0.73) / 0.25) ** 2 + (across / (width * 0.74)) ** 3
        back = here * (side < 0.0)
        nail += back / (1 + np.exp(np.minimum(8 * (shape - 1), 50)))
        edge += back * np.exp(-(((shape - 1) / 0.35) ** 2))
        tip += here * np.clip((s - 0.2) / 0.8, 0, 1)
    lines = _palm_lines(position, joints) * (side > 0.15) * ((finger < 0) | np.isin(joint, FIRST_JOINT))
    fields = {
        "crease": crease,
        "palm_lines": lines,
        "knuckle": knuckle,
        "nail": nail,
        "nail_edge": edge,
        "tip": tip,
    }
    return TexelMap(
        rows,
        position.astype(np.float32),
        palm.astype(np.float32),
        finger,
        joint,
        along.astype(np.float32),
        uv=uv,
        **{name: value.clip(0, 1).astype(np.float32) for name, value in fields.items()},
    )


def _palm_lines(position: Array, joints: Array) -> Array:
    """Heart, head and life line, in shares of the palm: (0, 0) wrist on the little finger's side, (1, 1) index."""
    low, high = joints[7, 0], joints[1, 0]
    u, v = (position[:, 0] - low) / (high - low), position[:, 1] / joints[4, 1]
    scale_mm = 1e3 * np.array([high - low, joints[4, 1]])
    curves = (
        ([(-0.15, 0.78), (0.2, 0.82), (0.55, 0.92), (0.75, 1.08)], 1.0),
        ([(1.12, 0.80), (0.75, 0.74), (0.35, 0.62), (0.05, 0.46)], 0.9),
        ([(1.12, 0.80), (0.85, 0.66), (0.66, 0.44), (0.60, 0.22), (0.68, 0.08)], 1.0),
    )
    lines = np.zeros(len(position))
    for points, strength in curves:
        knots = np.array(points)
        t = np.linspace(0, len(knots) - 1, 80)
        curve = np.stack([np.interp(t, np.arange(len(knots)), knots[:, k]) for k in (0, 1)], 1)
        kernel = np.ones(11) / 11
        padded = np.pad(curve, ((5, 5), (0, 0)), mode="edge")
        curve = np.stack([np.convolve(padded[:, k], kernel, "valid") for k in (0, 1)], 1)
        off = (np.stack([u, v], 1)[:, None] - curve[None]) * scale_mm
        lines += strength * np.exp(-np.square(off).sum(-1).min(1) / 1.1**2)
    return lines


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v)
