"""How steadily hands are followed: identities and sides against the truth of rendered clips, and trembling and lag."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from handmesh.records import HandMesh
from handmesh.synthesis.crossing import Truth

SIDES = ("right", "left")
COUNTS = ("hands", "found", "extra", "id_switches", "side_flips", "wrong_sides")
SEEN = 0.5
"""A true hand counts where at least this share of its keypoints can be seen."""

NEAR = 0.5
"""A hand found within this share of a true hand's size (mean keypoint distance) may be that hand."""


def match_frame(
    hands: Sequence[HandMesh], joints_2d: NDArray[np.floating], visible: NDArray[np.bool_]
) -> dict[int, HandMesh]:
    """True hands (0 right, 1 left) with the hands found on them, each used once, the smallest sum of distances."""
    sizes = (joints_2d.max(axis=1) - joints_2d.min(axis=1)).max(axis=-1)
    cost = np.array(
        [
            [
                np.linalg.norm(hand.joints_2d - joints_2d[k], axis=-1).mean() / sizes[k] if visible[k] else np.inf
                for k in (0, 1)
            ]
            for hand in hands
        ]
    ).reshape(len(hands), 2)
    best: dict[int, HandMesh] = {}
    best_sum = np.inf
    padded = [*range(len(hands)), *[-1, -1]]
    for pair in set(permutations(padded, 2)):
        found = {k: hands[i] for k, i in enumerate(pair) if i >= 0 and cost[i, k] < NEAR}
        total = sum(cost[i, k] if i >= 0 and cost[i, k] < NEAR else NEAR for k, i in enumerate(pair))
        if total < best_sum - 1e-12:
            best, best_sum = found, total
    return best


def judge_identity(frames: Sequence[Sequence[HandMesh]], truth: Truth) -> dict[str, int]:
    """Counts over a clip. ``hands``: true hands in view, summed over frames; ``found``: those with a hand on them;
    ``extra``: hands given out on none; ``id_switches``: a true hand's number differs from the one it had before, also
    after an absence; ``side_flips``: its side does; ``wrong_sides``: frames with the other side than the true one.

    Raises ``ValueError`` if the clip has another number of frames than its truth.
    """
    if len(frames) != len(truth.joints):
        raise ValueError(f"{len(frames)} frames were tracked, but the truth has {len(truth.joints)}")
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    last_id: dict[int, int | None] = {}
    last_side: dict[int, str] = {}
    for hands, pixels, seen in zip(frames, truth.joints_2d, truth.seen, strict=True):
        visible = seen >= SEEN
        matched = match_frame(hands, pixels, visible)
        counts["hands"] += int(visible.sum())
        counts["found"] += len(matched)
        on_someone = match_frame(hands, pixels, np.array([True, True]))
        counts["extra"] += len(hands) - len({id(hand) for hand in on_someone.values()})
        for k, hand in matched.items():
            counts["id_switches"] += k in last_id and last_id[k] != hand.track_id
            counts["side_flips"] += k in last_side and last_side[k] != hand.side
            counts["wrong_sides"] += hand.side != SIDES[k]
            last_id[k], last_side[k] = hand.track_id, hand.side
    return counts
