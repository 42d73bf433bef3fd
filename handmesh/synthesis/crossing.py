"""Clips of two hands that cross, hide each other, leave and come back, with their true joints: for judging trackers.

``python -m handmesh.synthesis.crossing FOLDER`` renders NAME.mp4 (640x480, 30 fps) and NAME.npz for each of `SCENES`:
joints (T, 2, 21, 3) m in camera axes and joints_2d (T, 2, 21, 2) px of the right and the left hand, seen (T, 2): the
share of a hand's keypoints that are in the picture and not behind the other hand, camera: fx, fy, cx, cy, width, height
px, fps, and betas (10,): the shape of both hands.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from handmesh.assets import load_hand_model
from handmesh.atomic import written_whole
from handmesh.model.hand_model import HandModel
from handmesh.records import Camera
from handmesh.synthesis.clip import (
    HEIGHT,
    WIDTH,
    Performance,
    angles_over_time,
    casual_skin,
    draw_room,
    orientations,
    room_lights,
    wander,
)
from handmesh.synthesis.kernels import expose
from handmesh.synthesis.rasterizer import Frame, join, render
from handmesh.synthesis.scene import ENCODE, MATERIAL_FOREARM, MATERIAL_HAND, Studio
from handmesh.video import VideoWriter

Array = np.ndarray
Path3 = tuple[tuple[float, float, float, float], ...]
"""Times (s) and places of a wrist (m in camera axes) that it passes through."""

FPS = 30
FIELDS_OF_VIEW_DEG = (60.0, 72.0, 50.0)  # of the variants in turn; the first is what is assumed of unknown cameras
TREMOR_M = 0.006


@dataclass(frozen=True)
class Scene:
    """What two hands do: their wrists' paths and gestures. Seeds make variants."""

    name: str
    right: Path3
    left: Path3
    seconds: float
    gestures: tuple[tuple[str, ...], tuple[str, ...]] = (("open", "relaxed_open", "point"), ("open", "victory", "open"))
    seed: int = 0


_A, _B = -0.14, 0.14  # where hands rest, left and right of the picture's middle
_Y, _NEAR, _FAR = 0.09, 0.46, 0.60


def _swap(name: str, z_right: float, z_left: float, pause_s: float, seed: int) -> Scene:
    """Hands that change places, one before the other, the overlap lasting about a second (and ``pause_s``)."""
    t = (0.0, 0.8, 1.6, 1.6 + pause_s, 2.4 + pause_s, 3.2 + pause_s)
    x = (_A, _A, -0.01, 0.01, _B, _B)
    right = tuple((at, place, _Y, z_right) for at, place in zip(t, x, strict=True))
    left = tuple((at, -place, _Y + 0.01, z_left) for at, place in zip(t, x, strict=True))
    return Scene(name, right, left, t[-1], seed=seed)


SCENES: tuple[Scene, ...] = (
    _swap("right_before_left", _NEAR, _FAR, 0.02, 1),
    _swap("left_before_right", _FAR, _NEAR, 0.02, 2),
    _swap("hidden_for_half_a_second", _NEAR, _FAR, 0.5, 3),
    Scene(
        "there_and_back",
        ((0, _A, _Y, _NEAR), (0.8, _A, _Y, _NEAR), (1.5, 0.03, _Y, _NEAR), (2.3, _A, _Y, _NEAR), (3.0, _A, _Y, _NEAR)),
        ((0, _B, _Y, _FAR), (0.8, _B, _Y, _FAR), (1.5, 0.0, _Y, _FAR), (2.3, _B, _Y, _FAR), (3.0, _B, _Y, _FAR)),
        3.0,
        seed=4,
    ),
    Scene(
        "one_passes_under",
        ((0, _A, _Y, _NEAR), (3.4, _A, _Y, _NEAR)),
        ((0, _B, _Y, _FAR), (0.7, _B, _Y, _FAR), (1.9, -0.30, _Y, _FAR), (2.2, -0.30, _Y, _FAR), (3.4, _B, _Y, _FAR)),
        3.4,
        seed=5,
    ),
    Scene(
        "right_leaves_and_returns",
        (
            (0, _A, _Y, 0.5),
            (0.9, _A, _Y, 0.5),
            (1.5, -0.50, _Y, 0.5),
            (2.3, -0.50, _Y, 0.5),
            (3.0, _A, _Y, 0.5),
            (3.8, _A, _Y, 0.5),
        ),
        ((0, _B, _Y, 0.52), (3.8, _B, _Y, 0.52)),
        3.8,
        seed=6,
    ),
    Scene(
        "both_leave_and_return_crossed",
        (
            (0, _A, _Y, 0.5),
            (0.9, _A, _Y, 0.5),
            (1.5, _A, 0.48, 0.5),
            (2.2, _B, 0.48, 0.5),
            (2.9, _B, _Y, 0.5),
            (3.8, _B, _Y, 0.5),
        ),
        (
            (0, _B, _Y, 0.5),
            (0.9, _B, _Y, 0.5),
            (1.5, _B, 0.48, 0.5),
            (2.2, _A, 0.48, 0.5),
            (2.9, _A, _Y, 0.5),
            (3.8, _A, _Y, 0.5),
        ),
        3.8,
        seed=7,
    ),
    Scene(
        "hands_touch",
        ((0, _A, _Y, 0.5), (0.8, _A, _Y, 0.5), (1.5, -0.055, _Y, 0.5), (2.2, _A, _Y, 0.5), (3.0, _A, _Y, 0.5)),
        ((0, _B, _Y, 0.5), (0.8, _B, _Y, 0.5), (1.5, 0.055, _Y, 0.5), (2.2, _B, _Y, 0.5), (3.0, _B, _Y, 0.5)),
        3.0,
        seed=8,
    ),
)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a rendered clip; see the module's own words for the arrays."""

    joints: Array
    joints_2d: Array
    seen: Array
    camera: Camera
    fps: float
    betas: Array

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read a NAME.npz. Raises ``ValueError`` for a file of another kind."""
        with np.load(path) as content:
            missing = {"joints", "joints_2d", "seen", "camera", "fps", "betas"} - set(content.files)
            if missing:
                raise ValueError(f"{path} is no truth of a rendered clip: it lacks {', '.join(sorted(missing))}")
            fx, fy, cx, cy, width, height = content["camera"].tolist()
            camera = Camera(fx, fy, cx, cy, int(width), int(height))
            fps = float(content["fps"])
            return cls(content["joints"], content["joints_2d"], content["seen"], camera, fps, content["betas"])


def smooth_path(path: Path3, times: Array) -> Array:
    """(T, 3) m: eased from point to point."""
    points = np.array(path, float)
    index = np.clip(np.searchsorted(points[:, 0], times, side="right") - 1, 0, len(points) - 2)
    start, end = points[index], points[index + 1]
    t = np.clip((times - start[:, 0]) / np.maximum(end[:, 0] - start[:, 0], 1e-9), 0, 1)
    t = (t * t * (3 - 2 * t))[:, None]
    return (1 - t) * start[:, 1:] + t * end[:, 1:]


def shape_of(scene: Scene) -> Array:
    """(10,) betas of both hands, which are one person's."""
    return np.random.default_rng([scene.seed, 9]).normal(0, 0.7, 10)


def perform(studio: Studio, model: HandModel, scene: Scene) -> list[tuple[Array, Array, Array]]:
    """For the right and the left hand: vertices (T, V, 3), keypoints (T, 21, 3) m in camera axes, turns (T, 3, 3)."""
    times = np.arange(round(scene.seconds * FPS)) / FPS
    hands = []
    for path, gestures, mirrored in ((scene.right, scene.gestures[0], False), (scene.left, scene.gestures[1], True)):
        performance = Performance(gestures * 3, 0.0, mirrored, (0, 0, 0), 10 * scene.seed + mirrored)
        rotations = studio.anatomy.rotations(
            torch.tensor(angles_over_time(studio, performance, times), dtype=torch.float32)
        )
        turns = orientations(studio, performance, times)
        rotations[:, 0] = torch.tensor(turns)
        betas = torch.tensor(shape_of(scene), dtype=torch.float32).expand(len(times), -1)
        with torch.no_grad():
            mesh = model(rotations, betas)
        wrist = mesh.keypoints[:, :1]
        vertices, keypoints = (mesh.vertices - wrist).numpy(), (mesh.keypoints - wrist).numpy()
        if mirrored:
            flip = np.array([-1, 1, 1], np.float32)
            vertices, keypoints, turns = vertices * flip, keypoints * flip, np.diag(flip) @ turns
        tremor = [wander(times, 100 * scene.seed + 7 * mirrored + axis, TREMOR_M) for axis in range(3)]
        place = (smooth_path(path, times) + np.stack(tremor, 1)).astype(np.float32)[:, None]
        hands.append((vertices + place, keypoints + place, turns))
    return hands


def seen_share(joints: Array, pixels: Array, camera: Camera) -> Array:
    """(T, 2) share of each hand's keypoints inside the picture and not covered by the other hand.

    The other hand covers what lies inside the hull of its keypoints while they are nearer on average.
    """
    import cv2

    within = (pixels > -0.5) & (pixels < [camera.width - 0.5, camera.height - 0.5])
    inside: Array = np.all(within, axis=-1)  # (T, 2, 21)
    for t in range(len(pixels)):
        front = int(joints[t, 1, :, 2].mean() < joints[t, 0, :, 2].mean())
        hull = cv2.convexHull(pixels[t, front].astype(np.float32))
        for k, point in enumerate(pixels[t, 1 - front].astype(float)):
            inside[t, 1 - front, k] &= cv2.pointPolygonTest(hull, point.tolist(), False) < 0
    return inside.mean(-1)


def render_scene(
    studio: Studio, scene: Scene, hands: list[tuple[Array, Array, Array]], camera: Camera
) -> Iterator[Array]:
    """(480, 640, 3) uint8 RGB frames of a scene."""
    width, height = camera.width, camera.height
    top = (width - height) // 2
    square = np.array([[camera.fx, 0, (width - 1) / 2], [0, camera.fy, (width - 1) / 2], [0, 0, 1]])
    frame, lights = Frame.allocate(width), room_lights()
    canvas = np.zeros((width, width, 3), np.uint8)
    canvas[top : top + height] = draw_room(np.random.default_rng(scene.seed))
    grain = np.random.default_rng(scene.seed)
    for t in range(len(hands[0][0])):
        meshes = []
        for (vertices, _, turns), mirrored in zip(hands, (False, True), strict=True):
            material = MATERIAL_FOREARM if mirrored else MATERIAL_HAND
            arm = np.random.default_rng(12)
            meshes += studio.hand_with_arm(vertices[t], turns[t], material, arm, mirrored, sleeve=True)
        drawn = render(join(meshes), studio.atlas, square, lights, frame)
        picture = expose(drawn.radiance, drawn.alpha, canvas, np.float32(0.95), np.float32(1.0), ENCODE)
        noisy = picture[top : top + height] + grain.normal(0, 1.2, (height, width, 1))
        yield noisy.clip(0, 255).astype(np.uint8)


def render_clips(folder: Path, names: Sequence[str] | None = None, variant: int = 0) -> Iterator[str]:
    """Write the scenes' clips and truths, telling each name when it is done; variants are of other people and gestures.

    Raises ``ValueError`` for a name that no scene has.
    """
    known = {scene.name: scene for scene in SCENES}
    unknown = set(names or ()) - known.keys()
    if unknown:
        raise ValueError(f"there is no scene {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    arrays = load_hand_model()
    camera = Camera.from_fov(WIDTH, HEIGHT, FIELDS_OF_VIEW_DEG[variant % len(FIELDS_OF_VIEW_DEG)])
    studio, model = Studio(arrays, [], size=WIDTH), HandModel(arrays)
    for scene in SCENES if names is None else [known[name] for name in names]:
        render_clip(folder, replace(scene, seed=scene.seed + 100 * variant), camera, studio, model)
        yield scene.name


def render_clip(folder: Path, scene: Scene, camera: Camera, studio: Studio, model: HandModel) -> None:
    """Write one scene's clip and truth."""
    studio.wear(casual_skin(studio, scene.seed))
    hands = perform(studio, model, scene)
    joints = np.stack([keypoints for _, keypoints, _ in hands], 1)  # (T, 2, 21, 3)
    pixels = camera.project(joints)
    with VideoWriter(folder / f"{scene.name}.mp4", FPS) as writer:
        for picture in render_scene(studio, scene, hands, camera):
            writer.write(picture)
    with written_whole(folder / f"{scene.name}.npz") as temporary:
        np.savez_compressed(
            temporary,
            joints=joints.astype(np.float32),
            joints_2d=pixels.astype(np.float32),
            seen=seen_share(joints, pixels, camera).astype(np.float32),
            camera=np.array([camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height]),
            fps=np.array(FPS),
            betas=shape_of(scene),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: render the scenes."""
    parser = argparse.ArgumentParser(description="Render clips of two hands that cross, leave and return.")
    parser.add_argument("folder", type=Path, help="for NAME.mp4 and NAME.npz")
    parser.add_argument(
        "--scene", action="append", choices=[scene.name for scene in SCENES], help="only this (again: more)"
    )
    parser.add_argument("--variant", type=int, default=0, help="other people, rooms and gestures (%(default)s)")
    options = parser.parse_args(arguments)
    for _ in render_clips(options.folder, options.scene, options.variant):
        pass


if __name__ == "__main__":
    main()
