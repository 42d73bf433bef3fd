"""A person's hand: lengths that fit, a flat hand told from others, two seconds that count, files that come back."""

from __future__ import annotations

import json
from collections.abc import Sequence

import graphs
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.assets import load_hand_model
from handmesh.cli import main
from handmesh.estimator import HandMeshEstimator, build_hand
from handmesh.hand_size import MIN_VIEWS, FlatHand, HandShape, hand_length, is_flat, shape_of_length
from handmesh.kinematics import RestHand
from handmesh.records import Camera, HandMesh, PosedHand, Side
from handmesh.skeleton import MANO_JOINTS
from handmesh.tracker import HandTracker

MODEL = load_hand_model()
CAMERA = Camera(600.0, 600.0, 319.5, 239.5, 640, 480)
FPS = 30
MILLIMETRE = 1e-3


FINGER_JOINTS = [name for name in MANO_JOINTS if name[:-1] in ("index", "middle", "ring", "little")]


def hand(
    betas: np.ndarray,
    yaw_deg: float = 0.0,
    curl: float = 0.0,
    side: Side = "right",
    x: float = 0.0,
    curled: Sequence[str] = FINGER_JOINTS,
) -> HandMesh:
    """A hand with its fingers up and its palm to the camera, turned about them, its fingers curled (rad a joint)."""
    rest = RestHand.from_model(MODEL, betas, "right")
    turns = np.tile(np.eye(3), (16, 1, 1))
    turns[0] = Rotation.from_euler("zy", [90, 90 + yaw_deg], degrees=True).as_matrix()
    for joint, name in enumerate(MANO_JOINTS):
        if name in curled:
            turns[joint] = Rotation.from_rotvec([0, 0, curl]).as_matrix()
    posed = PosedHand(turns, betas, rest.vertices, rest.turned(turns)[1], rest.faces)
    posed = posed.mirrored() if side == "left" else posed
    return build_hand(posed, side, np.array([x, 0.08, 0.45]), CAMERA, 0.9, 0.9)


def palm_yaw() -> float:
    """The yaw at which the palm or the back faces the camera best."""
    return max(range(0, 180, 10), key=lambda yaw: sum(is_flat(hand(np.zeros(10), yaw + d)) for d in (-30, 0, 30)))


YAW = palm_yaw()


@pytest.mark.parametrize("length_m", [0.14, 0.172, 0.205])
def test_a_shape_gets_its_length_and_keeps_its_proportions(length_m):
    betas = np.random.default_rng(0).normal(0, 0.7, 10)
    shape = shape_of_length(MODEL, betas, length_m)
    assert hand_length(MODEL, shape) == pytest.approx(length_m, abs=0.01 * MILLIMETRE)
    changes = np.abs(shape - betas)
    assert changes.argmax() == 0  # size is the first direction
    assert changes[1:].max() < 0.35 * changes[0]


def test_the_length_is_what_a_ruler_measures():
    length = hand_length(MODEL, np.zeros(10))
    rest = RestHand.from_model(MODEL, np.zeros(10), "right")
    straight = np.linalg.norm(rest.tips[2])
    assert straight < length < 1.05 * straight


@pytest.mark.parametrize("length", [0.0, 0.4, 185.0, float("nan")])
def test_lengths_that_no_hand_has_are_refused(length):
    with pytest.raises(ValueError, match=r"between 50 and 300 mm but is .* mm: measure from"):
        shape_of_length(MODEL, np.zeros(10), length)


@pytest.mark.parametrize("side", ["left", "right"])
def test_flat_hands_are_told_from_others(side):
    betas = np.zeros(10)
    assert is_flat(hand(betas, YAW, side=side))
    assert is_flat(hand(betas, YAW + 180, side=side))  # its back
    assert not is_flat(hand(betas, YAW + 90, side=side))  # edge on
    assert not is_flat(hand(betas, YAW, curl=0.9, side=side))


@pytest.mark.parametrize("joint", ["index2", "middle1", "little3"])
def test_one_bent_joint_makes_no_flat_hand(joint):
    assert not is_flat(hand(np.zeros(10), YAW, curl=0.9, curled=[joint]))


def test_a_hand_at_the_side_faces_the_camera_and_not_the_picture():
    for x in (-0.6, 0.6):  # seen from 53 degrees off
        assert not is_flat(hand(np.zeros(10), YAW, x=x))
    assert any(is_flat(hand(np.zeros(10), YAW + turn, x=0.6)) for turn in (-53, 53))


def watch(flat: FlatHand, hands: list[HandMesh | None], start: int = 0) -> list[float]:
    return [flat.watch(one, (start + k) / FPS) for k, one in enumerate(hands)]


def test_two_seconds_of_a_flat_hand_give_its_shape():
    rng = np.random.default_rng(1)
    true = rng.normal(0, 0.5, 10)
    flat = FlatHand(MODEL)
    seen = [hand(true + rng.normal(0, 0.3, 10), YAW + rng.normal(0, 3)) for _ in range(62)]
    shares = watch(flat, list(seen))
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert shares[30] == pytest.approx(0.5, abs=0.03)
    guessed = flat.shape()
    np.testing.assert_allclose(guessed.betas, true, atol=0.2)
    assert not guessed.measured
    measured = flat.shape(0.19)
    assert measured.measured
    assert hand_length(MODEL, measured.betas) == pytest.approx(0.19, abs=1e-5)


def test_a_few_wild_views_do_not_move_the_shape():
    flat, calm, wild = FlatHand(MODEL), hand(np.full(10, 0.5), YAW), hand(np.full(10, 3.0), YAW)
    assert watch(flat, [wild if k % 5 == 0 else calm for k in range(62)])[-1] == 1.0
    np.testing.assert_allclose(flat.shape().betas, 0.5, atol=1e-6)


def test_a_slow_camera_takes_longer_to_see_enough_views():
    flat, calm = FlatHand(MODEL), hand(np.zeros(10), YAW)
    shares = [flat.watch(calm, 0.25 * k) for k in range(MIN_VIEWS)]
    assert shares[8] == pytest.approx(9 / MIN_VIEWS)  # after two seconds
    assert shares[-1] == 1.0
    hasty = FlatHand(MODEL)
    for k in range(9):
        hasty.watch(calm, 0.25 * k)
    with pytest.raises(ValueError, match="2 s"):
        hasty.shape()


def test_interruptions_start_the_clock_again_and_blinks_do_not():
    flat = FlatHand(MODEL)
    good, bad = hand(np.zeros(10), YAW), hand(np.zeros(10), YAW, curl=0.9)
    assert watch(flat, [good] * 45)[-1] > 0.7
    assert watch(flat, [None] * 5 + [good], 45)[-1] > 0.7
    assert watch(flat, [bad] * 12, 51)[-1] == 0.0
    with pytest.raises(ValueError, match="2 s"):
        flat.shape()
    passing = [hand(np.zeros(10), YAW, x=-0.15 + 0.3 * k / 70) for k in range(70)]
    assert max(watch(flat, list(passing), 70)) < 0.5


def test_files_come_back(tmp_path):
    shape = HandShape(np.linspace(-1, 1, 10), 0.18, True)
    shape.save(tmp_path / "me.json")
    again = HandShape.load(tmp_path / "me.json")
    np.testing.assert_array_equal(again.betas, shape.betas)
    assert (again.length_m, again.measured) == (0.18, True)
    HandShape(np.zeros(10), np.float32(0.18), np.bool_(True)).save(tmp_path / "numpys.json")
    assert HandShape.load(tmp_path / "numpys.json").measured is True
    with pytest.raises(FileNotFoundError, match="calibrate-hand"):
        HandShape.load(tmp_path / "you.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="no hand's shape"):
        HandShape.load(tmp_path / "bad.json")
    beyond = [{"betas": [value] * 10} for value in (1e6, -1e6, float("nan"))]
    for wrong in (*beyond, {"length_m": 185.0}, {"length_m": -0.1}):
        facts = {"betas": [0.0] * 10, "length_m": 0.18, "measured": True, **wrong}
        (tmp_path / "bad.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=r"bad\.json is no hand's shape \(.* must .*make one with `handmesh cal"):
            HandShape.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"\.json"):
        shape.save(tmp_path / "me.yaml")


def test_a_given_shape_stays_in_pictures_and_videos(make_estimator, dim_frame):
    estimator = make_estimator()
    frame = graphs.draw_hand(dim_frame, (300, 200), 128)
    betas = np.linspace(1, -1, 10)
    estimator.betas = betas
    (still,) = estimator(frame)
    np.testing.assert_allclose(still.betas, betas, atol=1e-6)
    estimator.betas = None
    tracker = HandTracker(estimator)
    tracker.betas = betas
    for k in range(3):
        (tracked,) = tracker(frame, k / FPS)
        np.testing.assert_allclose(tracked.betas, betas, atol=1e-6)
    tracker.reset()
    assert tracker.betas is not None
    for owner in (tracker, estimator):
        with pytest.raises(ValueError, match=r"betas must have shape \(10\)"):
            owner.betas = np.zeros(9)


def test_the_command_takes_a_length_alone_and_says_what_it_needs(tmp_path, monkeypatch, capsys, estimator):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    assert main(["calibrate-hand", "--length-mm", "185"]) == 0
    assert "a hand of 185 mm (as measured)" in capsys.readouterr().out
    shape = HandShape.load("hand.json")
    assert hand_length(MODEL, shape.betas) == pytest.approx(0.185, abs=1e-5)
    bent = shape_of_length(MODEL, np.linspace(-1, 1, 10), 0.17)
    HandShape(bent, 0.17, False).save("me.json")
    assert main(["calibrate-hand", "--hand", "me.json", "--length-mm", "175", "--out", "me.json"]) == 0
    np.testing.assert_allclose(HandShape.load("me.json").betas, shape_of_length(MODEL, bent, 0.175), atol=1e-9)
    assert main(["calibrate-hand", "sample", "--hand", "me.json"]) == 1
    assert main(["calibrate-hand", "sample", "--out", "me.yaml"]) == 1
    said = capsys.readouterr().err
    assert "leave out --hand" in said
    assert "suffix must be .json" in said
    assert main(["calibrate-hand", "--length-mm", "18.5"]) == 1
    assert "between 50 and 300 mm but is 18.5 mm" in capsys.readouterr().err
    assert main(["calibrate-hand"]) == 1
    assert "--length-mm" in capsys.readouterr().err
    assert main(["calibrate-hand", "sample", "--out", "other.json"]) == 1  # no flat hand in sight
    assert "flat, still and facing the camera for 2 s" in capsys.readouterr().err
    assert not (tmp_path / "other.json").exists()


def test_a_hand_is_held_anew_where_time_goes_back():
    flat, good = FlatHand(MODEL), hand(np.zeros(10), YAW)
    watch(flat, [good] * 20, 100)
    assert watch(flat, [good] * 20)[0] == 0.0
