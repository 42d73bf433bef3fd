"""The shipped estimator on real photos and clips whose keypoints another tracker labelled (see `datasets.photos`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.photos import convention_of, side_is_known, trusted_labels
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.label_convention import spots_of
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm, pck
from handmesh.image_folders import image_files, is_held_out
from handmesh.records import Convention, HandMesh, Side, box_iou, box_of_points
from handmesh.tracker import HandTracker
from handmesh.video import open_source, read_picture

MATCH_IOU = 0.3  # a found hand is that of a label if their keypoint boxes overlap by this much


@dataclass(frozen=True)
class LabelledHand:
    """A label: 2D keypoints (21, 2) px, 3D (21, 3) m from the wrist, side, and whose spots the keypoints are.

    Without ``side_known`` whoever labelled it was not sure of the side, which then counts neither right nor wrong.
    """

    joints_2d: NDArray[np.float64]
    joints: NDArray[np.float64]
    side: Side
    convention: Convention = "freihand"
    side_known: bool = True


def labelled_photos(folder: Path) -> list[tuple[Path, list[LabelledHand]]]:
    """Photos of a folder with their trusted labels, in name order. Errors as `trusted_labels`."""
    return [
        (
            path,
            [
                LabelledHand(
                    np.asarray(hand["kp2d"], np.float64),
                    np.asarray(hand["kp3d"], np.float64),
                    hand["side"],
                    convention_of(hand),
                    side_is_known(hand),
                )
                for hand in labels
            ],
        )
        for path, labels, _ in trusted_labels(folder)
    ]


def measure_crops(estimator: HandMeshEstimator, folder: Path) -> dict[str, float]:
    """Errors when box and side are given from the labels: the hand network alone."""
    pairs = []
    for path, hands in labelled_photos(folder):
        boxes = np.stack([box_of_points(hand.joints_2d) for hand in hands])
        found = estimator(read_picture(path), boxes=boxes, sides=[hand.side for hand in hands])
        pairs.extend(zip(found, hands, strict=True))
    return summarise(pairs, len(pairs))


def measure_frames(find: Callable[[NDArray[np.uint8]], list[HandMesh]], folder: Path) -> dict[str, float]:
    """Errors of the whole pipeline on frames: labels without an overlapping found hand count as missed."""
    pairs: list[tuple[HandMesh, LabelledHand]] = []
    labels = 0
    for path, hands in labelled_photos(folder):
        found = find(read_picture(path))
        labels += len(hands)
        pairs.extend(match(found, hands))
    return summarise(pairs, labels)


def count_on_none(find: Callable[[NDArray[np.uint8]], list[HandMesh]], folders: list[Path]) -> dict[str, int]:
    """In how many of some folders' hand-free pictures a hand is found, of those that training keeps out."""
    paths = [path for folder in folders for path in image_files(folder) if is_held_out(path)]
    return {"pictures": len(paths), "with_a_hand": sum(bool(find(read_picture(path))) for path in paths)}


def measure_clip(tracker: HandTracker, video: Path, folder: Path, *, every: int) -> dict[str, float]:
    """A tracker on a video: photo number n of `folder` (00012.jpg), perhaps smaller, is the video's frame n * `every`.

    Adds to `summarise`: frames, frames with a hand, and how many tracks and sides were given out. Raises ValueError for
    photos whose names are no numbers.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    labelled = {int(path.stem): (path, hands) for path, hands in labelled_photos(folder)}
    pairs: list[tuple[HandMesh, LabelledHand]] = []
    frames = drawn = labels = 0
    tracks: set[int | None] = set()
    sides: set[Side] = set()
    with open_source(video) as source:
        for number, (frame, time_s) in enumerate(source):
            found = tracker(frame, time_s)
            frames, drawn = frames + 1, drawn + bool(found)
            tracks |= {hand.track_id for hand in found}
            sides |= {hand.side for hand in found}
            if number % every == 0 and number // every in labelled:
                path, hands = labelled[number // every]
                scale = frame.shape[1] / read_picture(path).shape[1]
                hands = [replace(hand, joints_2d=(hand.joints_2d + 0.5) * scale - 0.5) for hand in hands]
                labels += len(hands)
                pairs.extend(match(found, hands))
    facts = {"frames": frames, "frames_with_hand": drawn, "tracks": len(tracks), "sides": len(sides)}
    return facts | summarise(pairs, labels)


def match(found: list[HandMesh], labels: list[LabelledHand]) -> list[tuple[HandMesh, LabelledHand]]:
    """Pair labels with found hands, best overlap first, each used once."""
    if not found or not labels:
        return []
    boxes = np.stack([box_of_points(label.joints_2d) for label in labels])
    overlap = np.stack([[float(box_iou(box_of_points(hand.joints_2d), box)) for box in boxes] for hand in found])
    pairs = []
    while overlap.max() >= MATCH_IOU:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        pairs.append((found[i], labels[j]))
        overlap[i, :], overlap[:, j] = -1.0, -1.0
    return pairs


def summarise(pairs: list[tuple[HandMesh, LabelledHand]], labels: int) -> dict[str, float]:
    """Mean errors of matched hands; `2d` and `2d_mesh` are shares of the longer side of the label's box.

    Errors are those of the spots that the labels name (`spots_of`); `2d_raw` and `pck_10_raw` hold our own keypoints
    against labels as if these named the same spots.
    """
    summary: dict[str, float] = {"labels": labels, "matched": len(pairs)}
    if not pairs:
        return summary
    truth = np.stack([label.joints_2d for _, label in pairs])
    spots = [spots_of(hand, label.convention) for hand, label in pairs]
    errors = keypoint_error(np.stack([one.joints_2d for one in spots]), truth)
    mesh_errors = keypoint_error(np.stack([one.mesh_2d for one in spots]), truth)
    raw_errors = keypoint_error(np.stack([hand.joints_2d for hand, _ in pairs]), truth)
    joints = np.stack([one.joints for one in spots])
    told = [hand.side == label.side for hand, label in pairs if label.side_known]
    return summary | {
        "2d": float(errors.mean()),
        "2d_median": float(np.median(errors.mean(1))),
        "2d_mesh": float(mesh_errors.mean()),
        "pck_05": pck(errors, 0.05),
        "pck_10": pck(errors, 0.10),
        "pck_10_mesh": pck(mesh_errors, 0.10),
        "2d_raw": float(raw_errors.mean()),
        "pck_10_raw": pck(raw_errors, 0.10),
        "pa_mpjpe_pseudo_mm": float(pa_error_mm(joints, np.stack([label.joints for _, label in pairs])).mean()),
        "sides_known": len(told),
        **({"side_right": float(np.mean(told))} if told else {}),
        "presence": float(np.mean([hand.score for hand, _ in pairs])),
    }


def measure_photos(estimator: HandMeshEstimator, folders: list[Path]) -> dict[str, Any]:
    """`measure_crops` and `measure_frames` per folder and the mean over folders, which need names of their own."""
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError(f"folders need names of their own, but some share one: {', '.join(map(str, folders))}")
    result: dict[str, Any] = {"crops": {}, "frames": {}}
    for folder in folders:
        result["crops"][folder.name] = measure_crops(estimator, folder)
        if not result["crops"][folder.name]["labels"]:
            raise ValueError(f"{folder} has no trusted labels to measure against")
        result["frames"][folder.name] = measure_frames(estimator, folder)
    for kind in ("crops", "frames"):
        rows = list(result[kind].values())
        keys = [key for key in rows[0] if all(key in row for row in rows)]
        result[kind]["mean over folders"] = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    return result
