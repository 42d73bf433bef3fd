"""Lens distortion against OpenCV's, there and back, and beyond the picture where polynomials turn back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from handmesh import Camera

LENSES = [
    (-0.28, 0.11, 0.0011, -0.0007),
    (0.2, -0.3, -0.003, 0.002, 0.05),
    (-0.01396, 1.4193, -0.00353, -0.00357, -6.3943),  # a strongly bent fit of a real webcam
    (0.5, -0.2, 1e-3, -1e-3, 0.01, 0.7, -0.1, 0.02),
]
SUBPIXEL = 1e-6


def camera_with(lens: tuple[float, ...]) -> Camera:
    return Camera(926.0, 925.0, 356.0, 355.0, 720, 720, distortion=lens)


@pytest.mark.parametrize("lens", LENSES)
def test_projection_is_opencvs(lens):
    camera = camera_with(lens)
    z = np.random.default_rng(0).uniform(0.3, 2.0, 200)
    points = np.random.default_rng(1).uniform(-0.35, 0.35, (200, 3)) * z[:, None]
    points[:, 2] = z
    wanted, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, np.array(lens))
    np.testing.assert_allclose(camera.project(points), wanted[:, 0], atol=SUBPIXEL)


@pytest.mark.parametrize("lens", LENSES)
def test_rays_and_projection_are_inverse_over_the_picture(lens):
    camera = camera_with(lens)
    seen = np.linspace(60, 660, 13)  # the third lens reaches no ray in the outermost corners
    pixels = np.stack(np.meshgrid(seen, seen), axis=-1)
    rays = camera.rays(pixels)
    assert (rays[..., 2] == 1).all()
    np.testing.assert_allclose(camera.project(1.7 * rays), pixels, atol=SUBPIXEL)


@pytest.mark.parametrize(
    ("lens", "focal", "width", "height"),
    [
        ((-0.28, 0.07, 0.0005, -0.0007, -0.007), 300.0, 640, 480),  # barrels whose edge tangential terms move
        ((-0.2, 0.0, 0.001, 0.001), 400.0, 640, 480),
        ((10.2, 2.9, -0.0005, 0.0004, 0.08, 10.6, 6.1, 0.6), 570.0, 1280, 800),  # a wide rational one
        ((0.276, 0.068, 0.0, 0.0, -0.007), 300.0, 640, 480),  # a pincushion, where the distorted point is far off
    ],
)
def test_rays_and_projection_are_inverse_through_wide_lenses_up_to_and_beyond_the_edge(lens, focal, width, height):
    camera = Camera(focal, focal, width / 2, height / 2, width, height, distortion=lens)
    x, y = np.linspace(-width / 2, 1.5 * width, 41), np.linspace(-height / 2, 1.5 * height, 41)  # the middle, too
    pixels = np.stack(np.meshgrid(x, y), axis=-1)
    np.testing.assert_allclose(camera.project(1.7 * camera.rays(pixels)), pixels, atol=SUBPIXEL)


@pytest.mark.parametrize("lens", LENSES)
def test_beyond_the_picture_every_ray_keeps_its_own_place(lens):
    camera = camera_with(lens)
    x = np.linspace(0.0, 3.0, 400)
    pixels = camera.project(np.stack([x, 0.3 * x, np.ones_like(x)], axis=-1))
    assert (np.diff(pixels[:, 0]) > 0).all()
    assert np.isfinite(camera.rays(pixels)).all()


@pytest.mark.parametrize("lens", LENSES)
def test_mirrored_and_resized_cameras_keep_their_lens(lens):
    camera = camera_with(lens)
    points = np.array([[0.1, 0.2, 1.0], [-0.25, 0.05, 0.9], [0.0, 0.0, 2.0]])
    mirrored = camera.mirrored().project(points * [-1, 1, 1])
    np.testing.assert_allclose(mirrored[:, 0], 719 - camera.project(points)[:, 0], atol=1e-9)
    np.testing.assert_allclose(mirrored[:, 1], camera.project(points)[:, 1], atol=1e-9)
    half = camera.resized(360, 360).project(points)
    np.testing.assert_allclose(2 * (half + 0.5), camera.project(points) + 0.5, atol=1e-9)
    assert camera.mirrored().mirrored() == camera


def test_no_distortion_is_a_pinhole_however_it_is_written():
    assert Camera(1, 1, 0, 0, 2, 2, distortion=(0.0,) * 5) == Camera(1, 1, 0, 0, 2, 2)
    assert Camera(1, 1, 0, 0, 2, 2, distortion=[0.1, 0, 0, 0]).distortion == (0.1, 0, 0, 0)
    for shape in ((1, 5), (5, 1)):  # as cv2.calibrateCamera and others give it
        assert Camera(1, 1, 0, 0, 2, 2, distortion=np.arange(5.0).reshape(shape)).distortion == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("lens", [(0.1,), (0.1, 0.2, 0.3), (0.1,) * 6, (0.1, 0.2, float("nan"), 0.0)])
def test_other_numbers_of_coefficients_are_refused(lens):
    with pytest.raises(ValueError, match=r"k1, k2, p1, p2"):
        Camera(1, 1, 0, 0, 2, 2, distortion=lens)
