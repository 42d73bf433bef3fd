"""A small software renderer: z-buffer, soft shadows, ambient occlusion and skin-like shading, on the CPU.

Two passes share one set of buffers (:class:`Frame`): :func:`draw_depth` finds the visible triangle of every sample,
then texture and lights are evaluated there. Pixels follow the project's convention (integer centres); supersampling
places ``n x n`` samples inside each pixel. The inner loops are in :mod:`handmesh.synthesis.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handmesh.synthesis.kernels import rasterise, rasterise_shadow, shade_samples

SHADOW_SIZE = 256
NEAR_M = 0.04
MAX_LIGHTS = 3

Array = np.ndarray


@dataclass(frozen=True)
class Mesh:
    """A textured triangle mesh in camera axes.

    vertices (V, 3) float32 m; normals (V, 3) float32 unit; uv (V, 2) float32 texels of the atlas; faces (F, 3)
    int32; material (F,) int32 (see :mod:`handmesh.synthesis.scene`). Faces are two-sided: normals are turned to
    the viewer.
    """

    vertices: Array
    normals: Array
    uv: Array
    faces: Array
    material: Array

    def __post_init__(self) -> None:
        n = len(self.vertices)
        if self.vertices.shape != (n, 3) or self.normals.shape != (n, 3) or self.uv.shape != (n, 2):
            raise ValueError("vertices, normals and uv must be (V, 3), (V, 3) and (V, 2)")
        if self.faces.shape != (len(self.material), 3):
            raise ValueError("faces (F, 3) and material (F,) must have the same length")


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh out of several; vertex indices are shifted."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    faces = [m.faces + start for m, start in zip(meshes, starts, strict=True)]
    return Mesh(
        np.concatenate([m.vertices for m in meshes]).astype(np.float32),
        np.concatenate([m.normals for m in meshes]).astype(np.float32),
        np.concatenate([m.uv for m in meshes]).astype(np.float32),
        np.concatenate(faces).astype(np.int32),
        np.concatenate([m.material for m in meshes]).astype(np.int32),
    )


@dataclass(frozen=True)
class Lights:
    """Everything that shines.

    direction (L, 3) unit vectors towards the lights; colour (L, 3) linear; harmonics (9, 3) irradiance as real
    spherical harmonics up to band 2 (already convolved with the cosine, divided by pi); shadow 0..1 strength of
    the first light's cast shadow; wrap 0..1 how far light bleeds round the terminator (skin); specular strength;
    occlusion: strength of the ambient occlusion.
    """

    direction: Array
    colour: Array
    harmonics: Array
    shadow: float
    wrap: float
    specular: float
    occlusion: float

    def __post_init__(self) -> None:
        count = len(self.direction)
        if not 1 <= count <= MAX_LIGHTS or self.colour.shape != (count, 3) or self.harmonics.shape != (9, 3):
            raise ValueError(f"1 to {MAX_LIGHTS} lights with (L, 3) colours and (9, 3) harmonics are expected")


@dataclass(frozen=True)
class Frame:
    """Sample buffers of one image size, reused from image to image: depth (n, n) m, face (n, n), weights (n, n, 2)."""

    size: int
    samples: int
    depth: Array
    face: Array
    weights: Array
    shadow: Array

    @classmethod
    def allocate(cls, size: int, samples: int = 2) -> Frame:
        n = size * samples
        return cls(
            size,
            samples,
            np.empty((n, n), np.float32),
            np.empty((n, n), np.int32),
            np.empty((n, n, 2), np.float32),
            np.empty((SHADOW_SIZE, SHADOW_SIZE), np.float32),
        )


@dataclass(frozen=True)
class Render:
    """Linear radiance premultiplied by coverage (S, S, 3) float32; alpha (S, S) coverage by anything; mask (S, S)
    coverage by material 0, the main hand."""

    radiance: Array
    alpha: Array
    mask: Array


def _srgb_table() -> Array:
    encoded = np.arange(256) / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


TO_LINEAR = _srgb_table()


def draw_depth(mesh: Mesh, intrinsics: Array, frame: Frame) -> None:
    """Fill the frame's depth, face and weight buffers. intrinsics (3, 3) in pixels with integer centres."""
    z = np.maximum(mesh.vertices[:, 2], 1e-3)
    points = np.empty_like(mesh.vertices)
    for axis in range(2):
        pixel = intrinsics[axis, axis] * mesh.vertices[:, axis] / z + intrinsics[axis, 2]
        points[:, axis] = (pixel + 0.5) * frame.samples - 0.5
    points[:, 2] = mesh.vertices[:, 2]
    rasterise(points, mesh.faces, frame.depth, frame.face, frame.weights, np.float32(NEAR_M))


def ambient_occlusion(frame: Frame, strength: float, reach_px: float) -> Array:
    """(S, S) float32 in 0..1: how open each pixel is, from how far its surroundings stand in front of it."""
    import cv2

    n = frame.samples
    depth = frame.depth[::n, ::n]
    covered = depth < 1e8
    if not covered.any():
        return np.ones_like(depth)
    far = float(depth[covered].max()) + 0.03
    filled = np.where(covered, depth, far)
    openness = np.ones_like(filled)
    for scale, weight in ((1.0, 0.6), (0.4, 0.4)):
        side = max(3, int(reach_px * scale) | 1)
        near_by = cv2.blur(np.minimum(filled, cv2.blur(filled, (side, side)) + 0.02), (side, side))
        hidden = np.clip(filled - near_by - 0.0005, 0.0, 0.03)
        openness *= 1.0 - weight * np.clip(hidden * strength, 0.0, 0.9)
    return cv2.blur(openness.astype(np.float32), (3, 3))


def _light_basis(direction: Array) -> Array:
    helper = np.array([0.0, 1.0, 0.0]) if abs(direction[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(direction, helper)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction]).astype(np.float32)


def draw_shadow(mesh: Mesh, direction: Array, frame: Frame) -> tuple[Array, Array]:
    """Fill the shadow map seen from ``direction``; returns its axes (3, 3) and (x0, y0, scale, far)."""
    basis = _light_basis(direction)
    seen = mesh.vertices @ basis.T
    low, high = seen.min(0), seen.max(0)
    scale = (SHADOW_SIZE - 4) / max(float((high - low)[:2].max()), 1e-6)
    origin = low[:2] - 2.0 / scale
    points = np.column_stack([(seen[:, :2] - origin) * scale, high[2] - seen[:, 2]]).astype(np.float32)
    rasterise_shadow(points, mesh.faces, frame.shadow)
    return basis, np.array([origin[0], origin[1], scale, high[2]], np.float32)


def render(mesh: Mesh, atlas: Array, intrinsics: Array, lights: Lights, frame: Frame) -> Render:
    """Render a mesh with an (H, W, 4) uint8 atlas (sRGB colour and gloss) into new (S, S) images."""
    draw_depth(mesh, intrinsics, frame)
    mean_depth = float(np.clip(np.median(mesh.vertices[:, 2]), 0.1, 10.0))
    reach_px = 0.02 * float(intrinsics[0, 0]) / mean_depth
    occlusion = ambient_occlusion(frame, lights.occlusion, reach_px)
    basis, shadow = draw_shadow(mesh, lights.direction[0], frame)
    size = frame.size
    out = Render(
        np.empty((size, size, 3), np.float32),
        np.empty((size, size), np.float32),
        np.empty((size, size), np.float32),
    )
    settings = np.array([lights.shadow, lights.wrap, lights.specular, lights.occlusion], np.float32)
    shade_samples(
        mesh.vertices, mesh.normals, mesh.uv, mesh.faces, mesh.material, atlas, TO_LINEAR,
        lights.direction.astype(np.float32), lights.colour.astype(np.float32),
        lights.harmonics.astype(np.float32), settings, shadow, basis, frame.shadow, occlusion,
        frame.depth, frame.face, frame.weights, frame.samples, out.radiance, out.alpha, out.mask,
    )  # fmt: skip
    return out
