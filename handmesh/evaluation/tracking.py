"""How surely two hands are followed: identities and sides against the truth of rendered clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator
from handmesh.records import HandMesh
from handmesh.synthesis.crossing import SCENES, Truth, render_clips
from handmesh.tracker import HandTracker
from handmesh.video import open_source

SIDES = ("right", "left")
COUNTS = ("hands", "found", "extra", "id_switches", "side_flips", "wrong_sides")
SEEN = 0.5
"""A true hand counts where at least this share of its keypoints can be seen."""

NEAR = 0.5
"""A hand found within this share of a true hand's size (mean keypoint distance) may be that hand."""


VARIANTS = (0, 1, 2)
"""Of the people, rooms, gestures and fields of view that each scene is rendered with."""


def crossing_clips(
    folder: Path, names: Sequence[str] | None = None, variants: Sequence[int] = VARIANTS
) -> Iterator[tuple[str, Path, Truth]]:
    """Label VARIANT/NAME, video and truth of each crossing scene; those that ``folder`` lacks are rendered there.

    Raises ``ValueError`` for a name that no scene has.
    """
    for variant in variants:
        place = folder / str(variant)
        wanted = [scene.name for scene in SCENES] if names is None else list(names)
        lacking = [name for name in wanted if not (place / f"{name}.npz").is_file()]
        if lacking:
            place.mkdir(parents=True, exist_ok=True)
            for _ in render_clips(place, lacking, variant):
                pass
        for name in wanted:
            yield f"{variant}/{name}", place / f"{name}.mp4", Truth.load(place / f"{name}.npz")


def measure_identity(
    estimator: HandMeshEstimator,
    folder: Path,
    names: Sequence[str] | None = None,
    variants: Sequence[int] = VARIANTS,
    progress: Callable[[str, dict[str, int]], object] | None = None,
) -> dict[str, Any]:
    """`judge_identity` of each clip of `crossing_clips`, each by a new tracker with its defaults, and their sum.

    No intrinsics are given: the tracker assumes its own field of view. progress(label, counts) is called after each.
    """
    clips: dict[str, dict[str, int]] = {}
    for label, video, truth in crossing_clips(folder, names, variants):
        tracker = HandTracker(estimator)
        with open_source(video) as source:
            clips[label] = judge_identity([tracker(frame, time_s) for frame, time_s in source], truth)
        if progress is not None:
            progress(label, clips[label])
    total = {name: sum(counts[name] for counts in clips.values()) for name in COUNTS}
    return {"total": total, "clips": clips}


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
