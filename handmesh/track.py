"""One hand on its way through a video: its path in the picture, its side, its shape and its filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from handmesh.crop import turn_upright
from handmesh.handedness import CERTAIN, SURE, SideBelief, for_side, right_evidence
from handmesh.placement import project_joints
from handmesh.records import Camera, HandMesh, Side, Sighting, box_of_keypoints, middle_and_size, other_side
from handmesh.smoothing import RotationFilter, SettlingMean, Smoothing, VectorFilter

DRIFT_GAIN = 0.4
"""Share of a new speed in the picture that the path takes over."""

SHORTEST_S = 1.0 / 60.0
"""Speeds are taken over so long at least: frames that come in bursts are closer by their times than they were taken."""

STEADY_PLACE, STEADY_SIZE = 0.2, 0.35
"""A crop follows its hand fully when that is found so many sizes from where it was expected, or grown by so much (ln),
and less for less: a crop that does not tremble makes the network's answers tremble less."""

STEADY_TURN = 0.5
"""The same for a hand that stands off the crop's upright by so many radians."""

LEAST_PLACE, LEAST_SIZE, MOST_SIZE, LEAST_TURN = 0.1, 0.05, 0.5, 0.05
"""Shares of what is found that a crop takes over at least, and of the size at most."""

LOST_COASTS_S = 0.1
"""A hand that is simply gone keeps moving for about so long ..."""

HIDDEN_COASTS_S = 0.8
"""... and one that has gone behind another for so long."""

DOUBTFUL_FRAMES = 10
"""After so many frames a hand's side should be known."""

ENTANGLED_S = 0.2
"""So long after another hand was in the way both sides are asked about."""

AFTERMATH_S = 1.0
"""So long after an entanglement hands may turn out to have been exchanged."""

SIDE_TELLS = 0.5
"""What a certain side weighs against a distance of one size, where two hands may be taken for each other."""

SPEED_OF_SIZES = 6.0
"""So many times its own size a hand may move in a second out of sight."""


@dataclass(eq=False)
class Track:
    """A hand that is followed. Places in the picture are pixels; ``center`` and ``size`` make the next crop's box.
    ``turn`` is by how much that crop is turned for the hand to stand upright.

    ``shown`` is its mesh as last given out. ``alone`` is center, size and drift of its path from when it was last seen
    with no other hand in its crop.
    """

    id: int
    belief: SideBelief
    smoothing: Smoothing | None
    shown: HandMesh | None = None
    center: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    size: float = 0.0
    turn: float = 0.0
    drift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    missed: int = 0
    missed_s: float = 0.0
    hidden: bool = False
    seen_apart: int = 0
    entangled_s: float = math.inf
    against: int = 0
    alone: tuple[NDArray[np.float64], float, NDArray[np.float64]] | None = None
    shape: SettlingMean = field(default_factory=SettlingMean)

    def __post_init__(self) -> None:
        self._since_s = 0.0
        self._seen_at = self.center
        self.forget_motion()

    @property
    def side(self) -> Side:
        return self.belief.side

    @property
    def hand(self) -> HandMesh:
        """The mesh of a track that has been given out."""
        assert self.shown is not None
        return self.shown

    @property
    def is_doubtful(self) -> bool:
        """It has been seen for a while, and still nobody can tell its side."""
        return self.seen_apart >= DOUBTFUL_FRAMES and abs(self.belief.right) < SURE

    @property
    def asks(self) -> tuple[Side, ...]:
        """The sides to run the next crop as: both while in doubt, and next to another hand."""
        return (self.side, other_side(self.side)) if self.entangled_s < ENTANGLED_S else self.belief.asks

    @property
    def box(self) -> NDArray[np.float64]:
        """(4,) the square, tight box that the next crop is cut around."""
        return np.concatenate([self.center - 0.5 * self.size, self.center + 0.5 * self.size])

    @property
    def path_box(self) -> NDArray[np.float64] | None:
        """(4,) where the path from when it was last seen alone leads: another hand may have drawn ``box`` away."""
        if self.alone is None:
            return None
        center, size, _ = self.alone
        return np.concatenate([center - 0.5 * size, center + 0.5 * size])

    def forget_motion(self) -> None:
        """Start the filters afresh, as the hand has jumped."""
        settings = self.smoothing or Smoothing()
        self.rotation_filter = RotationFilter(settings.rotation)
        self.direction_filter = VectorFilter(settings.translation)
        self.depth_filter = VectorFilter(settings.depth)
        self.velocity = np.zeros(3)

    def filter_by(self, smoothing: Smoothing | None) -> None:
        """Filter so from now on: afresh, where it was filtered otherwise or not at all."""
        if smoothing != self.smoothing:
            self.smoothing = smoothing
            self.forget_motion()

    def move_on(self, dt_s: float) -> None:
        """Expect the hand where its path leads in ``dt_s`` seconds."""
        self._since_s += dt_s
        self.entangled_s += dt_s
        self.center = self.center + dt_s * self.drift
        if self.alone is not None:
            center, size, drift = self.alone
            self.alone = center + dt_s * drift, size, drift * math.exp(-dt_s / HIDDEN_COASTS_S)
        if self.missed:
            self.drift = self.drift * math.exp(-dt_s / (HIDDEN_COASTS_S if self.hidden else LOST_COASTS_S))

    def hear(self, side_scores: Mapping[Side, float], trust: float) -> None:
        """Take in what a frame says of the side; ``against`` counts frames in a row that are sure it is the other."""
        evidence = right_evidence(side_scores)
        opposed = (evidence if self.side == "left" else -evidence) > SURE
        free = trust > 0.5 and self.entangled_s < AFTERMATH_S and abs(self.belief.right) > SURE
        self.against = self.against + 1 if free and opposed else 0
        self.belief.hear(side_scores, trust)

    def exchange(self, other: Track) -> None:
        """Let two tracks change places: numbers, sides and shapes go over to where the other one has been."""
        for name in ("id", "belief", "shape"):
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)
        for track in (self, other):
            track.against, track.entangled_s, track.alone = 0, math.inf, None
            track.forget_motion()

    def strangeness(self, hand: Sighting, right_log_odds: float) -> float:
        """How little a hand next to another fits this track: `surprise`, and being of the other side."""
        fits = for_side(self.side, right_log_odds) / CERTAIN
        return self.surprise(hand) - SIDE_TELLS * fits * min(1.0, abs(self.belief.right) / SURE)

    def surprise(self, hand: Sighting) -> float:
        """How far a hand stands from where this one is expected, in sizes, with the difference in size."""
        center, size = middle_and_size(hand.joints_2d)
        return float(np.linalg.norm(center - self.center)) / self.size + abs(math.log(size / self.size))

    def see(self, joints_2d: NDArray[np.floating], trust: float) -> None:
        """Note where the hand's joints (21, 2) were found; ``trust`` (0 to 1) is small where another is in the way."""
        center, size = middle_and_size(joints_2d)
        if self.size > 0.0 and self._since_s > 0.0 and self.missed_s < LOST_COASTS_S:
            speed = (center - self._seen_at) / max(self._since_s, SHORTEST_S)
            self.drift = self.drift + DRIFT_GAIN * trust * (speed - self.drift)
        elif self.missed_s >= LOST_COASTS_S:
            self.drift = np.zeros(2)
        self._aim(center, size, turn_upright(joints_2d))
        self._seen_at = center
        self._since_s, self.missed, self.missed_s, self.hidden = 0.0, 0, 0.0, False

    def note_path(self, side_scores: Mapping[Side, float], trust: float) -> None:
        """Keep the path that a hand is on that is surely this one, before another one comes into its crop."""
        if trust > 0.5 and for_side(self.side, right_evidence(side_scores)) > SURE:
            self.alone = self.center, self.size, self.drift

    def _aim(self, center: NDArray[np.float64], size: float, turn: float) -> None:
        """Cut the next crop around a box, turned upright, steadily."""
        if self.size == 0.0 or self.missed:
            self.center, self.size, self.turn = center, size, turn
            return
        off = float(np.linalg.norm(center - self.center)) / self.size
        grown = abs(math.log(size / self.size))
        askew = math.remainder(turn - self.turn, math.tau)
        self.center = self.center + _share(off / STEADY_PLACE, LEAST_PLACE) * (center - self.center)
        self.size += _share(grown / STEADY_SIZE, LEAST_SIZE, MOST_SIZE) * (size - self.size)
        self.turn += _share(abs(askew) / STEADY_TURN, LEAST_TURN) * askew

    def miss(self, dt_s: float, score: float, hidden: bool) -> None:
        """Note that the hand was not found in its crop."""
        self.missed += 1
        self.missed_s += 0.0 if math.isinf(dt_s) else dt_s
        self.hidden = hidden
        self.shown = replace(self.hand, score=min(score, self.hand.score))

    def carry_on(self, camera: Camera, dt_s: float) -> None:
        """Move the mesh of a hand out of sight along its path."""
        self.velocity = self.velocity * math.exp(-dt_s / LOST_COASTS_S)
        moved = self.hand.translation + self.velocity * dt_s
        moved[2] = max(moved[2], 0.5 * float(self.hand.translation[2]))
        joints_2d = project_joints(self.hand.joints, moved, camera)
        self.shown = replace(
            self.hand, translation=moved, joints_2d=joints_2d, box=box_of_keypoints(joints_2d), camera=camera
        )

    def likeness(self, hand: Sighting, right_evidence: float) -> float:
        """How much a hand newly found looks like this one coming back: side, place and size; above -1 it may be."""
        center, size = middle_and_size(hand.joints_2d)
        side = for_side(self.side, right_evidence) / CERTAIN
        side *= min(1.0, abs(self.belief.right) / SURE)
        reach = self.size * (1.0 + SPEED_OF_SIZES * self.missed_s)
        place = min(float(np.linalg.norm(center - self.center)) / reach, 2.0)
        growth = abs(math.log(size / self.size)) / (1.0 + 2.0 * self.missed_s)
        return 1.5 * side - place - growth


def _share(of_full: float, least: float, most: float = 1.0) -> float:
    """What a crop takes over of a change that is so many times the one that it follows fully."""
    return min(max(of_full, least), most)
