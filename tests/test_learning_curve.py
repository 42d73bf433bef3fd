"""The table and drawing of error against samples over several runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2

from handmesh.training.curves import append_row

SCRIPT = Path(__file__).parents[1] / "eval" / "learning_curve.py"


def add(table, *arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments, "--table", table], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_runs_go_on_from_each_other_and_are_never_counted_twice(tmp_path):
    (tmp_path / "run").mkdir()
    for seen in (50, 100):
        shared = {"seen": seen, "2d": 10 / seen}
        append_row(tmp_path / "run" / "synthetic.csv", {**shared, "pa_mpjpe_mm": 12.5, "pa_mpvpe_mm": 11.0})
        append_row(tmp_path / "run" / "photos.csv", {**shared, "pa_mpjpe_pseudo_mm": 9.0, "side": 0.8})
    append_row(tmp_path / "run" / "photos.csv", {"seen": 150, "2d": 0, "pa_mpjpe_pseudo_mm": 0, "side": 0})  # alone
    table = tmp_path / "curve.csv"
    table.write_text(
        "run,samples,synthetic_pa_mpjpe_mm,synthetic_pa_mpvpe_mm,synthetic_2d,photos_2d,"
        "photos_pa_mpjpe_labels_mm,photos_side\nfirst,1000,20,19,.3,.3,15,\n"
    )
    for _ in range(2):
        add(table, tmp_path / "run", "--before", "1000")
    assert table.read_text().splitlines()[1:] == [
        "first,1000,20,19,.3,.3,15,",
        "run,1050,12.5,11,0.2,0.2,9,0.8",
        "run,1100,12.5,11,0.1,0.1,9,0.8",
    ]
    assert cv2.imread(str(tmp_path / "curve.png")) is not None
