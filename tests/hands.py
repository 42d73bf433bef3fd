"""Hands of known shape for tests that draw or write them."""

from __future__ import annotations

import numpy as np
import trimesh

from handmesh.records import Camera, HandMesh, PosedHand, Side, Sighting, box_of_points
from handmesh.smoothing import rotvec_to_rotmat

CAMERA = Camera(500.0, 500.0, 319.5, 239.5, 640, 480)


def sphere_hand(
    side: Side = "right",
    center: tuple[float, float, float] = (0.0, 0.0, 0.5),
    radius: float | tuple[float, float, float] = 0.05,
    camera: Camera = CAMERA,
    track_id: int | None = None,
    subdivisions: int = 3,
) -> HandMesh:
    """A "hand" that is an ellipsoid of radii in metres; its 21 joints lie on a line inside, the wrist at the centre."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    joints = np.linspace(0, 1, 21)[:, None] * np.array([0.6, -0.7, 0.1]) * radius
    translation = np.array(center)
    seen = np.maximum(joints + translation, [-np.inf, -np.inf, 1e-3])
    joints_2d = camera.project(seen)
    return HandMesh(
        side=side,
        score=0.75,
        box=box_of_points(joints_2d),
        vertices=sphere.vertices * radius,
        joints=joints,
        translation=translation,
        joints_2d=joints_2d,
        global_orient=np.array([0.1, -0.2, 0.3]),
        hand_pose=np.linspace(-1, 1, 45).reshape(15, 3),
        betas=np.linspace(-2, 2, 10),
        faces=sphere.faces,
        camera=camera,
        side_score=0.875,
        track_id=track_id,
    )


def sighting(hand: HandMesh) -> Sighting:
    """What an estimator has seen where its answer was `hand`."""
    rotations = rotvec_to_rotmat(np.concatenate([hand.global_orient[None], hand.hand_pose]))
    posed = PosedHand(rotations, hand.betas, hand.vertices, hand.joints, hand.faces)
    return Sighting(hand.side, posed, hand.joints_2d.astype(float), hand.score, hand.side_score)
