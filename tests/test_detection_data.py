"""Photos, composed frames and dense targets of the hand detector."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmesh.datasets.augment import NO_AUGMENT
from handmesh.datasets.detection import (
    TEST_SETS,
    TRAIN_SETS,
    VALIDATION_SETS,
    Hands,
    Photo,
    encode,
    load_arms,
    load_cutouts,
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
    paste_touching,
)
from handmesh.image_folders import HELD_OUT_PERCENT, is_held_out

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
    share = np.mean([is_held_out(Path(f"clothing/{i:05d}.jpg")) for i in range(4000)])
    assert share == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.02)
    for panorama in range(18):
        views = {is_held_out(Path(f"hdri_crops/{8 * panorama + view:05d}.jpg")) for view in range(8)}
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


def test_sides_in_other_words_are_refused(labelled: Path) -> None:
    file = labelled / "labels.json"
    file.write_text(file.read_text().replace("right", "Right"))
    with pytest.raises(ValueError, match="not 'Right'"):
        load_photos(labelled)


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
    hands = _hands([(0, 0, 20, 20), (90, 0, 109, 19), (94, 50, 114, 70), (200, 150, 220, 170)])
    spread = np.linspace(hands.boxes[:, :2], hands.boxes[:, 2:], 21, axis=1)
    below = Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), replace(hands, keypoints=spread))
    above = Photo(np.full((100, 100, 3), 9, np.uint8))  # hides the first, half of the second, less of the third
    left = paste(below, above, np.array([[1.0, 0, 0], [0, 1, 0]])).hands
    assert left.trusted.tolist() == [False, True, True]
    np.testing.assert_allclose(left.boxes[:, 0], [90, 94, 200])


def test_a_second_hand_touches_the_first_in_its_size_and_colours() -> None:
    round_hand = np.array([85, 110]) + 30 * np.stack([f(np.linspace(0, 2 * np.pi, 21)) for f in (np.cos, np.sin)], 1)
    hands = replace(_hands([(60, 80, 109, 139)]), keypoints=round_hand[None].astype(np.float32))
    image = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(image, (85, 110), 32, (180, 180, 180), -1)
    cutout = Photo(image, hands, np.where(image[..., 0] > 0, 255, 0).astype(np.uint8))
    skin = np.array([120, 80, 60], np.uint8)
    there = hands.moved(np.array([[1.0, 0, 75], [0, 1, -10]]))
    below = Frame(np.full((HEIGHT, WIDTH, 3), 9, np.uint8), there)
    cv2.circle(below.image, (160, 100), 32, skin.tolist(), -1)
    config = ComposerConfig(width=WIDTH, height=HEIGHT, streak=0.0, same_skin=1.0)
    covered, before = 0, there.boxes[0]
    for seed in range(60):
        frame = paste_touching(below, cutout, config, np.random.default_rng(seed))
        second = frame.hands.boxes[-1]
        gap = np.maximum(before[:2], second[:2]) - np.minimum(before[2:], second[2:])
        assert (gap < 20).all()
        assert 0.69 < (second[2:] - second[:2]).max() / 60 < 1.43
        column, row = ((second[:2] + second[2:]) / 2).astype(int)
        assert np.abs(frame.image[row, column].astype(int) - skin).max() <= 1
        covered += len(frame.hands) < 2 or not frame.hands.trusted[0]
    assert 3 < covered < 40


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


def test_frames_without_hands_show_parts_of_photos_away_from_their_hands() -> None:
    """The marked photo's hand is white: no such frame may show it."""
    config = ComposerConfig(width=64, height=48, scene=0, collage=0, cutouts=0, elsewhere=1.0, letterbox=0, skin=0)
    clean = replace(config, person=0.0, degrade=NO_AUGMENT)
    parts = 0
    for seed in range(150):
        frame = compose(_pictures(), clean, np.random.default_rng([6, seed]))
        assert len(frame.hands) == 0
        own = (frame.image == 60).all(-1).mean() > 0.5  # the photo's own grey; backgrounds are lighter or patterned
        assert not own or frame.image.max() == 60
        parts += own
    assert parts > 20


def test_a_moving_hand_smears_along_its_streak_and_keeps_its_light() -> None:
    hand = replace(_marked_photo(), alpha=np.where(_marked_photo().image[..., 0] == 255, 255, 0).astype(np.uint8))
    canvas = Frame(np.zeros((200, 200, 3), np.uint8), Hands.none())
    still, moving = (paste(canvas, hand, np.eye(3)[:2], streak=s).image.sum() for s in (None, np.array([21.0, 0])))
    assert moving == pytest.approx(still, rel=0.03)
    shown = paste(canvas, hand, np.eye(3)[:2], streak=np.array([21.0, 0])).image[..., 0]
    assert np.flatnonzero(shown[110] > 5)[[0, -1]].tolist() == pytest.approx([50, 119], abs=2)
    assert np.flatnonzero(shown[:, 85] > 5)[[0, -1]].tolist() == pytest.approx([80, 139], abs=1)


def test_covered_hands_and_arms_without_hands() -> None:
    arm = Photo(np.full((60, 60, 3), 200, np.uint8), alpha=np.full((60, 60), 255, np.uint8))
    pictures = replace(_pictures(), arms=[arm])
    config = ComposerConfig(width=WIDTH, height=HEIGHT, scene=0, collage=0, cutouts=0, elsewhere=0, arms=1.0, cover=1.0)
    frames = [compose(pictures, config, np.random.default_rng([8, seed])) for seed in range(10)]
    assert all(len(frame.hands) == 0 for frame in frames)
    covered = [compose(pictures, replace(config, collage=1.0), np.random.default_rng([9, s])).hands for s in range(30)]
    trusted = np.concatenate([hands.trusted for hands in covered])
    assert 0 < trusted.mean() < 1


# ---- rendered cut-outs


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """Three rendered images: a hand with an arm, a hand with another beside it, one with another behind it."""
    for layer in ("rgb", "mask", "alpha"):
        (tmp_path / "training" / layer).mkdir(parents=True)
        for number in range(3):
            picture = np.zeros((100, 100), np.uint8)
            picture[20:60, 30:60] = 255
            picture[60:, 35:55] = 255 if layer == "alpha" else 0  # the arm
            cv2.imwrite(str(tmp_path / "training" / layer / f"{number:08d}.jpg"), picture)
    points = np.zeros((3, 21, 3), np.float32)
    points[:, :, 2] = 1.0
    points[:, :, :2] = np.linspace((30, 20), (60, 60), 21) / 100
    second = np.full_like(points, np.nan)
    second[1:] = points[1:]
    second[1, :, 0] += 0.35
    K = np.tile(np.diag([100.0, 100.0, 1.0]), (3, 1, 1))
    np.savez(tmp_path / "training_labels.npz", K=K, xyz=points)
    facts = {"rotations": np.tile(np.eye(3), (3, 16, 1, 1)), "betas": np.zeros((3, 10)), "second": second}
    np.savez(tmp_path / "training_meta.npz", **facts)
    return tmp_path


def test_the_other_hand_of_a_cutout_is_a_left_one(rendered: Path) -> None:
    alone, beside, behind = load_cutouts(rendered)
    assert alone.hands.right.tolist() == [True]
    assert beside.hands.right.tolist() == [True, False]
    assert beside.hands.trusted.tolist() == [True, True]
    np.testing.assert_allclose(beside.hands.boxes, [[30, 20, 60, 60], [65, 20, 95, 60]], atol=1e-3)
    assert behind.hands.trusted.tolist() == [True, False]


def test_arms_are_what_is_left_without_the_hand(rendered: Path) -> None:
    (arm,) = load_arms(rendered, 3)
    assert len(arm.hands) == 0
    assert arm.alpha is not None
    assert arm.alpha[:60].max() < 30  # as far as JPEG keeps edges
    assert arm.alpha[75:, 38:52].min() > 225


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
