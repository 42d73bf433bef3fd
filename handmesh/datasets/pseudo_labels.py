"""Labels for photos that nobody labelled, by our own networks: for hands that other trackers miss or are unsure of.

Each photo is seen in six views, as it is and mirrored, upright and turned both ways, by each of some networks. What
they agree on becomes a label in the layout that `handmesh/datasets/photos.py` reads, its `spread` their disagreement.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.atomic import written_whole
from handmesh.crop import Crop, view_rotation
from handmesh.datasets.photos import WRONG_SPREAD, trusted_labels
from handmesh.estimator import HandMeshEstimator
from handmesh.image_folders import image_files
from handmesh.records import Camera, Convention, HandMesh, Side, box_iou, box_middle_half, box_of_keypoints, other_side

WEIGHTS = ("fast",)
TURNS_DEG = (0.0, 25.0, -25.0)

SAME_HAND_IOU = 0.4
MOST_OF_VIEWS = 2 / 3
"""A hand has to be found in so many of the views ..."""
OF_ONE_SIDE = 0.9
"""... and to be of one side in so many of those."""

_LONGEST_PX = 1280  # of a view; crops of hands are no larger than 192 px

Estimator = Callable[..., list[HandMesh]]
"""Hands of a frame and its `camera`, as `HandMeshEstimator` gives them."""


@dataclass(frozen=True)
class HandLabel:
    """What the views say of one hand: medians over those that agree on its side.

    joints_2d: (21, 2) px. joints: (21, 3) m from the wrist, in the axes of a camera that looks at the hand.
    spread: mean distance of all views' keypoints from joints_2d, as a share of the hand's size.
    """

    side: Side
    joints_2d: NDArray[np.float64]
    joints: NDArray[np.float64]
    spread: float
    score: float
    views: int  # that found it
    of_this_side: int  # views that say so

    def to_json(self, convention: Convention) -> dict[str, Any]:
        """An entry of `hands` in labels.json, whose keypoints are spots of that convention."""
        return {
            "side": self.side,
            "convention": convention,
            "score": round(self.score, 3),
            "votes": self.views,
            "side_votes": self.of_this_side,
            "spread": round(self.spread, 4),
            "kp2d": self.joints_2d.round(2).tolist(),
            "kp3d": self.joints.round(5).tolist(),
        }


@dataclass(frozen=True)
class _Seen:
    """A hand of one view, brought back into the photo."""

    view: int
    side: Side
    joints_2d: NDArray[np.float64]
    joints: NDArray[np.float64]
    score: float

    @property
    def box(self) -> NDArray[np.float64]:
        return box_of_keypoints(self.joints_2d)


def label_hands(photo: NDArray[np.uint8], estimators: Sequence[Estimator]) -> list[HandLabel]:
    """Labels of all hands of a photo (H, W, 3) uint8 RGB; none where views disagree on whether or of which side one is.

    A mirrored photo has the mirrored labels.
    """
    height, width = photo.shape[:2]
    camera = Camera.from_fov(width, height)
    views = [_view(width, height, mirrored, turn) for mirrored, turn in product((False, True), TURNS_DEG)]
    seen: list[_Seen] = []
    for number, (view, estimator) in enumerate(product(views, estimators)):
        # The photo's own camera, turned about its axis.
        focal, middle = camera.fx * view.size / view.side_px, 0.5 * (view.size - 1)
        turned = Camera(focal, focal, middle, middle, view.size, view.size, assumed=True)
        seen += [_brought_back(hand, view, camera, number) for hand in estimator(view.cut(photo), camera=turned)]
    labels = []
    for group in _same_hands(seen):
        label = _agreed(group)
        if label.views < MOST_OF_VIEWS * len(views) * len(estimators) or label.of_this_side < OF_ONE_SIDE * label.views:
            return []
        labels.append(label)
    return labels


def label_folder(
    folder: Path,
    out: Path,
    estimators: Sequence[Estimator],
    convention: Convention = "freihand",
    watch: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[int, int]:
    """Label the photos of a folder that have no trusted labels there yet, and copy those that get some into `out`.

    Photos keep their names; labels.json is written last, and says whose spots the networks name, their `convention`.
    `watch` passes the photos on, to show progress. Returns the number of photos that were looked at and of those
    labelled. Raises FileNotFoundError for a folder without images, ValueError for one whose photos would be
    overwritten.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"labels of {folder} would replace its own: give another --out")
    known = {path for path, _, _ in trusted_labels(folder)} if (folder / "labels.json").is_file() else set()
    photos = [path for path in image_files(folder) if path.parent == folder and path not in known]
    if not photos and not known:
        raise FileNotFoundError(f"no image lies in {folder} itself: folders within it are labelled each by itself")
    entries: dict[str, Any] = {}
    for path in watch(photos):
        photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if photo is None:
            logging.warning("%s cannot be read", path)
            continue
        labels = label_hands(np.asarray(photo, np.uint8), estimators)
        if any(label.spread < WRONG_SPREAD for label in labels):
            size = [photo.shape[1], photo.shape[0]]
            entries[path.name] = {"size": size, "hands": [label.to_json(convention) for label in labels]}
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path.name)
    if entries:
        with written_whole(out / "labels.json") as temporary:
            temporary.write_text(json.dumps(entries) + "\n")
    return len(photos), len(entries)


def _view(width: int, height: int, mirrored: bool, turn_deg: float) -> Crop:
    """The whole photo on a square, turned about its middle."""
    turn = math.radians(turn_deg)
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    side = math.ceil(max(width * cos + height * sin, width * sin + height * cos))
    return Crop((0.5 * (width - 1), 0.5 * (height - 1)), side, min(side, _LONGEST_PX), mirrored, turn)


def _brought_back(hand: HandMesh, view: Crop, camera: Camera, number: int) -> _Seen:
    back = view.inverse
    joints_2d = hand.joints_2d @ back[:, :2].T + back[:, 2]
    joints = hand.joints * (np.array([-1.0, 1.0, 1.0]) if view.mirrored else 1.0) @ view.turned_back.T
    (x, y), _ = box_middle_half(joints_2d)
    ray = np.array([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, 1.0])
    side = other_side(hand.side) if view.mirrored else hand.side
    return _Seen(number, side, joints_2d, joints @ view_rotation(ray), hand.score)


def _same_hands(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """The hands of all views, sorted by which they are: each view adds at most one to a hand."""
    groups: list[list[_Seen]] = []
    for hand in sorted(seen, key=lambda one: -one.score):
        free = [group for group in groups if all(other.view != hand.view for other in group)]
        overlaps = [float(box_iou(group[0].box, hand.box)) for group in free]
        if overlaps and max(overlaps) > SAME_HAND_IOU:
            free[int(np.argmax(overlaps))].append(hand)
        else:
            groups.append([hand])
    return groups


def _agreed(group: Sequence[_Seen]) -> HandLabel:
    right = sum(hand.side == "right" for hand in group)
    side: Side = "right" if 2 * right >= len(group) else "left"
    agreeing = [hand for hand in group if hand.side == side]
    joints_2d = np.median([hand.joints_2d for hand in agreeing], axis=0)
    joints = np.median([hand.joints for hand in agreeing], axis=0)
    _, half = box_middle_half(joints_2d)
    apart = np.linalg.norm([hand.joints_2d - joints_2d for hand in group], axis=-1).mean()
    score = float(np.mean([hand.score for hand in group]))
    return HandLabel(side, joints_2d, joints, float(apart / (2 * half.max())), score, len(group), len(agreeing))


def main(argv: Sequence[str] | None = None) -> None:
    """Label the hands of photos by our own networks, to train on them.

    A user's mistake raises ValueError or FileNotFoundError.
    """
    parser = argparse.ArgumentParser(prog="handmesh data label", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="photos, with or without a labels.json")
    parser.add_argument(
        "--out", type=Path, required=True, help="gets a folder like each, for `handmesh train --photos`"
    )
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), help="names or .onnx files of hand networks")
    parser.add_argument(
        "--convention",
        choices=get_args(Convention),
        default="freihand",
        help="whose spots these networks name on photos; those of 4,506,496 samples and fewer name MediaPipe's",
    )
    options = parser.parse_args(argv)
    from tqdm import tqdm  # here, as --help needs no more than the core

    if len({folder.resolve().name for folder in options.folders}) < len(options.folders):
        raise ValueError("two of the folders have one name, and so would their labels: label them one by one")
    estimators = [HandMeshEstimator.from_pretrained(weights) for weights in options.weights]
    for folder in options.folders:
        photos, labelled = label_folder(
            folder, options.out / folder.resolve().name, estimators, options.convention, tqdm
        )
        sys.stdout.write(f"{folder.name}: {labelled} of {photos} photos without trusted labels got some\n")


if __name__ == "__main__":
    main()
