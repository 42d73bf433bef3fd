"""From one hand model to another and back, and from bare joints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hands import sphere_hand
from mano_imitation import write_mano_pickle

from handmesh.assets import HandModelArrays, load_hand_model, save_hand_model
from handmesh.cli import main as handmesh
from handmesh.datasets.convert import read_hands
from handmesh.model.hand_model import HandModel
from handmesh.model.rotations import rotmat_to_rotvec, rotvec_to_rotmat
from handmesh.records import mirror_rotations
from handmesh.synthesis.hand_fitting import fit_hands, surface_distance_mm
from handmesh.synthesis.pose_bank import load_pose_bank

JOINT_MM, SURFACE_MM = 0.5, 1.0  # what a fit may miss: means over a hand
COUNT = 4


def stretched(model: HandModelArrays) -> HandModelArrays:
    """A hand of other proportions: longer and narrower than any betas make it."""
    factors = np.array([1.06, 1.0, 0.95])
    return replace(
        model,
        v_template=model.v_template * factors,
        shapedirs=model.shapedirs * factors[:, None],
        posedirs=model.posedirs * factors[:, None],
    )


def parameters() -> tuple[np.ndarray, np.ndarray]:
    """Rotations (COUNT, 16, 3, 3) of recorded poses in any orientation, and betas."""
    rng = np.random.default_rng(3)
    bank = load_pose_bank()
    assert bank is not None
    rotvecs = np.concatenate([rng.normal(0, 1.2, (COUNT, 1, 3)), bank[rng.choice(len(bank), COUNT)]], 1)
    return rotvec_to_rotmat(torch.from_numpy(rotvecs)).numpy(), rng.normal(size=(COUNT, 10)).clip(-2, 2)


def pose(model: HandModelArrays, place: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints and vertices of `parameters` before a camera."""
    rotations, betas = (torch.from_numpy(array) for array in parameters())
    hand = HandModel(model, torch.float64)(rotations, betas)
    ahead = np.array([0.0, 0.0, place])
    return hand.keypoints.numpy() + ahead, hand.vertices.numpy() + ahead


def test_joints_alone_give_the_same_hand_back() -> None:
    model = load_hand_model()
    keypoints, vertices = pose(model)
    fit = fit_hands(model, keypoints)
    assert fit.keypoint_error_mm.max() < JOINT_MM
    assert np.isnan(fit.surface_error_mm).all()
    assert np.linalg.norm(fit.vertices - vertices, axis=-1).mean() * 1e3 < 2 * SURFACE_MM
    np.testing.assert_allclose(fit.translation, fit.keypoints[:, 0])
    hand = HandModel(model, torch.float64)(torch.from_numpy(fit.rotations), torch.from_numpy(fit.betas))
    posed = hand.vertices - hand.keypoints[:, :1] + torch.from_numpy(fit.translation)[:, None]
    np.testing.assert_allclose(posed.numpy(), fit.vertices, atol=1e-5)


def test_a_hand_of_other_proportions_is_met_on_its_surface_and_found_again() -> None:
    model = load_hand_model()
    other = stretched(model)
    keypoints, vertices = pose(other)
    there = fit_hands(model, keypoints, vertices)
    assert there.keypoint_error_mm.max() < 2 * JOINT_MM
    assert there.surface_error_mm.max() < SURFACE_MM
    back = fit_hands(other, there.keypoints, there.vertices)
    assert np.linalg.norm(back.keypoints - keypoints, axis=-1).mean() * 1e3 < 2 * JOINT_MM
    assert np.linalg.norm(back.vertices - vertices, axis=-1).mean() * 1e3 < 2 * SURFACE_MM


def test_surface_distance_of_a_lifted_square() -> None:
    vertices = np.array([[0.0, 0, 0], [0.02, 0, 0], [0.02, 0.02, 0], [0, 0.02, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    points = np.array([[0.005, 0.005, 0.003], [0.01, 0.015, -0.003]])
    assert surface_distance_mm(points, vertices, faces) == pytest.approx(3.0)
    assert surface_distance_mm(vertices, vertices, faces) == 0.0


@pytest.mark.parametrize(
    ("keypoints", "surface", "message"),
    [
        (np.zeros((2, 20, 3)), None, r"must be \(N, 21, 3\)"),
        (np.zeros((0, 21, 3)), None, "at least one hand"),
        (np.full((1, 21, 3), np.nan), None, "must be finite"),
        (np.zeros((2, 21, 3)), np.zeros((1, 5, 3)), r"must be \(2, P, 3\)"),
    ],
)
def test_bad_points_are_named(keypoints: np.ndarray, surface: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_hands(load_hand_model(), keypoints, surface)


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_converts_to_mano_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mano_file = write_mano_pickle(tmp_path / "MANO_RIGHT.pkl", size=1.04)
    rotations, betas = parameters()
    places = np.array([[0.1, -0.05, 0.5 + 0.1 * number] for number in range(COUNT)])
    sides = np.array(["right", "left"] * (COUNT // 2))
    np.savez(tmp_path / "open.npz", rotations=rotations, betas=betas, translation=places, side=sides)
    to_mano = ["data", "convert", str(tmp_path / "open.npz"), str(tmp_path / "mano.npz"), "--to", str(mano_file)]
    assert handmesh([*to_mano, "--joints-only", "--vertices"]) == 0
    assert "4 hands; joints are off by 0." in capsys.readouterr().out
    with np.load(tmp_path / "mano.npz") as found:
        assert found["vertices"].shape == (COUNT, 778, 3)
        assert found["hand_pose"].shape == (COUNT, 15, 3)
        np.testing.assert_allclose(found["translation"], places, atol=2e-3)
    back = ["data", "convert", str(tmp_path / "mano.npz"), str(tmp_path / "back.npz"), "--from", str(mano_file)]
    assert handmesh([*back, "--joints-only"]) == 0
    given = read_hands(tmp_path / "open.npz", load_hand_model())
    truth = np.where(given.left[:, None, None], given.keypoints * [-1, 1, 1], given.keypoints)
    with np.load(tmp_path / "back.npz") as found:
        assert "vertices" not in found
        assert found["side"].tolist() == sides.tolist()
        assert np.linalg.norm(found["joints"] - truth, axis=-1).mean() * 1e3 < 2 * JOINT_MM


def test_what_can_be_converted_is_read_alike(tmp_path: Path) -> None:
    """Parameters, points, FreiHAND's tables and handmesh's own files: the same right hands, left ones mirrored."""
    model = load_hand_model()
    save_hand_model(tmp_path / "model.npz", model)
    rotations, betas = parameters()
    keypoints, vertices = pose(model)
    centred = keypoints - keypoints[:, :1]
    np.savez(tmp_path / "right.npz", rotations=rotations, betas=betas)
    left = {"rotations": mirror_rotations(rotations), "betas": betas, "side": np.array(["left"] * COUNT)}
    np.savez(tmp_path / "left.npz", **left)
    np.savez(tmp_path / "points.npz", joints=keypoints, vertices=vertices)
    (tmp_path / "xyz.json").write_text(json.dumps(keypoints.tolist()))
    rotvecs = rotmat_to_rotvec(torch.from_numpy(rotations)).numpy().reshape(COUNT, 48)
    rotvecs[:, 3:] -= model.hands_mean
    rows = np.concatenate([rotvecs, betas, np.zeros((COUNT, 3))], 1)
    (tmp_path / "mano.json").write_text(json.dumps(rows[:, None].tolist()))
    for name in ("right.npz", "left.npz", "points.npz", "xyz.json", "mano.json"):
        hands = read_hands(tmp_path / name, model)
        np.testing.assert_allclose(hands.keypoints - hands.keypoints[:, :1], centred, atol=1e-5)
        assert hands.left.all() == (name == "left.npz")
        if hands.vertices is not None:
            np.testing.assert_allclose(hands.vertices - hands.keypoints[:, :1], vertices - keypoints[:, :1], atol=1e-5)


def test_a_saved_hand_is_read(tmp_path: Path) -> None:
    saved = sphere_hand("left", center=(0.1, 0.0, 0.5))
    saved.save(tmp_path / "hand.npz")
    hands = read_hands(tmp_path / "hand.npz", load_hand_model())
    assert hands.keypoints.shape == (1, 21, 3)
    assert hands.left.tolist() == [True]
    np.testing.assert_allclose(hands.keypoints[0, 0], saved.translation * [-1, 1, 1], atol=1e-6)


def test_hands_sides_and_places_must_be_as_many(tmp_path: Path) -> None:
    path, model = tmp_path / "hands.npz", load_hand_model()
    np.savez(path, joints=np.zeros((21, 3)), side=["left", "right"])
    with pytest.raises(ValueError, match="1 hands and 2 sides"):
        read_hands(path, model)
    turns = np.tile(np.eye(3), (2, 16, 1, 1))
    np.savez(path, rotations=turns, betas=np.zeros((2, 10)), translation=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="3 numbers for each of 2 hands"):
        read_hands(path, model)


def test_the_command_names_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", something=np.zeros(3))
    np.savez(tmp_path / "half.npz", global_orient=np.zeros((1, 3)), betas=np.zeros((1, 10)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "x.json").write_text("[[1, 2]]")
    np.savez(tmp_path / "side.npz", joints=np.zeros((1, 21, 3)), side="both")
    for name, message in (
        ("side.npz", 'a side must be "left" or "right", not both'),
        ("x.npz", "has neither parameters"),
        ("half.npz", "has neither parameters"),
        ("cut.npz", "not a readable .npz"),
        ("array.npz", "not a readable .npz"),
        ("x.json", "must be FreiHAND's xyz"),
        ("y.npz", "no file"),
    ):
        assert handmesh(["data", "convert", str(tmp_path / name), str(tmp_path / "out.npz")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_published_mano_parameters_are_not_taken_for_the_open_hands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "training_mano.json"
    published.write_text("[]")
    convert = ["data", "convert", str(published), str(tmp_path / "out.npz")]
    assert handmesh(convert) == 1
    assert "give your MANO_RIGHT.pkl by --from" in capsys.readouterr().err
    (tmp_path / "training_synthesis.json").write_text("{}")
    assert handmesh(convert) == 1
    assert "its first row is None" in capsys.readouterr().err


@pytest.mark.parametrize("sides", [["Left", "RIGHT"], np.array(["left", "right"])])
def test_sides_are_known_in_capitals(tmp_path: Path, sides) -> None:
    np.savez(tmp_path / "hands.npz", joints=np.zeros((2, 21, 3)), side=sides)
    assert read_hands(tmp_path / "hands.npz", load_hand_model()).left.tolist() == [True, False]
