"""Trembling and lag on made-up series with known answers."""

from __future__ import annotations

import graphs
import numpy as np
import pytest

from handmesh.evaluation.jitter import (
    HandSeries,
    Replay,
    accelerations_mm,
    at_lag,
    filtered,
    lag_frames,
    measure,
    scaled,
    series_of_hands,
    series_of_landmarks,
    speeds,
    track_clip,
)
from handmesh.records import Camera
from handmesh.smoothing import Smoothing

CAMERA = Camera(600, 600, 319.5, 239.5, 640, 480)
HAND = np.random.default_rng(0).uniform(-0.05, 0.05, (21, 3))
FPS = 30.0


def series(places: np.ndarray) -> HandSeries:
    joints = np.tile(HAND - HAND[0], (len(places), 1, 1))
    return HandSeries(joints, places, CAMERA.project(joints + places[:, None]))


def waving(frames: int = 60, delay: float = 0.0) -> HandSeries:
    t = (np.arange(frames) - delay) / FPS
    return series(np.stack([0.08 * np.sin(4 * t), 0.02 * t, np.full(frames, 0.5)], axis=1))


def test_acceleration_of_a_parabola_and_of_a_straight_path():
    t = np.arange(10.0)[:, None, None]
    falling = np.tile(0.001 * t**2, (1, 21, 3)) * np.array([1.0, 0, 0])
    found = accelerations_mm(falling)
    assert np.isnan(found[[0, -1]]).all()
    assert found[1:-1] == pytest.approx(2.0)
    assert accelerations_mm(np.tile(0.003 * t, (1, 21, 3)))[1:-1] == pytest.approx(0.0, abs=1e-9)
    falling[4] = np.nan
    assert np.isnan(accelerations_mm(falling)[3:6]).all()


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.75])
def test_lag_is_the_delay_that_was_put_in(delay):
    frames = np.ones(60, bool)
    assert lag_frames(waving(delay=delay), waving(), frames) == pytest.approx(delay, abs=0.06)


def test_still_hands_are_told_from_moving_ones_through_trembling():
    trembling = np.random.default_rng(1).normal(0, 2e-4, (60, 3)) + np.array((0.0, 0.0, 0.5))
    assert np.nanmax(speeds([series(trembling)])) < 0.006
    moving = series(np.stack([0.01 * np.arange(60) - 0.3, np.zeros(60), np.full(60, 0.5)], axis=1))
    expected = 0.01 / (0.5 * np.ptp(moving.pixels[0], axis=0).max() / 600)
    assert np.nanmedian(speeds([moving])) == pytest.approx(expected, rel=0.2)


def test_filters_take_trembling_and_cost_lag():
    clean = waving()
    noise = np.random.default_rng(2).normal(0, 1e-3, (60, 21, 3))
    shaken = HandSeries(clean.joints + noise, clean.places, clean.pixels)
    still, moving = np.zeros(60, bool), np.ones(60, bool)
    raw = measure(shaken, shaken, still, moving, FPS)
    rows = {}
    for strength in (1.0, 0.25):
        smooth = filtered(shaken, scaled(Smoothing(), strength), FPS, CAMERA)
        rows[strength] = measure(smooth, shaken, still, moving, FPS)
    assert "wrist_still" not in raw
    assert raw["lag_ms"] == pytest.approx(0.0, abs=1e-6)
    assert raw["wrist_moving"] > rows[1.0]["wrist_moving"] > rows[0.25]["wrist_moving"]
    assert 0 < rows[1.0]["lag_ms"] < rows[0.25]["lag_ms"]


def test_a_scaled_filter_has_its_cutoffs_multiplied():
    half = scaled(Smoothing(), 0.5)
    for name in ("rotation", "translation", "depth"):
        assert getattr(half, name).min_cutoff_hz == 0.5 * getattr(Smoothing(), name).min_cutoff_hz
        assert getattr(half, name).beta == 0.5 * getattr(Smoothing(), name).beta


def test_trembling_at_a_lag_is_read_between_the_strengths():
    rows = {"peer": {"wrist_still": 4.0}}
    rows |= {f"peer_{s:g}": {"wrist_still": 4.0 * s / (1 + s), "lag_ms": 10 / s} for s in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert at_lag(rows, 0.0)["wrist_still"] == 4.0
    assert at_lag(rows, 10.0)["wrist_still"] == pytest.approx(2.0)
    assert at_lag(rows, 15.0)["wrist_still"] == pytest.approx(0.5 * (2.0 + 4.0 / 3.0))


def test_the_main_hand_is_followed_by_place_and_landmarks_are_put_where_they_are_seen():
    near, far = waving(3), series(np.tile([0.1, 0.1, 0.6], (3, 1)))
    frames = [
        [(one.joints[k] + 7.0, one.pixels[k], score) for one, score in ((near, 0.9), (far, 0.8 + 0.15 * k))]
        for k in range(3)
    ]
    found = series_of_landmarks([frames[0], [], frames[2][::-1]], CAMERA)
    assert found.found.tolist() == [True, False, True]
    assert found.places[[0, 2]] == pytest.approx(near.places[[0, 2]], abs=1e-4)
    assert found.in_camera[2] == pytest.approx(near.in_camera[2], abs=1e-4)


def test_a_replayed_clip_is_tracked_as_it_was_and_costs_one_run(estimator, dim_frame):
    clip = [(graphs.draw_hand(dim_frame, (200 + 2 * k, 200), 120), k / FPS) for k in range(6)]
    plain = series_of_hands(track_clip(estimator, clip, None, None))
    replay = Replay(estimator)
    runs = []
    sightings = estimator.sightings
    replay._estimator = type(
        "Counted",
        (),
        {"sightings": lambda self, *a: runs.append(1) or sightings(*a), "detect": lambda self, f: estimator.detect(f)},
    )()
    first = series_of_hands(track_clip(replay, clip, None, None))
    count = len(runs)
    second = series_of_hands(track_clip(replay, clip, None, None))
    assert np.array_equal(plain.pixels, first.pixels)
    assert np.array_equal(first.pixels, second.pixels)
    assert len(runs) == count > 0
