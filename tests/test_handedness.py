"""Beliefs about sides: what adds up, what cancels, how long a settled one holds, what a partner says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handmesh.handedness import CERTAIN, PICTURE_PAIR_PRIOR, SideBelief, log_odds, right_evidence, unlike_its_pair


def heard(log_odds_right: float, *sides: str) -> dict:
    """Side scores of a network that is of this opinion."""
    scores = {"right": 1 / (1 + math.exp(-log_odds_right)), "left": 1 / (1 + math.exp(log_odds_right))}
    return {side: scores[side] for side in sides or ("right", "left")}


def test_evidence_is_signed_and_bounded():
    for opinion in (-2.0, 0.0, 1.5):
        assert right_evidence(heard(opinion)) == pytest.approx(opinion)
        assert right_evidence(heard(opinion, "left")) == pytest.approx(opinion)
    assert right_evidence({"left": 1.0}) == -CERTAIN
    assert log_odds(0.0) == -CERTAIN
    assert log_odds(1.0) == CERTAIN


def test_the_habit_of_confirming_cancels_between_two_answers():
    habit = 1.3
    scores = {"right": 1 / (1 + math.exp(-(0.7 + habit))), "left": 1 / (1 + math.exp(-(-0.7 + habit)))}
    assert right_evidence(scores) == pytest.approx(0.7)


def test_of_two_hands_of_one_side_the_less_sure_one_is_doubted():
    weak, strong = 0.99 * PICTURE_PAIR_PRIOR, 1.01 * PICTURE_PAIR_PRIOR
    for sign in (-1, 1):
        assert unlike_its_pair([sign * weak, sign * strong]) == 0
        assert unlike_its_pair([sign * math.inf, sign * weak]) == 1
        assert unlike_its_pair([sign * strong, sign * strong]) is None
        assert unlike_its_pair([sign * weak, -sign * weak]) is None


@pytest.mark.parametrize("flip_after", [1, 5, 20])
def test_a_settled_belief_turns_after_so_many_certain_frames(flip_after):
    belief = SideBelief(heard(9.0), flip_after)
    for _ in range(10 * flip_after):
        belief.hear(heard(9.0), 1.0)
        assert not belief.decide()
    frames = 0
    while belief.side == "right":
        belief.hear(heard(-9.0), 1.0)
        belief.decide()
        frames += 1
    assert frames == pytest.approx(flip_after, abs=1)


def test_a_belief_is_the_mean_of_its_first_frames():
    opinions = [3.0, -1.0, -1.0, -1.5]
    belief = SideBelief(heard(opinions[0]), 20)
    for opinion in opinions[1:]:
        belief.hear(heard(opinion), 1.0)
        belief.decide()
    assert belief.right == pytest.approx(np.mean(opinions))
    assert belief.side == "right"  # within the margin
    belief.hear(heard(-3.0), 1.0)
    assert belief.decide()
    assert belief.side == "left"


def test_frames_that_are_not_trusted_say_nothing():
    belief = SideBelief(heard(1.0), 5)
    for _ in range(50):
        belief.hear(heard(-4.0), 0.0)
        assert not belief.decide()
    assert belief.right == pytest.approx(1.0)
    belief.hear(heard(3.0), 1.0)  # the second frame that counts
    assert belief.right == pytest.approx(2.0)


def test_both_sides_are_asked_until_sure_and_when_in_doubt():
    belief = SideBelief(heard(3.0), 20)
    assert belief.asks == ("right", "left")
    for _ in range(3):
        belief.hear(heard(3.0), 1.0)
    assert belief.asks == ("right",)
    belief.hear(heard(0.2, "right"), 1.0)
    assert belief.asks == ("right", "left")


def test_a_sure_partner_outweighs_weak_evidence_and_not_strong():
    sure, weak, strong = (SideBelief(heard(opinion), 20) for opinion in (4.0, 0.6, 2.0))
    assert weak.decide(sure)
    assert (weak.side, sure.side) == ("left", "right")
    assert not weak.decide(sure)
    assert not strong.decide(sure)
    assert not sure.decide(weak)
