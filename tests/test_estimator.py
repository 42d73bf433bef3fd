"""The way from a frame to meshes: mirror laws, the camera, gates, boxes and sides, and every kind of bad input."""

from __future__ import annotations

import pickle
from dataclasses import replace

import graphs
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from handmesh.crop import Crop, turn_upright, view_rotation
from handmesh.estimator import PRESENCE, HandMeshEstimator
from handmesh.records import Camera, Detection, box_of_keypoints
from handmesh.tracker import HandTracker

CAMERA = Camera(600.0, 610.0, 310.0, 250.0, 640, 512)
MIRROR = np.array([-1.0, 1.0, 1.0])
BOX = [135.0, 85.0, 265.0, 215.0]
FOCAL = 320 / np.tan(np.radians(30))  # of the assumed camera at 640 px


@pytest.fixture
def frame(dim_frame) -> np.ndarray:
    """A right hand at the upper left, a left one at the lower right."""
    return graphs.draw_hand(graphs.draw_hand(dim_frame, (200, 150), 130, "right"), (450, 300), 120, "left")


# --- what comes out


def test_detected_hands_stand_where_they_are_drawn(estimator, frame):
    hands = sorted(estimator(frame), key=lambda hand: hand.box[0])
    assert [hand.side for hand in hands] == ["right", "left"]
    for hand, center, width in zip(hands, [(200, 150), (450, 300)], [130, 120], strict=True):
        wanted = np.array([*np.subtract(center, width / 2), *np.add(center, width / 2)])
        assert np.abs(hand.box - wanted).max() < 2  # edges fall on whole pixels of a 64 px crop
        assert hand.score > 0.99
        assert hand.side_score > 0.99
        assert hand.track_id is None
        assert hand.translation[2] == pytest.approx(FOCAL * graphs.HAND_WIDTH_M / width, rel=0.1)
        assert np.abs(hand.camera.project(hand.joints + hand.translation) - hand.joints_2d).mean() < 3
        assert trimesh.Trimesh(hand.vertices, hand.faces, process=False).volume > 0


@pytest.mark.parametrize(
    "as_view",
    [
        lambda frame: frame[..., ::-1].copy()[..., ::-1],  # a BGR frame seen as RGB
        lambda frame: frame[:, ::-1].copy()[:, ::-1],
        lambda frame: frame[::-1].copy()[::-1],
        lambda frame: np.dstack([frame, frame])[..., :3],  # without alpha
        lambda frame: np.pad(frame, ((3, 0), (5, 0), (0, 0)))[3:, 5:],
        np.asfortranarray,
    ],
)
def test_views_give_the_same_hands_and_are_not_copied_for_every_crop(estimator, frame, as_view, monkeypatch):
    seen, cut = [], Crop.cut
    monkeypatch.setattr(Crop, "cut", lambda crop, frame: seen.append(frame) or cut(crop, frame))
    view = as_view(frame)
    tracked = HandTracker(estimator)(view, 0.0), HandTracker(estimator)(frame, 0.0)
    for ours, expected in ((estimator(view), estimator(frame)), tracked):
        assert len(ours) == len(expected) == 2
        for hand, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(hand.vertices, other.vertices)
            np.testing.assert_array_equal(hand.joints_2d, other.joints_2d)
    for frame in seen:  # as OpenCV reads it where it is
        assert frame.strides[1:] == (3, 1)
        assert frame.strides[0] > 0


def test_hand_on_the_optical_axis_is_what_the_network_said(estimator, dim_frame):
    camera = Camera.from_fov(640, 512)
    frame = graphs.draw_hand(dim_frame, (camera.cx, camera.cy), 128)
    box = [camera.cx - 64, camera.cy - 64, camera.cx + 64, camera.cy + 64]
    (hand,) = estimator(frame, boxes=[box], sides=["right"])
    np.testing.assert_allclose(hand.vertices, graphs.VERTICES, atol=1e-6)
    np.testing.assert_allclose(hand.joints, graphs.JOINTS, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_rotvec(hand.global_orient).as_matrix(), graphs.ROTATIONS[0], atol=1e-6)
    np.testing.assert_allclose(Rotation.from_rotvec(hand.hand_pose).as_matrix(), graphs.ROTATIONS[1:], atol=1e-5)
    np.testing.assert_array_equal(hand.betas, graphs.BETAS)
    np.testing.assert_array_equal(hand.faces, graphs.FACES)


def test_hand_off_the_axis_is_turned_by_the_ray_through_its_crop(estimator, frame):
    (hand,) = estimator(frame, boxes=[BOX], sides=["right"], camera=CAMERA)
    R = view_rotation(CAMERA.rays([200.0, 150.0]))
    np.testing.assert_allclose(hand.vertices, graphs.VERTICES @ R.T, atol=1e-6)
    np.testing.assert_allclose(hand.joints, graphs.JOINTS @ R.T, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_rotvec(hand.global_orient).as_matrix(), R @ graphs.ROTATIONS[0], atol=1e-5)
    np.testing.assert_allclose(Rotation.from_rotvec(hand.hand_pose).as_matrix(), graphs.ROTATIONS[1:], atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_mirrored_frame_and_side_give_the_mirrored_mesh(estimator, dim_frame, side):
    other = "left" if side == "right" else "right"
    box = np.array([136.0, 86.0, 264.0, 214.0])  # 3.2 px of the frame to a pixel of the crop
    frame = graphs.draw_hand(dim_frame, (200, 150), 128, side)
    (hand,) = estimator(frame, boxes=[box], sides=[side], camera=CAMERA)
    (mirrored,) = estimator(
        frame[:, ::-1], boxes=[[639 - box[2], box[1], 639 - box[0], box[3]]], sides=[other], camera=CAMERA.mirrored()
    )
    assert (hand.side, mirrored.side) == (side, other)
    for name in ("vertices", "joints"):
        np.testing.assert_allclose(getattr(mirrored, name), getattr(hand, name) * MIRROR, atol=1e-7)
    for name in ("global_orient", "hand_pose"):
        np.testing.assert_allclose(getattr(mirrored, name), getattr(hand, name) * (1, -1, -1), atol=1e-5)
    np.testing.assert_array_equal(mirrored.betas, hand.betas)
    np.testing.assert_array_equal(mirrored.faces, hand.faces[:, ::-1])
    seen = hand.joints_2d * (-1, 1) + (639, 0)
    # The pictures differ by the rounding of interpolation: a hundredth of a pixel, 0.1 mm.
    np.testing.assert_allclose(mirrored.joints_2d, seen, atol=0.02)
    np.testing.assert_allclose(mirrored.translation, hand.translation * MIRROR, atol=2e-4)


def test_batch_equals_singles(estimator, frame):
    boxes, sides = [BOX, [390, 240, 510, 360], BOX], ["right", "left", "left"]
    together = estimator(frame, boxes=boxes, sides=sides)
    assert len(together) == 3
    for hand, box, side in zip(together, boxes, sides, strict=True):
        (alone,) = estimator(frame, boxes=[box], sides=[side])
        assert alone.side == hand.side == side
        for name in ("vertices", "joints", "translation", "joints_2d", "global_orient", "hand_pose"):
            np.testing.assert_allclose(getattr(alone, name), getattr(hand, name), atol=1e-4)


def test_batch_of_frames_equals_one_call_each(estimator, frame, dim_frame):
    small = graphs.draw_hand(dim_frame[:400, :500], (200, 250), 100, "left")
    own = Camera(600.0, 610.0, 250.0, 200.0, 500, 400)
    frames, cameras = [frame, dim_frame, small, frame], [None, None, own, CAMERA]
    boxes, sides = [None, None, None, [BOX, BOX]], [None, None, None, ["left", None]]
    together = estimator.batch(frames, boxes, sides, cameras)
    assert [len(hands) for hands in together] == [2, 0, 1, 2]
    for hands, *one in zip(together, frames, boxes, sides, cameras, strict=True):
        for hand, alone in zip(hands, estimator(*one), strict=True):
            assert (hand.side, hand.camera) == (alone.side, alone.camera)
            for name in ("vertices", "joints", "translation", "joints_2d", "global_orient", "hand_pose"):
                np.testing.assert_allclose(getattr(hand, name), getattr(alone, name), atol=1e-4)


def test_boxes_of_a_batch_may_be_one_array_and_must_be_as_many_as_frames(estimator, frame):
    together = estimator.batch([frame, frame], boxes=np.array([[BOX], [BOX]]))
    assert [len(hands) for hands in together] == [1, 1]
    with pytest.raises(ValueError, match="boxes must have one entry for each of the 2 frames"):
        estimator.batch([frame, frame], boxes=[])
    with pytest.raises(ValueError, match="cameras must have one entry"):
        estimator.batch([frame, frame], cameras=Camera.from_fov(640, 512))


def test_no_frames_have_no_hands(estimator):
    assert estimator.batch([]) == []


def test_noncontiguous_frames_and_the_frame_itself_are_safe(estimator, frame):
    before = frame.copy()
    plain = estimator(frame, boxes=[BOX])
    striding = estimator(np.ascontiguousarray(frame[:, :, ::-1])[:, :, ::-1], boxes=[BOX])
    np.testing.assert_array_equal(plain[0].joints_2d, striding[0].joints_2d)
    np.testing.assert_array_equal(frame, before)


# --- whose side


def test_network_decides_where_no_side_is_given(estimator, frame):
    boxes = [BOX, [390, 240, 510, 360]]
    for sides in (None, [None, None], ["right", None], [None, "left"]):
        assert [hand.side for hand in estimator(frame, boxes=boxes, sides=sides)] == ["right", "left"]


def test_given_sides_are_kept_and_doubt_is_told(estimator, frame):
    right, left = estimator(frame, boxes=[BOX, BOX], sides=["right", "left"])
    assert (right.side, left.side) == ("right", "left")
    assert right.side_score > 0.99
    assert left.side_score < 0.01


def test_an_undecided_network_is_run_as_a_right_hand(make_estimator, frame):
    for right in (0.5, 0.2):  # in doubt on both runs alike: the first stands
        (hand,) = make_estimator(right=right)(frame, boxes=[BOX])
        assert hand.side == "right"
        assert hand.side_score == pytest.approx(right)


def test_detectors_side_is_overruled(estimator, frame, monkeypatch):
    swapped = [replace(found, side="left" if found.side == "right" else "right") for found in estimator.detect(frame)]
    monkeypatch.setattr(estimator, "detector", lambda frame: swapped)
    assert {hand.side for hand in estimator(frame) if hand.box[0] < 300} == {"right"}
    assert {hand.side for hand in estimator(frame) if hand.box[0] > 300} == {"left"}


def test_detected_hands_are_looked_at_again_in_the_box_of_their_keypoints(estimator, frame, monkeypatch):
    rough = Detection(np.array([200.0, 90.0, 390.0, 270.0]), "left", 0.9)
    monkeypatch.setattr(estimator, "detector", lambda frame: [rough])
    (first,) = estimator(frame, boxes=[rough.box])
    (second,) = estimator(frame, boxes=[first.box], turns=[turn_upright(first.joints_2d)])
    (hand,) = estimator(frame)
    assert (hand.side, first.side) == ("right", "right")
    assert np.abs(first.joints_2d - second.joints_2d).max() > 1e-3
    np.testing.assert_allclose(hand.joints_2d, second.joints_2d, atol=1e-5)  # the angle comes of float32 keypoints here
    np.testing.assert_allclose(hand.translation, second.translation, atol=1e-6)


@pytest.mark.parametrize(("side", "center"), [("right", (200, 150)), ("left", (450, 300))])
def test_a_hand_in_a_turned_crop_is_the_same_hand(estimator, frame, side, center):
    """The picture turned by a quarter, its crop turned back: the hand turns with the picture."""
    box = np.array([*np.subtract(center, 65), *np.add(center, 65)], float)
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])  # x towards y, about the frame's middle
    turned = np.ascontiguousarray(np.rot90(frame, -1))
    (x1, y1), (x2, y2) = ((np.reshape(box, (2, 2)) - (319.5, 255.5)) @ quarter.T + (255.5, 319.5)).tolist()
    cameras = [Camera.from_fov(640, 512), Camera.from_fov(512, 640)]
    (plain,), (other,) = estimator.sightings(
        [frame, turned], [[box], [[x2, y1, x1, y2]]], [[side], [side]], cameras, [[0.0], [-0.5 * np.pi]]
    )
    expected = (plain.joints_2d - (319.5, 255.5)) @ quarter.T + (255.5, 319.5)
    np.testing.assert_allclose(other.joints_2d, expected, atol=1e-3)
    R = np.block([[quarter, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    np.testing.assert_allclose(other.posed.joints, plain.posed.joints @ R.T, atol=1e-5)
    np.testing.assert_allclose(other.posed.vertices, plain.posed.vertices @ R.T, atol=1e-5)
    np.testing.assert_allclose(other.posed.rotations[0], R @ plain.posed.rotations[0], atol=1e-5)
    assert other.side_score == pytest.approx(plain.side_score, abs=1e-3)


def test_detected_hands_are_turned_upright_for_the_second_look(estimator, frame, monkeypatch):
    asked, run = [], estimator._run
    monkeypatch.setattr(estimator, "_run", lambda wanted: asked.append(wanted) or run(wanted))
    estimator(frame)
    first, second = asked
    assert not any(one.turn for one in first)
    upright = [turn_upright(estimate.joints_2d) for estimate in run(first)]
    for one in second:
        assert min(abs(one.turn - turn) for turn in upright) < 1e-6


@pytest.mark.parametrize("side", ["right", None])
@pytest.mark.parametrize("tilt", [-0.4, 0.4, 0.7, 3.0])
def test_hands_in_given_boxes_are_looked_at_again_where_they_lie_askew(make_estimator, frame, monkeypatch, tilt, side):
    R = Rotation.from_euler("z", tilt).as_matrix()[:2, :2]
    tilted = (graphs.KEYPOINT_OFFSETS @ R.T).astype(np.float32)
    estimator, asked = make_estimator(joints_2d=tilted), []
    run = estimator._run
    monkeypatch.setattr(estimator, "_run", lambda wanted: asked.append(wanted) or run(wanted))
    (hand,) = estimator(frame, boxes=[BOX], sides=[side])
    assert [one[0].turn for one in asked[:1]] == [None]
    assert [one[0].turn for one in asked[1:] if one] == ([] if abs(tilt) < 0.5 else [pytest.approx(-tilt, abs=1e-5)])
    assert all(np.array_equal(one.box, BOX) for looks in asked for one in looks)
    assert hand.side == "right"
    asked.clear()
    estimator(frame, boxes=[BOX], sides=[side], turns=[-0.2])
    assert [one[0].turn for one in asked if one] == [-0.2]  # known: one look


def test_both_looks_have_a_say_in_the_side(estimator, frame, monkeypatch):
    monkeypatch.setattr(estimator, "detector", lambda frame: [Detection(np.array(BOX, float), "right", 0.9)])
    run, said = estimator._run, iter([0.8, 0.2, 0.4, 0.6])  # leaning to a right hand, then less to a left one

    def unsure(wanted):
        return [replace(estimate, side_score=next(said)) for estimate in run(wanted)]

    monkeypatch.setattr(estimator, "_run", unsure)
    (hand,) = estimator(frame)
    assert (hand.side, hand.side_score) == ("right", 0.4)
    said = iter([0.99, 0.01, 0.4])  # sure at once: the other side is not asked again
    (hand,) = estimator(frame)
    assert (hand.side, hand.side_score) == ("right", 0.4)
    said = iter([0.6, 0.4, 0.1, 0.9])  # hardly sure at first: the second look may turn it
    (hand,) = estimator(frame)
    assert (hand.side, hand.side_score) == ("left", 0.9)


def answer_as(estimator, monkeypatch, right: dict[int, float]) -> None:
    """Let the network have these log odds of a right hand where hundreds of pixels from the left are these."""
    run = estimator._run

    def answer(wanted):
        found = zip(run(wanted), (right[int(one.box[[0, 2]].mean() // 100)] for one in wanted), strict=True)
        scores = [(e, 1 / (1 + np.exp(-odds if e.side == "right" else odds))) for e, odds in found]
        return [replace(estimate, side_score=score) for estimate, score in scores]

    monkeypatch.setattr(estimator, "_run", answer)


def test_of_two_hands_that_look_alike_the_less_sure_one_is_taken_for_the_others_pair(estimator, frame, monkeypatch):
    boxes = [BOX, [390, 240, 510, 360]]
    before = estimator(frame)
    answer_as(estimator, monkeypatch, {1: 3.0, 2: 3.0, 4: 0.5})
    found = sorted(estimator(frame), key=lambda hand: hand.box[0])
    assert [hand.side for hand in found] == ["right", "left"]
    assert found[1].side_score == pytest.approx(1 / (1 + np.exp(0.5)))
    np.testing.assert_allclose(found[1].joints_2d, max(before, key=lambda hand: hand.box[0]).joints_2d, atol=0.5)
    for sides, wanted in (
        (None, ["right", "left"]),
        (["right", None], ["right", "left"]),
        (["left", None], ["left", "right"]),
        ([None, "right"], ["right", "right"]),
    ):
        assert [hand.side for hand in estimator(frame, boxes=boxes, sides=sides)] == wanted
    assert [hand.side for hand in estimator(frame, boxes=[*boxes, BOX])] == ["right"] * 3


def test_what_is_taken_for_a_hands_pair_is_run_in_the_crop_that_was_seen(estimator, frame, monkeypatch):
    """Box and turn of the second look: the detector's box is rough, and upright hands are seen best."""
    answer_as(estimator, monkeypatch, {1: 3.0, 2: 3.0, 4: 0.5})
    asked, run = [], estimator._run
    monkeypatch.setattr(estimator, "_run", lambda wanted: asked.append(wanted) or run(wanted))
    estimator(frame)
    first, second, (other,) = asked
    (rough, closer) = (next(one for one in looks if one.box[0] > 300) for looks in (first, second))
    assert other.side == "left"
    assert other.turn is not None
    assert other.turn == closer.turn
    np.testing.assert_array_equal(other.box, closer.box)
    assert not np.array_equal(other.box, rough.box)


def test_pairs_are_of_each_frame_and_of_hands_that_are_there(estimator, frame, monkeypatch):
    answer_as(estimator, monkeypatch, {1: 3.0, 2: 3.0, 4: 0.5})
    one = frame.copy()
    one[:, 300:] = 0
    singles = estimator.batch([one, frame, one])
    assert [[hand.side for hand in sorted(hands, key=lambda h: h.box[0])] for hands in singles] == [
        ["right"],
        ["right", "left"],
        ["right"],
    ]
    run = estimator._run

    def unseen_as_left(wanted):
        return [replace(e, presence=0.1 if e.side == "left" else e.presence) for e in run(wanted)]

    monkeypatch.setattr(estimator, "_run", unseen_as_left)
    assert [hand.side for hand in estimator(frame)] == ["right", "right"]


# --- presence


def test_a_hand_that_the_detector_finds_twice_or_in_part_is_given_out_once(estimator, frame, monkeypatch):
    whole = estimator(frame)
    boxes = [*(hand.box for hand in whole), np.add(whole[0].box, [9, -6, 9, -6]), whole[0].box]
    monkeypatch.setattr(estimator, "detector", lambda frame: [Detection(box, "right", 0.9) for box in boxes])
    run = estimator._run

    def with_a_part(wanted):
        """The last of the detector's finds seems half as large."""
        found = run(wanted)
        if len(found) < len(boxes):
            return found
        part = len(boxes) - 1
        small = found[part].joints_2d.mean(0) + 0.5 * (found[part].joints_2d - found[part].joints_2d.mean(0))
        found[part] = replace(found[part], joints_2d=small)
        return found

    monkeypatch.setattr(estimator, "_run", with_a_part)
    monkeypatch.setattr(estimator, "_look", lambda wanted, heard: (estimator._run(wanted), list(heard)))
    found = estimator(frame)
    assert len(found) == 2
    for hand, wanted in zip(found, whole, strict=True):
        assert np.abs(hand.box - wanted.box).max() < 2
    assert len(estimator(frame, boxes=boxes, sides=["right"] * 4)) == 4  # own boxes are all answered


def test_detections_without_presence_are_dropped_but_own_boxes_kept(make_estimator, frame):
    for presence, left in ((0.49, 0), (0.51, 2)):
        estimator = make_estimator(presence=presence)
        assert len(estimator(frame)) == left
        (hand,) = estimator(frame, boxes=[BOX])
        assert hand.score == pytest.approx(presence)
    assert len(make_estimator(presence=0.49, presence_threshold=0.4)(frame)) == 2


def test_a_networks_file_says_how_much_presence_makes_a_hand(make_estimator, monkeypatch):
    assert make_estimator(presence=0.5, presence_threshold=None).presence_threshold == PRESENCE
    monkeypatch.setitem(graphs.HAND_DESCRIPTION, "presence", 0.75)
    assert make_estimator(presence=0.5, presence_threshold=None).presence_threshold == 0.75
    assert make_estimator(presence=0.5, presence_threshold=0.0).presence_threshold == 0.0


def test_a_networks_file_says_how_wide_its_crops_are(make_estimator, frame, monkeypatch):
    points = {"joints_2d": graphs.KEYPOINT_OFFSETS}
    (usual,) = make_estimator(**points)(frame, boxes=[BOX], sides=["right"])
    monkeypatch.setitem(graphs.HAND_DESCRIPTION, "crop_scale", 2.4)
    (wider,) = make_estimator(**points)(frame, boxes=[BOX], sides=["right"])
    np.testing.assert_allclose(np.ptp(wider.joints_2d, axis=0), 1.5 * np.ptp(usual.joints_2d, axis=0), rtol=1e-4)


def test_a_presence_that_is_rounded_beyond_one_is_one(make_estimator, frame):
    (hand,) = make_estimator(presence=1.00001, right=1.00001)(frame, boxes=[BOX])
    assert (hand.score, hand.side_score) == (1.0, 1.0)


def test_empty_scene_and_no_boxes_give_an_empty_list(estimator, dim_frame):
    assert estimator(dim_frame) == []
    assert estimator(dim_frame, boxes=[]) == []
    assert estimator(dim_frame, boxes=np.zeros((0, 4)), sides=[]) == []


def test_box_on_nothing_has_a_low_score(estimator, dim_frame):
    (hand,) = estimator(dim_frame, boxes=[BOX])
    assert hand.score < 0.1


# --- camera


def test_collapsed_keypoints_make_a_hand_with_a_box_of_a_pixel(make_estimator, frame):
    (hand,) = make_estimator(joints_2d=np.zeros((21, 2)))(frame, boxes=[BOX])
    np.testing.assert_allclose(hand.box[2:] - hand.box[:2], 1.0)
    np.testing.assert_allclose(box_of_keypoints(np.array([[0.0, 0], [10, 4]])), [0, 0, 10, 4])


def test_camera_is_assumed_and_says_so(estimator, frame):
    (assumed,) = estimator(frame, boxes=[BOX])
    assert assumed.camera == Camera.from_fov(640, 512, 60.0)
    assert assumed.camera.assumed
    (given,) = estimator(frame, boxes=[BOX], camera=CAMERA)
    assert given.camera is CAMERA
    assert not given.camera.assumed


# --- posing


def test_pose_gives_back_what_the_network_gave(estimator, frame):
    hands = estimator(frame, boxes=[BOX, BOX], sides=["right", "left"])
    rotations = np.stack(
        [Rotation.from_rotvec(np.vstack([hand.global_orient, hand.hand_pose])).as_matrix() for hand in hands]
    )
    for hand, posed in zip(
        hands, estimator.pose(rotations, np.stack([hand.betas for hand in hands]), ["right", "left"]), strict=True
    ):
        np.testing.assert_allclose(posed.vertices, hand.vertices, atol=1e-6)
        np.testing.assert_allclose(posed.joints, hand.joints, atol=1e-6)
        np.testing.assert_array_equal(posed.faces, hand.faces)
    assert estimator.pose(np.zeros((0, 16, 3, 3)), np.zeros((0, 10)), []) == []


# --- bad input


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (None, TypeError),
        ("hand.jpg", TypeError),
        (np.zeros((64, 64), np.uint8), ValueError),
        (np.zeros((64, 64, 4), np.uint8), ValueError),
        (np.zeros((64, 64, 3), np.float32), ValueError),
        (np.zeros((0, 64, 3), np.uint8), ValueError),
    ],
)
def test_bad_frames_are_refused(estimator, frame, error):
    with pytest.raises(error, match="frame"):
        estimator(frame)
    with pytest.raises(error, match="frame"):
        estimator(frame, boxes=[[0, 0, 10, 10]])


def test_tiny_frames(estimator):
    for shape in ((1, 1, 3), (1, 500, 3), (15, 15, 3)):
        tiny = np.full(shape, 255, np.uint8)
        assert estimator(tiny) == []
        (hand,) = estimator(tiny, boxes=[[-0.5, -0.5, 0.5, 0.5]])  # one pixel
        assert np.isfinite(hand.translation).all()


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[265, 85, 135, 215]], r"boxes\[0\] must be x1, y1, x2, y2"),
        ([BOX, [135, 215, 265, 85]], r"boxes\[1\] must be x1"),
        ([[10, 10, 10, 20]], r"boxes\[0\] must be x1"),
        ([[10, 10, np.nan, 20]], r"boxes\[0\] must be finite"),
        (BOX, r"shape \(N, 4\)"),
        ([[1, 2, 3]], r"shape \(N, 4\)"),
        ([[-50, 10, -1, 60]], r"boxes\[0\].*outside the frame of 640 x 512"),
        ([BOX, [640, 10, 700, 60]], r"boxes\[1\].*outside"),
        ([[10, 600, 50, 700]], r"boxes\[0\].*outside"),
        ([[10, -90, 50, -3]], r"boxes\[0\].*outside"),
    ],
)
def test_bad_boxes_are_refused(estimator, frame, boxes, words):
    with pytest.raises(ValueError, match=words):
        estimator(frame, boxes=boxes)


def test_boxes_partly_outside_are_taken(estimator, dim_frame):
    frame = graphs.draw_hand(dim_frame, (20, 20), 120)
    (hand,) = estimator(frame, boxes=[[-40, -40, 80, 80]], sides=["right"])
    assert hand.score > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"boxes": [BOX], "sides": []}, ValueError, "1 boxes and 0 sides"),
        ({"boxes": [BOX], "sides": ["left", "right"]}, ValueError, "1 boxes and 2 sides"),
        ({"boxes": [BOX], "sides": ["Left"]}, ValueError, r"sides\[0\] must be"),
        ({"boxes": [BOX], "sides": "left"}, TypeError, "not the string"),
        ({"sides": ["left"]}, ValueError, "without boxes"),
        ({"turns": [0.5]}, ValueError, "turns were given without boxes"),
        ({"boxes": [BOX], "turns": [0.5, 0.1]}, ValueError, "1 boxes and 2 turns"),
        ({"boxes": [BOX], "turns": [np.nan]}, ValueError, r"turns\[0\] must be a finite number"),
        ({"camera": "webcam"}, TypeError, "handmesh.Camera"),
        ({"camera": Camera.from_fov(1280, 1024)}, ValueError, r"camera.resized\(640, 512\)"),
    ],
)
def test_bad_arguments_are_refused(estimator, frame, arguments, error, words):
    with pytest.raises(error, match=words):
        estimator(frame, **arguments)


def test_detector_may_be_missing_if_boxes_are_given(make_estimator, frame):
    estimator = make_estimator(detector=False)
    assert len(estimator(frame, boxes=[BOX])) == 1
    with pytest.raises(ValueError, match="without a detector"):
        estimator(frame)


def test_networks_that_break_the_contract_are_named(make_estimator, frame):
    with pytest.raises(ValueError, match=r"hand\.onnx lacks the outputs betas"):
        make_estimator(betas=None)(frame, boxes=[BOX])
    with pytest.raises(ValueError, match="5 vertices but the hand model's faces need 6"):
        make_estimator(vertices=graphs.VERTICES[:5])(frame, boxes=[BOX])
    with pytest.raises(ValueError, match=r"HandMesh.vertices must be finite"):
        make_estimator(vertices=np.full((6, 3), np.nan))(frame, boxes=[BOX])


def test_threshold_must_be_a_probability(make_estimator):
    with pytest.raises(ValueError, match="presence_threshold"):
        make_estimator(presence_threshold=50)


# --- opening


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_opening_from_own_files(stub_folder, stub_hand_model, frame, estimator, runtime):
    opened = HandMeshEstimator.from_pretrained(
        stub_folder / "hand.onnx",
        runtime=runtime,
        threads=1,
        detector=stub_folder / "detector.onnx",
        hand_model=stub_hand_model,
        pose_graph=stub_folder / "pose.onnx",
    )
    for hand, expected in zip(opened(frame), estimator(frame), strict=True):
        np.testing.assert_allclose(hand.joints_2d, expected.joints_2d, atol=1e-3)
        np.testing.assert_allclose(hand.vertices, expected.vertices, atol=1e-6)


def test_a_quantised_network_opens_with_a_plain_detector(stub_folder, stub_hand_model, tmp_path):
    description = {**graphs.HAND_DESCRIPTION, "precision": "int8"}
    hand = graphs.build_hand_graph(tmp_path / "hand.onnx", description=description)
    files = {"detector": stub_folder / "detector.onnx", "pose_graph": stub_folder / "pose.onnx"}
    opened = HandMeshEstimator.from_pretrained(hand, precision="int8", hand_model=stub_hand_model, **files)
    assert opened.detector is not None


def test_opening_without_a_detector_and_with_a_foreign_hand_model(stub_folder, frame):
    opened = HandMeshEstimator.from_pretrained(
        stub_folder / "hand.onnx", detector=None, pose_graph=stub_folder / "pose.onnx"
    )
    with pytest.raises(ValueError, match="open the estimator with the hand model that the network was trained on"):
        opened(frame, boxes=[BOX])


def test_a_default_camera_serves_frames_of_its_proportions(estimator, dim_frame):
    camera = Camera(1800.0, 1800.0, 639.5, 511.5, 1280, 1024)
    frame = graphs.draw_hand(dim_frame, (320, 256), 128)
    estimator.camera = camera
    (hand,) = estimator(frame)
    assert hand.camera == camera.resized(640, 512)
    given = Camera(700.0, 700.0, 319.5, 255.5, 640, 512)
    assert estimator(frame, camera=given)[0].camera is given
    with pytest.raises(ValueError, match=r"1280 x 1024.*640 x 400.*calibrate"):
        estimator(frame[:400])


def test_a_default_camera_serves_frames_resized_to_whole_pixels(estimator):
    """480 lines of a camera of 16 to 9 are 853.3 pixels long, which some programs round up."""
    estimator.camera = Camera(900.0, 900.0, 639.5, 359.5, 1280, 720)
    for width in (853, 854):
        (hand,) = estimator(np.zeros((480, width, 3), np.uint8), boxes=[BOX])
        assert hand.camera == estimator.camera.resized(width, 480)


def test_boxes_in_fractions_and_turns_that_are_no_list_are_named(estimator):
    frame = np.zeros((360, 480, 3), np.uint8)
    with pytest.raises(ValueError, match="not fractions"):
        estimator(frame, boxes=[[0.3, 0.3, 0.6, 0.7]])
    with pytest.raises(TypeError, match="one angle a box"):
        estimator(frame, boxes=[[100, 100, 200, 200]], turns=0.3)
    with pytest.raises(TypeError, match=r"must be a handmesh\.Camera or None, not str"):
        estimator.camera = "camera.yaml"
    with pytest.raises(TypeError, match="cannot go to another process"):
        pickle.dumps(estimator)
