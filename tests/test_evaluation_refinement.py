"""Refinement's gain on stub hands: none where mesh and keypoints agree, and the cost is what the clock says."""

from __future__ import annotations

import graphs
import numpy as np
import pytest

from handmesh.evaluation.refinement import KnownHand, measure_refinement
from handmesh.refine import Refinement


@pytest.fixture
def known(estimator) -> KnownHand:
    frame = graphs.draw_hand(np.zeros((224, 224, 3), np.uint8), (110, 112), 80)
    (hand,) = estimator(frame, boxes=[[70, 72, 150, 152]], sides=["right"])
    pixels = hand.camera.project(hand.joints + hand.translation)
    return KnownHand(frame, pixels, hand.joints, "right", hand.camera)


def test_without_refinement_the_estimators_own_answer_is_the_truth_and_with_it_the_hand_changes(estimator, known):
    estimator.refinement = own = Refinement(steps=1)
    ticks = iter([0.0, 1.0, 2.0, 2.5])  # a second without, half a second with
    result = measure_refinement(estimator, [known], clock=lambda: next(ticks))
    assert estimator.refinement is own
    assert result["hands"] == 1
    assert result["cost_ms"] == pytest.approx(-500.0)
    assert result["without"]["2d"] < 0.02
    assert result["without"]["pa_mpjpe_mm"] < 0.01
    assert result["with"] != result["without"]
    assert result["with"]["2d_keypoints"] == pytest.approx(result["without"]["2d_keypoints"], abs=1e-6)


def test_no_hands_are_no_result(estimator):
    with pytest.raises(ValueError, match="no hands"):
        measure_refinement(estimator, [])
    assert estimator.refinement is None
