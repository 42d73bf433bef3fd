"""Hand meshes to files: one writer for each suffix.

=======  ==============================================================================================================
suffix   what is in it
=======  ==============================================================================================================
.obj     triangles where they stand in the camera: metres, x right, y down, z forward; one object a hand
.ply     the same, all hands in one mesh
.glb     glTF: metres, y up and z towards the viewer as the format wants it (the camera's y and z change sign); one node
         a hand, called right_0, left_1, ...
.json    everything, see `to_json`
.npz     everything, the fields of `HandMesh` by name with a leading axis of hands; `camera` is fx, fy, cx, cy, width,
         height in px, `camera_distortion` OpenCV's eight coefficients; `track_id` is -1 where there is none
=======  ==============================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from handmesh.atomic import written_whole
from handmesh.keypoints import KEYPOINT_NAMES, KeypointOrder, reorder
from handmesh.normals import vertex_normals
from handmesh.records import T_YUP_CAM, HandMesh
from handmesh.skeleton import MANO_JOINTS

if TYPE_CHECKING:
    import trimesh

JSON_VERSION = 1
_ARRAYS = ("box", "vertices", "joints", "translation", "joints_2d", "global_orient", "hand_pose", "betas", "faces")
_SURFACE = ("vertices", "faces")


def export_hand(hand: HandMesh, path: str | os.PathLike[str]) -> None:
    """Write one hand; see `export_hands`."""
    export_hands([hand], path)


def export_hands(hands: Sequence[HandMesh], path: str | os.PathLike[str]) -> None:
    """Write the hands of one frame in the format of the path's suffix, whole or not at all; makes missing folders.

    Raises:
        ValueError: the suffix is unknown, there is no hand, or one without the mesh that the format is for.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"cannot write {path.name!r}: its suffix must be one of {', '.join(WRITERS)}")
    if not hands:
        raise ValueError(f"no hand to write to {path}")
    if writer in (_write_obj, _write_ply, _write_glb) and not all(len(hand.faces) for hand in hands):
        raise ValueError(f"a hand without its mesh cannot be written to {path}: .json and .npz take it")
    with written_whole(path) as temporary:
        writer(hands, temporary)


def to_json(hands: Sequence[HandMesh], *, mesh: bool = True, keypoints: KeypointOrder = "freihand") -> dict[str, Any]:
    """The hands of a frame as what a .json file holds; `handmesh/assets/hands.schema.json` is its JSON Schema.

    ``format`` is "handmesh" and ``version`` grows when a field changes its meaning. ``units`` and ``axes`` say the
    conventions, ``keypoint_names`` and ``rotation_names`` the orders. ``hands`` is a list of objects with the fields
    of `HandMesh`: ``side``, ``score``, ``side_score``, ``track_id`` (or null), ``camera`` (an object: fx, fy, cx, cy,
    width, height px, ``assumed`` and OpenCV's ``distortion``), ``box`` (x1, y1, x2, y2 px), ``vertices`` and
    ``joints`` (metres from the wrist), ``translation`` (the wrist in the camera), ``joints_2d`` (px),
    ``global_orient``, ``hand_pose`` and ``betas``, ``faces`` (vertex indices). Without ``mesh`` vertices and faces
    are left out: about 4 kB a hand instead of 120. ``keypoints`` "openxr" gives ``joints`` and ``joints_2d`` in
    OpenXR's order of 26.
    """
    return {**json_head(keypoints), "hands": [hand_to_json(hand, mesh=mesh, keypoints=keypoints) for hand in hands]}


def json_head(keypoints: KeypointOrder = "freihand") -> dict[str, Any]:
    """What stands at the head of every .json: format, version, conventions and orders."""
    return {
        "format": "handmesh",
        "version": JSON_VERSION,
        "units": {"length": "metre", "angle": "radian", "image": "pixel, integer centres", "time": "second"},
        "axes": "camera: x right, y down, z forward; a point lies at vertices + translation",
        "keypoint_names": list(KEYPOINT_NAMES[keypoints]),
        "rotation_names": list(MANO_JOINTS),
    }


def hand_to_json(hand: HandMesh, *, mesh: bool = True, keypoints: KeypointOrder = "freihand") -> dict[str, Any]:
    """One entry of the list ``hands`` of `to_json`."""
    joints, joints_2d = reorder(hand, keypoints)
    return {
        "side": hand.side,
        "score": float(hand.score),
        "side_score": float(hand.side_score),
        "track_id": hand.track_id,
        "camera": asdict(hand.camera),
        **{name: _shortest(getattr(hand, name)) for name in _ARRAYS if mesh or name not in _SURFACE},
        "joints": _shortest(joints.astype(np.float32)),
        "joints_2d": _shortest(joints_2d.astype(np.float32)),
    }


def to_arrays(hands: Sequence[HandMesh], *, mesh: bool = True) -> dict[str, Any]:
    """Some hands, at least one, as the arrays of a .npz file. Without ``mesh`` vertices and faces are left out."""
    cameras = [hand.camera for hand in hands]
    wanted = [name for name in _ARRAYS if mesh or name not in _SURFACE]
    arrays: dict[str, Any] = {name: np.stack([getattr(hand, name) for hand in hands]) for name in wanted}
    arrays["side"] = np.array([hand.side for hand in hands])
    arrays["score"] = np.array([hand.score for hand in hands], np.float32)
    arrays["side_score"] = np.array([hand.side_score for hand in hands], np.float32)
    arrays["track_id"] = np.array([-1 if hand.track_id is None else hand.track_id for hand in hands])
    arrays["camera"] = np.array([[c.fx, c.fy, c.cx, c.cy, c.width, c.height] for c in cameras])
    arrays["camera_distortion"] = np.array([[*c.distortion, *(0.0,) * (8 - len(c.distortion))] for c in cameras])
    arrays["camera_assumed"] = np.array([c.assumed for c in cameras])
    return arrays


def _shortest(array: np.ndarray) -> list[Any]:
    """Nested lists with the fewest digits that give the array's own values back."""
    if array.dtype == np.float32:
        return np.array([float(str(value)) for value in array.reshape(-1)]).reshape(array.shape).tolist()
    return array.tolist()


def _write_json(hands: Sequence[HandMesh], path: Path) -> None:
    path.write_text(json.dumps(to_json(hands), separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def _write_npz(hands: Sequence[HandMesh], path: Path) -> None:
    np.savez_compressed(path, **to_arrays(hands))


def _write_obj(hands: Sequence[HandMesh], path: Path) -> None:
    from trimesh.exchange.obj import export_obj

    scene = _scene({name: hand.to_trimesh() for name, hand in _named(hands)})
    path.write_text(export_obj(scene, include_normals=False, header="handmesh") + "\n", encoding="utf-8")


def _write_ply(hands: Sequence[HandMesh], path: Path) -> None:
    import trimesh

    trimesh.util.concatenate([hand.to_trimesh() for hand in hands]).export(path, file_type="ply")


def _write_glb(hands: Sequence[HandMesh], path: Path) -> None:
    from trimesh.exchange.gltf import export_glb

    meshes = {name: _gltf_mesh(hand) for name, hand in _named(hands)}
    path.write_bytes(export_glb(_scene(meshes), include_normals=True))


def _gltf_mesh(hand: HandMesh) -> trimesh.Trimesh:
    import trimesh

    vertices = (hand.vertices + hand.translation) @ T_YUP_CAM  # half a turn about x: faces stay outside out
    return trimesh.Trimesh(vertices, hand.faces, vertex_normals=vertex_normals(vertices, hand.faces), process=False)


def _named(hands: Sequence[HandMesh]) -> list[tuple[str, HandMesh]]:
    return [(f"{hand.side}_{number}", hand) for number, hand in enumerate(hands)]


def _scene(meshes: dict[str, trimesh.Trimesh]) -> trimesh.Scene:
    import trimesh

    scene = trimesh.Scene()
    for name, mesh in meshes.items():
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    return scene


WRITERS: dict[str, Callable[[Sequence[HandMesh], Path], None]] = {
    ".obj": _write_obj,
    ".ply": _write_ply,
    ".glb": _write_glb,
    ".json": _write_json,
    ".npz": _write_npz,
}
