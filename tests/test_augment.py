import dataclasses

import cv2
import numpy as np
import pytest
from samples import mirrored, posed_hand

from handmesh.crop import CROP_SCALE, Crop, turn_upright
from handmesh.datasets.augment import (
    NO_AUGMENT,
    AugmentConfig,
    ImagePool,
    blend_amplitudes,
    crop_affine,
    degrade,
    make_beside,
    make_negative,
    make_target,
    skin_gain,
)
from handmesh.datasets.sample import HandSample

POOL = ImagePool([])
TURNED = dataclasses.replace(NO_AUGMENT, turn_deg=40.0)


def target(sample, config=NO_AUGMENT, seed=0):
    return make_target(sample, 128, config, POOL, np.random.default_rng(seed))


def test_crop_affine_is_the_estimators_crop():
    box = np.array([30.0, 50.0, 130.0, 90.0])
    for mirror in (False, True):
        crop = Crop.from_box(box, 128, mirrored=mirror, turn=-0.4 if mirror else 0.4)  # of the mirrored picture here
        affine = crop_affine((80.0, 70.0), 100.0 * CROP_SCALE, 128, mirrored=mirror, turn=0.4)
        np.testing.assert_allclose(affine, crop.affine, atol=1e-9)


@pytest.mark.parametrize("keep_left", [0.0, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_hands_are_turned_upright_on_request(flip, keep_left):
    config = dataclasses.replace(NO_AUGMENT, upright=1.0, keep_left=keep_left)
    for seed in range(4):
        sample = posed_hand(seed)
        row = target(mirrored(sample) if flip else sample, config)
        assert turn_upright(row.joints_2d) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("config", [NO_AUGMENT, TURNED])
@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.45), (0.12, -0.1, 0.5)])
def test_3d_target_projects_onto_2d_target(config, offset):
    """In the virtual camera the turned joints lie where the crop shows them, up to the crop's flat perspective."""
    row = target(posed_hand(3, offset=offset), config)
    middle = row.joints_2d.mean(0)
    flat = row.joints[:, :2] - row.joints[:, :2].mean(0)
    seen = row.joints_2d - middle
    scale = (flat * seen).sum() / (flat * flat).sum()
    assert scale > 0
    assert np.abs(scale * flat - seen).max() < 0.2  # strong perspective at half a metre


def test_rotations_pose_the_target_joints():
    import torch

    from handmesh.assets import load_hand_model
    from handmesh.model.hand_model import HandModel
    from handmesh.model.regressor import wrist_relative_hand

    row = target(posed_hand(5, offset=(0.1, 0.05, 0.5)), TURNED)
    rotations, betas = torch.tensor(row.rotations).float()[None], torch.tensor(row.betas).float()[None]
    _, joints = wrist_relative_hand(HandModel(load_hand_model()), rotations, betas)
    np.testing.assert_allclose(joints[0].numpy(), row.joints, atol=1e-6)


def test_crops_stray_in_shares_of_the_box():
    """Hands of twice the size stray by twice the pixels, and so in the crop by the same."""
    sample = posed_hand(3)
    larger = dataclasses.replace(sample, joints_2d=2 * sample.joints_2d, image=sample.image.repeat(2, 0).repeat(2, 1))
    shifted = dataclasses.replace(NO_AUGMENT, shift=0.1)
    middles = [
        [np.mean([row.min(0), row.max(0)], 0) for row in (target(s, shifted, k).joints_2d for k in range(40))]
        for s in (sample, larger)
    ]
    np.testing.assert_allclose(middles[0], middles[1], atol=1e-6)
    assert np.std(middles[0]) == pytest.approx(0.1 * 2 / CROP_SCALE, rel=0.25)
    scaled = dataclasses.replace(NO_AUGMENT, scale_range=(0.5, 2.0))
    extents = [np.ptp(target(sample, scaled, seed).joints_2d, axis=0).max() * CROP_SCALE / 2 for seed in range(40)]
    assert 0.5 <= min(extents) < 0.6
    assert 1.4 < max(extents) <= 2.0


def test_small_hands_are_trained_on_in_the_crops_that_they_are_seen_in():
    for shrink in (1.0, 0.3, 0.1):
        sample = posed_hand(3)
        small = dataclasses.replace(sample, joints_2d=shrink * sample.joints_2d)
        low, high = small.joints_2d.min(0), small.joints_2d.max(0)
        expected = Crop.from_box([*low, *high], 128).to_crop(small.joints_2d)
        np.testing.assert_allclose(target(small).joints_2d, expected, atol=1e-6)


def test_a_crop_that_is_shrunk_shows_things_where_they_are():
    joints_2d = np.full((21, 2), 100.0)
    joints_2d[0], joints_2d[1] = (55.0, 55.0), (145.0, 145.0)  # 144 px become 64
    image = np.zeros((201, 201, 3), np.uint8)
    image[97:104, 97:104] = 255  # a square about the middle
    crop = make_target(HandSample(image, joints_2d, "right"), 64, NO_AUGMENT, POOL, np.random.default_rng(0)).crop
    weights = crop[..., 0].astype(float)
    ys, xs = np.mgrid[:64, :64]
    np.testing.assert_allclose([(weights * xs).sum(), (weights * ys).sum()] / weights.sum(), 31.5, atol=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_left_hand_gives_the_target_of_its_mirror_image(seed):
    right = posed_hand(seed, offset=(0.08, 0.02, 0.5))
    one, other = target(right, TURNED), target(mirrored(right), TURNED)
    np.testing.assert_allclose(other.joints_2d, one.joints_2d, atol=1e-9)
    np.testing.assert_allclose(other.joints, one.joints, atol=1e-9)
    np.testing.assert_allclose(other.rotations, one.rotations, atol=1e-9)
    assert np.abs(other.crop.astype(int) - one.crop).mean() < 1.0
    assert one.right == other.right == 1.0


def test_kept_left_hand_has_no_3d():
    row = target(posed_hand(1), dataclasses.replace(NO_AUGMENT, keep_left=1.0))
    assert (row.right, row.weight_3d, row.weight_parameters) == (0.0, 0.0, 0.0)
    plain = target(posed_hand(1))
    np.testing.assert_allclose(row.joints_2d[:, 0], -plain.joints_2d[:, 0], atol=1e-9)


def test_a_kept_left_hand_of_other_spots_teaches_its_side_alone():
    """The mesh that tells MediaPipe's spots from ours is that of a right hand."""
    sample = dataclasses.replace(posed_hand(1), convention="mediapipe")
    row = target(sample, dataclasses.replace(NO_AUGMENT, keep_left=1.0))
    assert (row.mediapipe, row.weight_2d, row.weight_projection) == (1.0, 0.0, 0.0)
    assert row.weight_right > 0
    assert target(sample).weight_2d == 1.0
    assert target(posed_hand(1)).mediapipe == 0.0


def test_mask_cells_follow_the_hand():
    row = target(posed_hand(2))
    assert row.mask.shape == (16, 16)
    cells = np.floor((row.joints_2d + 1) * 8).astype(int)
    assert min(row.mask[y, x] for x, y in cells) > 0.1
    assert row.mask[0].max() == 0.0


def test_crops_are_reproducible_and_differ_between_seeds():
    sample = posed_hand(4)
    config = AugmentConfig()
    first = [target(sample, config, seed) for seed in range(12)]
    again = [target(sample, config, seed) for seed in range(12)]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.crop, b.crop)
    assert len({row.crop.tobytes() for row in first}) == 12
    assert all(row.crop.dtype == np.uint8 and row.crop.shape == (128, 128, 3) for row in first)


def test_beside_a_hand_there_is_its_arm_and_nothing_of_the_hand():
    red, green = (255, 0, 0), (0, 255, 0)
    x, y = np.meshgrid(np.linspace(110, 160, 5), np.linspace(60, 130, 4))
    joints = np.stack([np.append(135.0, x), np.append(160.0, y)], -1)
    joints[[5, 9, 13, 17]] = [[112, 100], [128, 95], [144, 95], [160, 100]]
    image = np.full((300, 270, 3), 90, np.uint8)
    cv2.line(image, (135, 175), (135, 299), green, 30)
    for point in joints.round().astype(int):
        cv2.circle(image, tuple(point.tolist()), 1, red, -1)
    sample = HandSample(image, joints, "right", alone=True)
    rows = [make_beside(sample, 96, NO_AUGMENT, POOL, np.random.default_rng(seed)) for seed in range(60)]
    crops = np.stack([row.crop for row in rows if row is not None]).astype(int)
    assert len(crops) > 40
    assert not (crops[..., 0] - crops[..., 1] > 60).any()
    assert ((crops[..., 1] - crops[..., 0] > 100).any((1, 2))).mean() > 0.5
    assert all(row.presence == 0 for row in rows if row is not None)
    crowded = dataclasses.replace(sample, alone=False)
    assert make_beside(crowded, 96, NO_AUGMENT, POOL, np.random.default_rng(0)) is None


def test_what_a_label_does_not_know_has_no_weight():
    sample = posed_hand(1)
    row = target(sample)
    assert (row.weight_2d, row.weight_projection, row.weight_right) == (1, 1, 1)
    row = target(sample, dataclasses.replace(NO_AUGMENT, keep_left=1.0))
    assert (row.weight_2d, row.weight_projection) == (1, 0)  # the mesh is a right hand's
    row = target(dataclasses.replace(sample, stretched=True))
    assert (row.weight_2d, row.weight_projection) == (1, 0)
    assert target(dataclasses.replace(sample, side_known=False)).weight_right == 0


def test_both_sides_count_the_same_however_seldom_the_left_one_is_shown():
    sample, config, weights = posed_hand(1), dataclasses.replace(NO_AUGMENT, keep_left=0.2), {}
    for seed in range(30):
        row = target(sample, config, seed)
        weights[row.right] = row.weight_right
    assert weights == {1.0: pytest.approx(0.5 / 0.8), 0.0: pytest.approx(0.5 / 0.2)}


def test_guessed_3d_labels_say_so():
    row = target(dataclasses.replace(posed_hand(1), exact_depth=False, trust_3d=0.25))
    assert (row.weight_3d, row.exact_depth) == (0.25, 0.0)
    assert target(posed_hand(1)).exact_depth == 1.0


def test_channels_and_light_change_by_as_much_as_is_published():
    grey = np.full((32, 32, 3), 100, np.uint8)
    channels, light = (dataclasses.replace(NO_AUGMENT, **change) for change in ({"channel_gain": 0.4}, {"light": 1.0}))
    gains, levels = (
        np.array([degrade(grey, config, np.random.default_rng(seed))[0, 0] for seed in range(200)], float)
        for config in (channels, light)
    )
    assert 59 <= gains.min() < 64
    assert 136 < gains.max() <= 140
    assert (gains.min(1) < gains.max(1) - 1).mean() > 0.9  # each for itself
    assert (levels.min(1) == levels.max(1)).all()
    assert levels.min() < 5  # 80 - 102, cut at black
    assert 125 < levels.max() <= 145.5


def test_what_hides_a_hand_takes_its_mask():
    sample, config, hidden = posed_hand(2), dataclasses.replace(NO_AUGMENT, occluder=1.0), 0
    plain = target(sample)
    for seed in range(8):
        row = target(sample, config, seed)
        assert (row.crop != plain.crop).any()
        np.testing.assert_array_equal(row.joints_2d, plain.joints_2d)
        hidden += row.mask.sum() < plain.mask.sum()
    assert hidden > 4


def test_another_hand_takes_the_colours_of_this_one():
    dark, light, points = np.full((8, 8, 3), 49, np.uint8), np.full((8, 8, 3), 99, np.uint8), np.full((21, 2), 4.0)
    np.testing.assert_allclose(skin_gain(dark, points, light, points), 0.5)
    np.testing.assert_allclose(skin_gain(light, points, dark, points), 2.0)


def test_nothing_is_mirrored_into_a_plain_crop():
    """Beyond the picture's border it is black, as `Crop.cut` leaves it."""
    sample = posed_hand(2)
    corner = dataclasses.replace(sample, joints_2d=sample.joints_2d - sample.joints_2d.min(0), image=sample.image + 60)
    for seed in range(8):
        low, high = corner.joints_2d.min(0), corner.joints_2d.max(0)
        expected = Crop.from_box([*low, *high], 128).cut(corner.image)
        assert np.abs(target(corner, seed=seed).crop.astype(int) - expected).mean() < 1


def test_motion_blur_leaves_things_where_they_are():
    image = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(image, (64, 64), 6, (255, 255, 255), -1)
    config = dataclasses.replace(NO_AUGMENT, blur=1.0)
    for seed in range(60):
        blurred = degrade(image, config, np.random.default_rng(seed))[..., 0].astype(float)
        y, x = np.mgrid[:128, :128]
        assert abs((blurred * x).sum() / blurred.sum() - 64) < 0.25, seed
        assert abs((blurred * y).sum() / blurred.sum() - 64) < 0.25, seed


def test_negative_has_no_weights_but_presence():
    row = make_negative(POOL, 96, AugmentConfig(), np.random.default_rng(0))
    assert row.crop.shape == (96, 96, 3)
    assert (row.presence, row.weight_2d, row.weight_3d, row.weight_parameters, row.weight_right) == (0, 0, 0, 0, 0)


def test_borrowed_amplitudes_are_coarse_and_leave_the_shapes():
    rng = np.random.default_rng(5)
    fine = np.tile(np.array([100, 140], np.uint8), (64, 32))[..., None].repeat(3, 2)
    ramp = np.linspace(40, 220, 64).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
    mixed = blend_amplitudes(fine, ramp, rng).astype(float)
    assert np.abs(np.diff(mixed, axis=1)).mean() == pytest.approx(40, abs=4)  # the stripes
    assert 120 < mixed.mean() < 131  # between both means, 120 and 130
    np.testing.assert_allclose(blend_amplitudes(ramp, ramp, rng).astype(int), ramp, atol=1)


def test_only_rendered_crops_borrow_amplitudes_and_only_photos_turn_freely():
    spectrum = dataclasses.replace(NO_AUGMENT, spectrum=1.0)
    rendered, photo = posed_hand(3), dataclasses.replace(posed_hand(3), alpha=None, exact_depth=False)
    assert (target(rendered, spectrum).crop != target(rendered).crop).any()
    np.testing.assert_array_equal(target(photo, spectrum).crop, target(photo).crop)
    turning = dataclasses.replace(NO_AUGMENT, large_photo_turn=1.0)
    assert np.ptp([target(photo, turning, seed).joints_2d[0, 0] for seed in range(8)]) > 0.5
    assert np.ptp([target(rendered, turning, seed).joints_2d[0, 0] for seed in range(8)]) == 0


def test_another_hand_hides_part_of_a_hand_or_stands_behind_it():
    one = posed_hand(2)
    blue = np.zeros_like(one.image)
    blue[..., 2] = 255
    other = posed_hand(3)
    outline = cv2.convexHull(other.joints_2d.round().astype(np.int32))
    other = dataclasses.replace(other, image=blue, alpha=cv2.fillConvexPoly(blue[..., 0].copy(), outline, 255))
    plain = target(one)
    pixels = [tuple(point) for point in ((plain.joints_2d + 1) * 64 - 0.5).round().astype(int)]
    over, under = [], []
    for seed in range(40):
        row = make_target(one, 128, NO_AUGMENT, POOL, np.random.default_rng(seed), other)
        np.testing.assert_array_equal(row.joints_2d, plain.joints_2d)
        hidden = [not np.array_equal(row.crop[y, x], plain.crop[y, x]) for x, y in pixels]
        assert np.mean(hidden) <= 0.6
        (over if any(hidden) else under).append(row)
    assert len(over) > 5
    assert len(under) > 5
    assert all(row.mask.sum() < plain.mask.sum() for row in over)
    unknown = dataclasses.replace(one, alpha=None)  # of which nobody knows what is behind it
    for seed in range(20):
        row = make_target(unknown, 128, NO_AUGMENT, POOL, np.random.default_rng(seed), other)
        assert np.mean([row.crop[y, x].tolist() == [0, 0, 255] for x, y in pixels]) <= 0.5
