"""Latency and soak measurements: pictures carry their number, cameras lose what nobody fetches, sessions end."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from handmesh.evaluation import glass, soak


@pytest.mark.parametrize("number", [0, 1, 12345, (1 << 24) - 1])
def test_numbers_survive_in_a_picture(number):
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    glass.write_number(frame, number)
    assert glass.read_number(frame) == number


def test_a_paced_camera_keeps_time_and_loses_what_comes_too_late():
    capture = glass.PacedCapture([np.zeros((120, 160, 3), np.uint8)], fps=50.0)
    numbers = []
    for pause_s in (0.0, 0.0, 0.15, 0.0):
        time.sleep(pause_s)
        numbers.append(glass.read_number(capture.read()[1]))
    assert numbers[0] < numbers[1] < numbers[2] < numbers[3]
    assert numbers[2] - numbers[1] >= 7  # 0.15 s at 50 a second
    assert len(capture.taken_s) == numbers[3] + 1


def test_a_session_is_measured_from_camera_to_display(estimator, tmp_path):
    found = glass.glass_to_glass(estimator, fps=60.0, seconds=1.0, out=tmp_path)
    assert 0 < found["shown_fps"] < 61
    assert found["age_when_shown"]["median_ms"] > 0
    assert set(found["stages_ms"]) == {"read", "hands", "draw"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_short_soak_reports_memory_and_age(estimator, tmp_path):
    found = soak.soak(estimator, minutes=1.5 / 60, fps=60.0, out=tmp_path, every_s=0.02)
    assert len(found["tenths"]) == 10
    assert found["peak_memory_mb"] > 20
    assert abs(found["memory_growth_mb"]) < found["peak_memory_mb"]


def test_sessions_that_are_too_short_to_measure_are_refused(estimator, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        glass.glass_to_glass(estimator, fps=60.0, seconds=0.0, out=tmp_path)
    with pytest.raises(ValueError, match="too short to see growth"):
        soak.soak(estimator, minutes=0.05, fps=60.0, out=tmp_path)
