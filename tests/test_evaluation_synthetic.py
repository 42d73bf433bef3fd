from __future__ import annotations

from pathlib import Path

import cv2
import graphs
import numpy as np
import pytest

from handmesh.evaluation.synthetic import HandErrors, groups, measure_rendered, pose_family

WIDTH_PX, FOCAL, DEPTH_M = 60.0, 150.0, 0.5
COUNT = 6


def write_set(root: Path) -> Path:
    """A rendered set of stub hands whose truth is what the stub network answers."""
    intrinsics = np.array([[FOCAL, 0, 111.5], [0, FOCAL, 111.5], [0, 0, 1]])
    (root / "evaluation" / "rgb").mkdir(parents=True)
    joints = []
    for number in range(COUNT):
        centre = (90.0 + 8 * number, 100.0)
        frame = graphs.draw_hand(np.zeros((224, 224, 3), np.uint8), centre, WIDTH_PX)
        cv2.imwrite(str(root / "evaluation" / "rgb" / f"{number:08d}.jpg"), frame[..., ::-1])
        rays = (graphs.KEYPOINT_OFFSETS * WIDTH_PX + centre - intrinsics[:2, 2]) / FOCAL
        joints.append(np.column_stack([rays, np.ones(21)]) * DEPTH_M)
    np.savez(root / "evaluation_labels.npz", K=np.tile(intrinsics, (COUNT, 1, 1)), xyz=np.array(joints))
    facts = {
        "rotations": np.tile(graphs.ROTATIONS, (COUNT, 1, 1, 1)),
        "betas": np.tile(graphs.BETAS, (COUNT, 1)),
        "skin_tone": np.linspace(0, 1, COUNT),
        "view": np.array(["palm", "back"] * (COUNT // 2)),
        "pose_class": np.array(["open", "fist", "pinch", "recorded", "open", "ok"]),
        "held": np.zeros(COUNT, bool),
        "occluded": np.arange(COUNT) == 0,
        "gloved": np.zeros(COUNT, bool),
    }
    np.savez(root / "evaluation_meta.npz", **facts)
    return root


def test_a_network_that_answers_the_truth_has_no_error(estimator, tmp_path: Path) -> None:
    calls = []
    result = measure_rendered(estimator, write_set(tmp_path), progress=lambda *done: calls.append(done))
    assert calls[-1] == (COUNT, COUNT)
    assert result["all"]["hands"] == COUNT
    assert result["all"]["2d"] < 0.02  # the stub reads its keypoints off pixels
    assert result["all"]["pa_mpjpe_mm"] < 0.01
    assert result["all"]["pa_mpvpe_mm"] < 0.01
    assert result["all"]["shape_mm"] < 0.01  # the stub's hand has but one shape
    assert {name: row["hands"] for name, row in result["skin_tone"].items()} == dict.fromkeys(
        ("lightest", "middle", "darkest"), 2
    )
    assert result["occluded"]["yes"]["hands"] == 1
    assert result["held"]["yes"] == {"hands": 0}
    assert result["pose_family"]["open"]["hands"] == 2


def test_errors_of_a_group_are_its_own() -> None:
    mm = np.array([2.0, 4.0, 6.0, 20.0])
    errors = HandErrors(np.tile(mm[:, None] / 100, 21), mm, 2 * mm, 3 * mm, 4 * mm, mm / 30, 1 - mm / 30)
    summary = errors.summary(np.array([True, True, True, False]))
    assert summary == pytest.approx(
        {
            "hands": 3,
            "2d": 0.04,
            "2d_median": 0.04,
            "pck_05": 2 / 3,
            "pck_10": 1.0,
            "pa_mpjpe_mm": 4.0,
            "pa_mpjpe_mm_se": np.sqrt(8 / 3) / np.sqrt(3),
            "pa_mpvpe_mm": 8.0,
            "pa_mpvpe_mm_se": 2 * np.sqrt(8 / 3) / np.sqrt(3),
            "shape_mm": 12.0,
            "average_shape_mm": 16.0,
            "presence": 0.0,
            "side_right": 1.0,
        }
    )
    assert errors.summary(mm > 10)["pa_mpvpe_mm"] == 40.0


def test_gloved_hands_have_no_skin_tone_and_every_other_hand_one_third() -> None:
    rng = np.random.default_rng(0)
    gloved = rng.random(300) < 0.2
    names = np.array(["open"] * 300)
    facts = {"skin_tone": rng.random(300), "view": names, "pose_class": names}
    masks = groups(facts | dict.fromkeys(("held", "occluded"), gloved) | {"gloved": gloved})["skin_tone"]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), ~gloved)
    sizes = [int(mask.sum()) for mask in masks.values()]
    assert max(sizes) - min(sizes) <= 1
    assert facts["skin_tone"][masks["lightest"]].max() < facts["skin_tone"][masks["darkest"]].min()


def test_pose_families() -> None:
    names = {"fist": "closed", "open": "open", "point": "mixed", "ok": "touching", "wrap": "grasp", "random": "random"}
    assert {name: pose_family(name) for name in names} == names


def test_sets_without_facts_are_refused(estimator, tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "evaluation_meta.npz").unlink()
    with pytest.raises(ValueError, match=r"evaluation_meta\.npz lacks skin_tone"):
        measure_rendered(estimator, root)
