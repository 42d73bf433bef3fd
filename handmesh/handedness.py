"""Left or right over time: what frames say of one hand's side, averaged, held with inertia and informed by a partner.

A hand never changes its side, but a network errs on the same views again and again. So a belief, log odds of a right
hand, is a plain average at first and one over a window later: a majority of frames, weighted by how sure they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from handmesh.records import Side, other_side

CERTAIN = 4.0
"""No frame says more than these log odds."""

SURE = 1.5
"""Up to this belief, and in a hand's first frames, both sides are asked about."""

FIRST_FRAMES = 3

DOUBT = 1.0
"""Whoever hears less than this for the side he asked about asks about the other one as well."""

MARGIN = 0.3
"""A side changes only when the belief is against it by more."""

PAIR_PRIOR = 1.0
"""How much the belief about the only other hand in view, once sure, speaks for the two being a pair."""

PICTURE_PAIR_PRIOR = 2.0
"""Log odds for the only two hands of a picture being a left and a right one: nearly nine of ten are."""


def log_odds(probability: float) -> float:
    """Log odds of a probability, between -``CERTAIN`` and ``CERTAIN``."""
    p = min(max(probability, 1e-6), 1.0 - 1e-6)
    return min(max(math.log(p / (1.0 - p)), -CERTAIN), CERTAIN)


def for_side(side: Side, right_log_odds: float) -> float:
    """Log odds of a hand of this side from those of a right hand."""
    return right_log_odds if side == "right" else -right_log_odds


def right_evidence(side_scores: Mapping[Side, float]) -> float:
    """Log odds of a right hand from a crop run as one side or as both.

    ``side_scores`` holds, for each side that the crop was run as, the probability that this side was right. Networks
    tend to confirm what they are asked, so two answers are worth more than their number: the tendency cancels.
    """
    signed = [for_side(side, log_odds(score)) for side, score in side_scores.items()]
    return sum(signed) / len(signed)


def unlike_its_pair(right: Sequence[float]) -> int | None:
    """Which of a picture's only two hands is rather of the other side than its log odds of a right hand say, if any."""
    less = min((0, 1), key=lambda i: abs(right[i]))
    return less if right[0] * right[1] > 0.0 and abs(right[less]) < PICTURE_PAIR_PRIOR else None


class SideBelief:
    """What is believed about one hand's side. ``side`` is what to take it for, ``right`` the log odds."""

    def __init__(self, side_scores: Mapping[Side, float], flip_after: int) -> None:
        """From the first frame. A settled belief turns after about ``flip_after`` frames of certainty against it."""
        self.right = right_evidence(side_scores)
        self.side: Side = "right" if self.right >= 0.0 else "left"
        # A mean of +CERTAIN with a gain of g falls below -MARGIN after n frames of -CERTAIN: (1 - g)^n = share.
        share = 0.5 * (1.0 - MARGIN / CERTAIN)
        self._least_gain = 1.0 - share ** (1.0 / flip_after)
        self._heard = 1.0
        self._doubtful = False

    @property
    def asks(self) -> tuple[Side, ...]:
        """The sides that the next crop should be run as, the believed one first."""
        unsure = self._doubtful or self._heard < FIRST_FRAMES or self.signed(self.side) < SURE
        return (self.side, other_side(self.side)) if unsure else (self.side,)

    def signed(self, side: Side) -> float:
        """Log odds in favour of a side."""
        return for_side(side, self.right)

    def hear(self, side_scores: Mapping[Side, float], trust: float) -> None:
        """Take one frame's answers in, with a weight of ``trust`` (0 where another hand is in the crop)."""
        own = side_scores.get(self.side)
        self._doubtful = own is not None and log_odds(own) < DOUBT
        self._heard += trust
        gain = trust * max(1.0 / self._heard, self._least_gain)
        self.right += gain * (right_evidence(side_scores) - self.right)

    def decide(self, partner: SideBelief | None = None) -> bool:
        """Settle ``side`` anew, with regard to the only other hand in view; true if it has changed."""
        view = self.right
        if partner is not None:
            view -= PAIR_PRIOR * min(max(partner.right / SURE, -1.0), 1.0)
        if for_side(self.side, view) >= -MARGIN:
            return False
        self.side = other_side(self.side)
        return True
