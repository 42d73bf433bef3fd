"""A person's own hand: its shape from a flat hand held still, its size from one measured length.

One camera sees proportions, but not whether a hand is small and near or large and far; the network guesses sizes from
what hands look like. A length measured with a ruler, from the crease of the wrist to the tip of the middle finger of a
flat hand, makes depths metric for good.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays
from handmesh.atomic import written_whole
from handmesh.records import HandMesh, frozen_array
from handmesh.skeleton import FINGERS, KEYPOINTS, MANO_JOINTS

HOLD_S = 2.0
"""So long a flat hand is looked at."""

MIN_VIEWS = 15
GRACE_S = 0.3
"""Shorter moments in which the hand is not flat do not count against it."""

STRAIGHT_DEG = 35.0
FACING_DEG = 40.0
STILL = 0.2
"""A hand that goes farther than this share of its size from where it has been in the mean is not still."""

LENGTHS_M = (0.05, 0.30)
"""Hands are longer than the first and shorter than the second."""

MAX_BETA = 20.0
"""No hand's shape is so many standard deviations from the mean: the open hand model has all `LENGTHS_M` within 7."""


@dataclass(frozen=True, eq=False)
class HandShape:
    """A person's hand: ``betas`` (10,), its length in metres, and whether that was measured or is a guess.

    Raises ``ValueError`` for what no hand has.
    """

    betas: NDArray[np.float64]
    length_m: float
    measured: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", frozen_array(self.betas, (10,), np.float64, "HandShape.betas"))
        _check_length(self.length_m)
        object.__setattr__(self, "length_m", float(self.length_m))  # also of numpy's numbers, which JSON does not take
        object.__setattr__(self, "measured", bool(self.measured))
        if np.abs(self.betas).max() > MAX_BETA:
            raise ValueError(
                f"a hand's betas must lie between -{MAX_BETA:g} and {MAX_BETA:g} standard deviations but are "
                f"{self.betas.tolist()}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as .json. Raises ``ValueError`` for another suffix."""
        path = Path(path)
        check_shape_suffix(path)
        facts = {"format": "handmesh hand", "version": 1, "length_m": self.length_m, "measured": self.measured}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({**facts, "betas": self.betas.tolist()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HandShape:
        """Read what `save` wrote. Raises ``FileNotFoundError`` or ``ValueError`` if it is none."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: `handmesh calibrate-hand` makes one")
        try:
            facts = json.loads(path.read_text())
            return cls(np.array(facts["betas"], float), float(facts["length_m"]), bool(facts["measured"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no hand's shape ({error}); make one with `handmesh calibrate-hand`") from error


def check_shape_suffix(path: Path) -> None:
    """Raise ``ValueError`` unless a hand's shape can be written under such a name."""
    if path.suffix.lower() != ".json":
        raise ValueError(f"cannot write a hand's shape to {path.name!r}: its suffix must be .json")


def hand_length(model: HandModelArrays, betas: NDArray[np.floating]) -> float:
    """Length in metres of a hand of shape ``betas`` (10,): wrist to the tip of the middle finger along its bones."""
    return float(_lengths(model, np.asarray(betas, np.float64)).sum())


def shape_of_length(model: HandModelArrays, betas: NDArray[np.floating], length_m: float) -> NDArray[np.float64]:
    """The shape (10,) of a given length that is nearest to ``betas``, in standard deviations.

    Raises ``ValueError`` for a length that no hand has.
    """
    _check_length(length_m)
    shape = np.asarray(betas, np.float64).copy()
    for _ in range(10):
        slope = np.array([hand_length(model, shape + step) - hand_length(model, shape) for step in 1e-3 * np.eye(10)])
        slope /= 1e-3
        shape = shape + slope * (length_m - hand_length(model, shape)) / (slope @ slope)
    return shape


def _check_length(length_m: float) -> None:
    shortest_mm, longest_mm = (1e3 * bound for bound in LENGTHS_M)
    if not shortest_mm < 1e3 * length_m < longest_mm:
        raise ValueError(
            f"a hand's length must lie between {shortest_mm:g} and {longest_mm:g} mm but is {1e3 * length_m:g} mm: "
            "measure from the crease of the wrist to the tip of the middle finger"
        )


def _lengths(model: HandModelArrays, betas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths (4,) of the bones from the wrist to the middle finger's tip."""
    chain = [MANO_JOINTS.index(name) for name in ("wrist", "middle1", "middle2", "middle3")]
    rows = model.J_regressor[chain].astype(np.float64)
    joints = rows @ model.v_template + np.einsum("jv,vcb,b->jc", rows, model.shapedirs, betas)
    tip = int(model.fingertips[FINGERS.index("middle")])
    end = model.v_template[tip] + model.shapedirs[tip].astype(np.float64) @ betas
    return np.linalg.norm(np.diff(np.concatenate([joints, end[None]]), axis=0), axis=-1)


class FlatHand:
    """Watches a tracked hand until it has been flat, still and facing the camera for ``hold_s`` seconds."""

    def __init__(self, model: HandModelArrays, hold_s: float = HOLD_S) -> None:
        self._model, self._hold_s = model, hold_s
        self.start_again()

    def start_again(self) -> None:
        """Forget what was seen."""
        self._betas: list[NDArray[np.floating]] = []
        self._held_s = 0.0
        self._good_s = -np.inf
        self._places: list[NDArray[np.floating]] = []

    def watch(self, hand: HandMesh | None, time_s: float) -> float:
        """Take in the hand of the next frame, None where there is none; returns the share of the time held, 0 to 1.

        Give it a tracker's hands without smoothing, as smoothed ones have the mean shape of all frames before, and
        without a shape that is fixed already.
        """
        if hand is not None and is_flat(hand):
            if not 0.0 <= time_s - self._good_s <= GRACE_S or not self._is_still(hand):
                self.start_again()
            else:
                self._held_s += time_s - self._good_s
            self._good_s = time_s
            self._betas.append(hand.betas)
            self._places.append(hand.joints_2d.mean(axis=0))
        elif time_s - self._good_s > GRACE_S:
            self.start_again()
        return min(self._held_s / self._hold_s, len(self._betas) / MIN_VIEWS, 1.0)

    def shape(self, length_m: float | None = None) -> HandShape:
        """The shape seen, of the given length where it was measured.

        Raises ``ValueError`` while the hand has not been held long enough, or for a length that no hand has.
        """
        if min(self._held_s / self._hold_s, len(self._betas) / MIN_VIEWS) < 1.0:
            raise ValueError(
                f"the hand has not been flat, still and facing the camera for {self._hold_s:g} s: spread the fingers a "
                "little and show the palm or the back"
            )
        betas = np.median(self._betas, axis=0).astype(np.float64)
        if length_m is None:
            return HandShape(betas, hand_length(self._model, betas), measured=False)
        return HandShape(shape_of_length(self._model, betas, length_m), length_m, measured=True)

    def _is_still(self, hand: HandMesh) -> bool:
        size = float(np.ptp(hand.joints_2d, axis=0).max())
        gone = hand.joints_2d.mean(axis=0) - np.mean(self._places, axis=0)
        return float(np.linalg.norm(gone)) < STILL * size


def is_flat(hand: HandMesh) -> bool:
    """Whether the four fingers are straight and the palm, or the back of the hand, faces the camera."""
    joints = hand.joints.astype(np.float64)
    at = {name: joints[row] for row, name in enumerate(KEYPOINTS)}
    for finger in FINGERS[1:]:
        chain = [at["wrist"], *(at[f"{finger}{i}"] for i in (1, 2, 3)), at[f"{finger}_tip"]]
        bones = [b - a for a, b in pairwise(chain)]
        bends = [_angle_deg(a, b) for a, b in pairwise(bones)]
        if max(bends) > STRAIGHT_DEG:
            return False
    normal = np.cross(at["index1"] - at["wrist"], at["little1"] - at["wrist"])
    facing = _angle_deg(normal, joints.mean(axis=0) + hand.translation)
    return min(facing, 180.0 - facing) < FACING_DEG


def _angle_deg(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
