"""Things that hands hold and things that stand in front of them: textured cylinders, boxes and balls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handmesh.skeleton import FINGER_KNUCKLES
from handmesh.synthesis.kernels import vertex_normals
from handmesh.synthesis.rasterizer import Mesh
from handmesh.synthesis.skin import TEXTURE_WIDTH
from handmesh.synthesis.texels import HAND_TEXELS

PROP_TEXELS = HAND_TEXELS // 2
PROP_SLOTS = 2
MATERIAL_PROP = 4
# Keypoints of the four fingers past the knuckles and the thumb past its base: what an object must not cut through.
_GRIP = [3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20]
_FLESH_M = 0.0085

Array = np.ndarray


@dataclass(frozen=True)
class Shape:
    """vertices (V, 3) m about the centre, the long axis along y; uv (V, 2) in 0..1; faces (F, 3)."""

    vertices: Array
    uv: Array
    faces: Array


def cylinder(radius: float, length: float, taper: float = 1.0, sides: int = 24) -> Shape:
    """A closed cylinder or cone frustum; ``taper`` is the top's radius over the bottom's."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], 1)
    rows, uv = [], []
    profile = (
        (-0.5, 0.0, 0.0),
        (-0.5, 1.0, 0.0),
        (-0.5, 1.0, 0.1),
        (0.5, taper, 0.9),
        (0.5, taper, 1.0),
        (0.5, 0.0, 1.0),
    )
    for height, width, v in profile:
        rows.append(ring * radius * width + [0.0, height * length, 0.0])
        uv.append(np.stack([angle / (2 * np.pi), np.full(sides + 1, v)], 1))
    start = np.arange(len(profile) - 1)[:, None] * (sides + 1) + np.arange(sides)
    # Rows 1-2 and 3-4 coincide in space: the doubled ring keeps the rim sharp, so no faces between them.
    start = start[[0, 2, 4]].ravel()
    a, b = start, start + sides + 1
    faces = np.concatenate([np.stack([a, b, a + 1], 1), np.stack([a + 1, b, b + 1], 1)])
    return Shape(np.concatenate(rows), np.concatenate(uv), faces)


def box(width: float, length: float, depth: float) -> Shape:
    """A box with flat sides; x width, y length, z depth."""
    vertices, uv, faces = [], [], []
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    half = np.array([width, length, depth]) / 2
    for axis in range(3):
        for sign in (-1.0, 1.0):
            side = np.empty((4, 3))
            side[:, axis] = sign
            side[:, (axis + 1) % 3] = corners[:, 0] * sign
            side[:, (axis + 2) % 3] = corners[:, 1]
            start = 4 * len(faces) // 2
            vertices.append(side * half)
            uv.append(0.5 + 0.48 * corners)
            faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
    return Shape(np.concatenate(vertices), np.concatenate(uv), np.array(faces))


def ball(radius: float, squash: float = 1.0, rows: int = 12, sides: int = 20) -> Shape:
    """A sphere, or an ellipsoid whose y axis is ``squash`` times as long."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, sides + 1), indexing="ij")
    theta, phi = v * np.pi, u * 2 * np.pi
    points = np.stack([np.sin(theta) * np.cos(phi), -np.cos(theta) * squash, np.sin(theta) * np.sin(phi)], -1)
    start = (np.arange(rows)[:, None] * (sides + 1) + np.arange(sides)).ravel()
    a, b = start, start + sides + 1
    faces = np.concatenate([np.stack([a, b, a + 1], 1), np.stack([a + 1, b, b + 1], 1)])
    return Shape(radius * points.reshape(-1, 3), np.stack([u.ravel(), v.ravel()], 1), faces)


def random_shape(rng: np.random.Generator, thickness: float) -> Shape:
    """An everyday object about ``thickness`` metres thick: bottle, can, pen, stick, phone, card, carton, ball."""
    t = float(np.clip(thickness, 0.006, 0.11))
    kind = rng.uniform()
    if t < 0.016:
        if kind < 0.5:
            return cylinder(t / 2, rng.uniform(0.1, 0.2), rng.uniform(0.3, 1.0))
        return box(rng.uniform(0.05, 0.085), rng.uniform(0.085, 0.17), rng.uniform(0.001, 0.012))
    if kind < 0.4:
        return cylinder(t / 2, rng.uniform(0.06, 0.26), rng.uniform(0.6, 1.15))
    if kind < 0.75:
        return box(rng.uniform(0.5, 2.2) * t, rng.uniform(0.06, 0.24), t)
    return ball(t / 2, rng.uniform(0.7, 1.5))


def place(shape: Shape, rotation: Array, centre: Array, slot: int) -> Mesh:
    """Turn and move a shape into camera axes and give it one of the atlas's prop slots."""
    vertices = (shape.vertices @ rotation.T + centre).astype(np.float32)
    faces = shape.faces.astype(np.int32)
    normals = vertex_normals(vertices, faces)
    lost = np.square(normals).sum(1) < 0.5  # the doubled vertices at a pole that no real face touches
    outward = vertices[lost] - centre
    normals[lost] = outward / np.linalg.norm(outward, axis=1, keepdims=True)
    # Outward normals whatever the winding: away from the centre on average.
    if float(((vertices - centre) * normals).sum()) < 0:
        normals = -normals
    origin = np.array([TEXTURE_WIDTH + 1, slot * PROP_TEXELS + 1])
    uv = (origin + shape.uv * (PROP_TEXELS - 3)).astype(np.float32)
    return Mesh(vertices, normals, uv, faces, np.full(len(faces), MATERIAL_PROP, np.int32))


def held_object(keypoints: Array, frame: Array, scale: float, rng: np.random.Generator) -> Mesh | None:
    """An object in the hand, as thick as the grip leaves room for; None if it leaves none.

    keypoints (21, 3) m in camera axes; frame (3, 3): rows are the hand's canonical axes there; scale: hand size /
    average.
    """
    thumb, fingers = keypoints[4], keypoints[[8, 12, 16]]
    grip = 0.5 * thumb + 0.5 * fingers.mean(0)
    palm = keypoints[list(FINGER_KNUCKLES)].mean(0) + 0.02 * scale * frame[2]
    centre = grip + rng.uniform(0.0, 0.6) * (palm - grip)
    axis = frame[0] * rng.choice([-1.0, 1.0]) + rng.normal(0, 0.25, 3)
    if rng.uniform() < 0.3:
        axis = np.cross(axis, keypoints[8] - thumb)
    axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
    offsets = keypoints[_GRIP] - centre
    beside = np.linalg.norm(offsets - (offsets @ axis)[:, None] * axis, axis=1)
    thickness = 2 * (float(np.partition(beside, 2)[2]) - _FLESH_M * scale)
    if thickness < 0.004:
        return None
    shape = random_shape(rng, thickness)
    depth = centre - thumb - ((centre - thumb) @ axis) * axis
    depth = depth / max(float(np.linalg.norm(depth)), 1e-6)
    rotation = np.stack([np.cross(axis, depth), axis, depth], 1)
    slide = rng.uniform(-0.35, 0.35) * np.ptp(shape.vertices[:, 1])
    return place(shape, rotation, centre + slide * axis, slot=0)


def occluder(keypoints: Array, rng: np.random.Generator) -> Mesh:
    """An object somewhere between the camera and part of the hand."""
    target = keypoints[rng.integers(21)]
    nearer = rng.uniform(0.6, 0.93)
    side = rng.normal(0, 0.035, 3) * [1, 1, 0]
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation = q * np.sign(np.linalg.det(q))
    shape = random_shape(rng, rng.uniform(0.006, 0.06) * nearer)
    return place(shape, rotation, target * nearer + side, slot=1)


def prop_texture(photos: list[Array], rng: np.random.Generator) -> Array:
    """(PROP_TEXELS, PROP_TEXELS, 4) uint8: a plain colour, a print or a photo's detail as the object's surface."""
    from handmesh.synthesis.backgrounds import drawn_background, view_of_photo

    texture = np.empty((PROP_TEXELS, PROP_TEXELS, 4), np.uint8)
    kind = rng.uniform()
    if kind < 0.35 or (kind < 0.7 and not photos):
        colour = np.ones(3) * rng.uniform(5, 245) if rng.uniform() < 0.4 else rng.uniform(5, 245, 3)
        texture[..., :3] = colour
        if rng.uniform() < 0.3:  # a dark screen or label in a frame
            edge = int(rng.integers(4, 30))
            texture[edge:-edge, edge:-edge, :3] = rng.uniform(0, 255, 3) * rng.uniform(0, 1)
    elif kind < 0.7:
        texture[..., :3] = view_of_photo(photos[rng.integers(len(photos))], PROP_TEXELS, rng)
    else:
        texture[..., :3] = drawn_background(PROP_TEXELS, rng)
    texture[..., 3] = int(rng.choice([10, 60, 140, 255]))
    return texture
