"""A clip's hands in one file: the writer goes by the suffix.

=======  ==============================================================================================================
suffix   what is in it
=======  ==============================================================================================================
.glb     a skinned mesh a hand with its sixteen joints and their movement, see `handmesh.gltf`
.bvh     the skeleton's movement, see `handmesh.bvh`; several hands go into NAME_right_0.bvh, NAME_left_1.bvh, ...
.json    every frame's hands without their meshes, see `clip_to_json`
.npz     MANO-style parameters, a row for each hand of each frame: frame, time_s, track_id, side, score, global_orient
         (N, 3), hand_pose (N, 45), betas (N, 10), translation (N, 3) of the wrist, and transl (N, 3) with which smplx's
         MANO layer (use_pca=False, flat_hand_mean=True) puts the mesh there; joints, joints_2d, keypoint_names, camera
=======  ==============================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.atomic import written_whole
from handmesh.bvh import bvh_text
from handmesh.clip import Clip
from handmesh.export import hand_to_json, json_head
from handmesh.gltf import animated_glb
from handmesh.keypoints import KEYPOINT_NAMES, KeypointOrder, reorder
from handmesh.kinematics import RestHand

MOST_FILLED = 200_000
"""A .bvh is not filled up to more frames than these, two hours of 30 a second."""


def export_clip(
    clip: Clip,
    path: str | os.PathLike[str],
    model: HandModelArrays | None = None,
    *,
    keypoints: KeypointOrder = "freihand",
) -> list[Path]:
    """Write a clip in the format of the path's suffix, each file whole or not at all; returns what was written.

    ``model`` is the hand model that the hands were found with (the embedded one). ``keypoints`` is the order of
    joints in .json and .npz. Raises ``ValueError`` if the suffix is unknown or there is no hand in the whole clip.
    """
    path = Path(path)
    check_clip_suffix(path)
    if not any(clip.frames):
        raise ValueError(f"no hand in {len(clip.frames)} frames: nothing to write to {path}")
    contents = CLIP_WRITERS[path.suffix.lower()](clip, path, model or load_hand_model(), keypoints)
    for target, write in contents.items():
        with written_whole(target) as temporary:
            write(temporary)
    return list(contents)


def check_clip_suffix(path: Path) -> None:
    """Raise ``ValueError`` unless a clip can be written under such a name."""
    if path.suffix.lower() not in CLIP_WRITERS:
        raise ValueError(
            f"cannot write a clip to {path.name!r}: a file must end in {', '.join(CLIP_WRITERS)}; "
            "for one mesh a frame name a folder"
        )


def clip_to_json(clip: Clip, keypoints: KeypointOrder = "freihand") -> dict[str, Any]:
    """A clip as what a .json file holds: `handmesh.export.to_json` with ``fps`` and ``frames`` instead of ``hands``.

    Each frame has ``time_s`` and ``hands``, without meshes. `handmesh/assets/hands.schema.json` is the JSON Schema.
    """
    frames = [
        {"time_s": time_s, "hands": [hand_to_json(hand, mesh=False, keypoints=keypoints) for hand in hands]}
        for time_s, hands in zip(clip.times_s, clip.frames, strict=True)
    ]
    return {**json_head(keypoints), "fps": clip.fps, "frames": frames}


Contents = dict[Path, Callable[[Path], object]]
"""Files to write and what writes them."""


def _glb(clip: Clip, path: Path, model: HandModelArrays, keypoints: KeypointOrder) -> Contents:
    tracks = clip.tracks()
    rests = [RestHand.from_model(model, track.betas, track.side) for track in tracks]
    start_s, frame_s = clip.times_s[0], 1 / clip.fps
    data = animated_glb(tracks, rests, start_s, clip.times_s[-1] + frame_s - start_s, frame_s)
    return {path: lambda temporary: temporary.write_bytes(data)}


def _bvh(clip: Clip, path: Path, model: HandModelArrays, keypoints: KeypointOrder) -> Contents:
    tracks, times_s = clip.tracks(), _even_times(clip)
    contents: Contents = {}
    for track in tracks:
        rest = RestHand.from_model(model, track.betas, track.side)
        text = bvh_text(track, rest, clip.fps, times_s)
        target = path if len(tracks) == 1 else path.with_stem(f"{path.stem}_{track.name}")
        contents[target] = lambda temporary, text=text: temporary.write_text(text, encoding="utf-8")
    return contents


def _even_times(clip: Clip) -> np.ndarray:
    """Ends of a clip's frames if they came at its ``fps`` throughout: streams drop frames, and BVH knows one rate."""
    duration_s = clip.times_s[-1] - clip.times_s[0]
    count = duration_s * clip.fps + 1
    if count > max(MOST_FILLED, 2 * len(clip.frames)):
        raise ValueError(
            f"{len(clip.frames)} frames over {duration_s:.0f} s, mostly {1 / clip.fps:.3g} s apart, have pauses too "
            "long for .bvh: use .glb"
        )
    return clip.times_s[0] + (np.arange(round(count)) + 0.5) / clip.fps


def _json(clip: Clip, path: Path, model: HandModelArrays, keypoints: KeypointOrder) -> Contents:
    text = json.dumps(clip_to_json(clip, keypoints), separators=(",", ":"), allow_nan=False) + "\n"
    return {path: lambda temporary: temporary.write_text(text, encoding="utf-8")}


def _npz(clip: Clip, path: Path, model: HandModelArrays, keypoints: KeypointOrder) -> Contents:
    rows = [(number, hand) for number, hands in enumerate(clip.frames) for hand in hands]
    hands = [hand for _, hand in rows]
    points = [reorder(hand, keypoints) for hand in hands]
    # smplx turns a hand about its wrist joint where that lies in the zero pose, not about the origin.
    J = model.J_regressor.astype(np.float64)
    betas = np.stack([hand.betas for hand in hands])
    wrists = J[0] @ model.v_template + np.einsum("v,vcb,nb->nc", J[0], model.shapedirs, betas)
    wrists[[hand.side == "left" for hand in hands], 0] *= -1
    translations = np.stack([hand.translation for hand in hands])
    cameras = [hand.camera for hand in hands]
    arrays = {
        "fps": np.array(clip.fps),
        "frame_count": np.array(len(clip.frames)),
        "frame": np.array([number for number, _ in rows]),
        "time_s": np.array([clip.times_s[number] for number, _ in rows]),
        "track_id": np.array([-1 if hand.track_id is None else hand.track_id for hand in hands]),
        "side": np.array([hand.side for hand in hands]),
        "score": np.array([hand.score for hand in hands], np.float32),
        "global_orient": np.stack([hand.global_orient for hand in hands]),
        "hand_pose": np.stack([hand.hand_pose.reshape(45) for hand in hands]),
        "betas": betas,
        "translation": translations,
        "transl": (translations - wrists).astype(np.float32),
        "joints": np.stack([joints for joints, _ in points]).astype(np.float32),
        "joints_2d": np.stack([joints_2d for _, joints_2d in points]).astype(np.float32),
        "keypoint_names": np.array(KEYPOINT_NAMES[keypoints]),
        "camera": np.array([[c.fx, c.fy, c.cx, c.cy, c.width, c.height] for c in cameras]),
        "camera_distortion": np.array([[*c.distortion, *(0.0,) * (8 - len(c.distortion))] for c in cameras]),
        "camera_assumed": np.array([c.assumed for c in cameras]),
    }
    return {path: lambda temporary: np.savez_compressed(temporary, **arrays)}


CLIP_WRITERS: dict[str, Callable[[Clip, Path, HandModelArrays, KeypointOrder], Contents]] = {
    ".glb": _glb,
    ".bvh": _bvh,
    ".json": _json,
    ".npz": _npz,
}
