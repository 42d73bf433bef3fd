"""Tracking: numbers and sides that stay, detector calls that are rare, losses bridged, twins merged, time in order."""

from __future__ import annotations

import logging
from dataclasses import replace

import graphs
import numpy as np
import pytest
from hands import sighting
from scipy.spatial.transform import Rotation

from handmesh.crop import turn_upright
from handmesh.records import Camera, Detection, HandMesh, box_of_keypoints, mirror_rotations
from handmesh.smoothing import OneEuro, Smoothing
from handmesh.tracker import STARTS, HandTracker, track_together

FPS = 30.0


class Video:
    """Feeds a tracker frames of drawn hands at 30 a second and counts the detector's runs."""

    def __init__(self, tracker: HandTracker, background: np.ndarray) -> None:
        self.tracker, self.background, self.count, self.detections = tracker, background, 0, 0
        estimator = tracker._estimator
        detector = estimator.detector

        def counted(frame):
            self.detections += 1
            return detector(frame)

        estimator.detector = counted

    def show(self, *hands: tuple[float, float, float, str], skip: int = 0) -> list[HandMesh]:
        """The tracker's answer to the next frame, with hands (x, y, width, side)."""
        frame = self.background
        for x, y, width, side in hands:
            frame = graphs.draw_hand(frame, (x, y), width, side)
        self.count += 1 + skip
        return self.tracker(frame, self.count / FPS)


@pytest.fixture
def make_video(make_estimator, dim_frame):
    def make(max_hands=2, *, fixed=None, **settings) -> Video:
        return Video(HandTracker(make_estimator(**(fixed or {})), max_hands, **settings), dim_frame)

    return make


def center(hand: HandMesh) -> np.ndarray:
    return 0.5 * (hand.box[:2] + hand.box[2:])


RIGHT, LEFT = (200, 150, 130, "right"), (450, 300, 120, "left")


def test_hands_keep_their_numbers_and_sides(make_video):
    video = make_video()
    numbers = {"right": 0, "left": 1}
    for k in range(40):
        hands = video.show((200 + 4 * k, 150, 130, "right"), (450 - 4 * k, 350, 120, "left"))
        assert {hand.side: hand.track_id for hand in hands} == numbers
        assert abs(hands[0].joints_2d[:, 1].mean() - 150) < 20
    assert video.detections == 1


def moving_hands(video: int, k: int, background: np.ndarray) -> np.ndarray:
    """Frame ``k`` of one of three videos: two hands, a left one that leaves, and one that comes late."""
    if video == 0:
        frame = graphs.draw_hand(background, (200 + 4 * k, 150), 130, "right")
        return graphs.draw_hand(frame, (450 - 4 * k, 350), 120, "left")
    hand = graphs.draw_hand(background, (300 + (40 * k if k > 6 else k), 200), 130, "left" if video == 1 else "right")
    return hand if video == 1 or k > 3 else background


def test_videos_together_are_as_each_alone(estimator, dim_frame):
    together = [HandTracker(estimator) for _ in range(3)]
    alone = [HandTracker(estimator) for _ in range(3)]
    counts = []
    for k in range(14):
        frames = [moving_hands(video, k, dim_frame) for video in range(3)]
        times = [k / FPS, k / 25.0, 5.0 + k / 60.0]
        results = track_together(together, frames, times)
        counts.append([len(hands) for hands in results])
        for hands, tracker, frame, time in zip(results, alone, frames, times, strict=True):
            for hand, other in zip(hands, tracker(frame, time), strict=True):
                assert (hand.side, hand.track_id) == (other.side, other.track_id)
                for name in ("vertices", "joints", "translation", "joints_2d", "global_orient", "hand_pose"):
                    np.testing.assert_allclose(getattr(hand, name), getattr(other, name), atol=1e-4)
    assert counts[0] == [2, 1, 0]
    assert counts[5] == [2, 1, 1]
    assert counts[-1][1] == 0


def test_what_cannot_go_together_is_said(estimator, make_estimator, dim_frame):
    tracker, stranger = HandTracker(estimator), HandTracker(make_estimator())
    with pytest.raises(ValueError, match="each video its own"):
        track_together([tracker, tracker], [dim_frame] * 2, [0.0, 0.0])
    with pytest.raises(ValueError, match="share one estimator"):
        track_together([tracker, stranger], [dim_frame] * 2, [0.0, 0.0])
    assert track_together([], [], []) == []


def test_what_is_refused_together_leaves_all_trackers_as_they_were(estimator, dim_frame):
    pair = [HandTracker(estimator), HandTracker(estimator)]
    with pytest.raises(TypeError, match="the frame is None"):
        track_together(pair, [dim_frame, None], [1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        track_together(pair, [dim_frame, dim_frame], [1.0, float("nan")])
    assert track_together(pair, [dim_frame, dim_frame], [1.0, 1.0]) == [[], []]


def test_meshes_are_whole_and_fit_together(make_video):
    video = make_video()
    for k in range(10):
        hands = video.show((200 + 3 * k, 150, 130, "right"), (450, 300 - 3 * k, 120, "left"))
        assert [hand.track_id for hand in hands] == [0, 1]
        for hand in hands:
            projected = hand.camera.project(hand.joints + hand.translation)
            np.testing.assert_allclose(hand.joints_2d, projected, atol=1e-3)
            assert hand.to_trimesh().volume > 0
            assert hand.score > 0.9


def test_a_hand_at_rest_is_what_the_estimator_sees(make_video, make_estimator, dim_frame):
    video = make_video()
    for _ in range(20):
        hands = video.show(RIGHT, LEFT)
    frame = graphs.draw_hand(graphs.draw_hand(dim_frame, RIGHT[:2], RIGHT[2]), LEFT[:2], LEFT[2], "left")
    turns = {track.id: track.turn for track in video.tracker._tracks}
    for hand in hands:
        # The stub sees every hand upright in its crop, so that the tracker's crop turns a little by perspective.
        (plain,) = make_estimator()(frame, boxes=[hand.box], sides=[hand.side], turns=[turns[hand.track_id]])
        np.testing.assert_allclose(hand.vertices, plain.vertices, atol=1e-3)
        np.testing.assert_allclose(hand.translation, plain.translation, atol=0.01)
        np.testing.assert_allclose(hand.global_orient, plain.global_orient, atol=0.01)
        np.testing.assert_allclose(hand.hand_pose, plain.hand_pose, atol=1e-3)


def test_detector_runs_only_while_a_hand_is_missing(make_video):
    video = make_video(detect_every=5)
    for _ in range(4):
        assert video.show() == []
    assert video.detections == 4  # every frame while there is no hand at all
    for _ in range(11):
        assert len(video.show(RIGHT)) == 1
    assert video.detections == 4 + 1 + 2  # to find it, then every fifth frame for a second hand
    for _ in range(5):
        hands = video.show(RIGHT, LEFT)
    assert len(hands) == 2
    seen = video.detections
    for _ in range(20):
        video.show(RIGHT, LEFT)
    assert video.detections == seen


def test_no_more_hands_than_asked_for(make_video):
    video = make_video(max_hands=1)
    for _ in range(12):
        (hand,) = video.show(RIGHT, LEFT)
        assert hand.track_id == 0
    assert video.detections == 1


def test_smoothing_off_gives_the_estimators_meshes(make_video, make_estimator, dim_frame):
    video = make_video(smoothing=None)
    for k in range(3):
        (hand,) = video.show((200 + 5 * k, 150, 130, "right"))
    box = 0.5 * np.array([-130, -130, 130, 130]) + [210, 150, 210, 150]
    frame = graphs.draw_hand(dim_frame, (210, 150), 130)
    (plain,) = make_estimator()(frame, boxes=[box], sides=["right"])
    np.testing.assert_allclose(hand.joints_2d, plain.joints_2d, atol=2.0)
    assert hand.track_id == 0


def test_trembling_of_the_picture_shrinks(make_video):
    rng = np.random.default_rng(0)
    steps = {}
    for name, smoothing in (("raw", None), ("smooth", Smoothing())):
        video, places = make_video(smoothing=smoothing), []
        for dx, dy in np.random.default_rng(1).integers(-3, 4, (60, 2)):
            (hand,) = video.show((300 + dx, 250 + dy, 128 + 2 * rng.integers(-2, 3), "right"))
            places.append(hand.translation)
        steps[name] = np.abs(np.diff(places[20:], axis=0)).mean(0)
    assert (steps["smooth"] < 0.5 * steps["raw"]).all()


def test_a_fast_hand_is_followed_closely(make_video):
    video = make_video()
    for k in range(30):
        (hand,) = video.show((120 + 13 * k, 200, 130, "right"))  # a tenth of its width a frame
    assert hand.track_id == 0
    assert video.detections < 10
    assert abs(center(hand)[0] - (120 + 13 * 29)) < 13  # less than a frame behind


@pytest.mark.parametrize("apart_s", [0.0005, 0.002])
def test_frames_that_come_in_bursts_throw_no_hand_away(make_estimator, dim_frame, apart_s):
    tracker, off = HandTracker(make_estimator(), 1, smoothing=None), []
    for k in range(40):
        x = 120 + 8 * k
        time_s = k / FPS if k % 2 == 0 else (k - 1) / FPS + apart_s
        hands = tracker(graphs.draw_hand(dim_frame, (x, 200), 130, "right"), time_s)
        off += [abs(center(hand)[0] - x) for hand in hands]
    assert len(off) == 40
    assert max(off) < 13


def test_short_losses_are_bridged_along_the_path(make_video):
    video = make_video(max_hands=1, bridge_frames=3)
    for k in range(15):
        video.show((200 + 8 * k, 200, 130, "right"))
    xs = []
    for _ in range(3):
        (hand,) = video.show()
        assert hand.track_id == 0
        assert hand.score < 0.5
        xs.append(center(hand)[0])
        np.testing.assert_allclose(hand.box, box_of_keypoints(hand.joints_2d), atol=1e-3)
    assert xs == sorted(xs)
    assert xs[0] > 200 + 8 * 13
    (hand,) = video.show((200 + 8 * 17, 200, 130, "right"))
    assert hand.track_id == 0
    assert hand.score > 0.9


def test_a_bridged_hand_is_seen_by_the_camera_of_its_frame(estimator, dim_frame):
    tracker, cameras = HandTracker(estimator, 1), [Camera(f, f, 319.5, 255.5, 640, 512) for f in (600.0, 660.0)]
    tracker(graphs.draw_hand(dim_frame, RIGHT[:2], RIGHT[2]), 0.0, cameras[0])
    (hand,) = tracker(dim_frame, 0.03, cameras[1])
    assert hand.camera == cameras[1]
    np.testing.assert_allclose(hand.joints_2d, cameras[1].project(hand.joints + hand.translation), atol=1e-3)


def test_who_asks_for_less_presence_keeps_the_hands_that_have_it(make_estimator, dim_frame):
    video = Video(HandTracker(make_estimator(presence=0.4, presence_threshold=0.3), 1), dim_frame)
    for _ in range(8):
        (hand,) = video.show(RIGHT)
        assert (hand.track_id, hand.score) == (0, pytest.approx(0.4))
    assert video.detections == 1


def test_a_hand_that_comes_back_keeps_its_number_for_a_while(make_video):
    video = make_video(bridge_frames=2, remember_s=1.0)
    video.show(RIGHT)
    assert [len(video.show()) for _ in range(4)] == [1, 1, 0, 0]
    (hand,) = video.show(RIGHT)
    assert hand.track_id == 0
    for _ in range(35):
        hands = video.show()
    assert hands == []
    (hand,) = video.show(RIGHT)
    assert hand.track_id == 1


def test_a_hand_of_the_other_side_is_another_hand(make_video):
    video = make_video()
    for _ in range(8):
        video.show(RIGHT)
    for _ in range(8):
        video.show()
    (hand,) = video.show(LEFT)
    assert (hand.side, hand.track_id) == ("left", 1)
    (first, second) = [video.show(RIGHT, LEFT) for _ in range(6)][-1]
    assert (first.side, first.track_id, second.side, second.track_id) == ("right", 0, "left", 1)


def test_no_bridging_if_not_wanted(make_video):
    video = make_video(bridge_frames=0)
    assert len(video.show(RIGHT)) == 1
    assert video.show() == []


def test_a_hand_that_jumped_is_found_again_by_the_detector(make_video):
    video = make_video(max_hands=1)
    for _ in range(5):
        video.show((200, 200, 130, "right"))
    for _ in range(3):
        video.show((280, 200, 130, "right"), skip=0)
    (hand,) = video.show((280, 200, 130, "right"))
    assert hand.track_id == 0
    assert abs(center(hand)[0] - 280) < 10


def test_a_hand_that_leaves_the_frame_ends(make_video):
    video = make_video(max_hands=1)
    for k in range(60):
        hands = video.show((500 + 10 * k, 200, 130, "right"))
    assert hands == []


def test_side_flips_only_after_frames_of_disagreement(make_video):
    video = make_video(max_hands=1, flip_after=5, smoothing=None)
    for _ in range(10):
        video.show(RIGHT)
    as_left = (*RIGHT[:3], "left")
    for _ in range(4):  # a flicker shorter than the hysteresis changes nothing
        (hand,) = video.show(as_left)
        assert hand.side == "right"
        assert hand.side_score < 0.5
    for _ in range(10):
        assert video.show(RIGHT)[0].side == "right"
    sides = [video.show(as_left)[0].side for _ in range(8)]
    changed = sides.index("left")
    assert 4 <= changed <= 6
    assert sides == ["right"] * changed + ["left"] * (8 - changed)
    assert video.show(as_left)[0].track_id == 0


def test_a_settled_hand_is_asked_about_once_and_a_new_one_twice(scripted, dim_frame):
    tracker = HandTracker(scripted, max_hands=1, smoothing=None)
    scripted.found = [Detection(A, "right", 0.9)]
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.9, 0.95 if side == "right" else 0.05)
    asked = []
    for k in range(6):
        tracker(dim_frame, k / FPS)
        asked.append(len(scripted.seen))
    assert asked[0] == 2
    assert asked[-1] == 1
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.9, 0.6)  # it sounds unsure: ask both next time
    tracker(dim_frame, 7 / FPS)
    tracker(dim_frame, 8 / FPS)
    assert len(scripted.seen) == 2


def test_alternating_opinions_never_flip_the_side(make_video):
    video = make_video(max_hands=1)
    for k in range(40):
        (hand,) = video.show((*RIGHT[:3], "left" if k % 2 else "right"))
        assert hand.side == "right"


class ScriptedEstimator:
    """Answers with what the test says: ``found`` are detections, ``see(box, side)`` is the mesh of a crop."""

    presence_threshold = 0.5
    detector = "scripted"
    camera = None

    def __init__(self, pattern: HandMesh) -> None:
        self.pattern, self.found, self.see, self.seen = pattern, [], self.hand_at, []

    def detect(self, frame):
        return self.found

    def sightings(self, frames, boxes, sides, cameras, turns):
        (boxes,), (sides,), (self.turns,) = boxes, sides, turns
        self.seen = [self.see(box, side or "right") for box, side in zip(boxes, sides, strict=True)]
        return [[sighting(hand) for hand in self.seen]]

    def hand_at(self, box, side, score=0.9, side_score=0.9) -> HandMesh:
        """The pattern hand, moved to stand in the middle of a box."""
        place = self.pattern.camera.rays(0.5 * (np.asarray(box)[:2] + np.asarray(box)[2:]))
        translation = place * self.pattern.translation[2] - self.pattern.joints.mean(axis=0)
        joints_2d = self.pattern.camera.project(self.pattern.joints + translation)
        box = np.concatenate([joints_2d.min(0), joints_2d.max(0)])
        return replace(
            self.pattern,
            side=side,
            score=score,
            side_score=side_score,
            translation=translation,
            joints_2d=joints_2d,
            box=box,
        )


@pytest.fixture
def scripted(estimator, dim_frame) -> ScriptedEstimator:
    (pattern,) = estimator(graphs.draw_hand(dim_frame, (300, 200), 130), boxes=[[235, 135, 365, 265]], sides=["right"])
    return ScriptedEstimator(pattern)


def test_crops_turn_with_the_hand_and_hold_still_for_a_tremble(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None, max_hands=1)
    scripted.found = [Detection(A, "right", 0.9)]
    tilts, turns = [0.3, 0.35, 0.3, 2.4, 2.4], []

    def at_a_tilt(box, side):
        hand = scripted.hand_at(A, side)
        angle = tilts[len(turns)] + turn_upright(hand.joints_2d)
        R = Rotation.from_euler("z", angle).as_matrix().astype(np.float32)
        joints = hand.joints @ R.T
        return replace(hand, joints=joints, joints_2d=hand.camera.project(joints + hand.translation))

    scripted.see = at_a_tilt
    for k in range(5):
        tracker(dim_frame, k / FPS)
        turns.append(scripted.turns[0])
    assert turns[0] == 0.0
    assert turns[1] == pytest.approx(-0.3, abs=0.1)
    assert abs(turns[2] - turns[1]) < 0.02
    assert abs(turns[4] - turns[3]) > 1.5


A, B = np.array([100.0, 150, 230, 280]), np.array([400.0, 150, 530, 280])


@pytest.mark.parametrize(
    ("older_side_score", "younger_side_score", "kept"), [(0.9, 0.9, 0), (0.9, 0.2, 0), (0.2, 0.2, 0), (0.2, 0.9, 1)]
)
def test_two_tracks_on_one_hand_become_the_older(scripted, dim_frame, older_side_score, younger_side_score, kept):
    tracker = HandTracker(scripted, smoothing=None)
    scripted.found = [Detection(A, "right", 0.9), Detection(B, "right", 0.9)]
    assert [hand.track_id for hand in tracker(dim_frame, 0.0)] == [0, 1]
    scores = {0: older_side_score, 1: younger_side_score}

    def at_a(box, side):
        return scripted.hand_at(A, side, 0.9, scores[int(box[0] > 300)] if side == "right" else 0.5)

    scripted.found, scripted.see = [], at_a
    (hand,) = tracker(dim_frame, 1 / FPS)
    assert hand.track_id == kept


def test_hands_side_by_side_stay_two(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None)
    scripted.found = [Detection(A, "right", 0.9), Detection(np.add(A, [60, 0, 60, 0]), "right", 0.9)]
    for k in range(5):
        assert [hand.track_id for hand in tracker(dim_frame, k / FPS)] == [0, 1]


def in_box(hand: HandMesh, box) -> HandMesh:
    """The same hand, so near or far that its keypoints fill a box."""
    low, high = hand.joints_2d.min(0), hand.joints_2d.max(0)
    scale = (box[2:] - box[:2]).max() / (high - low).max()
    joints_2d = box[:2] + (hand.joints_2d - low) * scale
    place = hand.camera.rays(joints_2d[0]) * hand.translation[2] / scale - hand.joints[0]
    return replace(hand, joints_2d=joints_2d, box=np.asarray(box, float), translation=place)


PALM = np.array([110.0, 220, 160, 270])  # within A


def test_a_track_that_shrank_onto_a_part_of_its_hand_follows_the_whole_one_when_that_is_found(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None, detect_every=2)
    scripted.found = [Detection(PALM, "right", 0.9)]
    scripted.see = lambda box, side: in_box(scripted.hand_at(box, side), A if np.ptp(box[::2]) > 100 else PALM)
    (part,) = tracker(dim_frame, 0.0)
    assert np.ptp(part.box[::2]) < 60
    scripted.found = [Detection(A, "right", 0.9)]
    for k in range(1, 8):
        hands = tracker(dim_frame, k / FPS)
        assert [hand.track_id for hand in hands] == [0]
    assert np.ptp(hands[0].box[::2]) > 100


def test_a_part_of_a_known_hand_is_no_new_one(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None, detect_every=1)
    scripted.found = [Detection(A, "right", 0.9)]
    scripted.see = lambda box, side: in_box(scripted.hand_at(box, side), A if np.ptp(box[::2]) > 100 else PALM)
    tracker(dim_frame, 0.0)
    scripted.found = [Detection(PALM, "right", 0.9)]
    assert [hand.track_id for hand in tracker(dim_frame, 1 / FPS)] == [0]
    scripted.found = [Detection(PALM + 300, "right", 0.9)]  # as small, but elsewhere
    scripted.see = lambda box, side: in_box(scripted.hand_at(box, side), A if np.ptp(box[::2]) > 100 else PALM + 300)
    assert [hand.track_id for hand in tracker(dim_frame, 2 / FPS)] == [0, 1]


def test_a_hand_lost_and_detected_near_its_place_goes_on(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None)
    scripted.found = [Detection(A, "right", 0.9)]
    tracker(dim_frame, 0.0)
    moved = A + 60
    at_new_place = lambda box, side: scripted.hand_at(box, side, 0.9 if abs(box[0] - moved[0]) < 20 else 0.1)  # noqa: E731
    scripted.found, scripted.see = [], at_new_place
    assert tracker(dim_frame, 1 / FPS)[0].score < 0.5
    scripted.found = [Detection(B, "right", 0.95), Detection(moved, "right", 0.9)]
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.9 if box[0] > moved[0] - 20 else 0.1)
    first, second = tracker(dim_frame, 2 / FPS)
    assert (first.track_id, second.track_id) == (0, 1)
    np.testing.assert_allclose(center(first), 0.5 * (moved[:2] + moved[2:]), atol=15)
    np.testing.assert_allclose(center(second), 0.5 * (B[:2] + B[2:]), atol=15)


def see_only(scripted: ScriptedEstimator, *hands: tuple[np.ndarray, float]) -> None:
    """Crops near these boxes show a hand there, with these log odds of a right one; others show none."""

    def see(box, side):
        for place, right in hands:
            if np.abs(np.subtract(box, place)[:2]).max() < 90:
                return scripted.hand_at(place, side, 0.9, 1 / (1 + np.exp(-right if side == "right" else right)))
        return scripted.hand_at(box, side, 0.1, 0.5)

    scripted.see = see


@pytest.mark.parametrize(("first", "second", "stays"), [(0.0, 3.0, False), (3.0, 3.0, True), (0.0, 0.5, True)])
def test_what_is_hardly_a_hand_makes_room_for_a_sure_one(scripted, dim_frame, first, second, stays):
    tracker = HandTracker(scripted, max_hands=1, smoothing=None)
    see_only(scripted, (A, first), (B, second))
    scripted.found = [Detection(A, "right", 0.9)]
    for k in range(20):
        assert [hand.track_id for hand in tracker(dim_frame, k / FPS)] == [0]
    scripted.found = [Detection(B, "right", 0.9)]
    for k in range(20, 40):
        (hand,) = tracker(dim_frame, k / FPS)
    assert (hand.track_id == 0) == stays


def test_where_one_place_is_left_a_known_hand_comes_before_a_stranger(scripted, dim_frame):
    middle = np.array([250.0, 330, 380, 460])
    tracker = HandTracker(scripted, smoothing=None, detect_every=1, bridge_frames=0)
    see_only(scripted, (A, 3.0), (B, -3.0))
    scripted.found = [Detection(A, "right", 0.9), Detection(B, "left", 0.9)]
    for k in range(10):
        assert [hand.track_id for hand in tracker(dim_frame, k / FPS)] == [0, 1]
    see_only(scripted, (B, -3.0))
    scripted.found = []
    assert [hand.track_id for hand in tracker(dim_frame, 10 / FPS)] == [1]
    see_only(scripted, (A, 3.0), (B, -3.0), (middle, -3.0))
    scripted.found = [Detection(middle, "left", 0.95), Detection(A, "right", 0.9)]
    assert [hand.track_id for hand in tracker(dim_frame, 11 / FPS)] == [0, 1]


def test_a_hand_in_sight_is_given_out_before_one_that_has_just_gone(scripted, dim_frame):
    tracker = HandTracker(scripted, max_hands=1, smoothing=None)
    see_only(scripted, (A, 3.0))
    scripted.found = [Detection(A, "right", 0.9)]
    tracker(dim_frame, 0.0)
    see_only(scripted, (B, -3.0))
    scripted.found = [Detection(B, "left", 0.9)]
    for k in range(1, 3):
        (hand,) = tracker(dim_frame, k / FPS)
    assert (hand.track_id, hand.side) == (1, "left")
    assert hand.score > 0.5


def test_a_hand_that_has_gone_is_searched_for_at_once_though_another_is_in_sight(scripted, dim_frame):
    moved = np.add(A, [0, 190, 0, 190])
    tracker = HandTracker(scripted, smoothing=None, detect_every=30)
    see_only(scripted, (A, 3.0), (B, -3.0))
    scripted.found = [Detection(A, "right", 0.9), Detection(B, "left", 0.9)]
    for k in range(10):
        tracker(dim_frame, k / FPS)
    see_only(scripted, (moved, 3.0), (B, -3.0))
    scripted.found = [Detection(moved, "right", 0.9), Detection(B, "left", 0.9)]
    for k in range(10, 13):
        hands = tracker(dim_frame, k / FPS)
    assert [hand.track_id for hand in hands] == [0, 1]
    np.testing.assert_allclose(center(hands[0]), 0.5 * (moved[:2] + moved[2:]), atol=15)


def test_a_hand_at_the_edge_that_can_only_be_one_lost_hand_does_not_wait(scripted, dim_frame):
    edge = np.array([-65.0, 150, 65, 280])
    tracker = HandTracker(scripted, smoothing=None, detect_every=1, bridge_frames=0)
    see_only(scripted, (A, 3.0))
    scripted.found = [Detection(A, "right", 0.9)]
    for k in range(5):
        tracker(dim_frame, k / FPS)
    see_only(scripted)
    scripted.found = []
    assert tracker(dim_frame, 5 / FPS) == []
    see_only(scripted, (edge, 3.0))
    scripted.found = [Detection(edge, "right", 0.9)]
    assert [hand.track_id for hand in tracker(dim_frame, 6 / FPS)] == [0]


def test_a_hand_that_stays_at_the_edge_waits_no_longer_than_it_should(scripted, dim_frame):
    """Two lost hands may be the one at the edge, and the detector does not look for it in every frame."""
    middle, edge = np.array([250.0, 330, 380, 460]), np.array([-65.0, 150, 65, 280])
    in_sight = [A, B, middle]

    def see(box, side):
        there = [one for one in in_sight if np.abs(np.subtract(box, one)[:2]).max() < 60]
        as_asked = (side == "left") == (box[0] < 200)
        return scripted.hand_at((*there, box)[0], side, 0.9 if there else 0.1, 0.9 if as_asked else 0.1)

    tracker = HandTracker(scripted, max_hands=4, smoothing=None)
    scripted.see, scripted.found = see, [Detection(box, "right", 0.9) for box in in_sight]
    counts = [len(tracker(dim_frame, k / FPS)) for k in range(10)]
    in_sight, scripted.found = [middle], []
    counts += [len(tracker(dim_frame, k / FPS)) for k in range(10, 20)]
    in_sight, scripted.found = [middle, edge], [Detection(edge, "left", 0.9)]
    counts += [len(tracker(dim_frame, k / FPS)) for k in range(20, 40)]
    assert (counts[9], counts[19]) == (3, 1)
    assert counts.index(2, 20) in range(20 + 9, 20 + 16)


def test_a_whole_hand_at_the_right_of_a_wide_picture_does_not_wait(scripted, dim_frame):
    whole, tracker = np.array([505.0, 150, 635, 280]), HandTracker(scripted, smoothing=None)
    see_only(scripted, (A, -3.0), (B, 3.0))
    scripted.found = [Detection(A, "left", 0.9), Detection(B, "right", 0.9)]
    counts = [len(tracker(dim_frame, k / FPS)) for k in range(10)]
    see_only(scripted)
    scripted.found = []
    counts += [len(tracker(dim_frame, k / FPS)) for k in range(10, 20)]
    see_only(scripted, (whole, 3.0))
    scripted.found = [Detection(whole, "right", 0.9)]
    assert (counts[9], counts[19]) == (2, 0)
    assert [hand.side for hand in tracker(dim_frame, 20 / FPS)] == ["right"]


def test_detection_on_a_tracked_hand_starts_no_twin(make_video):
    video = make_video(detect_every=1)
    for k in range(10):
        (hand,) = video.show((200 + 6 * k, 150, 130, "right"))
        assert hand.track_id == 0
    assert video.detections == 10


def test_a_detection_of_a_hand_in_sight_costs_no_crop(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None, detect_every=1)
    see_only(scripted, (A, 3.0))
    for k in range(10):
        scripted.found = [Detection(A + 12 * (k % 2), "right", 0.9)]
        tracker(dim_frame, k / FPS)
    assert len(scripted.seen) == 1


def test_a_doubtful_detection_is_left_to_the_next_frames(scripted, dim_frame):
    tracker = HandTracker(scripted, smoothing=None)
    scripted.found = [Detection(A, "right", STARTS - 0.05)]
    assert tracker(dim_frame, 0.0) == []
    scripted.found = [Detection(A, "right", STARTS + 0.05)]
    assert len(tracker(dim_frame, 1 / FPS)) == 1


def test_a_known_hand_stays_with_less_presence_than_a_new_one_needs(scripted, dim_frame):
    scripted.presence_threshold = 0.9
    scripted.found = [Detection(A, "right", 0.9)]
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.7)
    tracker = HandTracker(scripted, smoothing=None)
    assert tracker(dim_frame, 0.0) == []
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.95)
    assert len(tracker(dim_frame, 1 / FPS)) == 1
    scripted.see = lambda box, side: scripted.hand_at(box, side, 0.7)
    for k in range(2, 30):
        assert [hand.track_id for hand in tracker(dim_frame, k / FPS)] == [0]


def test_hands_without_presence_start_no_track(make_video):
    video = make_video(fixed={"presence": 0.3})
    assert video.show(RIGHT) == []


def test_after_a_pause_hands_are_searched_for_and_known_for_a_while(make_video, caplog):
    video = make_video(max_hands=1, remember_s=2.0)
    (hand,) = video.show(RIGHT)
    with caplog.at_level(logging.INFO, "handmesh.tracker"):
        (later,) = video.show((230, 170, 130, "right"), skip=30)
        assert video.detections == 2
        (much_later,) = video.show(RIGHT, skip=90)
    assert (hand.track_id, later.track_id, much_later.track_id) == (0, 0, 1)
    assert caplog.text.count("without a frame") == 2


def test_another_frame_size_starts_anew(make_video, caplog):
    video = make_video(max_hands=1)
    (hand,) = video.show(RIGHT)
    video.background = video.background[:480]
    with caplog.at_level(logging.INFO, "handmesh.tracker"):
        (smaller,) = video.show(RIGHT)
    assert (hand.track_id, smaller.track_id) == (0, 1)
    assert "frame size changed" in caplog.text


def test_a_runtime_that_fails_ends_the_tracks_and_not_the_tracker(make_video, monkeypatch):
    video = make_video(max_hands=1)
    (hand,) = video.show(RIGHT)
    with monkeypatch.context() as patch:
        patch.setattr("handmesh.tracker.solve_translation", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                video.show(RIGHT)
    (later,) = video.show(RIGHT)
    assert later.track_id > hand.track_id
    assert video.show() == [video.tracker._tracks[0].hand]  # bridged, as ever


def test_times_in_milliseconds_are_warned_of_once(estimator, dim_frame, caplog):
    tracker = HandTracker(estimator)
    for time_s in (0.0, 1.0, 9.0, 17.0, 18.0, 19.0, 27.0, 35.0):  # pictures of a folder, and some pauses
        tracker(dim_frame, time_s)
    assert not caplog.records
    tracker.reset()
    for time_ms in range(0, 300, 33):
        tracker(dim_frame, time_ms)
    assert [record.message for record in caplog.records] == [
        "frames come 33 s apart, so that no hand is followed from one to the next: are these milliseconds? Times must "
        "be seconds"
    ]


def test_reset_is_a_new_tracker(make_video):
    video = make_video()
    first = [video.show(RIGHT, LEFT) for _ in range(5)]
    video.tracker.reset()
    video.count = 0
    second = [video.show(RIGHT, LEFT) for _ in range(5)]
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.track_id == y.track_id
            np.testing.assert_array_equal(x.vertices, y.vertices)
            np.testing.assert_array_equal(x.translation, y.translation)


def test_camera_is_used(make_video, dim_frame):
    camera = Camera(900.0, 900.0, 319.5, 255.5, 640, 512)
    frame = graphs.draw_hand(dim_frame, (320, 256), 128)
    tracker = make_video().tracker
    (hand,) = tracker(frame, 0.0, camera=camera)
    assert hand.camera is camera
    assert hand.translation[2] == pytest.approx(900 * graphs.HAND_WIDTH_M / 128, rel=0.05)


@pytest.mark.parametrize(
    ("time", "error", "words"),
    [
        (1.0, ValueError, r"must increase: 1.0 s came after 1.0 s.*tracker.reset\(\)"),
        (0.5, ValueError, "must increase"),
        (float("nan"), ValueError, "finite"),
        (float("inf"), ValueError, "finite"),
        (None, TypeError, "NoneType"),
        ("2", TypeError, "str"),
        (True, TypeError, "bool"),
    ],
)
def test_times_must_increase_and_a_refused_call_changes_nothing(make_video, dim_frame, time, error, words):
    tracker = make_video().tracker
    frame = graphs.draw_hand(dim_frame, RIGHT[:2], RIGHT[2])
    (before,) = tracker(frame, 1.0)
    with pytest.raises(error, match=words):
        tracker(frame, time)
    with pytest.raises(TypeError, match="None"):
        tracker(None, 1.5)
    (after,) = tracker(frame, np.float64(1.0 + 1 / FPS))
    assert after.track_id == before.track_id


def test_empty_and_tiny_frames(make_video):
    tracker = make_video().tracker
    assert tracker(np.zeros((1, 1, 3), np.uint8), 0.0) == []
    with pytest.raises(ValueError, match="no pixels"):
        tracker(np.zeros((0, 5, 3), np.uint8), 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_hands": 0}, {"detect_every": 0}, {"bridge_frames": -1}, {"flip_after": 0}),
        *({"max_hands": 1.5}, {"max_hands": float("inf")}, {"detect_every": 2.5}, {"flip_after": 3.0}),
    ],
)
def test_settings_out_of_range_are_refused(estimator, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        HandTracker(estimator, **settings)


@pytest.mark.parametrize("smoothing", [False, True, 0.5])
def test_smoothing_is_settings_or_none(estimator, smoothing):
    with pytest.raises(TypeError, match="Smoothing, or None"):
        HandTracker(estimator, smoothing=smoothing)
    tracker = HandTracker(estimator)
    with pytest.raises(TypeError, match="Smoothing, or None"):
        tracker.smoothing = smoothing
    assert tracker.smoothing == Smoothing()


def test_a_tracker_needs_a_detector(make_estimator):
    with pytest.raises(ValueError, match="with a detector"):
        HandTracker(make_estimator(detector=False))


def test_stronger_smoothing_lags_more(make_video):
    behind = []
    for cutoff in (0.3, 3.0, 30.0):
        video = make_video(max_hands=1, smoothing=Smoothing(translation=OneEuro(cutoff, 0.0)))
        for k in range(20):
            (hand,) = video.show((200 + 6 * k, 200, 130, "right"))
        behind.append(200 + 6 * 19 - center(hand)[0])
    assert behind[0] > behind[1] + 5 > behind[2] + 5


def test_a_hand_that_came_while_smoothing_was_off_is_smoothed_as_wanted_later(make_video):
    strong = Smoothing(translation=OneEuro(0.3, 0.0))
    behind = []
    for smoothing in (strong, None):
        video = make_video(max_hands=1, smoothing=smoothing)
        for k in range(40):
            (hand,) = video.show((200 + 6 * k, 200, 130, "right"))
            video.tracker.smoothing = strong
        behind.append(200 + 6 * 39 - center(hand)[0])
    assert behind[1] == pytest.approx(behind[0], abs=2.0)  # its filters are a frame younger


def test_filters_begin_afresh_after_a_while_without_them(make_video):
    strong = Smoothing(translation=OneEuro(0.05, 0.0))
    video = make_video(max_hands=1, smoothing=strong)
    for _ in range(10):
        video.show((200, 200, 130, "right"))
    video.tracker.smoothing = None
    for k in range(10):
        (raw,) = video.show((200 + 5 * k, 200, 130, "right"))
    video.tracker.smoothing = strong
    (hand,) = video.show((245, 200, 130, "right"))
    np.testing.assert_allclose(center(hand), center(raw), atol=1.0)


def test_a_hand_that_comes_back_elsewhere_is_not_drawn_towards_where_it_was(make_video):
    video = make_video(max_hands=1, smoothing=Smoothing(translation=OneEuro(0.05, 0.0)))
    for _ in range(10):
        video.show((200, 200, 130, "right"))
    for _ in range(8):
        hands = video.show()
    assert hands == []
    (hand,) = video.show((330, 200, 130, "right"))
    assert hand.track_id == 0
    assert center(hand)[0] == pytest.approx(330, abs=2.0)


def test_a_hand_of_the_other_side_after_all_is_not_blended_with_the_old_one(make_video):
    video = make_video(max_hands=1, flip_after=5)
    for _ in range(10):
        video.show(RIGHT)
    shown = (video.show((*RIGHT[:3], "left"))[0] for _ in range(12))
    changed = next(hand for hand in shown if hand.side == "left")
    pose = Rotation.from_rotvec(changed.hand_pose).as_matrix()
    np.testing.assert_allclose(pose, mirror_rotations(graphs.ROTATIONS[1:]), atol=1e-3)


@pytest.mark.parametrize(("score", "trusted"), [(0.5, 1.0), (0.9, 0.0)])
def test_views_that_hardly_show_the_hand_hardly_tell_its_shape(make_video, monkeypatch, score, trusted):
    video = make_video(max_hands=1)
    estimator, said = video.tracker._estimator, {"score": 0.9, "betas": np.zeros(10)}
    see, how_far = estimator.sightings, [1.0]

    def told(*asked):
        (seen,) = see(*asked)
        return [[replace(s, score=said["score"], posed=replace(s.posed, betas=said["betas"])) for s in seen]]

    monkeypatch.setattr(estimator, "sightings", told)
    monkeypatch.setattr("handmesh.tracker.trust", lambda *_: how_far[0])
    for _ in range(4):
        video.show(RIGHT)
    said["score"], said["betas"], how_far[0] = score, np.ones(10), trusted
    for _ in range(4):
        (hand,) = video.show(RIGHT)
    sure, doubtful = 0.9 * 1.05, score * (0.05 + trusted)
    np.testing.assert_allclose(hand.betas, doubtful / (sure + doubtful), atol=1e-6)


def test_one_frame_has_one_shape_while_another_thread_takes_it_back(make_video, monkeypatch):
    video = make_video(max_hands=1, smoothing=None)
    video.tracker.betas = np.full(10, 0.5)

    def meanwhile(mean, betas, weight):
        video.tracker.betas = None
        return betas

    monkeypatch.setattr("handmesh.track.SettlingMean.__call__", meanwhile)
    (hand,) = video.show(RIGHT)
    np.testing.assert_array_equal(hand.betas, np.full(10, 0.5, np.float32))
    (hand,) = video.show(RIGHT)
    np.testing.assert_array_equal(hand.betas, graphs.BETAS)
