"""Predictions for FreiHAND's evaluation split in the official form: joints and vertices in the camera, in metres."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays
from handmesh.atomic import written_whole
from handmesh.crop import CROP_SCALE, Crop, roll
from handmesh.datasets.freihand_files import FreiHandSplit, camera_of, scale_of
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.freihand_score import Frames
from handmesh.records import Camera, Side, box_of_points

Boxes = Literal["labels", "image", "detector"]
"""Where crops come from: the labelled keypoints' tight box, the whole published image (itself a crop), the detector."""

CONSTANT_DEPTH_M = 0.7
"""How far FreiHAND's hands stand on average: its README gives 70.8 cm as the error of predicting zeros."""

_DIGITS = 7  # of a metre's fraction that are written

Array = NDArray[np.float64]
Watch = Callable[[Iterable[int]], Iterable[int]]
Hands = Callable[[Sequence[int]], Frames]
"""Gives the hands of some frames, by number."""


@dataclass(frozen=True)
class View:
    """A way to look at a frame: the crop enlarged by `zoom`, the camera rolled by `roll_deg` (x towards y)."""

    zoom: float = 1.0
    roll_deg: float = 0.0


ONE_VIEW = (View(),)
TEST_TIME_VIEWS = (View(), View(zoom=0.88), View(zoom=1.12), View(roll_deg=-20.0), View(roll_deg=20.0))
"""Test-time augmentation: the mean of these five. A mode of its own, never the real-time number."""


@dataclass(frozen=True)
class NetworkHands:
    """The right hand of each frame as an estimator sees it, the mean over `views`.

    `known_scale` resizes hands, and their distance with them, to the bone length that FreiHAND gives away with the
    images (`evaluation_scale.json`): also a mode of its own. Where the detector finds nothing the whole image is taken
    (`Frames.without_detection`). Raises ValueError if the split lacks what a mode needs.
    """

    estimator: HandMeshEstimator
    files: FreiHandSplit
    boxes: Boxes = "labels"
    views: Sequence[View] = ONE_VIEW
    known_scale: bool = False

    def __post_init__(self) -> None:
        if self.boxes == "labels" and self.files.joints is None:
            raise ValueError(f"{self.files.root} has no evaluation_xyz.json to take boxes from: use boxes 'image'")
        if self.known_scale and self.files.scale is None:
            raise ValueError(f"{self.files.root} has no evaluation_scale.json")

    def __call__(self, numbers: Sequence[int]) -> Frames:
        images = [self.files.image(number) for number in numbers]
        cameras = [
            camera_of(self.files.intrinsics[number], image) for number, image in zip(numbers, images, strict=True)
        ]
        found = [self._box(number, image) for number, image in zip(numbers, images, strict=True)]
        boxes = [whole_image(image) if box is None else box for box, image in zip(found, images, strict=True)]
        seen = [self._look(images, boxes, cameras, view) for view in self.views]
        joints, vertices = (np.mean([getattr(one, name) for one in seen], 0) for name in ("joints", "vertices"))
        if self.known_scale:
            assert self.files.scale is not None
            factor = (self.files.scale[list(numbers)] / scale_of(joints))[:, None, None]
            joints, vertices = joints * factor, vertices * factor  # about the camera: the picture stays the same
        return Frames(joints, vertices, without_detection=sum(box is None for box in found))

    def _box(self, number: int, image: NDArray[np.uint8]) -> Array | None:
        """Where the crop is, or None where the detector found nothing."""
        if self.boxes == "image":
            return whole_image(image)
        if self.boxes == "detector":
            found = self.estimator.detect(image)
            return max(found, key=lambda one: one.score).box if found else None
        assert self.files.joints is not None
        points = self.files.joints[number] @ self.files.intrinsics[number].T
        return box_of_points(points[:, :2] / points[:, 2:])

    def _look(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Array], cameras: Sequence[Camera], view: View
    ) -> Frames:
        """Hands in the true camera, of one view of it."""
        R_rolled_cam = roll(np.radians(view.roll_deg))
        size = int(self.estimator.network.number("input_size"))
        frames, rolled_boxes, rolled_cameras = [], [], []
        for image, box, camera in zip(images, boxes, cameras, strict=True):
            to_rolled = camera.matrix @ R_rolled_cam @ np.linalg.inv(camera.matrix)
            middle = (box[:2] + box[2:]) / 2
            # A hand far from the principal point would roll out of the frame: the frame moves along with it.
            shift = middle - (to_rolled @ [*middle, 1.0])[:2]
            to_rolled[:2, 2] += shift
            zoomed = box if view.zoom == 1 else Crop.from_box(box, size).zoomed_box(view.zoom)
            rolled_boxes.append(zoomed[None])
            rolled_cameras.append(replace(camera, cx=camera.cx + shift[0], cy=camera.cy + shift[1]))
            height, width = image.shape[:2]
            frames.append(cv2.warpPerspective(image, to_rolled, (width, height)) if view.roll_deg else image)
        sides: list[list[Side | None]] = [["right"]] * len(frames)
        as_is = [[0.0]] * len(frames)  # one look: the benchmark's pictures are not turned upright
        hands = self.estimator.batch(frames, rolled_boxes, sides, rolled_cameras, as_is)
        joints = np.stack([hand.joints.astype(np.float64) + hand.translation for (hand,) in hands])
        vertices = np.stack([hand.vertices.astype(np.float64) + hand.translation for (hand,) in hands])
        return Frames(joints @ R_rolled_cam, vertices @ R_rolled_cam)


def whole_image(image: NDArray[np.uint8]) -> Array:
    """The box (4,) whose crop is the image, or a square round it."""
    height, width = image.shape[:2]
    middle, half = np.array([width - 1, height - 1]) / 2, max(height, width) / 2 / CROP_SCALE
    return np.concatenate([middle - half, middle + half])


def constant_hand(hand_model: HandModelArrays) -> Hands:
    """The floor of sanity: the hand model's mean pose and mean shape, ahead of the camera, whatever the picture."""
    import torch

    from handmesh.model.hand_model import HandModel
    from handmesh.model.rotations import rotvec_to_rotmat

    pose = np.concatenate([np.zeros(3), hand_model.hands_mean.astype(np.float64)]).reshape(1, 16, 3)
    with torch.no_grad():
        hand = HandModel(hand_model, torch.float64)(
            rotvec_to_rotmat(torch.from_numpy(pose)), torch.zeros(1, 10).double()
        )
    ahead = np.array([0.0, 0.0, CONSTANT_DEPTH_M])
    joints, vertices = ((points - hand.keypoints[:, :1]).numpy() + ahead for points in (hand.keypoints, hand.vertices))
    return lambda numbers: Frames(np.repeat(joints, len(numbers), 0), np.repeat(vertices, len(numbers), 0))


def predict(
    hands: Hands, count: int, output: Path, run: dict[str, Any], *, batch: int = 32, watch: Watch = iter
) -> Frames:
    """Predict frames 0 to `count` - 1 and write them to `output`, whole or not at all; returns them as written.

    Every batch is kept in the folder `{output}.parts` until then: an interrupted run goes on where it was. `run` says
    in plain values what is predicted with what; `watch` passes the batches' first frames on, to show progress.

    Raises ValueError if the kept parts are another run's.
    """
    parts = output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    _check_same_run(parts / "run.json", {**run, "count": count, "batch": batch})
    stored = []
    for start in watch(range(0, count, batch)):
        part = parts / f"{start:08d}.npz"
        if not part.is_file():
            found = hands(range(start, min(start + batch, count)))
            with written_whole(part) as temporary:
                np.savez(temporary, **vars(found))
        with np.load(part) as arrays:
            joints, vertices = (np.round(arrays[name], _DIGITS) for name in ("joints", "vertices"))
            stored.append(Frames(joints, vertices, without_detection=int(arrays["without_detection"])))
    joints, vertices = (np.concatenate([getattr(one, name) for one in stored]) for name in ("joints", "vertices"))
    frames = Frames(joints, vertices, without_detection=sum(one.without_detection for one in stored))
    write_prediction(output, frames)
    shutil.rmtree(parts)
    return frames


def write_prediction(path: Path, frames: Frames) -> None:
    """The official file: ``[[joints of each frame], [vertices of each frame]]``."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for opening, points in (("[[", frames.joints), ("],[", frames.vertices)):
            file.write(opening)
            for number, frame in enumerate(points):
                file.write(("," if number else "") + json.dumps(np.round(frame, _DIGITS).tolist()))
        file.write("]]")


def _check_same_run(path: Path, run: dict[str, Any]) -> None:
    text = json.dumps(run, indent=1, sort_keys=True)
    if not any(path.parent.glob("*.npz")):
        with written_whole(path) as temporary:
            temporary.write_text(text)
    elif path.read_text() != text:
        raise ValueError(
            f"{path.parent} holds parts of another run: {path.read_text()}\nChoose another output or delete that folder"
        )
