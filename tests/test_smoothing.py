"""One-euro filters against the published scalar formula and the laws of vectors and rotations."""

from __future__ import annotations

import math

import graphs
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.smoothing import (
    OneEuro,
    RotationFilter,
    SettlingMean,
    Smoothing,
    VectorFilter,
    rotmat_to_rotvec,
    rotvec_to_rotmat,
)

CONFIG = OneEuro(min_cutoff_hz=1.2, beta=0.4)
ANGLES = [0.0, 1e-12, 1e-7, 1e-3, 1.0, 3.0, math.pi - 1e-6, math.pi - 1e-10, math.pi]


def filter_plainly(values, times, config, derivative_cutoff=1.0):
    """The paper's algorithm on single numbers, written out."""

    def alpha(cutoff, dt):
        return 1.0 / (1.0 + 1.0 / (2 * math.pi * cutoff) / dt)

    smooth, speed, out = values[0], 0.0, [values[0]]
    for before, now, t0, t1 in zip(values, values[1:], times, times[1:], strict=False):
        a = alpha(derivative_cutoff, t1 - t0)
        speed = a * (now - before) / (t1 - t0) + (1 - a) * speed
        a = alpha(config.min_cutoff_hz + config.beta * abs(speed), t1 - t0)
        smooth = a * now + (1 - a) * smooth
        out.append(smooth)
    return np.array(out)


@pytest.fixture
def times() -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).uniform(0.01, 0.06, 60))


def test_vectors_are_filtered_as_the_paper_says(times):
    signals = np.cumsum(np.random.default_rng(1).normal(size=(60, 2, 3)), axis=0)
    smooth = VectorFilter(CONFIG)
    found = np.stack([smooth(x, t) for x, t in zip(signals, times, strict=True)])
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[:, i, j], filter_plainly(signals[:, i, j], times, CONFIG))


def test_rotations_about_one_axis_are_filtered_as_numbers(times):
    angles = np.cumsum(np.random.default_rng(2).normal(scale=0.2, size=60))  # several turns allowed
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    smooth = RotationFilter(CONFIG)
    for angle, time, expected in zip(angles, times, filter_plainly(angles, times, CONFIG), strict=True):
        (found,) = smooth(rotvec_to_rotmat(angle * axis[None]), time)
        np.testing.assert_allclose(found, rotvec_to_rotmat(expected * axis[None])[0], atol=1e-9)


def test_filter_commutes_with_turning_the_world(times):
    rotations = rotvec_to_rotmat(np.random.default_rng(3).normal(scale=0.7, size=(60, 3)))
    turn = graphs.random_rotations(np.random.default_rng(4), 1)[0].astype(float)
    turn = rotvec_to_rotmat(rotmat_to_rotvec(turn[None]))[0]
    plain, turned = RotationFilter(CONFIG), RotationFilter(CONFIG)
    for R, t in zip(rotations, times, strict=True):
        np.testing.assert_allclose(turned((turn @ R)[None], t), turn @ plain(R[None], t), atol=1e-9)


def test_each_rotation_is_filtered_by_itself(times):
    rotations = rotvec_to_rotmat(np.random.default_rng(5).normal(size=(180, 3))).reshape(60, 3, 3, 3)
    together, alone = RotationFilter(CONFIG), [RotationFilter(CONFIG) for _ in range(3)]
    for R, t in zip(rotations, times, strict=True):
        found = together(R, t)
        for i in range(3):
            np.testing.assert_allclose(found[i], alone[i](R[i : i + 1], t)[0], atol=1e-12)


def test_smoothed_rotations_stay_rotations(times):
    smooth = RotationFilter(CONFIG)
    for k, t in enumerate(np.arange(3000) / 30.0):
        found = smooth(rotvec_to_rotmat(np.array([[0.3 * k, 0.1 * k, 0.0]])), t)
    np.testing.assert_allclose(found @ np.swapaxes(found, -1, -2), np.eye(3)[None], atol=1e-9)


@pytest.mark.parametrize("angle", ANGLES)
def test_a_resting_hand_rests_and_a_jump_of_any_angle_is_followed(angle):
    target = rotvec_to_rotmat(np.array([[0.0, angle, 0.0]]))
    smooth = RotationFilter(CONFIG)
    start = smooth(np.eye(3)[None], 0.0)
    np.testing.assert_array_equal(start, np.eye(3)[None])
    left = []
    for k in range(1, 300):
        gap = np.swapaxes(smooth(target, k / 30), -1, -2) @ target
        left.append(np.linalg.norm(rotmat_to_rotvec(gap)))
    assert (np.diff(left) <= 1e-9).all()  # never away from it again
    assert left[-1] < 1e-6


def test_faster_motion_lags_less():
    lags = []
    for speed in (0.1, 1.0, 10.0):
        smooth = VectorFilter(Smoothing().rotation)
        for k in range(120):
            value = float(smooth(speed * k / 30, k / 30))
        lags.append(119 / 30 - value / speed)
    assert lags[0] > 0.08
    assert lags[2] < 1 / 30
    assert lags[0] > lags[1] > lags[2]


def test_trembling_at_rest_shrinks():
    noise = np.random.default_rng(6).normal(scale=0.02, size=(300, 16, 3))
    smooth = RotationFilter(Smoothing().rotation)
    found = np.stack([rotmat_to_rotvec(smooth(rotvec_to_rotmat(v), k / 30)) for k, v in enumerate(noise)])
    steps, raw_steps = (np.linalg.norm(np.diff(x[30:], axis=0), axis=-1).mean() for x in (found, noise))
    assert steps < 0.3 * raw_steps


def test_inputs_and_outputs_are_not_shared():
    smooth, values = VectorFilter(CONFIG), np.ones(3)
    out = smooth(values, 0.0)
    out += 5.0
    np.testing.assert_allclose(smooth(np.ones(3), 0.1), 1.0)
    np.testing.assert_array_equal(values, 1.0)


def test_what_has_no_weight_stands_until_something_has():
    settle = SettlingMean()
    np.testing.assert_array_equal(settle([3.0], 0.0), [3.0])
    np.testing.assert_array_equal(settle([1.0], 1.0), [1.0])
    np.testing.assert_array_equal(settle([9.0], 0.0), [1.0])
    np.testing.assert_array_equal(settle([5.0], 3.0), [4.0])


@pytest.mark.parametrize("kind", [VectorFilter, RotationFilter])
def test_time_must_advance_and_shape_stay(kind):
    values = np.stack([np.eye(3)] * 2)
    smooth = kind(CONFIG)
    smooth(values, 1.0)
    for time in (1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="timestamps must increase"):
            smooth(values, time)
    with pytest.raises(ValueError, match="keeps one shape"):
        smooth(values[:1], 2.0)
    if kind is RotationFilter:
        with pytest.raises(ValueError, match=r"\(N, 3, 3\)"):
            smooth(np.eye(3), 3.0)


@pytest.mark.parametrize("settings", [(0.0, 1.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, -0.1), (1.0, math.inf)])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"min_cutoff_hz|beta"):
        OneEuro(*settings)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_conversions_equal_scipy(angle):
    axes = np.random.default_rng(7).normal(size=(200, 3))
    axes[:3] = np.eye(3)
    vectors = angle * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(rotvec_to_rotmat(vectors), matrices, atol=1e-14)
    found = rotmat_to_rotvec(matrices)
    np.testing.assert_allclose(rotvec_to_rotmat(found), matrices, atol=1e-14)
    if angle < math.pi:  # at a half turn v and -v are the same rotation
        np.testing.assert_allclose(found, vectors, atol=1e-14)


def test_rotation_conversion_bears_float32_and_slight_shear():
    matrices = Rotation.from_rotvec(np.random.default_rng(8).normal(size=(50, 3))).as_matrix()
    noisy = (matrices + np.random.default_rng(9).uniform(-1e-4, 1e-4, matrices.shape)).astype(np.float32)
    assert np.abs(rotvec_to_rotmat(rotmat_to_rotvec(noisy)) - matrices).max() < 5e-4


def test_moving_hands_lag_by_less_than_half_a_frame_and_resting_ones_tremble_less():
    times = np.arange(90) / 30
    crossing, turning = 0.23, 5.0  # a fifth of a view of 60 degrees, and rad, in a second
    direction, rotation = VectorFilter(Smoothing().translation), RotationFilter(Smoothing().rotation)
    for time in times:
        (u,) = direction([crossing * time], time)
        (turned,) = rotation(rotvec_to_rotmat(np.array([[turning * time, 0.0, 0.0]])), time)
    behind = rotmat_to_rotvec((rotvec_to_rotmat(np.array([[turning * times[-1], 0.0, 0.0]]))[0] @ turned.T)[None])[0, 0]
    assert times[-1] - u / crossing < 0.5 / 30
    assert behind / turning < 0.5 / 30
    rng = np.random.default_rng(5)
    still, trembling = VectorFilter(Smoothing().translation), rng.normal(scale=0.001, size=(90, 1))
    smooth = np.stack([still(value, time) for value, time in zip(trembling, times, strict=True)])
    assert np.abs(np.diff(smooth, 2, axis=0)).mean() < 0.5 * np.abs(np.diff(trembling, 2, axis=0)).mean()


@pytest.mark.parametrize("kind", [VectorFilter, RotationFilter])
def test_a_buffer_that_is_written_again_is_filtered_as_new_arrays_are(kind):
    turns = rotvec_to_rotmat(np.outer(np.arange(5), [0.2, 0.0, 0.1]))[:, None]
    reused, fresh, buffer = kind(CONFIG), kind(CONFIG), np.empty((1, 3, 3))
    for number, turn in enumerate(turns):
        buffer[:] = turn
        np.testing.assert_array_equal(reused(buffer, number / 30), fresh(turn.copy(), number / 30))
