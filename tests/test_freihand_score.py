"""The scorer against a plain twin that follows the official script's definitions step by step."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from freihand_twin import twin_scores

from handmesh.alignment import fit_similarity
from handmesh.evaluation.freihand_score import Frames, read_prediction, score, score_files, summary, table_row

TOLERANCE = 1e-4  # mm, and shares: what the numbers are promised to

REPOSITORY = Path(__file__).parents[1]


def hands(frames: int, vertices: int, seed: int = 0) -> Frames:
    """Random point clouds of a hand's size half a metre in front of a camera."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 0.1, (frames, 1, 3)) + np.array([0.0, 0.0, 0.6])
    return Frames(centre + rng.normal(0, 0.035, (frames, 21, 3)), centre + rng.normal(0, 0.035, (frames, vertices, 3)))


def noisy(truth: Frames, sigma: float, seed: int = 1) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames(*(points + rng.normal(0, sigma, points.shape) for points in (truth.joints, truth.vertices)))


def moved(truth: Frames, flip: float) -> Frames:
    """The truth turned, shrunk, shifted and perhaps mirrored, with a little noise."""
    angle = 0.6
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, flip]])
    pair = (points @ turn.T * 0.8 + [0.1, 0.0, 0.4] for points in (truth.joints, truth.vertices))
    return noisy(Frames(*pair), 0.003)


def one_hand(truth: Frames) -> Frames:
    """The same hand in every frame."""
    return Frames(*(np.repeat(points[:1], len(points), 0) for points in (truth.joints, truth.vertices)))


def a_point(truth: Frames, at: float) -> Frames:
    return Frames(np.full_like(truth.joints, at), np.full_like(truth.vertices, at))


TRUTH = hands(5, 778)
PREDICTIONS = {
    "random": hands(5, 778, seed=5),
    "perfect": TRUTH,
    "close": noisy(TRUTH, 0.006),
    "one hand": one_hand(TRUTH),
    "zeros": a_point(TRUTH, 0.0),
    "one point": a_point(TRUTH, 0.1),
    "moved": moved(TRUTH, 1.0),
    "mirrored": moved(TRUTH, -1.0),
    "flat": Frames(TRUTH.joints * [1, 1, 0], TRUTH.vertices * [1, 1, 0]),
    "another mesh": Frames(TRUTH.joints + 0.01, TRUTH.vertices[:, :300] * 0.9),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_scores_equal_the_official_definitions(name: str) -> None:
    expected = twin_scores(PREDICTIONS[name].joints, PREDICTIONS[name].vertices, TRUTH.joints, TRUTH.vertices)
    found = score(PREDICTIONS[name], TRUTH)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == (None if value is None else pytest.approx(value, abs=TOLERANCE)), key


def test_rooted_vertices_are_moved_wrist_on_wrist() -> None:
    """And not first vertex on first vertex, which is no joint."""
    shift, beside = np.array([0.1, -0.2, 0.3]), TRUTH.vertices.copy()
    beside[:, 0] += 0.05
    found = score(Frames(TRUTH.joints + shift, beside + shift), TRUTH)
    assert found["root_mpjpe_mm"] == pytest.approx(0, abs=1e-9)
    assert found["root_mpvpe_mm"] == pytest.approx(1e3 * 0.05 * 3**0.5 / 778)


@pytest.mark.parametrize("name", ["joints", "vertices"])
def test_broken_labels_are_named_with_their_frames(name: str) -> None:
    broken = getattr(TRUTH, name).copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match=rf"labelled {name} are not finite in 1 frames, the first of them \[3\]"):
        score(TRUTH, replace(TRUTH, **{name: broken}))


def test_any_vertex_count_is_scored() -> None:
    truth = hands(2, 1650)
    close = noisy(truth, 0.004)
    expected = twin_scores(close.joints, close.vertices, truth.joints, truth.vertices)
    found = score(close, truth)
    assert found["vertices"] == 1650
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=TOLERANCE), key


def test_perfect_hits_score_as_such() -> None:
    found = score(TRUTH, TRUTH)
    assert found["mpjpe_mm"] == found["mpvpe_mm"] == 0.0
    for key in ("root_mpjpe_mm", "root_mpvpe_mm"):
        assert found[key] == pytest.approx(0.0, abs=1e-9)
    for key in ("auc", "vertex_auc", "f5", "f15", "pa_f5", "pa_f15"):
        assert found[key] == 1.0
    for key in ("pa_mpjpe_mm", "pa_mpvpe_mm"):  # the official 1e-8 shrinks a hand of 0.1 m by a few nanometres
        assert found[key] == pytest.approx(0.0, abs=2e-5)


def test_a_mirrored_hand_is_told_from_a_good_one() -> None:
    found = score(PREDICTIONS["mirrored"], TRUTH)
    frames = len(TRUTH.joints)
    assert (found["reflected_joints"], found["reflected_vertices"]) == (frames, frames)
    for official, proper in (
        ("pa_mpjpe_mm", "pa_proper_mpjpe_mm"),
        ("pa_mpvpe_mm", "pa_proper_mpvpe_mm"),
    ):
        assert found[official] < 6.0 < 20.0 < found[proper]  # type: ignore[operator]
    for official, proper in (("pa_auc", "pa_proper_auc"), ("pa_f5", "pa_proper_f5"), ("pa_f15", "pa_proper_f15")):
        assert found[official] > found[proper]  # type: ignore[operator]
    aligned = fit_similarity(PREDICTIONS["mirrored"].joints, TRUTH.joints).apply(PREDICTIONS["mirrored"].joints)
    expected = np.linalg.norm(aligned - TRUTH.joints, axis=-1).mean() * 1e3
    assert found["pa_proper_mpjpe_mm"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["moved", "perfect", "zeros", "one point", "flat"])
def test_proper_numbers_appear_only_where_they_differ(name: str) -> None:
    found = score(PREDICTIONS[name], TRUTH)
    assert (found["reflected_joints"], found["reflected_vertices"]) == (0, 0)
    assert not any("proper" in key for key in found)


def test_zeros_err_by_the_hands_own_spread() -> None:
    """FreiHAND's README tells what its zero predictor scores: aligned, every point sits in the hand's middle."""
    found = score(PREDICTIONS["zeros"], TRUTH)
    spread = np.linalg.norm(TRUTH.joints - TRUTH.joints.mean(1, keepdims=True), axis=-1).mean() * 1e3
    assert found["pa_mpjpe_mm"] == pytest.approx(spread, abs=TOLERANCE)
    assert found["f15"] == 0.0


def test_a_smaller_scale_of_another_mesh_is_the_official_one() -> None:
    """Vertices of another mesh are aligned by the joints, officially without undoing the hand's own size."""
    found = score(Frames(TRUTH.joints, TRUTH.vertices[:, :300]), TRUTH)
    assert found["pa_mpvpe_mm"] is None
    assert found["pa_by_joints_f15"] > 0.9  # type: ignore[operator]
    assert found["pa_f15"] < found["pa_by_joints_f15"]  # type: ignore[operator]
    assert "| - |" in table_row("other", found)


# ------------------------------------------------------------------------------------------------------------ files


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "evaluation_xyz.json", TRUTH.joints.tolist())
    write(tmp_path / "evaluation_verts.json", TRUTH.vertices.tolist())
    return tmp_path


def test_score_runs_on_a_file(root: Path) -> None:
    close = PREDICTIONS["close"]
    write(root / "pred.json", [close.joints.tolist(), close.vertices.tolist()])
    command = [sys.executable, "eval/freihand.py", "score", "--pred", root / "pred.json", "--root", root]
    done = subprocess.run([*command, "--out", root / "scores.json"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((root / "scores.json").read_text())
    for key, value in score(close, TRUTH).items():
        assert written[key] == pytest.approx(value, rel=1e-10)
    assert f"| pred | {written['pa_mpjpe_mm']:.2f} |" in done.stdout
    assert "commit" in written["stamp"]
    done = subprocess.run([*command, "--root", root / "x"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "lacks evaluation_xyz.json" in done.stderr


def test_labels_without_vertices_score_joints_alone(root: Path) -> None:
    close = PREDICTIONS["close"]
    write(root / "pred.json", [close.joints.tolist(), close.vertices.tolist()])
    whole = score_files(root / "pred.json", root)
    (root / "evaluation_verts.json").unlink()
    command = [sys.executable, "eval/freihand.py", "score", "--pred", root / "pred.json", "--root", root]
    done = subprocess.run([*command, "--out", root / "scores.json"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "joints alone are scored: the labels have no vertices" in done.stdout
    assert f"| {whole['pa_mpjpe_mm']:.2f} | - | - | - |" in done.stdout
    found = json.loads((root / "scores.json").read_text())
    for key in ("mpjpe_mm", "pa_mpjpe_mm", "root_mpjpe_mm", "auc", "pa_auc"):
        assert found[key] == pytest.approx(whole[key], rel=1e-10)
    for key in ("mpvpe_mm", "pa_mpvpe_mm", "f5", "f15", "pa_f5", "pa_f15"):
        assert found[key] is None
    assert found["label_vertices"] == 0


def test_a_prediction_without_vertices_scores_joints_alone() -> None:
    found = score(Frames(TRUTH.joints, TRUTH.vertices[:, :0]), TRUTH)
    assert (found["mpjpe_mm"], found["vertices"], found["pa_f5"]) == (0.0, 0, None)
    assert summary(found)[-1] == "joints alone are scored: the prediction has no vertices"


def test_bad_files_are_named(root: Path) -> None:
    joints, vertices = TRUTH.joints.tolist(), TRUTH.vertices.tolist()
    cases = [
        ("an object", {"xyz": joints}, r"must be a list of two lists"),
        ("joints only", [joints], r"must be a list of two lists"),
        ("a frame short", [joints[:-1], vertices[:-1]], r"has 4 frames, but the labels have 5"),
        ("lists apart", [joints, vertices[:-1]], r"5 frames of joints but 4"),
        ("joints of 16", [[frame[:16] for frame in joints], vertices], r"need \(N, 21, 3\)"),
        ("a short frame", [joints, [*vertices[:3], vertices[3][:5], *vertices[4:]]], r"verts, frame 3: .*\(778, 3\)"),
        ("a word", [[*joints[:2], "none", *joints[3:]], vertices], r"xyz, frame 2"),
        ("empty", [[], []], "must be a list with an entry a frame"),
        ("NaN", [[[[float("nan")] * 3] * 21, *joints[1:]], vertices], r"predicted joints are not finite in 1 .*\[0\]"),
    ]
    for _, content, message in cases:
        with pytest.raises(ValueError, match=message):
            score_files(write(root / "pred.json", content), root)
    (root / "pred.json").write_text(json.dumps([joints, vertices])[:5000])
    with pytest.raises(ValueError, match=r"pred\.json is not a whole JSON file"):
        score_files(root / "pred.json", root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_prediction(root / "nowhere.json")


def test_millimetres_are_noticed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_prediction(write(root / "pred.json", [(TRUTH.joints * 1e3).tolist(), TRUTH.vertices.tolist()]))
    assert "are they in millimetres?" in caplog.text
