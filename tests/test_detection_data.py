"""Photos, composed frames and dense targets of the hand detector."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmesh.datasets.detection import (
    HELD_OUT_PERCENT,
    TEST_SETS,
    TRAIN_SETS,
    VALIDATION_SETS,
    Hands,
    Photo,
    encode,
    is_held_out,
    load_photos,
    load_plain,
    resize_affine,
)
from handmesh.datasets.frame_composer import (
    ComposerConfig,
    Frame,
    Pictures,
    compose,
    hand_free_frame,
    paste,
    paste_hand,
)

WIDTH, HEIGHT, STRIDE = 256, 192, 8


def _hands(boxes: list[tuple[float, float, float, float]], **changes: bool) -> Hands:
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    keypoints = np.repeat(array[:, None, :2], 21, axis=1)
    keypoints[:, 1] = array[:, 2:]
    flags = {name: np.full(len(array), changes.get(name, True)) for name in ("right", "side_known", "trusted")}
    return Hands(keypoints, **flags)


def _marked_photo(side: int = 200) -> Photo:
    """A grey photo in which a white box is the hand, so that what is drawn can be compared with the label."""
    image = np.full((side, side, 3), 60, np.uint8)
    image[80:140, 60:110] = 255
    return Photo(image, _hands([(60, 80, 109, 139)]))


def _pictures() -> Pictures:
    plain = Photo(np.full((240, 320, 3), 90, np.uint8))
    return Pictures([[_marked_photo()]], [1.0], [plain], [plain], [])


# ---- splits and files


def test_no_set_is_in_two_splits() -> None:
    names = TRAIN_SETS + VALIDATION_SETS + TEST_SETS
    assert len(set(names)) == len(names)


def test_held_out_share_is_as_stated_and_panoramas_stay_together() -> None:
    share = np.mean([is_held_out("clothing", f"{i:05d}") for i in range(4000)])
    assert share == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.02)
    for panorama in range(18):
        views = {is_held_out("hdri_crops", f"{8 * panorama + view:05d}") for view in range(8)}
        assert len(views) == 1


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(folder / name), np.full((100, 200, 3), 128, np.uint8))
    hand = {"side": "left", "votes": 6, "side_votes": 6, "score": 0.9, "spread": 0.01, "kp3d": [[0, 0, 0]] * 21}
    keypoints = [[20.0 + i, 30.0 + 2 * i] for i in range(21)]
    unsure = {**hand, "spread": 0.09, "side_votes": 3, "side": "right"}
    entry = {"size": [200, 100], "hands": [{**hand, "kp2d": keypoints}, {**unsure, "kp2d": keypoints}]}
    (folder / "labels.json").write_text(json.dumps({"a.jpg": entry}))
    return folder


def test_photos_without_labels_are_left_out(labelled: Path) -> None:
    (photo,) = load_photos(labelled)
    assert photo.source.endswith("a.jpg")
    assert photo.hands.right.tolist() == [False, True]
    assert photo.hands.trusted.tolist() == [True, False]
    assert photo.hands.side_known.tolist() == [True, False]
    np.testing.assert_allclose(photo.hands.boxes[0], [20, 30, 40, 70])


def test_shrunk_photos_keep_their_pixels_centres(labelled: Path) -> None:
    (photo,) = load_photos(labelled, max_side=100)
    assert photo.image.shape == (50, 100, 3)
    np.testing.assert_allclose(photo.hands.boxes[0], [9.75, 14.75, 19.75, 34.75])


def test_missing_labels_and_broken_photos_are_named(labelled: Path) -> None:
    (labelled / "a.jpg").write_bytes(b"not a photo")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        load_photos(labelled)
    (labelled / "labels.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.json"):
        load_photos(labelled)


def test_plain_photos_are_in_one_of_two_parts(tmp_path: Path) -> None:
    folder = tmp_path / "walls"
    folder.mkdir()
    for i in range(40):
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), np.full((8, 8, 3), i, np.uint8))
    parts = [{p.source for p in load_plain([folder], held_out)} for held_out in (False, True)]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 40
    assert parts[1]


# ---- geometry of hands and frames


def test_mirroring_twice_is_the_identity_and_once_swaps_sides() -> None:
    hands = _hands([(10, 20, 30, 60)])
    mirror = np.array([[-1.0, 0, 99], [0, 1, 0]])
    once = hands.moved(mirror)
    assert once.right.tolist() == [False]
    np.testing.assert_allclose(once.boxes[0], [69, 20, 89, 60])
    twice = once.moved(mirror)
    assert twice.right.tolist() == [True]
    np.testing.assert_array_equal(twice.keypoints, hands.keypoints)


def test_half_turn_keeps_the_side() -> None:
    assert _hands([(1, 2, 3, 4)]).moved(np.array([[-1.0, 0, 9], [0, -1, 9]])).right.tolist() == [True]


def test_resize_affine_maps_corners_of_pixels_to_corners() -> None:
    affine = resize_affine((200, 100), (50, 50))
    np.testing.assert_allclose(affine @ [-0.5, -0.5, 1], [-0.5, -0.5])
    np.testing.assert_allclose(affine @ [199.5, 99.5, 1], [49.5, 49.5])


def _white_box(image: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(image.mean(2) > 160)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


@pytest.mark.parametrize("scale", [0.2, 0.5, 0.66, 1.0, 1.4])
def test_label_stays_on_the_picture_at_any_scale(scale: float) -> None:
    canvas = Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), Hands.none())
    affine = np.array([[scale, 0, 3.3], [0, scale, -4.7]])
    pasted = paste(canvas, _marked_photo(), affine)
    shown = _white_box(pasted.image)
    np.testing.assert_allclose(shown, pasted.hands.boxes[0], atol=1.0 + 0.5 * scale)


def test_pasted_hands_lie_on_the_picture_however_turned_and_mirrored() -> None:
    config = ComposerConfig(width=WIDTH, height=HEIGHT, unstretch=1.0)
    sides = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        canvas = Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), Hands.none())
        pasted = paste_hand(canvas, _marked_photo(), config, rng)
        sides.add(bool(pasted.hands.right[0]))
        shown = pasted.image.mean(2) > 160
        rows, columns = np.nonzero(shown)
        inside = pasted.hands.keypoints[0][:2].mean(0)  # the middle of the white box
        if len(rows) and shown.sum() > 60 and not _cut(pasted):
            assert np.abs(inside - [columns.mean(), rows.mean()]).max() < 1.0
    assert sides == {True, False}


def _cut(frame: Frame) -> bool:
    low, high = frame.hands.keypoints[0].min(0) - 60, frame.hands.keypoints[0].max(0) + 60
    return bool((low < 0).any() or (high > [WIDTH, HEIGHT]).any())


def test_covered_hands_are_given_up() -> None:
    below = Frame(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8), _hands([(0, 0, 20, 20), (90, 0, 109, 19), (200, 150, 220, 170)])
    )
    above = Photo(np.full((100, 100, 3), 9, np.uint8))  # hides the first, half of the second, nothing of the third
    left = paste(below, above, np.array([[1.0, 0, 0], [0, 1, 0]])).hands
    assert left.trusted.tolist() == [False, True]
    np.testing.assert_allclose(left.boxes[:, 0], [90, 200])


def test_a_hand_free_frame_is_filled_by_its_photo() -> None:
    photo = Photo(np.full((50, 400, 3), 200, np.uint8))
    for seed in range(10):
        frame = hand_free_frame(photo, WIDTH, HEIGHT, np.random.default_rng(seed))
        assert len(frame.hands) == 0
        assert frame.image.min() >= 199


def test_composed_frames_depend_on_the_seed_alone() -> None:
    config, pictures = ComposerConfig(width=WIDTH, height=HEIGHT), _pictures()
    for seed in range(12):
        one, two = (compose(pictures, config, np.random.default_rng([3, seed])) for _ in range(2))
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.hands.keypoints, two.hands.keypoints)
        assert one.image.shape == (HEIGHT, WIDTH, 3)
        assert one.image.dtype == np.uint8


def test_frames_come_with_and_without_hands_in_the_stated_sizes() -> None:
    config = ComposerConfig(width=WIDTH, height=HEIGHT, scene=0.0, collage=0.7, unstretch=0.0)
    hands = [compose(_pictures(), config, np.random.default_rng([4, i])).hands for i in range(150)]
    assert 0.1 < np.mean([len(h) == 0 for h in hands]) < 0.5
    sides = np.concatenate([(h.boxes[:, 2:] - h.boxes[:, :2]).max(1) for h in hands if len(h)])
    low, high = np.array(config.hand_sides) * WIDTH
    assert low * 0.9 < sides.min() < 2 * low
    assert 0.6 * high < sides.max() < high * np.sqrt(2)  # a turned box has a larger box around it


def test_pictures_need_hands_and_backgrounds() -> None:
    with pytest.raises(ValueError, match="weight"):
        replace(_pictures(), weights=[])
    with pytest.raises(ValueError, match="background"):
        replace(_pictures(), backgrounds=[])


# ---- targets


def test_a_hand_is_in_the_cell_of_its_centre_and_its_box_comes_back() -> None:
    box = (40.0, 50.0, 91.0, 101.0)  # centre (65.5, 75.5): column 8, row 9
    targets = encode(_hands([box]), WIDTH, HEIGHT, STRIDE)
    assert np.unravel_index(targets.heatmap[0].argmax(), targets.heatmap[0].shape) == (9, 8)
    assert targets.heatmap.max() == 1.0
    assert (targets.heatmap == 1).sum() == 1
    assert targets.box_weight.sum() == pytest.approx(1.0, abs=1e-5)
    for row, column in np.argwhere(targets.box_weight[0] > 0):
        x, y = ((column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5)
        left, top, right, bottom = targets.boxes[:, row, column]
        np.testing.assert_allclose([x - left, y - top, x + right, y + bottom], box, atol=1e-4)
    assert (targets.right[targets.right_weight > 0] == 1).all()
    assert targets.counted.all()


def test_two_hands_learn_apart() -> None:
    targets = encode(_hands([(20, 20, 60, 60), (180, 100, 220, 140)]), WIDTH, HEIGHT, STRIDE)
    assert (targets.heatmap == 1).sum() == 2
    assert targets.box_weight.sum() == pytest.approx(2.0, abs=1e-5)


def test_untrusted_hands_and_centres_outside_are_not_learnt() -> None:
    for hands, column in ((_hands([(40, 40, 80, 80)], trusted=False), 7), (_hands([(-50, 40, 30, 80)]), 2)):
        targets = encode(hands, WIDTH, HEIGHT, STRIDE)
        assert targets.heatmap.max() == targets.box_weight.max() == 0
        assert 0 < (targets.counted == 0).sum() < targets.counted.size
        assert targets.counted[0, 7, column] == 0
        assert targets.counted[0, -1, -1] == 1


def test_unknown_sides_are_not_learnt() -> None:
    targets = encode(_hands([(40, 40, 80, 80)], side_known=False), WIDTH, HEIGHT, STRIDE)
    assert targets.right_weight.max() == 0
    assert targets.box_weight.max() > 0


def test_an_empty_frame_has_empty_targets() -> None:
    targets = encode(Hands.none(), WIDTH, HEIGHT, STRIDE)
    assert targets.heatmap.max() == 0
    assert targets.counted.min() == 1


def test_a_one_pixel_hand_has_a_target() -> None:
    targets = encode(_hands([(100, 100, 100, 100)]), WIDTH, HEIGHT, STRIDE)
    assert (targets.heatmap == 1).sum() == 1
    assert np.isfinite(targets.boxes).all()
