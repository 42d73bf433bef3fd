"""The bundled sample clip: two rendered hands that gesture before a drawn room, with their true joints.

``python -m handmesh.synthesis.clip`` renders ``sample.mp4`` (640x480, 30 fps), three still pictures and
``sample.npz``: joints (T, 2, 21, 3) m in camera axes and joints_2d (T, 2, 21, 2) px of the right and the left hand, NaN
while a hand is out of the picture, sides, and camera: fx, fy, cx, cy. Nothing in it is a third party's picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handmesh.assets import load_hand_model
from handmesh.model.hand_model import HandModel
from handmesh.synthesis.gestures import GESTURES
from handmesh.synthesis.kernels import expose
from handmesh.synthesis.poses import SphereModel, gesture_angles, relax
from handmesh.synthesis.rasterizer import Frame, Lights, Mesh, join, render
from handmesh.synthesis.scene import ENCODE, MATERIAL_FOREARM, MATERIAL_HAND, Studio
from handmesh.synthesis.skin import SLEEVE_TEXELS, Skin, paint_skin

WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 30, 8.0
FIELD_OF_VIEW_DEG = 60.0
HOLD_S, CHANGE_S = 0.62, 0.45
STILLS_S = (0.5, 3.15, 6.9)

Array = np.ndarray


@dataclass(frozen=True)
class Performance:
    """What one hand does: gestures in turn from ``enters_s``; mirrored for a left hand; where it hovers (m)."""

    gestures: tuple[str, ...]
    enters_s: float
    mirrored: bool
    place: tuple[float, float, float]
    seed: int


RIGHT = Performance(
    ("open", "fist", "point", "victory", "ok", "open", "pinch", "thumbs_up", "three", "relaxed_open"),
    0.0,
    False,
    (-0.02, 0.10, 0.50),
    3,
)
# Before a camera, one's left hand is on the right of the picture.
LEFT = Performance(("open", "fist", "victory", "open", "point", "ok"), 3.6, True, (0.155, 0.10, 0.52), 4)


def angles_over_time(studio: Studio, performance: Performance, times: Array) -> Array:
    """(T, 16, 3) rad: holds and smooth changes between the gestures."""
    rng = np.random.default_rng(performance.seed)
    spheres = SphereModel(studio.anatomy)
    by_name = {gesture.name: gesture for gesture in GESTURES}
    keys = []
    for name in performance.gestures:
        gesture = by_name[name]
        angles = np.radians(gesture_angles(gesture, rng, 0.5))[None]
        pairs = np.array([(0, c.first, c.second) for c in gesture.contacts], int).reshape(-1, 3)
        distances = np.array([1e-3 * c.distance_mm for c in gesture.contacts])
        keys.append(relax(studio.anatomy, spheres, angles, (pairs, distances), steps=60)[0][0])
    keys = np.stack(keys)
    phase = np.maximum(times - performance.enters_s, 0.0) / (HOLD_S + CHANGE_S)
    index = np.minimum(phase.astype(int), len(keys) - 1)
    following = np.minimum(index + 1, len(keys) - 1)
    t = np.clip(((phase - index) * (HOLD_S + CHANGE_S) - HOLD_S) / CHANGE_S, 0.0, 1.0)
    t = (t * t * (3 - 2 * t))[:, None, None]
    mixed = (1 - t) * keys[index] + t * keys[following]
    none = (np.zeros((0, 3), int), np.zeros(0))
    return relax(studio.anatomy, spheres, mixed, none, steps=30)[0]


def wander(times: Array, seed: int, amplitude: float) -> Array:
    """(T,) a slow, smooth, bounded wobble."""
    rng = np.random.default_rng(seed)
    waves = [np.sin(2 * np.pi * f * times + rng.uniform(0, 6.28)) for f in (0.17, 0.31, 0.53)]
    return amplitude * (0.5 * waves[0] + 0.3 * waves[1] + 0.2 * waves[2])


def orientations(studio: Studio, performance: Performance, times: Array) -> Array:
    """(T, 3, 3) global rotations: the palm towards the camera, swaying, once showing its back."""
    turn = np.clip((times - 5.4) / 0.7, 0, 1) * (not performance.mirrored) * 0.9
    out = []
    upright = np.diag([1.0, -1.0, -1.0])
    for i in range(len(times)):
        yaw = wander(times[i : i + 1], performance.seed, 0.55)[0] + turn[i] * 0.8
        pitch = wander(times[i : i + 1], performance.seed + 10, 0.3)[0]
        roll = wander(times[i : i + 1], performance.seed + 20, 0.35)[0]
        cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        out.append(about_z @ about_x @ upright @ about_y @ studio.anatomy.frame)
    return np.stack(out).astype(np.float32)


def _places(performance: Performance, times: Array) -> Array:
    """(T, 3) m: where the wrist is; the left hand glides in, the right one makes room."""
    x, y, z = performance.place
    place = np.stack([np.full_like(times, v) for v in (x, y, z)], 1)
    ease = np.clip((times - LEFT.enters_s) / 0.9, 0.0, 1.0)
    ease = ease * ease * (3 - 2 * ease)
    if performance.mirrored:
        place[:, 1] += (1 - ease) * 0.32
    else:
        place[:, 0] -= ease * 0.135
    seed = 40 + performance.seed
    place += np.stack([wander(times, seed + k, a) for k, a in enumerate((0.03, 0.022, 0.05))], 1)
    return place


def draw_room(rng: np.random.Generator) -> Array:
    """(HEIGHT, WIDTH, 3) uint8: a plain room, out of focus: wall, window, shelf with books, picture, plant, desk."""
    import cv2

    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    light = 1.12 - 0.0007 * x - 0.0004 * y
    room = np.array([201, 192, 178], np.float32) * light[..., None]
    room[395:] = np.array([124, 92, 66], np.float32) * (light[395:] * 0.95)[..., None]
    room = np.ascontiguousarray(room.clip(0, 255).astype(np.uint8))
    cv2.rectangle(room, (24, 38), (206, 262), (238, 236, 230), -1)
    cv2.rectangle(room, (34, 48), (196, 252), (214, 228, 240), -1)
    cv2.ellipse(room, (120, 262), (96, 58), 0, 180, 360, (150, 176, 138), -1)
    cv2.rectangle(room, (111, 48), (119, 252), (238, 236, 230), -1)
    cv2.rectangle(room, (404, 150), (634, 160), (112, 82, 58), -1)
    at = 412
    while at < 596:
        width, height = int(rng.integers(9, 20)), int(rng.integers(52, 92))
        colour = tuple(int(c) for c in rng.integers(40, 190, 3))
        cv2.rectangle(room, (at, 150 - height), (at + width, 150), colour, -1)
        at += width + 1
    cv2.rectangle(room, (452, 205), (560, 295), (70, 60, 54), -1)
    cv2.rectangle(room, (460, 213), (552, 287), (222, 214, 196), -1)
    cv2.circle(room, (506, 252), 24, (196, 138, 104), -1, cv2.LINE_AA)
    for angle in np.linspace(200, 340, 9):
        tip = (int(268 + 62 * np.cos(np.radians(angle))), int(352 + 88 * np.sin(np.radians(angle))))
        cv2.line(room, (268, 364), tip, (84, 122 + int(rng.integers(-20, 20)), 78), 9, cv2.LINE_AA)
    cv2.fillPoly(room, [np.array([(244, 360), (292, 360), (284, 402), (252, 402)], np.int32)], (168, 106, 78))
    return cv2.GaussianBlur(room, (0, 0), 3.2)


def room_lights() -> Lights:
    """Soft light from the room, a key light from the left and a fill from the right."""
    harmonics = np.zeros((9, 3))
    harmonics[0] = [0.62, 0.60, 0.58]
    harmonics[1] = [-0.14, -0.13, -0.11]
    harmonics[3] = [-0.10, -0.10, -0.11]
    direction = np.array([[-0.62, -0.55, -0.56], [0.75, -0.45, -0.48]])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    colour = np.array([[0.62, 0.62, 0.64], [0.20, 0.17, 0.13]])
    return Lights(direction, colour, harmonics, shadow=0.75, wrap=0.2, specular=0.25, occlusion=45.0)


def casual_skin(studio: Studio, person: int = 77) -> Skin:
    """A skin of a middle tone with a plain sleeve."""
    for seed in range(1000):
        skin = paint_skin(studio.texels, np.random.default_rng([person, seed]))
        cloth = skin.texture[:, -SLEEVE_TEXELS:, :3].reshape(-1, 3).astype(float)
        plain = cloth.std(0).max() < 22 and np.ptp(cloth.mean(0)) < 60 and 40 < cloth.mean() < 120
        if not skin.gloved and 0.36 < skin.tone < 0.5 and plain:
            return skin
    raise AssertionError("one skin in a hundred is of a middle tone and wears a plain sleeve")


def render_clip(output: Path, stills: Path, truth: Path) -> None:
    """Write the clip, ``sample_1.jpg`` … into the folder ``stills``, and the true joints."""
    import cv2

    arrays = load_hand_model()
    studio, model = Studio(arrays, [], size=WIDTH), HandModel(arrays)
    studio.wear(casual_skin(studio))
    times = np.arange(int(SECONDS * FPS)) / FPS
    focal = WIDTH / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEG) / 2)
    top = (WIDTH - HEIGHT) // 2
    square = np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (WIDTH - 1) / 2], [0, 0, 1]])
    hands = [_perform(studio, model, performance, times) for performance in (RIGHT, LEFT)]
    joints = np.stack([keypoints for _, keypoints, _ in hands], 1)  # (T, 2, 21, 3)
    pixels = focal * joints[..., :2] / joints[..., 2:] + [(WIDTH - 1) / 2, (HEIGHT - 1) / 2]
    outside = (pixels[..., 1] > HEIGHT - 1).mean(-1) > 0.6
    joints[outside], pixels[outside] = np.nan, np.nan
    room, frame, lights = draw_room(np.random.default_rng(5)), Frame.allocate(WIDTH), room_lights()
    canvas = np.zeros((WIDTH, WIDTH, 3), np.uint8)
    canvas[top : top + HEIGHT] = room
    grain = np.random.default_rng(6)
    writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    still_frames = {round(s * FPS): i + 1 for i, s in enumerate(STILLS_S)}
    for t in range(len(times)):
        meshes: list[Mesh] = []
        for performance, (vertices, _, turns) in zip((RIGHT, LEFT), hands, strict=True):
            if times[t] < performance.enters_s:
                continue
            material = MATERIAL_FOREARM if performance.mirrored else MATERIAL_HAND
            arm = np.random.default_rng(12)  # the same arm and sleeve in every frame
            meshes += studio.hand_with_arm(vertices[t], turns[t], material, arm, performance.mirrored, sleeve=True)
        drawn = render(join(meshes), studio.atlas, square, lights, frame)
        picture = expose(drawn.radiance, drawn.alpha, canvas, np.float32(0.95), np.float32(1.0), ENCODE)
        picture = picture[top : top + HEIGHT]
        if t in still_frames:
            path = stills / f"sample_{still_frames[t]}.jpg"
            cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
        noisy = picture + grain.normal(0, 1.2, (HEIGHT, WIDTH, 1))
        writer.write(np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8)[..., ::-1]))
    writer.release()
    np.savez_compressed(
        truth,
        joints=joints.astype(np.float32),
        joints_2d=pixels.astype(np.float32),
        sides=np.array(["right", "left"]),
        camera=np.array([focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2]),
    )


def _perform(studio: Studio, model: HandModel, performance: Performance, times: Array) -> tuple[Array, Array, Array]:
    """Vertices (T, V, 3), keypoints (T, 21, 3) m in the camera and global rotations (T, 3, 3); mirrored for a left
    hand."""
    angles = torch.tensor(angles_over_time(studio, performance, times), dtype=torch.float32)
    rotations = studio.anatomy.rotations(angles)
    turns = orientations(studio, performance, times)
    rotations[:, 0] = torch.tensor(turns)
    betas = torch.zeros(len(times), 10)
    with torch.no_grad():
        mesh = model(rotations, betas)
    wrist = mesh.keypoints[:, :1]
    vertices, keypoints = (mesh.vertices - wrist).numpy(), (mesh.keypoints - wrist).numpy()
    if performance.mirrored:
        flip = np.array([-1, 1, 1], np.float32)
        vertices, keypoints, turns = vertices * flip, keypoints * flip, np.diag(flip) @ turns
    place = _places(performance, times).astype(np.float32)[:, None]
    return vertices + place, keypoints + place, turns


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: render the sample clip again."""
    parser = argparse.ArgumentParser(description="Render the bundled sample clip and pictures.")
    parser.add_argument("--clip", type=Path, required=True, help="sample.mp4 to write")
    parser.add_argument("--stills", type=Path, required=True, help="folder for sample_1.jpg …")
    parser.add_argument("--truth", type=Path, required=True, help="sample.npz to write")
    options = parser.parse_args(arguments)
    render_clip(options.clip, options.stills, options.truth)


if __name__ == "__main__":
    main()
