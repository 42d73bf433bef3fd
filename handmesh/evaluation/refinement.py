"""What refinement on keypoints (`handmesh.refine`) gains in 2D and in aligned 3D, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.freihand_files import camera_of
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.label_convention import spots_of
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.evaluation.photos import labelled_photos
from handmesh.records import Camera, Convention, HandMesh, Side, box_of_points
from handmesh.refine import Refinement
from handmesh.video import read_picture


@dataclass(frozen=True, eq=False)
class KnownHand:
    """A hand of a picture: keypoints (21, 2) px, joints (21, 3) m from the wrist, side; camera where it is known; whose
    spots the keypoints are."""

    frame: NDArray[np.uint8]
    joints_2d: NDArray[np.floating]
    joints: NDArray[np.floating]
    side: Side
    camera: Camera | None
    convention: Convention = "freihand"


def rendered_hands(root: Path, count: int) -> Iterator[KnownHand]:
    """Evenly spread hands of a set's evaluation split. Errors as `FreiHandDataset`."""
    samples = FreiHandDataset(root, "evaluation")
    for row in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int).tolist():
        sample = samples[row]
        assert sample.joints is not None
        camera = camera_of(samples.intrinsics[row], sample.image)
        yield KnownHand(sample.image, sample.joints_2d, sample.joints, "right", camera)


def photographed_hands(folder: Path) -> Iterator[KnownHand]:
    """Trusted labels of a folder of photos, whose 3D is another tracker's guess. Errors as `labelled_photos`."""
    for path, labels in labelled_photos(folder):
        frame = read_picture(path)
        for label in labels:
            yield KnownHand(frame, label.joints_2d, label.joints, label.side, None, label.convention)


def measure_refinement(
    estimator: HandMeshEstimator,
    hands: Iterable[KnownHand],
    how: Refinement = Refinement(),  # noqa: B008 (frozen)
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Errors ``without`` and ``with`` refinement, and its cost.

    ``2d_keypoints`` is the error of the network's keypoints, ``2d`` of the mesh's joints in the picture, both shares of
    the hand's box; ``pa_mpjpe_mm`` the aligned error. ``cost_ms`` is the median of what an estimate takes longer; give
    an estimator whose network remembers, as all else is then small. The estimator's own setting stays. Raises
    ``ValueError`` without hands.
    """
    before = estimator.refinement
    rows: dict[str, list[tuple[float, float, float]]] = {"without": [], "with": []}
    costs = []
    try:
        for known in hands:
            estimator.refinement = None
            _estimate(estimator, known)  # the network answers; from here on it is remembered
            took = {}
            for name, setting in (("without", None), ("with", how)):
                estimator.refinement = setting
                start = clock()
                hand = _estimate(estimator, known)
                took[name] = clock() - start
                rows[name].append(_errors(hand, known))
            costs.append(took["with"] - took["without"])
    finally:
        estimator.refinement = before
    if not costs:
        raise ValueError("there are no hands to measure")
    table: dict[str, Any] = {"hands": len(costs)}
    for name, values in rows.items():
        means = np.mean(values, axis=0).tolist()
        table[name] = dict(zip(("2d_keypoints", "2d", "pa_mpjpe_mm"), means, strict=True))
    return table | {"cost_ms": 1e3 * float(np.median(costs))}


def _estimate(estimator: HandMeshEstimator, known: KnownHand) -> HandMesh:
    (hand,) = estimator(known.frame, boxes=[box_of_points(known.joints_2d)], sides=[known.side], camera=known.camera)
    return hand


def _errors(hand: HandMesh, known: KnownHand) -> tuple[float, float, float]:
    spots = spots_of(hand, known.convention)
    seen = [keypoint_error(pixels[None], known.joints_2d[None]).mean() for pixels in (spots.joints_2d, spots.mesh_2d)]
    return float(seen[0]), float(seen[1]), float(pa_error_mm(spots.joints[None], np.asarray(known.joints)[None])[0])
