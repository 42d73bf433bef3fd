"""BVH: the hierarchy of one hand and its angles, frame by frame, for animation programs.

Metres; y up and z towards the viewer, as in .glb (the camera's y and z change sign). The root is the wrist with its
place and turn; every joint has Z, X and Y angles in degrees with ``R = Rz Rx Ry``; fingertips are End Sites. The zero
pose is the hand model's. Frames in which the hand is out of sight hold the last pose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handmesh.clip import HandTrack
from handmesh.kinematics import TIP_PARENTS, RestHand
from handmesh.records import T_YUP_CAM
from handmesh.skeleton import MANO_JOINTS, MANO_PARENTS


def bvh_text(track: HandTrack, rest: RestHand, fps: float, times_s: NDArray[np.float64]) -> str:
    """A hand's movement as a BVH file's text: at each of the times (N,), ``fps`` a second, as it was seen last."""
    order: list[int] = []
    lines = ["HIERARCHY", *_joint(0, rest, order, 0)]
    rotations = track.rotations.copy()
    rotations[:, 0] = T_YUP_CAM @ rotations[:, 0]
    angles = np.degrees(np.unwrap(euler_zxy(rotations), axis=0))[:, order]  # (T, 16, 3)
    rows = np.concatenate([track.translations @ T_YUP_CAM, angles.reshape(len(angles), -1)], axis=1)
    held = np.clip(np.searchsorted(track.times_s, times_s, side="right") - 1, 0, None)
    lines += ["MOTION", f"Frames: {len(times_s)}", f"Frame Time: {1 / fps:.9f}"]
    lines += [" ".join(f"{value:.6f}" for value in rows[row]) for row in held]
    return "\n".join(lines) + "\n"


def euler_zxy(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations (..., 3, 3) as angles (..., 3) rad about z, x and y with ``R = Rz Rx Ry``."""
    R = rotations
    x = np.arcsin(np.clip(R[..., 2, 1], -1.0, 1.0))
    locked = np.abs(R[..., 2, 1]) > 1.0 - 1e-12  # z and y turn about one axis: give it all to z
    z = np.where(locked, np.arctan2(R[..., 1, 0], R[..., 0, 0]), np.arctan2(-R[..., 0, 1], R[..., 1, 1]))
    y = np.where(locked, 0.0, np.arctan2(-R[..., 2, 0], R[..., 2, 2]))
    return np.stack([z, x, y], axis=-1)


def _joint(joint: int, rest: RestHand, order: list[int], depth: int) -> list[str]:
    """The lines of a joint and what hangs on it; ``order`` collects the joints as they come."""
    order.append(joint)
    outer, inner = "  " * depth, "  " * (depth + 1)
    channels = "3 Zrotation Xrotation Yrotation"
    if joint == 0:
        channels = "6 Xposition Yposition Zposition" + channels[1:]
    lines = [
        f"{outer}{'JOINT' if depth else 'ROOT'} {MANO_JOINTS[joint]}",
        f"{outer}{{",
        f"{inner}OFFSET {_numbers(rest.bones[joint])}",
        f"{inner}CHANNELS {channels}",
    ]
    for child, parent in enumerate(MANO_PARENTS):
        if parent == joint:
            lines += _joint(child, rest, order, depth + 1)
    if joint in TIP_PARENTS:
        tip = _numbers(rest.tip_bones[TIP_PARENTS.index(joint)])
        lines += [f"{inner}End Site", f"{inner}{{", f"{inner}  OFFSET {tip}", f"{inner}}}"]
    return [*lines, f"{outer}}}"]


def _numbers(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.6f}" for value in values)
