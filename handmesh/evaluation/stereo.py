"""Two calibrated views of one hand against each other: keypoints by epipolar geometry, depths by triangulation.

Nobody measured the hand, but two views see where it is. The calibration's unit of length may be unknown (a board's
square): one scale is fitted for a whole clip, so that what is compared is how depths go, not how large they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.camera_space import ROOT, place_errors
from handmesh.evaluation.jitter import HandSeries
from handmesh.evaluation.label_convention import spots_of
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.records import Camera, box_of_points
from handmesh.skeleton import KEYPOINT_BONES

SAME_HAND_PX = 30.0
"""Frames whose keypoints lie off their triangulation by more in the mean show different hands, or none."""

TRUSTED_PX = 4.0
"""A labeller's triangulation counts as truth where keypoints lie off by less in the mean, none thrice as far."""

HAND_SIZE_MM = 90.0
"""Taken for the wrist to the middle knuckle of the hand that nobody measured: errors in mm go with it."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """A camera and where it stands: points X of the rig are ``R @ X + T`` in its axes, in the rig's unit."""

    camera: Camera
    R: Array
    T: Array

    def points(self, X: Array) -> Array:
        """(..., 3) in the camera's axes."""
        return X @ self.R.T + self.T


def read_view(intrinsics: Path, pose: Path, width: int, height: int) -> View:
    """A view from two text files of titled matrices: "intrinsic:" and "distortion:"; "R:" and "T:".

    Where a title comes twice the first counts. Raises ``FileNotFoundError`` or ``ValueError`` naming what lacks.
    """
    lens, place = _titled_matrices(intrinsics), _titled_matrices(pose)
    for path, found, names in ((intrinsics, lens, ("intrinsic",)), (pose, place, ("R", "T"))):
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: it must have a line such as '{missing[0]}:'")
    K = lens["intrinsic"].reshape(3, 3)
    distortion = lens["distortion"].ravel().tolist() if "distortion" in lens else ()
    camera = Camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height, distortion=distortion)
    return View(camera, place["R"].reshape(3, 3), place["T"].reshape(3))


def _titled_matrices(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no calibration file {path}")
    found: dict[str, list[list[float]]] = {}
    rows: list[list[float]] | None = None
    for line in path.read_text().splitlines():
        text = line.split("#")[0].strip()
        if text.endswith(":"):
            name, rows = text[:-1], []
            rows = found.setdefault(name, rows) if name not in found else []
        elif text and rows is not None:
            try:
                rows.append([float(value) for value in text.split()])
            except ValueError as error:
                raise ValueError(f"{path} has a line that is no row of numbers: {line!r}") from error
    return {name: np.array(of_name, np.float64) for name, of_name in found.items()}


def triangulate(first: View, second: View, pixels: tuple[Array, Array]) -> Array:
    """Points (..., 3) of the rig seen at pixels (..., 2) of both views, least squares on undistorted rays."""
    rows = []
    for view, seen in zip((first, second), pixels, strict=True):
        rays = view.camera.rays(seen)
        for axis in (0, 1):
            row = view.R[axis] - rays[..., axis, None] * view.R[2]
            rows.append(np.concatenate([row, (rays[..., axis] * view.T[2] - view.T[axis])[..., None]], axis=-1))
    equations = np.stack(rows, axis=-2)  # (..., 4, 4)
    A, b = equations[..., :3], equations[..., 3:]
    turned = np.swapaxes(A, -1, -2)
    return np.linalg.solve(turned @ A, turned @ b)[..., 0]


def epipolar_px(first: View, second: View, pixels: tuple[Array, Array]) -> Array:
    """(...,) distance of the second view's pixels from the epipolar lines of the first's, in undistorted pixels."""
    R = second.R @ first.R.T
    t = second.T - R @ first.T
    essential = np.cross(np.eye(3), t) @ R
    lines = first.camera.rays(pixels[0]) @ essential.T
    off = (lines * second.camera.rays(pixels[1])).sum(-1)
    focal = 0.5 * (second.camera.fx + second.camera.fy)
    return focal * np.abs(off) / np.linalg.norm(lines[..., :2], axis=-1)


def compare_views(first: View, second: View, hands: tuple[HandSeries, HandSeries]) -> dict[str, Any]:
    """Two views' hands, one a frame, against their triangulation.

    ``epipolar_px`` and ``reprojection_px`` say how well the keypoints agree; ``views`` how far each view's joints in
    the camera are from the triangulated ones times ``metres_a_unit``, the one scale that fits the root joints' depths
    of both views best (their median ratio); ``metres_a_unit_by_bones`` is the same by the lengths of bones. Raises
    ``ValueError`` for views of other numbers of frames, and where no frame shows one hand in both.
    """
    counts = [len(series.places) for series in hands]
    if counts[0] != counts[1]:
        raise ValueError(f"the views must show the same frames, but have {counts[0]} and {counts[1]}")
    both = hands[0].found & hands[1].found
    pixels = hands[0].pixels[both], hands[1].pixels[both]
    points = triangulate(first, second, pixels)
    views = (first, second)
    reprojection = np.mean(_reprojection_px(views, points, pixels), axis=0)  # (T, 21)
    same = reprojection.mean(axis=-1) < SAME_HAND_PX
    if not same.any():
        raise ValueError(f"of {int(both.sum())} frames with a hand in both views none shows the same one")
    points = points[same]
    joints = [series.in_camera[both][same] for series in hands]
    placed = [view.points(points) for view in views]
    ratios = [found[:, ROOT, 2] / true[:, ROOT, 2] for found, true in zip(joints, placed, strict=True)]
    scale = float(np.median(np.concatenate(ratios)))
    bones = [np.linalg.norm(_bones(found), axis=-1).sum(-1) for found in (*joints, points)]
    apart = np.concatenate([epipolar_px(first, second, (pixels[0][same], pixels[1][same])).ravel()])
    return {
        "frames": len(both),
        "found_in_both": int(both.sum()),
        "same_hand": int(same.sum()),
        "epipolar_px": _summary(apart),
        "reprojection_px": _summary(reprojection[same].ravel()),
        "metres_a_unit": scale,
        "metres_a_unit_by_bones": float(np.median(np.concatenate([bones[0] / bones[2], bones[1] / bones[2]]))),
        "views": [
            place_errors(found, scale * true)
            | {"pa_mm": float(pa_error_mm(found, scale * true).mean()), "own_scale": float(np.median(ratio)) / scale}
            for found, true, ratio in zip(joints, placed, ratios, strict=True)
        ],
    }


@dataclass(frozen=True, eq=False)
class LabelledHands:
    """What another tracker's keypoints in N frames of two views triangulate to.

    ``frames`` (N,); ``pixels`` (N, 21, 2) for each view; ``joints`` (N, 21, 3) m in the rig's axes.
    """

    frames: NDArray[np.integer]
    pixels: tuple[Array, Array]
    joints: Array


def trusted_labels(
    first: View, second: View, frames: NDArray[np.integer], pixels: tuple[Array, Array]
) -> LabelledHands:
    """The frames in which keypoints (N, 21, 2) of both views agree, as joints of a hand of ``HAND_SIZE_MM``.

    Raises ``ValueError`` where they agree in none.
    """
    points = triangulate(first, second, pixels)
    off = np.mean(_reprojection_px((first, second), points, pixels), axis=0)
    good = (off.mean(axis=-1) < TRUSTED_PX) & (off.max(axis=-1) < 3 * TRUSTED_PX)
    if not good.any():
        raise ValueError(f"in none of {len(frames)} frames do the labels of both views agree within {TRUSTED_PX:g} px")
    points = points[good]
    size = np.median(np.linalg.norm(points[:, ROOT] - points[:, 0], axis=-1))
    return LabelledHands(frames[good], (pixels[0][good], pixels[1][good]), points * (HAND_SIZE_MM / 1e3 / size))


def compare_labelled(
    estimator: HandMeshEstimator,
    views: tuple[View, View],
    clips: tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.uint8]]],
    labels: LabelledHands,
    guesses: tuple[Array, Array],
) -> list[dict[str, float]]:
    """Single frames against MediaPipe's triangulation, by view: the estimator in the labels' boxes, and the labeller.

    Ours are the spots that MediaPipe's keypoints name (`spots_of`); ``pa_raw_mm`` takes our own joints for those.

    ``guesses`` are the labeller's own single-view joints (N, 21, 3). ``2d`` is a share of the longer side of the
    labels' box; the labeller's is 0 as it is the truth there.
    """
    results = []
    for view, clip, pixels, guess in zip(views, clips, labels.pixels, guesses, strict=True):
        hands = [
            estimator(clip[frame], boxes=box_of_points(seen)[None], camera=view.camera)[0]
            for frame, seen in zip(labels.frames, pixels, strict=True)
        ]
        spots = [spots_of(hand, "mediapipe") for hand in hands]
        ours = pa_error_mm(np.stack([one.joints for one in spots]), labels.joints)
        raw = pa_error_mm(np.stack([hand.joints for hand in hands]), labels.joints)
        theirs = pa_error_mm(guess, labels.joints)
        sides = [hand.side == "right" for hand in hands]
        results.append(
            {
                "pa_mm": float(ours.mean()),
                "pa_median_mm": float(np.median(ours)),
                "labeller_pa_mm": float(theirs.mean()),
                "labeller_pa_median_mm": float(np.median(theirs)),
                "pa_raw_mm": float(raw.mean()),
                "2d": float(keypoint_error(np.stack([one.joints_2d for one in spots]), pixels).mean()),
                "right": float(np.mean(sides)),
            }
        )
    return results


def _reprojection_px(views: tuple[View, View], points: Array, pixels: tuple[Array, Array]) -> list[Array]:
    """(T, 21) for each view."""
    return [
        np.linalg.norm(view.camera.project(view.points(points)) - seen, axis=-1)
        for view, seen in zip(views, pixels, strict=True)
    ]


def _bones(joints: Array) -> Array:
    """(..., 20, 3)."""
    ends = np.array(KEYPOINT_BONES)
    return joints[..., ends[:, 1], :] - joints[..., ends[:, 0], :]


def _summary(values: Array) -> dict[str, float]:
    return {"median": float(np.median(values)), "mean": float(values.mean()), "p90": float(np.percentile(values, 90))}
