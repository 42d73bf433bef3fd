import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
from samples import posed_hand

from handmesh.datasets.augment import NO_AUGMENT, ImagePool, make_target
from handmesh.datasets.cutout import hand_opacity
from handmesh.datasets.detection import Photo, load_photographed
from handmesh.datasets.frame_composer import ComposerConfig, Pictures, compose
from handmesh.datasets.photos import PhotoDataset
from handmesh.datasets.sample import HandSample
from handmesh.evaluation.detection import touching_frames
from handmesh.image_folders import is_held_out
from handmesh.skeleton import FINGER_KNUCKLES, KEYPOINT_BONES

SKIN, WALL = (205, 150, 120), (70, 90, 130)


def photo(seed, size=300):
    """A hand of thick strokes with a forearm before a wall, its keypoints, and where hand and forearm are."""
    joints = posed_hand(seed).joints_2d
    low, high = joints.min(0), joints.max(0)
    joints = (joints - (low + high) / 2) * (0.5 * size / max(high - low)) + size / 2
    truth = np.zeros((size, size), np.uint8)
    palm = float(np.linalg.norm(joints[9] - joints[0]))
    for parent, child in KEYPOINT_BONES:
        ends = (tuple(joints[k].round().astype(int).tolist()) for k in (parent, child))
        cv2.line(truth, *ends, 255, round(0.28 * palm))
    cv2.fillConvexPoly(truth, cv2.convexHull(joints[[0, 1, *FINGER_KNUCKLES]].astype(np.float32)).astype(int), 255)
    along = joints[0] - joints[list(FINGER_KNUCKLES)].mean(0)
    elbow = joints[0] + 2.0 * along
    ends = (tuple(point.round().astype(int).tolist()) for point in (joints[0], elbow))
    cv2.line(truth, *ends, 255, round(0.6 * palm))
    rng = np.random.default_rng(seed)
    image = np.where(truth[..., None] > 0, SKIN, WALL) + rng.normal(0, 6, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8), joints, truth


@pytest.mark.parametrize("seed", range(4))
def test_a_hand_that_stands_out_is_cut_out_with_its_forearm(seed):
    image, joints, truth = photo(seed)
    opacity = hand_opacity(image, joints)
    assert opacity is not None
    assert opacity.shape == truth.shape
    found, hand = opacity > 127, truth > 0
    assert (found & hand).sum() / (found | hand).sum() > 0.85
    np.testing.assert_array_equal(hand_opacity(image, joints), opacity)


def test_a_hand_that_fills_its_picture_has_no_background_to_learn():
    image, joints, _ = photo(0)
    x, y = joints.mean(0).round().astype(int) - 10
    assert hand_opacity(image[y : y + 20, x : x + 20], joints - (x, y)) is None


def test_cut_out_photos_get_other_backgrounds_and_keep_their_hands():
    image, joints, _ = photo(1)
    sample = HandSample(image, joints, "right", alpha=hand_opacity(image, joints), exact_depth=False)
    green = ImagePool([np.full((64, 64, 3), (0, 200, 0), np.uint8)])
    config = dataclasses.replace(NO_AUGMENT, new_photo_background=1.0)
    rows = [make_target(sample, 96, config, green, np.random.default_rng(seed)) for seed in range(8)]
    plain = make_target(sample, 96, NO_AUGMENT, green, np.random.default_rng(0))
    pixels = [tuple(((point + 1) * 48).astype(int)) for point in plain.joints_2d]
    for row in rows:
        differences = np.abs(row.crop.astype(int) - plain.crop).max(-1)
        assert max(differences[y, x] for x, y in pixels) < 30
        assert np.median(differences) > 60


@pytest.fixture
def photo_set(tmp_path):
    """A set of one photo of a left hand."""
    image, joints, _ = photo(0)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    hand = {"side": "left", "kp2d": joints.tolist(), "kp3d": np.ones((21, 3)).tolist(), "spread": 0.01}
    (tmp_path / "labels.json").write_text(json.dumps({"a.png": {"size": [300, 300], "hands": [hand]}}))
    return tmp_path


def test_photos_are_cut_out_on_request(photo_set):
    assert PhotoDataset([photo_set])[0].alpha is None
    (sample,) = list(PhotoDataset([photo_set], cut_out=True))
    assert sample.alpha is not None
    assert sample.alpha.shape == sample.image.shape[:2]
    x, y = sample.joints_2d[9].round().astype(int)
    assert sample.alpha[y, x] > 127


def test_detector_frames_show_the_cut_out_hand_and_not_its_wall(photo_set):
    (hand,) = load_photographed(photo_set)
    assert hand.hands.right.tolist() == [False]
    plain = Photo(np.full((120, 160, 3), (0, 200, 0), np.uint8))
    pictures = Pictures([[hand]], [1.0], [plain], [], photographed=[[hand]])
    config = ComposerConfig(
        width=160,
        height=120,
        scene=0,
        collage=0,
        cutouts=1.0,
        on_photo=0,
        arms=0,
        skin=0,
        cover=0,
        streak=0,
        letterbox=0,
        hand_sides=(0.4, 0.5),
        degrade=NO_AUGMENT,
    )
    shown = 0
    for seed in range(6):
        frame = compose(pictures, config, np.random.default_rng(seed))
        wall = (np.abs(frame.image.astype(int) - WALL).max(-1) < 25).mean()
        assert wall < 0.02  # of all pixels: what is left of it at the hand's border
        shown += len(frame.hands)
    assert shown >= 6


def test_touching_hands_are_measured_on_frames_of_two(photo_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(photo_set, root / "hands" / "signs")
    walls = root / "backgrounds" / "walls"
    walls.mkdir(parents=True)
    (root / "people").mkdir()
    name = next(one for one in map("{}.png".format, range(200)) if is_held_out(walls / one))
    cv2.imwrite(str(walls / name), np.full((60, 80, 3), (0, 200, 0), np.uint8))
    frames, again = (list(touching_frames(root, ["signs"])) for _ in range(2))
    (frame,) = frames
    np.testing.assert_array_equal(frame.image, again[0].image)
    assert frame.image.shape == (480, 640, 3)
    assert len(frame.hands) == 2
    first, second = frame.hands.boxes
    gap = np.maximum(first[:2], second[:2]) - np.minimum(first[2:], second[2:])
    assert (gap < 0.3 * (first[2:] - first[:2]).max()).all()
