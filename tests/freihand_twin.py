"""FreiHAND's measures written out plainly and slowly, frame by frame and point by point.

python tests/freihand_twin.py --root DIR --pred pred.json --out eval/results/freihand_parity.json

compares the fast scorer with this one on the labels under DIR: for that prediction, and for a perfect, a random, a
constant and a reflected one with meshes thinned to MANO's 778 vertices.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handmesh.evaluation.freihand_score import Frames, read_prediction, read_truth, score
from handmesh.evaluation.report import write_result
from handmesh.skeleton import MANO_VERTEX_COUNT

LIMIT_M, STEPS = 0.05, 100


def twin_scores(joints, vertices, true_joints, true_vertices) -> dict[str, float | None]:
    """The official numbers of predicted against true points (N, P, 3) in metres, under the scorer's names."""
    same_mesh = vertices.shape[1] == true_vertices.shape[1]
    plain_joints, aligned_joints, plain_vertices, aligned_vertices = [], [], [], []
    f = {"f5": [], "f15": [], "pa_f5": [], "pa_f15": []}
    for frame in range(len(true_joints)):
        joint, true_joint = joints[frame], true_joints[frame]
        vertex, true_vertex = vertices[frame], true_vertices[frame]
        aligned_joint, turn, share, size, shift = align(true_joint, joint)
        plain_joints.append(lengths(joint - true_joint))
        aligned_joints.append(lengths(aligned_joint - true_joint))
        if same_mesh:
            aligned_vertex = align(true_vertex, vertex)[0]
            plain_vertices.append(lengths(vertex - true_vertex))
            aligned_vertices.append(lengths(aligned_vertex - true_vertex))
        else:
            mean = vertex.mean(0)
            aligned_vertex = np.stack([turn @ (p - mean) for p in vertex]) * share * size + shift + mean
        for name, limit in (("f5", 0.005), ("f15", 0.015)):
            f[name].append(f_score(true_vertex, vertex, limit))
            f["pa_" + name].append(f_score(true_vertex, aligned_vertex, limit))
    scores: dict[str, float | None] = {name: float(np.mean(values)) for name, values in f.items()}
    for name, area, distances in (
        ("mpjpe_mm", "auc", plain_joints),
        ("pa_mpjpe_mm", "pa_auc", aligned_joints),
        ("mpvpe_mm", "vertex_auc", plain_vertices),
        ("pa_mpvpe_mm", "pa_vertex_auc", aligned_vertices),
    ):
        scores[name], scores[area] = mean_and_area(np.array(distances)) if distances else (None, None)
    return scores


def align(target, source):
    """Centre both, scale both to unit norm, turn by the nearest orthogonal matrix, scale to the target's norm."""
    target_mean, source_mean = target.mean(0), source.mean(0)
    target_size = np.linalg.norm(target - target_mean) + 1e-8
    source_size = np.linalg.norm(source - source_mean) + 1e-8
    a, b = (target - target_mean) / target_size, (source - source_mean) / source_size
    u, singular, vt = np.linalg.svd((b.T @ a).T)
    turn, share = u @ vt, singular.sum()
    return (b @ turn.T) * share * target_size + target_mean, turn, share, target_size, target_mean - source_mean


def lengths(vectors):
    return [float(np.sqrt(x * x + y * y + z * z)) for x, y, z in vectors]


def mean_and_area(distances) -> tuple[float, float]:
    """Of (N, P): the mean over points of means over frames in mm, the mean over points of normalised PCK areas."""
    means, areas = [], []
    limits = np.linspace(0.0, LIMIT_M, STEPS)
    for point in distances.T:
        means.append(np.mean(point))
        curve = (point[:, None] <= limits).mean(0)
        area = sum((curve[i] + curve[i + 1]) / 2 * (limits[i + 1] - limits[i]) for i in range(STEPS - 1))
        areas.append(area / LIMIT_M)
    return float(np.mean(means)) * 1e3, float(np.mean(areas))


def f_score(truth, predicted, limit: float) -> float:
    """Harmonic mean of the shares of both sets with a neighbour in the other one nearer than `limit`."""
    squares = [(truth[:, None, axis] - predicted[None, :, axis]) ** 2 for axis in range(3)]
    distances = np.sqrt(squares[0] + squares[1] + squares[2])
    matched, right = np.mean(distances.min(1) < limit), np.mean(distances.min(0) < limit)
    return float(2 * matched * right / (matched + right)) if matched + right > 0 else 0.0


def predictions(truth: Frames, given: Frames) -> Iterator[tuple[str, Frames]]:
    """Kinds of prediction that a scorer must get right, by name."""
    rng = np.random.default_rng(0)
    yield "given", given
    yield "perfect", truth
    yield (
        "random",
        Frames(*(rng.normal(0, 0.05, p.shape) + np.array([0, 0, 0.6]) for p in (truth.joints, truth.vertices))),
    )
    yield "constant", Frames(*(np.repeat(p[:1], len(p), 0) for p in (truth.joints, truth.vertices)))
    yield "reflected", Frames(given.joints * [-1, 1, 1], given.vertices * [-1, 1, 1])


def thinned(frames: Frames, count: int) -> Frames:
    """Every so many vertices, `count` in all."""
    picked = np.linspace(0, frames.vertices.shape[1] - 1, count).astype(int)
    return Frames(frames.joints, frames.vertices[:, picked])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="holds evaluation_xyz.json and evaluation_verts.json")
    parser.add_argument("--pred", type=Path, required=True, help="a prediction of these frames")
    parser.add_argument("--frames", type=int, default=500, help="how many of them, from the first (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    options = parser.parse_args()
    truth, given = (
        Frames(frames.joints[: options.frames], frames.vertices[: options.frames])
        for frames in (read_truth(options.root), read_prediction(options.pred))
    )
    rows = []
    thin_truth, thin_given = (thinned(frames, MANO_VERTEX_COUNT) for frames in (truth, given))
    cases = [("given", given, truth), *((name, one, thin_truth) for name, one in predictions(thin_truth, thin_given))]
    for name, predicted, labels in cases:
        slow = twin_scores(predicted.joints, predicted.vertices, labels.joints, labels.vertices)
        fast = score(predicted, labels)
        apart = max(abs(fast[key] - value) for key, value in slow.items())  # type: ignore[operator]
        facts = {"prediction": name, "vertices": labels.vertices.shape[1], "largest_difference": apart}
        rows.append({**facts, "twin": slow})
    worst = max(row["largest_difference"] for row in rows)
    write_result(options.out, {"frames": len(truth.joints), "largest_difference": worst, "rows": rows}, digits=9)


if __name__ == "__main__":
    main()
