"""FreiHAND's measures of a prediction file, as the official script defines them (lmb-freiburg/freihand, eval.py).

A prediction file holds ``[xyz, verts]``: for every evaluation frame 21 joints and V vertices in metres, in the camera.
Two things of the official script are worth knowing. Its alignment is an orthogonal Procrustes fit that allows
reflections, so a mirrored hand can look better than it is: numbers with proper rotations are added where they differ.
And where the prediction's mesh is not the label's, it leaves the vertex errors out and aligns the vertices by the
joints' fit with a scale that lacks the division by the prediction's own size: such a mesh shrinks to less than half,
and its aligned F-scores mean little; those of the whole fit are added as ``pa_by_joints_f5`` and ``_f15``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handmesh.alignment import align_root, align_similarity, fit_similarity
from handmesh.datasets.freihand_files import read_json, stacked, table_path
from handmesh.skeleton import KEYPOINTS

if TYPE_CHECKING:
    from scipy.spatial import KDTree

_AUC_THRESHOLDS_M = np.linspace(0.0, 0.05, 100)
_F_THRESHOLDS_M = {"f5": 0.005, "f15": 0.015}
_NO_SIZE = 1e-8  # the official script adds this to a point set's norm before it divides by it

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Scores = dict[str, float | None]
Watch = Callable[[Iterable[int]], Iterable[int]]
"""Passes frame numbers on, to show progress: for example `tqdm.tqdm`."""


@dataclass(frozen=True)
class Frames:
    """Hands of N frames in metres, camera axes: joints (N, 21, 3) in FreiHAND's order, vertices (N, V, 3).

    V is 0 where joints alone are known.
    `without_detection` counts the frames in which a detector that was asked found nothing.
    """

    joints: Array
    vertices: Array
    without_detection: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.joints.shape[1:] != (len(KEYPOINTS), 3) or self.vertices.shape[2:] != (3,):
            raise ValueError(f"need (N, 21, 3) joints and (N, V, 3) vertices: {self.joints.shape, self.vertices.shape}")
        if len(self.joints) != len(self.vertices):
            raise ValueError(f"{len(self.joints)} frames of joints but {len(self.vertices)} of vertices")


def read_prediction(path: Path) -> Frames:
    """A file of the official form ``[xyz, verts]``.

    Raises FileNotFoundError, and ValueError that names what is wrong with the file and in which frame.
    """
    content = read_json(path)
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError(f"{path} must be a list of two lists, [xyz, verts], with one entry a frame in each")
    parts = zip(content, ("xyz", "verts"), strict=True)
    frames = Frames(*(stacked(part, (None, 3), f"{path}: {name}") for part, name in parts))
    if len(frames.joints) and float(np.median(np.abs(frames.joints))) > 10.0:
        _log.warning("%s: joints lie tens of metres away; are they in millimetres? metres are wanted", path)
    return frames


def read_truth(root: Path) -> Frames:
    """The labels ``evaluation_xyz.json`` and, if it is there, ``evaluation_verts.json`` under `root`.

    Errors as `read_prediction`.
    """
    xyz, verts = (table_path(root, "evaluation", name) for name in ("xyz", "verts"))
    if not xyz.is_file():
        raise FileNotFoundError(
            f"{root} lacks {xyz.name}: FreiHAND's labels come with its evaluation archive (FreiHAND_pub_v2_eval), not "
            "with the training archive"
        )
    joints = stacked(read_json(xyz), (None, 3), str(xyz))
    if not verts.is_file():
        return Frames(joints, np.empty((len(joints), 0, 3)))
    return Frames(joints, stacked(read_json(verts), (None, 3), str(verts)))


def score_files(prediction: Path, root: Path, watch: Watch = iter) -> Scores:
    """Read and `score` a prediction file against the labels under `root`."""
    return score(read_prediction(prediction), read_truth(root), watch)


def score(predicted: Frames, truth: Frames, watch: Watch = iter) -> Scores:
    """All measures: lengths in mm, AUC and F-scores in 0 to 1; None for vertex errors where the meshes differ, and for
    F-scores too where there are no vertices (``vertices`` or ``label_vertices`` is 0): joints alone are scored then.

    ``mpjpe_mm mpvpe_mm auc vertex_auc f5 f15`` are without alignment; those with ``pa_`` after the official alignment
    of joints and of vertices, each by themselves; with ``pa_proper_`` after one without reflections (only where a frame
    was reflected: ``reflected_joints`` and ``reflected_vertices`` count them); ``root_`` with wrist on wrist.

    Raises ValueError for another number of frames and for values that are not finite (the official script stops at
    both), naming them.
    """
    count = len(truth.joints)
    if len(predicted.joints) != count:
        raise ValueError(f"the prediction has {len(predicted.joints)} frames, but the labels have {count}")
    for name, array in (("joints", predicted.joints), ("vertices", predicted.vertices)):
        _check_finite(array, f"predicted {name}")
    for name, array in (("joints", truth.joints), ("vertices", truth.vertices)):
        _check_finite(array, f"labelled {name}")
    same_mesh = predicted.vertices.shape == truth.vertices.shape and truth.vertices.size > 0
    scores: Scores = {
        "frames": count,
        "vertices": predicted.vertices.shape[1],
        "label_vertices": truth.vertices.shape[1],
    }
    scores |= _distance_scores(predicted.joints, truth.joints, "", "mpjpe_mm", "auc")
    root_joints = align_root(predicted.joints) + truth.joints[:, :1]
    scores["root_mpjpe_mm"] = _mean_mm(_distances(root_joints, truth.joints))
    if same_mesh:
        scores |= _distance_scores(predicted.vertices, truth.vertices, "", "mpvpe_mm", "vertex_auc")
        root_vertices = predicted.vertices - predicted.joints[:, :1] + truth.joints[:, :1]
        scores["root_mpvpe_mm"] = _mean_mm(_distances(root_vertices, truth.vertices))
    else:
        scores |= dict.fromkeys(("mpvpe_mm", "vertex_auc", "root_mpvpe_mm", "pa_mpvpe_mm", "pa_vertex_auc"))
    joints = _Aligned.fit(predicted.joints, truth.joints)
    scores |= joints.scores(truth.joints, "mpjpe_mm", "auc") | {"reflected_joints": len(joints.reflected)}
    if same_mesh:
        vertices = _Aligned.fit(predicted.vertices, truth.vertices)
        scores |= vertices.scores(truth.vertices, "mpvpe_mm", "vertex_auc")
        scores |= {"reflected_vertices": len(vertices.reflected)}
        return scores | _f_scores(predicted.vertices, vertices, truth.vertices, watch)
    if not (predicted.vertices.size and truth.vertices.size):
        return scores | dict.fromkeys(("f5", "f15", "pa_f5", "pa_f15"))
    return scores | _f_scores_of_other_mesh(predicted, truth, watch)


def table_row(name: str, scores: Scores) -> str:
    """A row for `TABLE_HEAD`."""
    cells = [_cell(scores[key], digits) for key, digits in _COLUMNS.values()]
    return f"| {name} | {' | '.join(cells)} |"


_COLUMNS = {
    "PA-MPJPE mm": ("pa_mpjpe_mm", 2),
    "PA-MPVPE mm": ("pa_mpvpe_mm", 2),
    "F@5": ("pa_f5", 3),
    "F@15": ("pa_f15", 3),
    "AUC": ("pa_auc", 3),
    "MPJPE mm": ("mpjpe_mm", 1),
    "MPVPE mm": ("mpvpe_mm", 1),
    "frames": ("frames", 0),
}
TABLE_HEAD = f"| method | {' | '.join(_COLUMNS)} |\n|---|{'---:|' * len(_COLUMNS)}"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _check_finite(points: Array, name: str) -> None:
    broken = np.flatnonzero(~np.isfinite(points).all((1, 2)))
    if len(broken):
        raise ValueError(f"{name} are not finite in {len(broken)} frames, the first of them {broken[:5].tolist()}")


@dataclass(frozen=True)
class _Aligned:
    """Predicted points (N, P, 3) after the official alignment, and for frames that it reflected after a proper one."""

    points: Array
    reflected: NDArray[np.intp]  # (R,) frames
    proper: Array  # (R, P, 3)

    @classmethod
    def fit(cls, predicted: Array, truth: Array) -> _Aligned:
        points, mirrored = np.empty_like(truth), []
        for number, (source, target) in enumerate(zip(predicted, truth, strict=True)):
            fit = _OfficialFit(source, target)
            points[number] = fit.points
            if fit.mirrors:
                mirrored.append(number)
        rows = np.array(mirrored, np.intp)
        proper = align_similarity(predicted[rows], truth[rows]).astype(np.float64) if mirrored else truth[:0]
        differs = np.abs(proper - points[rows]).max((1, 2), initial=0.0) > 1e-9  # flat sets are their own mirror image
        return cls(points, rows[differs], proper[differs])

    @property
    def all_proper(self) -> Array:
        points = self.points.copy()
        points[self.reflected] = self.proper
        return points

    def scores(self, truth: Array, error: str, auc: str) -> Scores:
        scores = _distance_scores(self.points, truth, "pa_", error, auc)
        return scores | (
            _distance_scores(self.all_proper, truth, "pa_proper_", error, auc) if len(self.reflected) else {}
        )


class _OfficialFit:
    """The official alignment of one frame, in its order of operations: AUCs of exact hits hang on the last bit."""

    def __init__(self, source: Array, target: Array) -> None:
        from scipy.linalg import orthogonal_procrustes

        self.target_mean, self.source_mean = target.mean(0), source.mean(0)
        target, source = target - self.target_mean, source - self.source_mean
        self.target_norm = np.linalg.norm(target) + _NO_SIZE
        self.source_norm = np.linalg.norm(source) + _NO_SIZE
        source = source / self.source_norm
        self.turn, self.share = orthogonal_procrustes(target / self.target_norm, source)
        self.points = (source @ self.turn.T) * self.share * self.target_norm + self.target_mean

    @property
    def mirrors(self) -> bool:
        """Whether the fit is a mirror; a source without any size has no side."""
        return bool(self.source_norm > 2 * _NO_SIZE and np.linalg.det(self.turn) < 0)

    def other_points(self, points: Array) -> Array:
        """What the official script does with other points (P, 3) of the frame: see this module's head."""
        mean = points.mean(0)
        turned = (points - mean) @ self.turn.T
        return turned * self.share * self.target_norm + (self.target_mean - self.source_mean) + mean


def _distances(predicted: Array, truth: Array) -> Array:
    return np.sqrt(np.square(truth - predicted).sum(-1))


def _mean_mm(distances: Array) -> float:
    return float(distances.mean() * 1e3)


def _distance_scores(predicted: Array, truth: Array, prefix: str, error: str, auc: str) -> Scores:
    """Mean distance, and the normalised area under the share of points within 0 to 50 mm (100 steps, trapezoid)."""
    distances = _distances(predicted, truth)
    within = np.searchsorted(np.sort(distances, axis=None), _AUC_THRESHOLDS_M, side="right") / distances.size
    area = float((within[1:] + within[:-1]).mean() / 2)
    return {prefix + error: _mean_mm(distances), prefix + auc: area}


def _f_scores(predicted: Array, aligned: _Aligned, truth: Array, watch: Watch) -> Scores:
    rows: list[list[float]] = []
    proper: dict[int, list[float]] = {}
    for number in watch(range(len(truth))):
        tree = _tree(truth[number])
        rows.append(_f_of(predicted[number], tree) + _f_of(aligned.points[number], tree))
    for place, number in enumerate(aligned.reflected):
        proper[int(number)] = _f_of(aligned.proper[place], _tree(truth[number]))
    names = [*_F_THRESHOLDS_M, *(f"pa_{name}" for name in _F_THRESHOLDS_M)]
    scores: Scores = dict(zip(names, np.mean(rows, 0).tolist(), strict=True))
    if proper:
        properly = [proper.get(number, row[2:]) for number, row in enumerate(rows)]
        scores |= zip((f"pa_proper_{name}" for name in _F_THRESHOLDS_M), np.mean(properly, 0).tolist(), strict=True)
    return scores


def _f_scores_of_other_mesh(predicted: Frames, truth: Frames, watch: Watch) -> Scores:
    rows = []
    whole = fit_similarity(predicted.joints, truth.joints).apply(predicted.vertices)
    for number in watch(range(len(truth.vertices))):
        tree, vertices = _tree(truth.vertices[number]), predicted.vertices[number]
        official = _OfficialFit(predicted.joints[number], truth.joints[number]).other_points(vertices)
        rows.append(_f_of(vertices, tree) + _f_of(official, tree) + _f_of(whole[number], tree))
    names = [f"{prefix}{name}" for prefix in ("", "pa_", "pa_by_joints_") for name in _F_THRESHOLDS_M]
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))


def _tree(points: Array) -> KDTree:
    from scipy.spatial import KDTree

    return KDTree(points)


def _f_of(points: Array, truth: KDTree) -> list[float]:
    """F-scores of points (P, 3) at each threshold: harmonic mean of the shares of both sets with a near neighbour."""
    reach = 2 * max(_F_THRESHOLDS_M.values())  # farther neighbours need not be found
    to_truth = truth.query(points, distance_upper_bound=reach)[0]
    to_points = _tree(points).query(truth.data, distance_upper_bound=reach)[0]
    scores = []
    for threshold in _F_THRESHOLDS_M.values():
        precision, recall = float((to_truth < threshold).mean()), float((to_points < threshold).mean())
        scores.append(2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0)
    return scores


def summary(scores: Scores) -> Sequence[str]:
    """The scores in lines to read."""
    lines = [f"{key} = {'-' if value is None else f'{value:.6g}'}" for key, value in scores.items()]
    if not (scores["vertices"] and scores["label_vertices"]):
        lines.append(
            f"joints alone are scored: the {'labels have' if scores['vertices'] else 'prediction has'} no vertices"
        )
    return lines
