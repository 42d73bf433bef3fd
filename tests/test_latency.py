"""The benchmark measures what it says, and what it promises of cold starts and memory holds."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from pathlib import Path

import graphs
import numpy as np
import pytest

from handmesh.evaluation import latency, timing
from handmesh.runtime import Graph

FIRST_MESH_CPU_S = 3.0  # it takes about one; a busy machine has cold caches
LIVE_MEMORY_MB = 300


def test_import_and_first_mesh_take_little_work():
    taken = latency.start_up("fast", runs=1)
    assert taken["empty"]["cpu_s"] < taken["first_mesh"]["cpu_s"] < FIRST_MESH_CPU_S


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_live_view_fits_into_little_memory():
    memory = latency.live_memory_mb("fast", frames=40)
    assert 20 < max(memory["resident"], memory["peak"]) < LIVE_MEMORY_MB


def test_stages_networks_and_ratios(stub_folder, estimator, monkeypatch):
    monkeypatch.setattr(latency.HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.setattr(latency.os, "sched_setaffinity", lambda *_: None, raising=False)
    frame = graphs.draw_hand(np.full((256, 320, 3), 20, np.uint8), (140, 120), 64)
    monkeypatch.setattr(latency, "open_source", lambda _: contextlib.nullcontext([(frame, 0.0)]))
    options = Namespace(weights=str(stub_folder / "hand.onnx"), turns=1, runs=2, backbones=None, mediapipe_python=None)
    found = latency.measure_with_threads(options, 1)
    names = set(found["times"])
    assert {
        "crop_to_mesh",
        "crop_to_mesh/around",
        "detect",
        "tracked_clip",
        "network/f32/batch8",
        "network/openvino_bf16/batch1",
    } <= names
    assert "network/int8/batch1" not in names  # this network has no twin
    assert all(row["runs"] == 2 and row["median_ms"] > 0 for row in found["times"].values())
    assert found["ratios"] == {}

    found["ratios"] = {"us / them": 0.5}
    lines = latency.table({"threads": {"1": found, "2": found}}).splitlines()
    assert lines[0] == "| median ms (90 % below) | 1 thread | 2 threads |"
    assert lines[-1] == "| us / them | 0.50 | 0.50 |"
    assert len(lines) == len(names) + 6


def test_a_clock_outside_a_graph_stands_still_while_it_runs(monkeypatch):
    seconds = iter([10.0, 11.0, 14.0, 15.0])  # before the call, at the network's start and end, after the call
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    outside = timing.ClockOutside(Graph(Path("x.onnx"), {}, lambda inputs: inputs))
    assert timing.repeated(lambda: outside.graph(crop=np.zeros(1)), outside)(1) == [2000.0]


def test_a_peer_that_cannot_start_is_named(monkeypatch, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit(1)")
    monkeypatch.setattr(latency, "PEER_SCRIPT", script)
    with (
        pytest.raises(ValueError, match=r"cannot run .*peer\.py"),
        latency.mediapipe_contenders(Path(sys.executable), 1),
    ):
        pass


def test_a_peer_answers_with_its_times(monkeypatch, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "print(json.dumps({'contenders': ['a']}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps([7.0] * json.loads(line)['runs']), flush=True)\n"
    )
    monkeypatch.setattr(latency, "PEER_SCRIPT", script)
    with latency.mediapipe_contenders(Path(sys.executable), 1) as contenders:
        assert {name: runs(3) for name, runs in contenders.items()} == {"mediapipe/a": [7.0] * 3}
