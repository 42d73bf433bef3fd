"""The values that cross the project's borders: frames, cameras, detections and hand meshes.

Conventions everywhere: RGB ``uint8`` frames, metres, radians, pixels with integer centres (the centre of
pixel (0, 0) lies at (0, 0)), camera axes x right, y down, z forward.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh import distortion as lens

if TYPE_CHECKING:
    import trimesh

Side = Literal["left", "right"]

Convention = Literal["freihand", "mediapipe"]
"""Whose spots keypoints name: FreiHAND's, which are MANO's joints and tips and ours too, or MediaPipe's."""

DEFAULT_FOV_DEG = 60.0
"""Field of view taken across a frame's longer side where no intrinsics are known: typical of webcams."""


T_YUP_CAM = np.diag([1.0, -1.0, -1.0])
"""Camera axes to y up and z towards the viewer, as glTF and most 3D programs have it; its own inverse."""


def other_side(side: Side) -> Side:
    """Left for right and right for left."""
    return "left" if side == "right" else "right"


def check_side(side: object, name: str = "side") -> None:
    """Raise ``ValueError`` unless ``side`` is "left" or "right"."""
    if side not in get_args(Side):
        raise ValueError(f'{name} must be "left" or "right", not {side!r}')


def check_frame(frame: object) -> NDArray[np.uint8]:
    """The frame itself if it is an (H, W, 3) ``uint8`` picture with at least one pixel.

    Raises ``TypeError`` for what is no array and ``ValueError`` for an array of another kind, saying how to convert it.
    """
    if frame is None:
        raise TypeError("the frame is None: the picture or the camera could not be read; check its path or index")
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"the frame must be a numpy array (H, W, 3) of uint8, not {type(frame).__name__}")
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        raise ValueError(
            f"the frame must be RGB (H, W, 3) but is grayscale {frame.shape}: "
            "convert it with cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)"
        )
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise ValueError(
            f"the frame must be RGB (H, W, 3) but has four channels {frame.shape}: drop alpha with frame[..., :3]"
        )
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"the frame must be RGB (H, W, 3), one picture at a time; it has shape {frame.shape}")
    if frame.dtype != np.uint8:
        advice = "for values from 0 to 255 use frame.astype(np.uint8)"
        if frame.dtype.kind in "fb":
            advice += ", for values from 0 to 1 (frame * 255.0).round().astype(np.uint8)"
        if frame.dtype == np.uint16:
            advice = "for values of 16 bits use (frame >> 8).astype(np.uint8)"
        raise ValueError(f"the frame must be uint8 (0 to 255) but is {frame.dtype}: {advice}")
    if frame.size == 0:
        raise ValueError(f"the frame has no pixels: its shape is {frame.shape}")
    return frame


def _is_fixed(value: object) -> bool:
    """Whether nobody can write to an array: neither through it nor through another one that it shows a part of."""
    return isinstance(value, np.ndarray) and not value.flags.writeable and (value.base is None or _is_fixed(value.base))


def frozen_array(value: ArrayLike, shape: tuple[int | None, ...], dtype: Any, name: str) -> NDArray[Any]:
    """``value`` as a read-only finite array of ``shape`` (``None`` fits any length), or ``ValueError``.

    A copy where the caller could still write to it.
    """
    array = np.asarray(value, dtype).view() if _is_fixed(value) else np.array(value, dtype)
    if array.shape != shape and (
        array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True))
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape ({wanted}) but has {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite but holds NaN or infinity")
    array.flags.writeable = False
    return array


def given_betas(betas: ArrayLike | None) -> NDArray[np.float64] | None:
    """A shape (10,) that all hands are to have, read-only; ``None`` for none. Errors as `frozen_array`."""
    return None if betas is None else frozen_array(betas, (10,), np.float64, "betas")


def check_box(box: ArrayLike, name: str = "box") -> NDArray[np.float64]:
    """``box`` as a read-only (4,) array x1, y1, x2, y2 in pixels with x1 < x2 and y1 < y2, or ``ValueError``."""
    array = frozen_array(box, (4,), np.float64, name)
    if array[0] >= array[2] or array[1] >= array[3]:
        raise ValueError(
            f"{name} must be x1, y1, x2, y2 with x1 < x2 and y1 < y2 (not x, y, width, height), but is {array.tolist()}"
        )
    return array


def box_of_points(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Tight axis-aligned box x1, y1, x2, y2 (..., 4) of points (..., N, 2)."""
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1).astype(np.float64)


def box_middle_half(joints_2d: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle (2,) and half extents (2,), at least half a pixel, of keypoints' (21, 2) tight box."""
    box = box_of_points(joints_2d)
    return 0.5 * (box[:2] + box[2:]), np.maximum(0.5 * (box[2:] - box[:2]), 0.5)


def middle_and_size(joints_2d: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Middle (2,) and longer side of keypoints' tight box."""
    middle, half = box_middle_half(joints_2d)
    return middle, 2.0 * float(half.max())


def box_of_keypoints(joints_2d: NDArray[np.floating]) -> NDArray[np.float64]:
    """Tight box (4,) of keypoints (21, 2), at least a pixel wide and high."""
    middle, half = box_middle_half(joints_2d)
    return np.concatenate([middle - half, middle + half])


def box_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of boxes (..., 4) with boxes (..., 4), broadcast: (...)."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    overlap = np.prod(np.maximum(high - low, 0.0), axis=-1)
    areas = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1)
    return overlap / np.maximum(areas - overlap, 1e-12)


@dataclass(frozen=True)
class Camera:
    """A camera: focal lengths and centre in pixels of a ``width`` x ``height`` frame, and its lens's distortion.

    ``assumed`` is true where nobody measured the intrinsics: then depths hold only up to the guessed focal length.
    ``distortion`` holds OpenCV's k1, k2, p1, p2[, k3[, k4, k5, k6]]; none for a pinhole.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    assumed: bool = False
    distortion: Sequence[float] = ()

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in ("fx", "fy", "cx", "cy", "width", "height")}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"Camera.{name} must be a finite number of pixels but is {value}")
        if self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"Camera.fx and fy must be positive but are {self.fx} and {self.fy}")
        for name in ("width", "height"):
            if values[name] != int(values[name]) or values[name] < 1:
                raise ValueError(f"Camera.{name} must be a positive whole number but is {values[name]}")
        for name, value in values.items():  # also of numpy's numbers, which JSON does not take
            object.__setattr__(self, name, int(value) if name in ("width", "height") else float(value))
        coefficients = tuple(float(value) for value in np.ravel(self.distortion))
        if len(coefficients) not in lens.LENGTHS or not all(map(math.isfinite, coefficients)):
            raise ValueError(
                "Camera.distortion must be OpenCV's k1, k2, p1, p2[, k3[, k4, k5, k6]], all finite, or empty, but is "
                f"{list(coefficients)}"
            )
        object.__setattr__(self, "distortion", coefficients if any(coefficients) else ())

    @classmethod
    def from_fov(cls, width: int, height: int, fov_deg: float = DEFAULT_FOV_DEG) -> Camera:
        """An assumed camera with square pixels, centred, of field of view ``fov_deg`` across the longer side."""
        if not 0.0 < fov_deg < 180.0:
            raise ValueError(f"fov_deg must lie between 0 and 180 degrees but is {fov_deg}")
        focal = 0.5 * max(width, height) / math.tan(0.5 * math.radians(fov_deg))
        return cls(focal, focal, 0.5 * (width - 1), 0.5 * (height - 1), width, height, assumed=True)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Camera:
        """The camera of an intrinsics file by OpenCV, ROS, COLMAP or ``handmesh calibrate``; see `load_camera`."""
        from handmesh.intrinsics import load_camera

        return load_camera(path)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Intrinsics K (3, 3)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points (..., 3) in camera axes to pixels (..., 2). Points at or behind the camera plane give NaN."""
        points = np.asarray(points, np.float64)
        z = np.where(points[..., 2:] > 0.0, points[..., 2:], np.nan)
        xy = points[..., :2] / z
        if self.distortion:
            xy = lens.distort(xy, tuple(self.distortion), self._valid_radius)
        return xy * (self.fx, self.fy) + (self.cx, self.cy)

    def rays(self, points_px: ArrayLike) -> NDArray[np.float64]:
        """Pixels (..., 2) to rays (..., 3) of depth 1, so that ``project(depth * rays(p)) == p``."""
        xy = (np.asarray(points_px, np.float64) - (self.cx, self.cy)) / (self.fx, self.fy)
        if self.distortion:
            xy = lens.undistort(xy, tuple(self.distortion), self._valid_radius)
        return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)

    def resized(self, width: int, height: int) -> Camera:
        """The same camera when its frames are resized to ``width`` x ``height``."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
            width=width,
            height=height,
        )

    def mirrored(self) -> Camera:
        """The camera that sees the mirrored frame ``frame[:, ::-1]``."""
        k = tuple(self.distortion)
        return replace(self, cx=self.width - 1 - self.cx, distortion=(*k[:3], -k[3], *k[4:]) if k else ())

    @cached_property
    def _valid_radius(self) -> float:
        return lens.valid_radius(tuple(self.distortion))


class _ReadOnly:
    """Keeps a frozen dataclass's arrays read-only in copies, too, and through pickle."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        self.__dict__.update(state)


@dataclass(frozen=True, eq=False)
class Detection(_ReadOnly):
    """A hand found in a frame: the tight box (4,) of its 21 keypoints (x1, y1, x2, y2 px), side and score 0 to 1."""

    box: NDArray[np.float64]
    side: Side
    score: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, "Detection.box"))
        check_side(self.side, "Detection.side")
        _check_probability(self.score, "Detection.score")


@dataclass(frozen=True, eq=False)
class PosedHand:
    """A hand of either side about its own wrist: pose, shape and the surface they give.

    ``rotations`` (16, 3, 3) in MANO's joint order (the first is global, the others relative to the parent),
    ``betas`` (10,), ``vertices`` (V, 3) and ``joints`` (21, 3) in metres from the wrist, ``faces`` (F, 3) wound
    so that normals point outwards.
    """

    rotations: NDArray[np.floating]
    betas: NDArray[np.floating]
    vertices: NDArray[np.floating]
    joints: NDArray[np.floating]
    faces: NDArray[np.int32]

    def mirrored(self) -> PosedHand:
        """The same hand seen in a mirror, x to -x: the one place where left hands become right ones and back.

        With M = diag(-1, 1, 1), points go to M p and rotations to M R M (`mirror_rotations`). Betas stay. A mirror
        turns a surface inside out, so each face is wound the other way.
        """
        return PosedHand(
            rotations=mirror_rotations(self.rotations),
            betas=self.betas,
            vertices=self.vertices * _MIRROR.astype(self.vertices.dtype),
            joints=self.joints * _MIRROR.astype(self.joints.dtype),
            faces=np.ascontiguousarray(self.faces[:, ::-1]),
        )

    def rotated(self, rotation: NDArray[np.floating]) -> PosedHand:
        """The hand turned as a whole about its wrist by ``rotation`` (3, 3)."""
        return PosedHand(
            rotations=np.concatenate([(rotation @ self.rotations[0])[None], self.rotations[1:]]),
            betas=self.betas,
            vertices=self.vertices @ rotation.T.astype(self.vertices.dtype),
            joints=self.joints @ rotation.T.astype(self.joints.dtype),
            faces=self.faces,
        )


@dataclass(frozen=True, eq=False)
class Sighting:
    """A hand as the network sees it in a frame, not yet placed in the camera.

    ``posed`` is in camera axes and of ``side``'s model, ``joints_2d`` (21, 2) px of the frame; the scores are those of
    `HandMesh`.
    """

    side: Side
    posed: PosedHand
    joints_2d: NDArray[np.float64]
    score: float
    side_score: float

    @cached_property
    def box(self) -> NDArray[np.float64]:
        """(4,) x1, y1, x2, y2 px: tight box of ``joints_2d``."""
        return box_of_keypoints(self.joints_2d)


def mirror_rotations(rotations: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rotations (..., 3, 3) seen in a mirror, M R M with M = diag(-1, 1, 1).

    In rotation vectors this takes (x, y, z) to (x, -y, -z).
    """
    return rotations * np.outer(_MIRROR, _MIRROR).astype(rotations.dtype)


_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class HandMesh(_ReadOnly):
    """One hand of one frame. Arrays are read-only; keypoints in FreiHAND's order, rotations in MANO's.

    A point p of ``vertices`` or ``joints`` lies at ``p + translation`` in the camera.
    """

    side: Side
    score: float
    """Probability, 0 to 1, that the crop holds a hand."""
    box: NDArray[np.float64]
    """(4,) x1, y1, x2, y2 px: tight box of ``joints_2d``."""
    vertices: NDArray[np.float32]
    """(V, 3) metres in camera axes, relative to the wrist."""
    joints: NDArray[np.float32]
    """(21, 3) metres in camera axes, relative to the wrist."""
    translation: NDArray[np.float32]
    """(3,) metres: the wrist in the camera."""
    joints_2d: NDArray[np.float32]
    """(21, 2) px: where the network sees the keypoints, which ``joints`` meet to a few pixels. Of a tracker that
    smooths or was given a shape, the projection of ``joints``."""
    global_orient: NDArray[np.float32]
    """(3,) rotation vector of the wrist in camera axes, of a left-hand model for left hands."""
    hand_pose: NDArray[np.float32]
    """(15, 3) rotation vectors relative to the parent joint, the full pose (no mean to add)."""
    betas: NDArray[np.float32]
    """(10,) shape coefficients in standard deviations."""
    faces: NDArray[np.int32] = field(repr=False)
    """(F, 3) vertex indices, wound so that normals point outwards on both sides' hands."""
    camera: Camera
    """The camera used for ``translation``; ``camera.assumed`` says that nobody gave it."""
    side_score: float = 1.0
    """Probability, 0 to 1, that ``side`` is right as the network sees it."""
    track_id: int | None = None
    """The same number for the same hand in a video; ``None`` for single frames."""

    def __post_init__(self) -> None:
        check_side(self.side, "HandMesh.side")
        _check_probability(self.score, "HandMesh.score")
        _check_probability(self.side_score, "HandMesh.side_score")
        if not isinstance(self.camera, Camera):
            raise TypeError(f"HandMesh.camera must be a Camera, not {type(self.camera).__name__}")
        object.__setattr__(self, "box", check_box(self.box, "HandMesh.box"))
        for name, shape in _HAND_SHAPES.items():
            array = frozen_array(getattr(self, name), shape, np.float32, f"HandMesh.{name}")
            object.__setattr__(self, name, array)
        faces = frozen_array(self.faces, (None, 3), np.int32, "HandMesh.faces")
        object.__setattr__(self, "faces", faces)
        if self.track_id is not None:  # also one of numpy's, which JSON does not take
            object.__setattr__(self, "track_id", operator.index(self.track_id))
        if faces.size and not 0 <= faces.min() <= faces.max() < len(self.vertices):
            raise ValueError(
                f"HandMesh.faces index vertices {faces.min()} to {faces.max()}, but there are {len(self.vertices)}"
            )

    def to_trimesh(self) -> trimesh.Trimesh:
        """The surface where it stands in the camera: metres, x right, y down, z forward."""
        import trimesh

        return trimesh.Trimesh(self.vertices + self.translation, self.faces, process=False)

    def save(self, path: str | Path) -> None:
        """Write the hand in the format of the suffix: .glb, .obj, .ply, .json or .npz.

        Raises ``ValueError`` for another suffix.
        """
        from handmesh.export import export_hand

        export_hand(self, path)


_HAND_SHAPES: dict[str, tuple[int | None, ...]] = {
    "vertices": (None, 3),
    "joints": (21, 3),
    "translation": (3,),
    "joints_2d": (21, 2),
    "global_orient": (3,),
    "hand_pose": (15, 3),
    "betas": (10,),
}


def _check_probability(value: float, name: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie between 0 and 1 but is {value}")
