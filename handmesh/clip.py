"""The hands of a whole clip without their meshes: frames as they come, and a track for each hand."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from handmesh.records import HandMesh, Side
from handmesh.smoothing import rotvec_to_rotmat

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HandTrack:
    """One hand through a clip; T frames in which it was seen, of one side and one shape.

    ``frames`` (T,) numbers from 0 and ``times_s`` (T,); ``rotations`` (T, 16, 3, 3) in MANO's order, the first in
    camera axes; ``translations`` (T, 3) m: the wrist in the camera; ``scores`` (T,); ``betas`` (10,).
    """

    track_id: int
    side: Side
    betas: NDArray[np.float64]
    frames: NDArray[np.int64]
    times_s: NDArray[np.float64]
    rotations: NDArray[np.float64]
    translations: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Side and number, such as right_0."""
        return f"{self.side}_{self.track_id}"


@dataclass(eq=False)
class Clip:
    """A clip as it is recorded: ``add`` the hands of every frame, also where there are none."""

    fps: float
    times_s: list[float] = field(default_factory=list)
    frames: list[list[HandMesh]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0.0):
            raise ValueError(f"fps must be a positive number but is {self.fps}")

    def add(self, time_s: float, hands: Sequence[HandMesh]) -> None:
        """Append a frame. Meshes are dropped (the parameters give them back), so that long clips fit into memory.

        Raises ``ValueError`` for a time that is not after the last frame's, and for two hands of one number.
        """
        if not math.isfinite(time_s) or (self.times_s and time_s <= self.times_s[-1]):
            raise ValueError(f"a clip's times must be finite and increase: {time_s} s came after {self.times_s[-1:]}")
        numbers = [hand.track_id for hand in hands if hand.track_id is not None]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"two hands of one frame cannot have one track_id: they have {numbers}")
        nothing, none = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
        self.times_s.append(float(time_s))
        self.frames.append([replace(hand, vertices=nothing, faces=none) for hand in hands])

    def tracks(self) -> list[HandTrack]:
        """One track a ``track_id``, by number; hands without a number count as 0, 1, ... of their frame.

        A track is of the side that most of its frames say; frames of the other side are left out. Its shape is the
        median of its frames' shapes: a tracker settles on one.
        """
        seen: dict[int, list[tuple[int, HandMesh]]] = {}
        for number, hands in enumerate(self.frames):
            for place, hand in enumerate(hands):
                seen.setdefault(place if hand.track_id is None else hand.track_id, []).append((number, hand))
        return [self._track(number, seen[number]) for number in sorted(seen)]

    def _track(self, track_id: int, seen: list[tuple[int, HandMesh]]) -> HandTrack:
        sides: Counter[Side] = Counter(hand.side for _, hand in seen)
        side = sides.most_common(1)[0][0]
        kept = [(number, hand) for number, hand in seen if hand.side == side]
        if len(kept) < len(seen):
            _log.warning(
                "track %d changes its side: %d of %d frames left out", track_id, len(seen) - len(kept), len(seen)
            )
        hands = [hand for _, hand in kept]
        rotvecs = np.stack([np.concatenate([hand.global_orient[None], hand.hand_pose]) for hand in hands])
        frames = np.array([number for number, _ in kept])
        return HandTrack(
            track_id=track_id,
            side=side,
            betas=np.median([hand.betas for hand in hands], axis=0).astype(np.float64),
            frames=frames,
            times_s=np.array(self.times_s)[frames],
            rotations=rotvec_to_rotmat(rotvecs),
            translations=np.stack([hand.translation for hand in hands]).astype(np.float64),
            scores=np.array([hand.score for hand in hands]),
        )
