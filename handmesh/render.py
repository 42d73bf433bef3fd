"""Hands drawn over a frame: a fast overlay for live use, and stills by OpenGL.

The overlay needs numpy and OpenCV only. Colours are RGB everywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.normals import vertex_normals
from handmesh.raster import EMPTY, TONES, rasterise
from handmesh.records import check_frame
from handmesh.skeleton import FINGERS, KEYPOINT_BONES, KEYPOINTS

if TYPE_CHECKING:
    from handmesh.records import HandMesh

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

SIDE_COLORS: dict[str, Color] = {"right": (92, 168, 255), "left": (255, 158, 92)}
FINGER_COLORS: tuple[Color, ...] = (
    (255, 92, 92),
    (255, 190, 60),
    (96, 220, 96),
    (70, 180, 255),
    (200, 120, 255),
)
_WRIST_COLOR: Color = (235, 235, 235)
_TEXT_COLOR: Color = (255, 255, 255)
_OUTLINE_COLOR: Color = (20, 20, 20)

NEAR_M = 0.02  # faces nearer to the camera than this are not drawn
_LIGHT = np.array([-0.35, -0.60, -0.72], np.float32)  # towards the light: up, left and behind the camera; unit length
_AMBIENT = 0.30
_SUBPIXEL_BITS = 4  # OpenCV draws lines in fixed point with this many fractional bits


@dataclass(frozen=True)
class Overlay:
    """How hands are drawn over a frame.

    Attributes:
        mesh: draw the shaded surface.
        skeleton: draw the 21 keypoints and their bones.
        opacity: of the mesh, in (0, 1].
    """

    mesh: bool = True
    skeleton: bool = False
    opacity: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity must lie in (0, 1], got {self.opacity}")

    def draw(self, frame: Image, hands: Sequence[HandMesh]) -> Image:
        """A copy of the frame with the hands drawn on it, nearer surfaces in front of farther ones.

        Args:
            frame: (H, W, 3) uint8 RGB, the frame that the hands were found in.
            hands: what the estimator or tracker returned for it.

        Raises:
            ValueError, TypeError: the frame is not (H, W, 3) uint8.
        """
        canvas = check_frame(frame).copy()
        if self.mesh and hands:
            _blend_meshes(canvas, hands, self.opacity)
        if self.skeleton:
            for hand in hands:
                _draw_skeleton(canvas, hand)
        return canvas


def draw_text(frame: Image, lines: Sequence[str], origin: tuple[int, int] = (10, 10)) -> None:
    """Write lines of ASCII text with a shadow into the frame, the first one's upper left corner at origin (x, y) px."""
    scale = _text_scale(frame)
    step = round(36 * scale)
    for number, line in enumerate(lines):
        at = (origin[0], origin[1] + round(24 * scale) + number * step)
        for shift, color in ((2, _OUTLINE_COLOR), (1, _OUTLINE_COLOR), (0, _TEXT_COLOR)):
            place = (at[0] + shift, at[1] + shift)
            cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


def draw_labels(frame: Image, hands: Sequence[HandMesh], mirrored: bool = False) -> None:
    """Write side, score and track above every hand's box, into the frame, which may have been mirrored."""
    height, width = frame.shape[:2]
    for hand in hands:
        track = "" if hand.track_id is None else f" #{hand.track_id}"
        left = width - 1 - hand.box[2] if mirrored else hand.box[0]
        text, scale = f"{hand.side} {hand.score:.2f}{track}", _text_scale(frame)
        (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        wide, high = wide + 3, round(36 * scale)  # with its shadow
        x, y = np.clip([left, hand.box[1] - high], 0, [max(width - wide, 0), max(height - high, 0)])
        draw_text(frame, [text], (int(x), int(y)))


def _text_scale(frame: Image) -> float:
    return max(0.45, min(frame.shape[:2]) / 900)


def _blend_meshes(canvas: Image, hands: Sequence[HandMesh], opacity: float) -> None:
    points, depth, tones, triangles, layers = _front_faces(hands)
    if len(triangles) == 0:
        return
    height, width = canvas.shape[:2]
    x, y = (points[:, axis][triangles] for axis in (0, 1))
    left, right = _pixel_range(x, width)
    top, bottom = _pixel_range(y, height)
    if right <= left or bottom <= top:
        return
    shifted = points - np.array([left, top], np.float32)
    tone = rasterise(shifted, depth, tones, triangles, layers, right - left, bottom - top)
    palette = np.concatenate([_palette(SIDE_COLORS[hand.side]) for hand in hands])  # (layers * TONES,)
    painted = np.take(palette, tone, mode="clip").view(np.uint8).reshape(*tone.shape, 4)
    covered = (tone != EMPTY).view(np.uint8)
    softened = cv2.blur(covered * np.uint8(9), (3, 3))  # 0 to 9 of the nine pixels around
    weight = cv2.multiply(softened, covered, scale=opacity / 9, dtype=cv2.CV_32F)
    window = canvas[top:bottom, left:right]
    window[:] = cv2.blendLinear(cv2.cvtColor(painted, cv2.COLOR_RGBA2RGB), window.copy(), weight, 1 - weight)


def _pixel_range(values: NDArray[np.float32], size: int) -> tuple[int, int]:
    """First and one past the last pixel that values reach into, inside 0..size."""
    low, high = np.clip([np.floor(values.min()), np.ceil(values.max()) + 1], 0, size)
    return int(low), int(high)


def _front_faces(hands: Sequence[HandMesh]) -> tuple[Any, Any, Any, Any, Any]:
    """All hands as one soup: points (V, 2) px, depth (V,) m, tones (V,) 0..1, triangles (F, 3) and whose they are (F,).

    Only faces that are seen from outside and lie wholly before the camera are kept.
    """
    parts = []
    first_vertex = 0
    for number, hand in enumerate(hands):
        vertices = hand.vertices + hand.translation  # (V, 3)
        in_front = np.maximum(vertices[:, 2], NEAR_M)
        points = hand.camera.project(np.column_stack([vertices[:, :2], in_front])).astype(np.float32)  # (V, 2)
        a, b, c = (points[hand.faces[:, k]] for k in range(3))
        u, v = b - a, c - a
        outside = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0  # y runs down, so outward faces turn clockwise
        before = (vertices[:, 2] > NEAR_M)[hand.faces].all(axis=1)
        triangles = hand.faces[outside & before]
        tones = _tones(vertices, hand.faces)
        parts.append((points, in_front, tones, triangles + first_vertex, np.full(len(triangles), number, np.intp)))
        first_vertex += len(vertices)
    points, depth, tones, triangles, layers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return points, depth, tones, triangles, layers


def _tones(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Brightness of vertices, (V,) in 0..1: half-Lambert light on area-weighted normals, plus a small highlight."""
    normals = vertex_normals(vertices, faces)
    facing = normals @ _LIGHT
    diffuse = _AMBIENT + (1 - _AMBIENT) * np.clip(0.5 + 0.5 * facing, 0, 1) ** 2
    highlight = np.clip(facing, 0, 1) ** 24
    return (0.82 * diffuse + 0.18 * highlight).astype(np.float32)


@lru_cache(maxsize=8)
def _palette(color: Color) -> NDArray[np.uint32]:
    """Colour of every tone, (TONES,) with bytes R, G, B, 0: from black over the colour to nearly white."""
    tone = np.linspace(0, 1, TONES)[:, None]
    full = np.array([*color, 0], float)
    shaded = full * np.minimum(tone / 0.8, 1)
    lit = shaded + (255 - shaded) * np.clip((tone - 0.8) / 0.2, 0, 1) * 0.7
    return np.round(lit).astype(np.uint8).view(np.uint32)[:, 0]


def _draw_skeleton(canvas: Image, hand: HandMesh) -> None:
    scale = 1 << _SUBPIXEL_BITS
    limit = 8 * max(canvas.shape[:2])  # far outside; OpenCV's fixed point would overflow
    points = np.clip(np.asarray(hand.joints_2d, float), -limit, limit)
    at = [(int(x), int(y)) for x, y in np.round(points * scale)]
    span = float(np.ptp(points, axis=0).max())
    thick = int(np.clip(span / 70, 1, 6))
    for color_pass, extra in ((False, 2), (True, 0)):
        for parent, child in KEYPOINT_BONES:
            color = _keypoint_color(child) if color_pass else _OUTLINE_COLOR
            cv2.line(canvas, at[parent], at[child], color, thick + extra, cv2.LINE_AA, _SUBPIXEL_BITS)
    for keypoint, center in enumerate(at):
        cv2.circle(canvas, center, (thick + 2) * scale, _OUTLINE_COLOR, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.circle(canvas, center, (thick + 1) * scale, _keypoint_color(keypoint), -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _keypoint_color(keypoint: int) -> Color:
    name = KEYPOINTS[keypoint]
    for finger, color in zip(FINGERS, FINGER_COLORS, strict=True):
        if name.startswith(finger):
            return color
    return _WRIST_COLOR


def render_still(hands: Sequence[HandMesh], background: Image | None = None, turn_deg: float = 0.0) -> Image:
    """A smooth picture by OpenGL (pyrender, from the `train` extra), with soft light and hard edges antialiased.

    Args:
        hands: at least one hand; the first one's camera takes the picture.
        background: (H, W, 3) uint8 RGB of the camera's size; white where absent.
        turn_deg: turns the hands about a vertical axis through their common centre, to look at them from aside.

    Returns:
        (H, W, 3) uint8 RGB of the camera's size.

    Raises:
        ValueError: there is no hand, or the background has another size than the camera.
        ModuleNotFoundError: pyrender is not installed.
    """
    if not hands:
        raise ValueError("render_still needs at least one hand, got none")
    camera = hands[0].camera
    size = (camera.height, camera.width, 3)
    if background is None:
        background = np.full(size, 255, np.uint8)
    if background.shape != size:
        raise ValueError(f"background must be {size} like the hands' camera, got {background.shape}")
    pyrender = _import_pyrender()
    renderer = pyrender.OffscreenRenderer(camera.width, camera.height)
    try:
        rgba, _ = renderer.render(_still_scene(hands, turn_deg), flags=pyrender.RenderFlags.RGBA)
    finally:
        renderer.delete()
    alpha = rgba[:, :, 3:].astype(np.float32) / 255
    return np.round(rgba[:, :, :3] * alpha + background * (1 - alpha)).astype(np.uint8)


def _import_pyrender() -> Any:
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")  # read once, when OpenGL is first imported
    import pyrender

    return pyrender


def _still_scene(hands: Sequence[HandMesh], turn_deg: float) -> Any:
    import trimesh

    pyrender = _import_pyrender()
    camera = hands[0].camera
    flip = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's camera: y up, z towards the viewer
    placed = [hand.vertices + hand.translation for hand in hands]
    center = np.concatenate(placed).mean(axis=0)
    turn, _ = cv2.Rodrigues(np.array([0.0, np.deg2rad(turn_deg), 0.0]))
    scene = pyrender.Scene(bg_color=[0, 0, 0, 0], ambient_light=[0.15, 0.15, 0.15])
    for hand, vertices in zip(hands, placed, strict=True):
        red, green, blue = (channel / 255 for channel in SIDE_COLORS[hand.side])
        material = pyrender.MetallicRoughnessMaterial(
            baseColorFactor=(red, green, blue, 1.0), metallicFactor=0.1, roughnessFactor=0.55
        )
        vertices = (vertices - center) @ turn.T + center
        if camera.distortion:  # OpenGL has no lens: move the points to where a pinhole sees them at the same pixels
            pinhole = replace(camera, distortion=())
            vertices = vertices[:, 2:] * pinhole.rays(camera.project(vertices))
        surface = trimesh.Trimesh(vertices, hand.faces, process=False)
        scene.add(pyrender.Mesh.from_trimesh(surface, material=material, smooth=True), pose=flip)
    scene.add(
        # OpenGL's pixel centres lie at halves, ours at integers.
        pyrender.IntrinsicsCamera(camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5, znear=NEAR_M, zfar=20.0)
    )
    for aside_deg, strength in ((-35.0, 2.2), (40.0, 1.0)):
        light_pose = np.eye(4)
        light_pose[:3, :3] = cv2.Rodrigues(np.array([-0.5, np.deg2rad(aside_deg), 0.0]))[0]
        scene.add(pyrender.DirectionalLight(color=np.ones(3), intensity=strength), pose=light_pose)
    return scene
