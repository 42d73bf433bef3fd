"""Two made-up views of made-up hands: triangulation finds them again, and errors are what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.evaluation.jitter import HandSeries
from handmesh.evaluation.stereo import (
    HAND_SIZE_MM,
    ROOT,
    View,
    compare_views,
    epipolar_px,
    read_view,
    triangulate,
    trusted_labels,
)
from handmesh.records import Camera

LENS = (-0.014, 1.42, -0.0035, -0.0036, -6.4)
METRES_A_UNIT = 0.025


def views() -> tuple[View, View]:
    """Half a metre from the origin, 40 degrees apart, in units of 25 mm."""
    made = []
    for angle in (-20.0, 20.0):
        R = Rotation.from_euler("yx", [angle, 170], degrees=True).as_matrix()
        made.append(View(Camera(900, 905, 360, 355, 720, 720, distortion=LENS), R, np.array([0.3, -0.2, 20.0])))
    return made[0], made[1]


def points(frames: int = 5) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 2, (frames, 21, 3))


def seen(view: View, X: np.ndarray, stretch: float = 1.0) -> HandSeries:
    placed = view.points(X)
    metres = METRES_A_UNIT * placed * stretch
    return HandSeries(metres - metres[:, :1], metres[:, 0], view.camera.project(placed))


def test_triangulation_and_epipolar_lines_are_exact_through_distorted_lenses():
    first, second = views()
    X = points()
    pixels = first.camera.project(first.points(X)), second.camera.project(second.points(X))
    assert triangulate(first, second, pixels) == pytest.approx(X, abs=1e-6)
    assert epipolar_px(first, second, pixels).max() < 1e-5
    moved = second.camera.rays(pixels[1]) + np.array((0.0, 3.0 / 902.5, 0.0))
    off = epipolar_px(first, second, (pixels[0], second.camera.project(moved)))
    assert 0.5 < np.median(off) <= 3.0 + 1e-3


def test_clips_of_other_lengths_are_named():
    first, second = views()
    with pytest.raises(ValueError, match="same frames, but have 5 and 4"):
        compare_views(first, second, (seen(first, points()), seen(second, points(4))))


def test_views_that_agree_have_no_error_after_the_one_scale():
    first, second = views()
    X = points()
    result = compare_views(first, second, (seen(first, X), seen(second, X)))
    assert (result["frames"], result["found_in_both"], result["same_hand"]) == (5, 5, 5)
    assert result["metres_a_unit"] == pytest.approx(METRES_A_UNIT)
    assert result["metres_a_unit_by_bones"] == pytest.approx(METRES_A_UNIT)
    assert result["reprojection_px"]["mean"] < 1e-4
    for view in result["views"]:
        assert view["joints_mean_mm"] < 1e-3
        assert view["pa_mm"] < 1e-3


def test_a_view_that_places_hands_too_far_stands_out():
    first, second = views()
    X = points()
    result = compare_views(first, second, (seen(first, X), seen(second, X, 1.1)))
    near, far = result["views"]
    assert far["own_scale"] / near["own_scale"] == pytest.approx(1.1)
    assert far["root_depth_bias_percent"] - near["root_depth_bias_percent"] > 8


def test_frames_without_a_hand_or_with_two_different_ones_are_left_out():
    first, second = views()
    X = points()
    one, other = seen(first, X), seen(second, X)
    one.places[0] = np.nan
    other.pixels[1, :, 1] += 150.0
    result = compare_views(first, second, (one, other))
    assert (result["found_in_both"], result["same_hand"]) == (4, 3)
    other.pixels[1:, :, 1] -= 400.0
    with pytest.raises(ValueError, match="none shows the same one"):
        compare_views(first, second, (one, other))


def test_calibrations_are_read_and_what_lacks_is_named(tmp_path):
    lens, pose = tmp_path / "c0.dat", tmp_path / "rt.dat"
    lens.write_text("intrinsic:\n900 0 360\n0 905 355\n0 0 1\ndistortion:\n-0.014 1.42 -0.0035 -0.0036 -6.4\n")
    R = views()[0].R
    rows = "\n".join(" ".join(map(repr, row)) for row in R.tolist())
    pose.write_text(f"R:\n{rows}\nT:\n0.3\n-0.2\n20\n\n#to the other camera\nR:\n1 0 0\n0 1 0\n0 0 1\nT:\n1\n2\n3\n")
    view = read_view(lens, pose, 720, 720)
    assert view.camera == views()[0].camera
    assert np.array_equal(view.R, R)
    assert view.T.tolist() == [0.3, -0.2, 20.0]
    with pytest.raises(ValueError, match=r"c0\.dat lacks R, T"):
        read_view(lens, lens, 720, 720)
    with pytest.raises(FileNotFoundError, match="no calibration file"):
        read_view(tmp_path / "none.dat", pose, 720, 720)
    lens.write_text("intrinsic:\n900 zero 360\n")
    with pytest.raises(ValueError, match="no row of numbers"):
        read_view(lens, pose, 720, 720)


def test_labels_that_agree_become_a_hand_of_the_size_taken_for_it():
    first, second = views()
    X = points()
    pixels = first.camera.project(first.points(X)), second.camera.project(second.points(X))
    pixels[1][2, 7] += 60.0  # one keypoint that cannot be where the other view sees it
    labels = trusted_labels(first, second, np.arange(10, 15), pixels)
    assert labels.frames.tolist() == [10, 11, 13, 14]
    sizes = np.linalg.norm(labels.joints[:, ROOT] - labels.joints[:, 0], axis=-1)
    assert np.median(sizes) == pytest.approx(HAND_SIZE_MM / 1e3)
    ratio = np.linalg.norm(labels.joints[0, 5] - labels.joints[0, 9]) / np.linalg.norm(X[0, 5] - X[0, 9])
    assert labels.joints[0] == pytest.approx(X[0] * ratio, abs=1e-6)
    pixels[1][:, :, 1] += 60.0
    with pytest.raises(ValueError, match="in none of 5 frames"):
        trusted_labels(first, second, np.arange(5), pixels)
