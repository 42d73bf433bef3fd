"""Which hand is which: views of a frame against the tracks that are followed, also where hands hide each other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from handmesh.duplicates import each_once, is_same_hand
from handmesh.handedness import SURE, for_side, right_evidence
from handmesh.records import Side, Sighting, box_iou
from handmesh.track import Track

_log = logging.getLogger(__name__)

ONE_MESH_DISTANCE = 0.15
"""Hands that have long been known as two, and may really be near each other, are one below this share of the size."""

APART_FRAMES = 5
"""Two tracks that were seen apart for so many frames are two hands, even where only one of them is in sight."""

ENTANGLED_IOU = 0.25
"""Hands whose boxes overlap by so much are in each other's crops: what the network says of them counts for nothing."""

SURPRISE = 0.4
"""A hand entangled with another is not believed to have moved or grown by more than this share of its size."""

SWAP_MARGIN = 0.3
"""Entangled hands are taken for each other's only if that fits better by more (`Track.strangeness`)."""

OPPOSED = 3.0
"""Log odds against a track's settled side from which on a hand that could be two tracks' is the other one's."""

CLAIM_DECAY, CLAIM_ENDS_S = 0.8, 0.3
"""What is left of a track's claim on a hand after a frame, and after how long without a rival it is forgotten."""

EXCHANGE_FRAMES = 3
"""So many frames in a row must be sure of two hands' changed sides before the hands count as exchanged."""

LIKENESS = -1.0
"""A new hand that is at least so like one that was lost is that one (`Track.likeness`)."""


@dataclass(eq=False)
class View:
    """What the network is asked about one place of a frame, and what it answers, for each side.

    ``track`` is whose crop it is; None for what the detector has found, and for ``path_of``'s crop where its path from
    before an entanglement leads (`Track.path_box`). ``turn`` is that of the crop (`Crop`).
    """

    box: NDArray[np.float64]
    sides: tuple[Side, ...]
    track: Track | None
    answers: dict[Side, Sighting] = field(default_factory=dict)
    path_of: Track | None = None
    turn: float = 0.0

    @property
    def owner(self) -> Track:
        """The track of a view that has one."""
        assert self.track is not None
        return self.track

    @property
    def side_scores(self) -> dict[Side, float]:
        return {side: hand.side_score for side, hand in self.answers.items()}

    @property
    def fit(self) -> float:
        """Log odds that a track's view shows a hand of its side, as far as that is settled."""
        settled = min(1.0, abs(self.owner.belief.right) / SURE)
        return settled * for_side(self.owner.side, right_evidence(self.side_scores))

    @property
    def best(self) -> Sighting:
        """The answer for the track's side, or for the side that the evidence is for."""
        if self.track is not None and self.track.side in self.answers:
            return self.answers[self.track.side]
        if len(self.answers) == 1:
            (only,) = self.answers.values()
            return only
        return self.answers["right" if right_evidence(self.side_scores) >= 0.0 else "left"]


class Rivalries:
    """Settles which of two tracks a hand belongs to, with a memory, so that it is not passed to and fro."""

    def __init__(self) -> None:
        self._claims: dict[tuple[int, int], tuple[float, float]] = {}  # by numbers: the first one's lead, and when

    def contest(self, first: View, second: View, time_s: float) -> list[View]:
        """Which of two tracks' views do not show the track's own hand, where hands are in each other's way.

        Where two hands are seen but fit each other's tracks better, the views exchange their tracks.
        """
        a, b = first.owner, second.owner
        keypoints = first.best.joints_2d, second.best.joints_2d
        if min(a.seen_apart, b.seen_apart) < APART_FRAMES:
            return [_twin(first, second)] if is_same_hand(*keypoints) else []
        if is_same_hand(*keypoints, ONE_MESH_DISTANCE):
            one = right_evidence({**second.side_scores, **first.side_scores})  # both views are of one hand
            lead = b.strangeness(second.best, one) - a.strangeness(first.best, one)
            loser, winner = (first, second) if self._claim(a, b, lead, time_s) < 0.0 else (second, first)
            if winner.fit <= -OPPOSED and winner.fit - loser.fit <= -OPPOSED:  # it is the other one that is hidden
                loser.track, winner.track = winner.track, loser.track
            return [loser]
        if overlap(first.best.box, second.best.box) <= ENTANGLED_IOU:
            return []
        a.entangled_s = b.entangled_s = 0.0
        views = (first, second)
        sides = [right_evidence(view.side_scores) for view in views]
        cost = [[track.strangeness(v.best, s) for v, s in zip(views, sides, strict=True)] for track in (a, b)]
        if cost[0][1] + cost[1][0] + SWAP_MARGIN < cost[0][0] + cost[1][1]:
            first.track, second.track = b, a
        surprises = [view.owner.surprise(view.best) for view in views]
        return [views[int(surprises[1] > surprises[0])]] if max(surprises) > SURPRISE else []

    def _claim(self, a: Track, b: Track, lead: float, time_s: float) -> float:
        """Above zero if the hand that both could be is ``a``'s."""
        key, sign = ((a.id, b.id), 1.0) if a.id < b.id else ((b.id, a.id), -1.0)
        claim, since_s = self._claims.get(key, (0.0, -math.inf))
        claim = CLAIM_DECAY * claim * (time_s - since_s < CLAIM_ENDS_S) + sign * lead
        self._claims[key] = claim, time_s
        return sign * claim


def _twin(first: View, second: View) -> View:
    """Of two tracks on one hand, at least one of them new, the younger, unless only its side is likely."""
    older, younger = sorted((first, second), key=lambda view: view.owner.id)
    unlikely = older.best.side_score < 0.5 <= younger.best.side_score
    return older if unlikely and older.owner.seen_apart < APART_FRAMES else younger


def undo_exchange(tracks: Sequence[Track]) -> None:
    """Where two hands come out of an entanglement and both seem to have changed their side, they were exchanged."""
    for a, b in combinations(tracks, 2):
        if a.side != b.side and min(a.against, b.against) >= EXCHANGE_FRAMES:
            _log.debug("tracks %d and %d had been exchanged", a.id, b.id)
            a.exchange(b)


def trust(view: View, seen: Sequence[View], lost: Sequence[Track]) -> float:
    """1 for a hand that stands alone, 0 for one with another in its crop, in sight or not."""
    others = [other.best.box for other in seen if other is not view]
    others += [track.box for track in lost if track is not view.track]
    most = max((overlap(view.best.box, box) for box in others), default=0.0)
    return min(max(1.0 - most / ENTANGLED_IOU, 0.0), 1.0)


def new_hands(views: Sequence[View], known: Sequence[View]) -> list[View]:
    """The views whose hand is none of the known ones nor a part of one, and each of them once."""
    hands, others = ([view.best.joints_2d for view in some] for some in (views, known))
    return [views[i] for i in each_once(hands, others)]


def recall(views: Sequence[View], lost: Sequence[Track]) -> None:
    """Give views of newly found hands the tracks of lost ones that they look like, the likest first."""
    pairs = [
        (track.likeness(view.best, right_evidence(view.side_scores)), i, j)
        for i, view in enumerate(views)
        for j, track in enumerate(lost)
    ]
    for likeness, i, j in sorted(pairs, reverse=True):
        taken = views[i].track is not None or any(view.track is lost[j] for view in views)
        if likeness >= LIKENESS and not taken:
            views[i].track = lost[j]


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes (4,)."""
    return float(box_iou(a, b))
