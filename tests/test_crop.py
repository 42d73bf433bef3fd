"""Crops: there and back, pixels where the affine says, mirror laws and the rotation to the crop's own camera."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from handmesh.crop import CROP_SCALE, Crop, turn_upright, view_rotation
from handmesh.skeleton import FINGER_KNUCKLES

CROPS = [
    Crop((100.25, 80.5), 96.0, 64, mirrored=False),
    Crop((100.25, 80.5), 96.0, 64, mirrored=True),
    Crop((-5.0, 300.0), 411.3, 128, mirrored=True),
    Crop((3.0, 3.0), 0.5, 1),
    Crop((100.25, 80.5), 96.0, 64, turn=0.7),
    Crop((100.25, 80.5), 96.0, 64, mirrored=True, turn=-2.5),
]


def test_crop_is_centred_on_the_box_with_its_longer_side():
    crop = Crop.from_box([10, 20, 50, 40], 64)
    assert crop == Crop((30.0, 30.0), CROP_SCALE * 40.0, 64, mirrored=False)


def test_small_hands_are_cut_out_wider_and_not_too_wide():
    sides = {box: Crop.from_box([0, 0, box, 0.5 * box], 128).side_px for box in (10, 60, 66, 67, 300)}
    assert sides[300] == CROP_SCALE * 300
    assert sides[67] == CROP_SCALE * 67  # 107.2 px become 128
    assert sides[66] == sides[60] == pytest.approx(128 / 1.2)
    assert sides[10] == pytest.approx(1.3 * CROP_SCALE * 10)


@pytest.mark.parametrize("size", [128, 224])
def test_a_zoomed_crop_is_wider_by_as_much_also_around_a_small_hand(size):
    for side in (10, 52, 60, 70, 95, 110, 300):
        crop = Crop.from_box([5, 5, 5 + side, 5 + 0.4 * side], size)
        for zoom in (0.8, 0.88, 1.0, 1.12, 1.4):
            zoomed = Crop.from_box(crop.zoomed_box(zoom), size)
            assert zoomed.side_px == pytest.approx(zoom * crop.side_px)
            assert zoomed.center == pytest.approx(crop.center)


@pytest.mark.parametrize("crop", CROPS)
def test_points_go_there_and_back(crop):
    points = np.random.default_rng(0).uniform(-100, 400, (3, 5, 2))
    np.testing.assert_allclose(crop.to_frame(crop.to_crop(points)), points, atol=1e-9)
    back = np.vstack([crop.affine, [0, 0, 1]]) @ np.vstack([crop.inverse, [0, 0, 1]])
    np.testing.assert_allclose(back, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("crop", CROPS)
def test_affine_and_normalised_coordinates_agree(crop):
    points = np.random.default_rng(0).uniform(-100, 400, (7, 2))
    pixels = points @ crop.affine[:, :2].T + crop.affine[:, 2]
    np.testing.assert_allclose(crop.to_crop(points), (pixels + 0.5) / (crop.size / 2) - 1.0, atol=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_corners_of_the_square_have_coordinates_of_one(mirrored):
    crop = Crop((50.0, 60.0), 20.0, 32, mirrored)
    left = 1.0 if mirrored else -1.0
    np.testing.assert_allclose(crop.to_crop([[40, 50], [60, 70], [50, 60]]), [[left, -1], [-left, 1], [0, 0]])


def test_crop_of_the_whole_frame_at_its_own_size_is_the_frame():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(Crop((31.5, 31.5), 64.0, 64).cut(frame), frame)
    np.testing.assert_array_equal(Crop((31.5, 31.5), 64.0, 64, mirrored=True).cut(frame), frame[:, ::-1])


@pytest.mark.parametrize("block", [2, 4])
def test_shrinking_by_whole_numbers_is_averaging(block):
    frame = np.random.default_rng(0).integers(0, 256, (40 * block, 40 * block, 3), np.uint8)
    middle = (40 * block - 1) / 2
    expected = frame.reshape(40, block, 40, block, 3).mean((1, 3))
    found = Crop((middle, middle), 40.0 * block, 40).cut(frame)
    assert np.abs(found.astype(float) - expected).max() <= 0.5 * math.log2(block) + 1e-9  # rounding to whole numbers


@pytest.mark.parametrize("turn", [0.0, 0.8, -2.0])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("side", [30.0, 77.7, 150.0, 199.0])
def test_a_spot_is_seen_where_it_is(side, mirrored, turn):
    crop = Crop((150.3, 121.7), side, 32, mirrored, turn)
    spot = np.array([150.3 + 0.13 * side, 121.7 - 0.09 * side])
    y, x = np.mgrid[:240, :320]
    light = np.exp(-(np.square(x - spot[0]) + np.square(y - spot[1])) / (2 * (side / 12) ** 2))
    picture = crop.cut(np.repeat(255 * light[..., None], 3, -1).round().astype(np.uint8))[..., 0].astype(float)
    y, x = np.mgrid[:32, :32]
    center = np.array([(picture * x).sum(), (picture * y).sum()]) / picture.sum()
    normalised = (center + 0.5) / 16 - 1
    # A fiftieth of a pixel of the crop: half a pixel's shift anywhere would be 25 times as much.
    assert np.abs(crop.to_frame(normalised) - spot).max() < 0.02 * side / 32


def test_a_crop_that_is_shrunk_less_than_twice_is_not_averaged_first():
    frame = np.random.default_rng(3).integers(0, 256, (200, 300, 3), np.uint8)
    crop = Crop((150.0, 100.0), 1.9 * 64, 64)
    np.testing.assert_array_equal(crop.cut(frame), cv2.warpAffine(frame, crop.affine, (64, 64)))


@pytest.mark.parametrize("turn", [0.0, 0.5])
@pytest.mark.parametrize("side", [40.0, 130.0, 400.0])
def test_mirrored_frame_gives_the_mirrored_crop(side, turn):
    frame = np.random.default_rng(2).integers(0, 256, (200, 300, 3), np.uint8)
    crop = Crop((100.2, 90.7), side, 48, turn=turn)
    other = Crop((299 - 100.2, 90.7), side, 48, mirrored=True, turn=-turn)
    difference = crop.cut(frame).astype(int) - other.cut(frame[:, ::-1])
    assert np.abs(difference).max() <= 1  # rounding of interpolation


def test_outside_of_the_frame_is_black():
    frame = np.full((50, 50, 3), 255, np.uint8)
    picture = Crop((0.0, 0.0), 20.0, 20).cut(frame)
    assert not picture[:9].any()
    assert not picture[:, :9].any()
    assert (picture[11:, 11:] == 255).all()
    for side in (10.0, 300.0):
        assert not Crop((1000.0, 1000.0), side, 16).cut(frame).any()


@pytest.mark.parametrize("side", [37.0, 90.0, 300.0])
def test_a_turned_crop_is_filled_to_its_corners(side):
    frame = np.full((600, 600, 3), 255, np.uint8)
    assert Crop((300.0, 300.0), side, 40, turn=0.25 * np.pi).cut(frame).min() == 255


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_hand_turned_upright_has_its_knuckles_above_the_wrist(mirrored):
    for seed in range(20):
        joints_2d = np.random.default_rng(seed).uniform(0, 200, (21, 2))
        crop = Crop((100.0, 100.0), 300.0, 64, mirrored, turn_upright(joints_2d))
        x, y = crop.to_crop(joints_2d[list(FINGER_KNUCKLES)].mean(0)) - crop.to_crop(joints_2d[0])
        assert abs(x) < 1e-9
        assert y < 0


def test_a_turn_is_undone_in_space_as_in_the_picture():
    crop = Crop((0.0, 0.0), 2.0, 64, turn=0.6)
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose((points @ crop.turned_back.T)[:, :2], crop.to_frame(points[:, :2]), atol=1e-12)
    np.testing.assert_array_equal((points @ crop.turned_back.T)[:, 2], points[:, 2])


def test_one_pixel_frame_and_box():
    assert Crop((0.0, 0.0), 1.0, 4).cut(np.full((1, 1, 3), 200, np.uint8)).shape == (4, 4, 3)
    assert Crop((0.0, 0.0), 100.0, 4).cut(np.full((1, 1, 3), 200, np.uint8)).shape == (4, 4, 3)


@pytest.mark.parametrize(("center", "side"), [((np.nan, 0.0), 5.0), ((0.0, 0.0), np.inf), ((0.0, 0.0), 0.0)])
def test_crop_refuses(center, side):
    with pytest.raises(ValueError, match="crop"):
        Crop(center, side, 64)


def test_a_crop_refuses_an_endless_turn():
    with pytest.raises(ValueError, match="turn nan"):
        Crop((0.0, 0.0), 5.0, 64, turn=math.nan)


def test_view_rotation_is_the_smallest_proper_rotation_to_the_ray():
    rays = np.random.default_rng(0).normal(size=(50, 2, 3)) * (1, 1, 0.3) + (0, 0, 0.5)
    R = view_rotation(rays)
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    np.testing.assert_allclose(R @ np.swapaxes(R, -1, -2), np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1.0)
    np.testing.assert_allclose(R[..., 2], unit, atol=1e-12)
    # The angle of the rotation is the angle between axis and ray: no twist.
    np.testing.assert_allclose((np.trace(R, axis1=-2, axis2=-1) - 1) / 2, unit[..., 2], atol=1e-12)


def test_view_rotation_along_the_axis_is_nothing():
    np.testing.assert_array_equal(view_rotation([0.0, 0.0, 3.0]), np.eye(3))


def test_view_rotation_of_the_mirrored_ray_is_the_mirrored_rotation():
    ray, M = np.array([0.4, -0.2, 1.0]), np.diag([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(view_rotation(M @ ray), M @ view_rotation(ray) @ M, atol=1e-15)


@pytest.mark.parametrize("ray", [[0, 0, 0], [0, 0, -1], [np.nan, 0, 1]])
def test_view_rotation_refuses(ray):
    with pytest.raises(ValueError, match="view ray"):
        view_rotation(ray)
