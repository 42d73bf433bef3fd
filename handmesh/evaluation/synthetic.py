"""The shipped estimator on a rendered split, whose truth is exact: errors over all hands and over groups of them.

Rendered sets carry each image's skin tone, view, pose class and what hides the hand in `{split}_meta.npz`, so this is
where fairness and weak spots can be counted. Boxes, sides and cameras are given: the hand network is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.freihand_files import Split, camera_of
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.records import Side, box_of_points
from handmesh.synthesis.gestures import GESTURES, GRASPS

FACTS = ("skin_tone", "view", "pose_class", "held", "occluded", "gloved")
_POSE_BLOCK = 64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HandErrors:
    """One row a hand. keypoints: (N, 21) shares of the hand's box; pa_mpjpe, pa_mpvpe: (N,) mm; others: (N,).

    shape: (N,) mm, the PA-MPVPE that is left in the true pose with the estimated betas; average_shape: with none.
    """

    keypoints: Array
    pa_mpjpe: Array
    pa_mpvpe: Array
    shape: Array
    average_shape: Array
    presence: Array
    right: Array

    def summary(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        """Means over the chosen hands (N,); `_se` are standard errors of the mean. Only the count without any."""
        count = int(chosen.sum())
        if count == 0:
            return {"hands": 0}
        errors = self.keypoints[chosen]
        result: dict[str, float] = {"hands": count, "2d": float(errors.mean())}
        result["2d_median"] = float(np.median(errors.mean(1)))
        result |= {f"pck_{share:02d}": float((errors < share / 100).mean()) for share in (5, 10)}
        for name in ("pa_mpjpe", "pa_mpvpe"):
            values = getattr(self, name)[chosen]
            result[f"{name}_mm"] = float(values.mean())
            result[f"{name}_mm_se"] = float(values.std() / np.sqrt(count))
        result |= {f"{name}_mm": float(getattr(self, name)[chosen].mean()) for name in ("shape", "average_shape")}
        result["presence"] = float((self.presence[chosen] >= 0.5).mean())
        result["side_right"] = float((self.right[chosen] >= 0.5).mean())
        return result


def measure_rendered(
    estimator: HandMeshEstimator,
    root: Path,
    split: Split = "evaluation",
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Errors over a rendered split and by group: `{"all": ..., "skin_tone": {"lightest": ...}, ...}`.

    The true mesh is that of the estimator's own hand model under the true rotations and shape. `limit` takes evenly
    spread images. progress(done, total) is called now and then. Raises as `FreiHandDataset`, and ValueError for a set
    that does not say what `FACTS` name (FreiHAND's own does not).
    """
    samples = FreiHandDataset(root, split)
    missing = [name for name in (*FACTS, "rotations", "betas") if name not in samples.meta]
    if missing:
        raise ValueError(
            f"{root}/{split}_meta.npz lacks {', '.join(missing)}: render it with `handmesh data synthesize`"
        )
    count = len(samples) if limit is None else min(limit, len(samples))
    rows = np.linspace(0, len(samples) - 1, count).astype(int)
    errors = hand_errors(estimator, samples, rows, progress)
    facts = {name: samples.meta[name][rows] for name in FACTS}
    result: dict[str, Any] = {"all": errors.summary(np.ones(count, bool))}
    for name, members in groups(facts).items():
        result[name] = {group: errors.summary(chosen) for group, chosen in members.items()}
    return result


def hand_errors(
    estimator: HandMeshEstimator,
    samples: FreiHandDataset,
    rows: NDArray[np.integer],
    progress: Callable[[int, int], object] | None = None,
) -> HandErrors:
    """Errors of the images `rows` (N,) of a set with rotations and betas."""
    parts: list[tuple[NDArray[np.floating], ...]] = []
    for start in range(0, len(rows), _POSE_BLOCK):
        block = rows[start : start + _POSE_BLOCK]
        sides: list[Side] = ["right"] * len(block)
        rotations, betas = samples.meta["rotations"][block], samples.meta["betas"][block]
        truth, average = (estimator.pose(rotations, shape, sides) for shape in (betas, np.zeros_like(betas)))
        for row, posed, usual in zip(block.tolist(), truth, average, strict=True):
            sample = samples[row]
            (hand,) = estimator(
                sample.image,
                boxes=[box_of_points(sample.joints_2d)],
                sides=["right"],
                camera=camera_of(samples.intrinsics[row], sample.image),
            )
            (shaped,) = estimator.pose(samples.meta["rotations"][[row]], hand.betas[None], ["right"])
            parts.append(
                (
                    keypoint_error(hand.joints_2d[None], sample.joints_2d[None])[0],
                    pa_error_mm(hand.joints[None], posed.joints[None]),
                    pa_error_mm(hand.vertices[None], posed.vertices[None]),
                    pa_error_mm(shaped.vertices[None], posed.vertices[None]),
                    pa_error_mm(usual.vertices[None], posed.vertices[None]),
                    np.array([hand.score]),
                    np.array([hand.side_score]),
                )
            )
        if progress is not None:
            progress(len(parts), len(rows))
    keypoints, *others = zip(*parts, strict=True)
    return HandErrors(np.stack(keypoints), *(np.concatenate(column) for column in others))


def groups(facts: Mapping[str, NDArray]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Masks (N,) by fact and group. Skin tones are three equal parts of the bare hands, from light to dark."""
    bare = ~facts["gloved"].astype(bool)
    tone = facts["skin_tone"]
    edges = np.quantile(tone[bare], (1 / 3, 2 / 3)) if bare.any() else np.zeros(2)
    third = np.digitize(tone, edges)
    families = np.array([pose_family(str(name)) for name in facts["pose_class"]])
    result = {
        "skin_tone": {name: bare & (third == k) for k, name in enumerate(("lightest", "middle", "darkest"))},
        "view": _by_value(facts["view"]),
        "pose_family": _by_value(families),
        "pose_class": _by_value(facts["pose_class"]),
    }
    for name in ("held", "occluded", "gloved"):
        yes = facts[name].astype(bool)
        result[name] = {"yes": yes, "no": ~yes}
    return result


def pose_family(pose_class: str) -> str:
    """What the renderer's pose classes have in common: grasp, touching (thumb at a finger), open, closed or mixed.

    "blend", "random" and "recorded" poses are families of their own.
    """
    gesture = next((g for g in GESTURES if g.name == pose_class), None)
    if gesture is None:
        return pose_class
    if pose_class in GRASPS:
        return "grasp"
    straight = [letter in "our" for letter in gesture.fingers]
    if gesture.contacts and gesture.thumb in ("oppose", "palm"):
        return "touching"
    return "open" if all(straight) else "mixed" if any(straight) else "closed"


def _by_value(values: NDArray) -> dict[str, NDArray[np.bool_]]:
    return {str(value): values == value for value in np.unique(values)}
