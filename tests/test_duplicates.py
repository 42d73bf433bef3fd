"""One hand found twice: nearness as a share of the larger hand, parts by size and place, and which of all are kept."""

from __future__ import annotations

import numpy as np
import pytest

from handmesh.duplicates import PART_INSIDE, PART_SIZE, SAME_HAND_DISTANCE, each_once, is_part, is_same_hand

HAND = np.linspace(0.0, 100.0, 21)[:, None] * np.ones(2)  # 100 px, down the diagonal


def shifted(hand: np.ndarray, x: float) -> np.ndarray:
    return hand + np.array([x, 0.0])


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_hands_are_one_where_they_lie_nearer_than_a_share_of_the_larger_ones_size(scale):
    for share, one in ((0.99 * SAME_HAND_DISTANCE, True), (1.01 * SAME_HAND_DISTANCE, False)):
        moved = shifted(HAND, 100.0 * share)
        assert is_same_hand(scale * HAND, scale * moved) is one
        assert is_same_hand(scale * moved, scale * HAND) is one
    assert is_same_hand(HAND, shifted(HAND, 10.0), 0.11)
    assert not is_same_hand(HAND, shifted(HAND, 10.0), 0.09)
    smaller = shifted(0.8 * HAND + 10.0, 25.0)  # 25 px are less than the share of 100 px and more than of 80 px
    assert is_same_hand(smaller, HAND)


def test_a_part_is_much_smaller_and_mostly_inside():
    for size, part in ((0.98 * PART_SIZE, True), (1.02 * PART_SIZE, False)):
        assert is_part(size * HAND, HAND) is part
        assert not is_part(HAND, size * HAND)
    small = 0.5 * HAND
    for inside, part in ((PART_INSIDE + 0.06, True), (PART_INSIDE - 0.06, False)):
        across = shifted(small, 100.0 - 50.0 * inside)  # so much of it lies left of the large one's right side
        assert is_part(across, HAND) is part


def test_each_hand_is_kept_once_and_wholes_before_their_parts():
    elsewhere = shifted(HAND, 300.0)
    assert each_once([]) == []
    assert each_once([HAND, elsewhere]) == [0, 1]
    assert each_once([HAND, elsewhere, HAND + 5.0]) == [0, 1]
    assert each_once([0.5 * HAND, elsewhere, HAND]) == [1, 2]
