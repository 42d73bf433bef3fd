"""Real photos whose keypoints another hand tracker labelled, for training and validation without a motion-capture rig.

A folder holds images and `labels.json`: per file name `hands`, a list of `side`, `kp2d` (21, 2) px, `kp3d` (21, 3) m
from the wrist in image axes, and `spread`, the labeller's disagreement with itself as a share of the hand's size. A
`convention` may say whose spots the keypoints are: "mediapipe", as without a word, or "freihand", which are ours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from handmesh.crop import Crop
from handmesh.datasets.cutout import hand_opacity
from handmesh.datasets.freihand_files import read_json
from handmesh.datasets.sample import HandSample
from handmesh.records import Convention, Side

_log = logging.getLogger(__name__)

SURE_SPREAD, WRONG_SPREAD = 0.02, 0.05  # labels are trusted fully below the first, not at all above the second
_REGION_SCALE = 1.8  # of the crop that the largest network sees; what a jittered one can reach
_LARGEST_CROP_PX = 224
_REGION_PX = 320
_NUMBERS = {"kp2d": (21, 2), "kp3d": (21, 3), "spread": ()}  # their shapes


@dataclass(frozen=True)
class _Hand:
    region: np.ndarray  # (h, w, 3) uint8 RGB cut-out of the photo
    joints_2d: np.ndarray  # px of the region
    joints: np.ndarray | None  # (21, 3) m from the wrist
    side: Side
    trust: float
    alone: bool  # nobody has seen another hand in the photo
    side_known: bool
    stretched: bool
    convention: Convention

    @cached_property
    def opacity(self) -> np.ndarray | None:
        return hand_opacity(self.region, self.joints_2d)


class PhotoDataset:
    """Labelled hands of photo folders, kept in memory as cut-outs of at most 320 px."""

    def __init__(self, folders: list[Path], *, distorted: frozenset[str] = frozenset(), cut_out: bool = False) -> None:
        """`distorted` names folders whose images were stretched: their 3D labels are not used, and no mesh has to meet
        their keypoints.

        With `cut_out` hands come with their opacity, where they can be told from what is behind them; it takes some
        0.05 s the first time that a hand is asked for. Raises FileNotFoundError for a folder without labels, ValueError
        for a name in `distorted` that no folder has and for labels that lack something.
        """
        unknown = distorted - {folder.name for folder in folders}
        if unknown:
            raise ValueError(
                f"no photo folder is called {', '.join(sorted(unknown))}: folders are named by their last part"
            )
        self.cut_out = cut_out
        self.hands: list[_Hand] = []
        for folder in folders:
            before = len(self.hands)
            for path, labels, count in trusted_labels(folder):
                image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
                if image is None:
                    raise ValueError(f"cannot read image {path}")
                stretched = folder.name in distorted
                try:
                    self.hands += [_cut_out(image, label, stretched=stretched, alone=count == 1) for label in labels]
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
            _log.info("%s: %d hands", folder.name, len(self.hands) - before)

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, index: int) -> HandSample:
        hand = self.hands[index]
        return HandSample(
            image=hand.region,
            joints_2d=hand.joints_2d,
            side=hand.side,
            joints=hand.joints,
            alpha=hand.opacity if self.cut_out else None,
            trust_2d=hand.trust,
            # MediaPipe's own 3D errs by more than ours, and its bones are of other lengths.
            trust_3d=hand.trust if hand.convention == "freihand" else 0.0,
            exact_depth=False,
            alone=hand.alone,
            stretched=hand.stretched,
            side_known=hand.side_known,
            convention=hand.convention,
        )


def trusted_labels(folder: Path) -> list[tuple[Path, list[dict[str, Any]], int]]:
    """Photos of a folder, in name order, that have labels whose spread is below WRONG_SPREAD: the photo, these labels,
    and how many hands are labelled there, trusted or not.

    Raises what `read_labels` raises.
    """
    photos = []
    for path, hands in read_labels(folder):
        labels = [label for label in hands if label["spread"] < WRONG_SPREAD]
        if labels:
            photos.append((path, labels, len(hands)))
    return photos


def read_labels(folder: Path) -> list[tuple[Path, list[dict[str, Any]]]]:
    """A folder's labelled photos, in name order, each with all of its labelled hands.

    Raises FileNotFoundError for a folder without labels, ValueError for labels that are not whole.
    """
    file = folder / "labels.json"
    if not file.is_file():
        raise FileNotFoundError(f"no labels.json in {folder}: a set of hand photos needs its labels")
    entries = read_json(file)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "hands" in e for e in entries.values()):
        raise ValueError(f"{file} must name photos, each with its hands")
    for name, entry in entries.items():
        for label in entry["hands"]:
            _check_label(label, f"{file}: a hand of {name}")
    return [(folder / name, entry["hands"]) for name, entry in sorted(entries.items())]


def _check_label(label: dict[str, Any], where: str) -> None:
    """Raise ValueError that says what a label lacks, or what of it is no label."""
    for key in ("side", *_NUMBERS, *(["side_votes"] if "votes" in label else [])):
        if key not in label:
            raise ValueError(f"{where} lacks {key}; `handmesh data label` makes whole labels")
    if label["side"] not in get_args(Side):
        raise ValueError(f"{where} must be of side {' or '.join(get_args(Side))}, not {label['side']!r}")
    for key, shape in _NUMBERS.items():
        try:
            numbers = np.asarray(label[key], np.float64)
        except (TypeError, ValueError):
            numbers = np.full(shape, np.nan)
        if numbers.shape != shape or not np.isfinite(numbers).all():
            raise ValueError(f"{where}: {key} must be {f'{shape} ' if shape else ''}finite numbers")


def side_is_known(label: dict[str, Any]) -> bool:
    """Whether nearly all views that labelled a hand agree on its side (`side_votes` of `votes`), where that is told."""
    return "votes" not in label or label["side_votes"] >= max(4, label["votes"] - 1)


def convention_of(label: dict[str, Any]) -> Convention:
    """Whose spots a label's keypoints are. Raises ValueError for a convention that nobody knows."""
    convention = label.get("convention", "mediapipe")
    if convention not in get_args(Convention):
        raise ValueError(f"a label's convention must be one of {', '.join(get_args(Convention))}, not {convention!r}")
    return convention


def _cut_out(image: np.ndarray, label: dict, *, stretched: bool, alone: bool) -> _Hand:
    points = np.asarray(label["kp2d"], np.float64)
    low, high = points.min(0), points.max(0)
    if (low == high).all():
        raise ValueError("all keypoints of a hand lie in one place")
    crop = Crop.from_box([*low, *high], _LARGEST_CROP_PX)
    half, centre = max(crop.side_px * _REGION_SCALE / 2, 8.0), np.array(crop.center)
    corner = np.maximum(np.floor(centre - half), 0).astype(int)
    end = np.clip(np.ceil(centre + half) + 1, 0, [image.shape[1], image.shape[0]]).astype(int)
    region = image[corner[1] : end[1], corner[0] : end[0]]
    if not region.size:
        raise ValueError("a hand's keypoints lie outside the picture")
    points = points - corner
    shrink = min(1.0, _REGION_PX / max(region.shape[:2]))
    if shrink < 1:
        size = (max(1, round(region.shape[1] * shrink)), max(1, round(region.shape[0] * shrink)))
        ratio = np.array(size) / (region.shape[1], region.shape[0])
        region, points = cv2.resize(region, size, interpolation=cv2.INTER_AREA), (points + 0.5) * ratio - 0.5
    trust = np.clip((WRONG_SPREAD - label["spread"]) / (WRONG_SPREAD - SURE_SPREAD), 0.0, 1.0)
    joints = np.asarray(label["kp3d"], np.float64)
    return _Hand(
        region=region.copy(),
        joints_2d=points,
        joints=None if stretched else joints - joints[:1],
        side=label["side"],
        trust=float(trust),
        alone=alone,
        side_known=side_is_known(label),
        stretched=stretched,
        convention=convention_of(label),
    )
