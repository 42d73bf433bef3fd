import hashlib
import json
import subprocess

import cv2
import graphs
import numpy as np
import pytest

from handmesh import HandTracker
from handmesh.assets import WEIGHTS_REGISTRY
from handmesh.evaluation import report
from handmesh.evaluation.photos import LabelledHand, count_on_none, match, measure_clip, measure_photos, summarise
from handmesh.evaluation.report import stamp, write_result
from handmesh.image_folders import is_held_out, load_images


def hands_of(estimator):
    frame = graphs.draw_hand(np.zeros((360, 480, 3), np.uint8), (160.0, 180.0), 90.0)
    frame = graphs.draw_hand(frame, (340.0, 180.0), 90.0)
    return frame, estimator(frame)


def label_of(hand, shift=0.0):
    return LabelledHand(hand.joints_2d + shift, np.asarray(hand.joints, np.float64), hand.side)


def test_hands_are_matched_by_place_not_by_order(estimator):
    _, found = hands_of(estimator)
    assert len(found) == 2
    labels = [label_of(found[1]), label_of(found[0])]
    pairs = match(found, labels)
    assert sorted(pairs, key=lambda pair: found.index(pair[0])) == [(found[0], labels[1]), (found[1], labels[0])]
    far = LabelledHand(found[0].joints_2d + 1000.0, labels[0].joints, "right")
    assert match(found, [far]) == []
    assert match([], labels) == []


def test_summary_of_a_known_shift(estimator):
    _, found = hands_of(estimator)
    box = found[0].joints_2d.max(0) - found[0].joints_2d.min(0)
    shifted = label_of(found[0], np.array([0.07 * box.max(), 0.0]))
    summary = summarise([(found[0], shifted)], labels=2)
    assert (summary["labels"], summary["matched"]) == (2, 1)
    assert summary["2d"] == pytest.approx(0.07)
    assert (summary["pck_05"], summary["pck_10"]) == (0.0, 1.0)
    assert summary["pa_mpjpe_pseudo_mm"] == pytest.approx(0.0, abs=1e-3)
    assert summary["2d_raw"] == pytest.approx(0.07)
    assert summarise([], labels=3) == {"labels": 3, "matched": 0}


def write_folder(folder, frames, hands):
    folder.mkdir()
    entries = {}
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])
        labels = [
            {"side": h.side, "kp2d": h.joints_2d.tolist(), "kp3d": h.joints.tolist(), "spread": 0.01} for h in hands
        ]
        entries[f"{number:05d}.png"] = {"hands": labels}
    (folder / "labels.json").write_text(json.dumps(entries))


def test_folders_and_clips_are_measured_against_their_labels(estimator, tmp_path):
    frame, found = hands_of(estimator)
    write_folder(tmp_path / "set", [frame], found)
    result = measure_photos(estimator, [tmp_path / "set"])
    for kind in ("crops", "frames"):
        row = result[kind]["set"]
        assert row["matched"] == row["labels"] == 2
        assert row["2d"] < 0.05
        assert result[kind]["mean over folders"]["2d"] == pytest.approx(row["2d"])

    write_folder(tmp_path / "clip", [frame] * 4, found)
    labelled = tmp_path / "labelled"
    write_folder(labelled, [frame] * 2, found)
    row = measure_clip(HandTracker(estimator, smoothing=None), tmp_path / "clip", labelled, every=2)
    assert (row["frames"], row["frames_with_hand"], row["labels"], row["matched"]) == (4, 4, 4, 4)
    assert row["2d"] < 0.05


def test_hands_on_none_are_counted_on_pictures_that_training_keeps_out(tmp_path):
    folder = tmp_path / "clothing"
    folder.mkdir()
    paths = [folder / f"{number:05d}.png" for number in range(40)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((8, 8, 3), 255 * (number % 2), np.uint8))
    kept_out = [number for number, path in enumerate(paths) if is_held_out(path)]
    assert 0 < sum(number % 2 for number in kept_out) < len(kept_out) < 40
    counts = count_on_none(lambda picture: [None] if picture.max() else [], [folder])
    assert counts == {"pictures": len(kept_out), "with_a_hand": sum(number % 2 for number in kept_out)}
    assert len(load_images([folder], 400, also_held_out=False)) == 40 - len(kept_out)


def test_photos_of_a_clip_are_known_by_their_number_where_some_have_no_trusted_label(estimator, tmp_path):
    frame, found = hands_of(estimator)
    empty = np.zeros_like(frame)
    write_folder(tmp_path / "clip", [empty, frame], found)
    write_folder(tmp_path / "labelled", [empty, frame], found)
    file = tmp_path / "labelled" / "labels.json"
    labels = json.loads(file.read_text())
    labels["00000.png"]["hands"] = []
    file.write_text(json.dumps(labels))
    row = measure_clip(HandTracker(estimator, smoothing=None), tmp_path / "clip", tmp_path / "labelled", every=1)
    assert (row["labels"], row["matched"]) == (2, 2)


def test_results_carry_a_stamp_and_round_numbers(tmp_path):
    write_result(tmp_path / "a" / "result.json", {"error": 1 / 3, "rows": [{"x": 2 / 3}]})
    stored = json.loads((tmp_path / "a" / "result.json").read_text())
    assert stored["error"] == 0.333333
    assert stored["rows"] == [{"x": 0.666667}]
    assert {"commit", "date", "processor", "cores", "python", "versions"} <= set(stored["stamp"])
    weights = json.loads(WEIGHTS_REGISTRY.read_text())
    assert weights["fast"]["sha256"].startswith(stored["stamp"]["weights_sha256"]["fast"])


def test_a_commit_is_dirty_by_changed_code_not_by_documents_and_results(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    files = [tmp_path / name for name in ("package/code.py", "package/README.md", "eval/results/a.json")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(report, "__file__", str(files[0]))
    clean = stamp()["commit"]
    for file in files[1:]:
        file.write_text("after")
    assert stamp()["commit"] == clean
    files[0].write_text("after")
    assert stamp()["commit"] == f"{clean}-dirty"


def test_the_stamp_is_of_this_code_wherever_one_stands_and_needs_no_git(tmp_path, monkeypatch):
    here = stamp()["commit"]
    monkeypatch.chdir(tmp_path)
    assert stamp()["commit"] == here
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stamp()["commit"] is None


def test_a_repository_that_only_surrounds_this_code_is_not_named(tmp_path, monkeypatch):
    package = tmp_path / "venv" / "handmesh"
    package.mkdir(parents=True)
    (package / "report.py").touch()
    (tmp_path / "own.txt").write_text("private")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init"], ["add", "own.txt"], [*identity, "commit", "-m", "own"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    (tmp_path / "own.txt").write_text("private, changed")
    monkeypatch.setattr(report, "__file__", str(package / "report.py"))
    assert report.git("diff", "HEAD") == ""
    assert stamp()["commit"] is None


def test_folders_that_could_not_be_told_apart_or_have_no_labels_are_refused(estimator, tmp_path):
    frame, found = hands_of(estimator)
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        write_folder(tmp_path / parent / "set", [frame], found)
    with pytest.raises(ValueError, match="names of their own"):
        measure_photos(estimator, [tmp_path / "a" / "set", tmp_path / "b" / "set"])
    (tmp_path / "a" / "set" / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match="no trusted labels"):
        measure_photos(estimator, [tmp_path / "a" / "set"])
    with pytest.raises(ValueError, match="every must be at least 1"):
        measure_clip(HandTracker(estimator), tmp_path / "clip.mp4", tmp_path / "b" / "set", every=0)


def test_results_name_the_network_that_ran_and_hold_nothing_that_is_no_number(estimator, tmp_path):
    facts = report.network_facts(estimator.network)
    assert facts["weights"] == estimator.network.path.name
    assert facts["weights_sha256"] == hashlib.sha256(estimator.network.path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(tmp_path / "a.json", {"median": float("nan")})
    assert not list(tmp_path.iterdir())
