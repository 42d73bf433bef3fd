"""How far from the truth hands stand in the camera, with and without its intrinsics and the hand's size.

Clips of two rendered hands know where every joint is (`handmesh.synthesis.crossing`), and their cameras have different
fields of view. Boxes and sides are given and frames stand alone: what is measured is the network's 2D and 3D and the
placing, not the tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.tracking import SIDES, VARIANTS, crossing_clips
from handmesh.hand_size import hand_length, shape_of_length
from handmesh.records import Side, box_of_points
from handmesh.skeleton import KEYPOINTS
from handmesh.synthesis.crossing import FIELDS_OF_VIEW_DEG, Truth
from handmesh.video import open_source

Intrinsics = Literal["true", "default"]
Shape = Literal["guessed", "one_length", "true"]
"""The network's guess; the median guess of a clip made as long as the true hand, as `calibrate-hand` does with one
measured length; the true betas."""

ROOT = KEYPOINTS.index("middle1")
"""The joint that the field calls the root: the middle finger's first."""

Joints = NDArray[np.float64]


def place_errors(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """Errors of hands (N, 21, 3) m in the camera against the true ones: medians and means of absolute errors.

    ``wrist_depth`` and ``root_depth`` in mm and as percent of the true depth, with the signed median (``bias``: above
    zero is too far); ``wrist`` and ``joints``: distances in mm, of the wrist and of all joints. Raises ``ValueError``
    without hands.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if not len(truth):
        raise ValueError("there are no hands to measure")
    facts: dict[str, float] = {"hands": len(truth)}
    for name, joint in (("wrist", 0), ("root", ROOT)):
        off = predicted[:, joint, 2] - truth[:, joint, 2]
        share = 100 * off / truth[:, joint, 2]
        facts[f"{name}_depth_median_mm"] = float(1e3 * np.median(np.abs(off)))
        facts[f"{name}_depth_mean_mm"] = float(1e3 * np.abs(off).mean())
        facts[f"{name}_depth_median_percent"] = float(np.median(np.abs(share)))
        facts[f"{name}_depth_mean_percent"] = float(np.abs(share).mean())
        facts[f"{name}_depth_bias_percent"] = float(np.median(share))
    apart = 1e3 * np.linalg.norm(predicted - truth, axis=-1)
    for name, values in (("wrist", apart[:, 0]), ("joints", apart.mean(axis=1))):
        facts[f"{name}_median_mm"] = float(np.median(values))
        facts[f"{name}_mean_mm"] = float(values.mean())
    return facts


def measure_camera_space(
    estimator: HandMeshEstimator,
    folder: Path,
    names: Sequence[str] | None = None,
    variants: Sequence[int] = VARIANTS,
    every: int = 5,
    progress: Callable[[str, int], object] | None = None,
) -> dict[str, Any]:
    """`place_errors` on every so many frames of the crossing clips, of hands that are seen whole.

    By intrinsics and shape, over all clips and by the clips' true field of view; the default camera sees 60 degrees.
    progress(label, hands) is called after each clip. An estimator whose network remembers is much faster.
    """
    kinds = [(camera, shape) for camera in get_args(Intrinsics) for shape in get_args(Shape)]
    rows: dict[tuple[str, str, float], list[tuple[Joints, Joints]]] = {}
    for label, video, truth in crossing_clips(folder, names, variants):
        view = FIELDS_OF_VIEW_DEG[int(label.split("/")[0]) % len(FIELDS_OF_VIEW_DEG)]
        with open_source(video) as source:
            frames = [(number, frame) for number, (frame, _) in enumerate(source) if number % every == 0]
        shapes = _shapes(estimator, frames, truth)
        count = 0
        for camera, shape in kinds:
            estimator.betas = shapes[shape]
            found = _clip_errors(estimator, frames, truth, camera)
            rows.setdefault((camera, shape, view), []).extend(found)
            count = len(found)
        estimator.betas = None
        if progress is not None:
            progress(label, count)
    return {
        "all": _table(rows, kinds, sorted({view for *_, view in rows})),
        "by_field_of_view_deg": {f"{view:g}": _table(rows, kinds, [view]) for view in sorted({v for *_, v in rows})},
    }


def _shapes(
    estimator: HandMeshEstimator, frames: Sequence[tuple[int, NDArray[np.uint8]]], truth: Truth
) -> dict[str, NDArray[np.float64] | None]:
    """What the estimator is given as betas for each `Shape`."""
    model = estimator.hand_model
    if model is None:
        raise ValueError("the estimator must know its hand model: open it with `from_pretrained`")
    guesses = [hand.betas for number, frame in frames for hand, _ in _hands(estimator, frame, number, truth, "true")]
    if not guesses:
        return {"guessed": None, "one_length": truth.betas, "true": truth.betas}
    guess = np.median(guesses, axis=0).astype(np.float64)
    measured = shape_of_length(model, guess, hand_length(model, truth.betas))
    return {"guessed": None, "one_length": measured, "true": truth.betas}


def _clip_errors(
    estimator: HandMeshEstimator,
    frames: Sequence[tuple[int, NDArray[np.uint8]]],
    truth: Truth,
    intrinsics: Intrinsics,
) -> list[tuple[Joints, Joints]]:
    """Pairs of found and true joints (21, 3) m in the camera."""
    return [
        (hand.joints + hand.translation, truth.joints[number, k])
        for number, frame in frames
        for hand, k in _hands(estimator, frame, number, truth, intrinsics)
    ]


def _hands(
    estimator: HandMeshEstimator, frame: NDArray[np.uint8], number: int, truth: Truth, intrinsics: Intrinsics
) -> list[tuple[Any, int]]:
    """The hands of a frame that are seen whole, each with 0 for the right and 1 for the left one."""
    whole = [k for k in (0, 1) if truth.seen[number, k] >= 1.0]
    if not whole:
        return []
    boxes = np.stack([box_of_points(truth.joints_2d[number, k]) for k in whole])
    sides: list[Side] = ["right" if SIDES[k] == "right" else "left" for k in whole]
    camera = truth.camera if intrinsics == "true" else None
    return list(zip(estimator(frame, boxes=boxes, sides=sides, camera=camera), whole, strict=True))


def _table(
    rows: dict[tuple[str, str, float], list[tuple[Joints, Joints]]],
    kinds: Sequence[tuple[str, str]],
    views: Sequence[float],
) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for camera, shape in kinds:
        pairs = [pair for view in views for pair in rows[camera, shape, view]]
        found, truth = (np.stack(column) for column in zip(*pairs, strict=True))
        table.setdefault(camera, {})[shape] = place_errors(found, truth)
    return table
