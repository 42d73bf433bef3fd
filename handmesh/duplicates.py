"""One hand found twice: keypoints that lie on another hand's, or are a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handmesh.records import box_of_keypoints, middle_and_size

SAME_HAND_DISTANCE = 0.3
"""A new hand whose keypoints lie nearer to another's than this share of its size is that one."""

PART_SIZE, PART_INSIDE = 0.6, 0.75
"""A hand smaller than this share of another's size, with this share of its keypoints in the other's box, is a part of
the other one that was taken for a whole hand."""


def is_same_hand(a: NDArray[np.float64], b: NDArray[np.float64], nearer_than: float = SAME_HAND_DISTANCE) -> bool:
    """Whether the keypoints (21, 2) of two hands lie nearer to each other, in the mean, than a share of the larger's
    size."""
    apart = np.linalg.norm(a - b, axis=-1).mean()
    size = max(middle_and_size(hand)[1] for hand in (a, b))
    return bool(apart < nearer_than * size)


def is_part(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether the first hand, by its keypoints (21, 2), is no more than a part of the second."""
    if middle_and_size(a)[1] >= PART_SIZE * middle_and_size(b)[1]:
        return False
    box = box_of_keypoints(b)
    inside = np.all((a >= box[:2]) & (a <= box[2:]), axis=-1)
    return bool(inside.mean() >= PART_INSIDE)


def each_once(hands: Sequence[NDArray[np.float64]], known: Sequence[NDArray[np.float64]] = ()) -> list[int]:
    """Which of some hands, by their keypoints (21, 2), are neither a part of another nor one that came before, hands
    already ``known`` counted among both."""
    whole = [i for i, hand in enumerate(hands) if not any(is_part(hand, other) for other in (*known, *hands))]
    before = [*known, *(hands[i] for i in whole)]
    return [i for n, i in enumerate(whole, len(known)) if not any(is_same_hand(hands[i], b) for b in before[:n])]
