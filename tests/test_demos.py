"""The demos as a user starts them, on stub networks."""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

from handmesh import video
from handmesh.estimator import HandMeshEstimator
from handmesh.video import VideoWriter, open_source, write_picture

DEMOS = Path(__file__).parent.parent / "demos"


@pytest.fixture
def run_demo(tmp_path, monkeypatch, estimator):
    """Runs a demo in an empty folder and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(DEMOS / name), run_name="__main__")
        return end.value.code

    return run


def hand_frame() -> np.ndarray:
    return graphs.draw_hand(np.full((256, 320, 3), 20, np.uint8), (140, 120), 64)


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 25.0) as writer:
        for _ in range(5):
            writer.write(hand_frame())
    return tmp_path / "clip.mp4"


def test_webcam(run_demo, tmp_path, clip, monkeypatch):
    monkeypatch.setattr(video, "SAMPLE_CLIP", clip)
    assert run_demo("webcam.py", "--source", "sample", "--no-window", "--record", "out/webcam.mp4") == 0
    with open_source(tmp_path / "out" / "webcam.mp4") as source:
        assert len(list(source)) == 5


def test_image(run_demo, tmp_path):
    write_picture(tmp_path / "photo.png", hand_frame())
    assert run_demo("image.py", "photo.png", "--save", "out/hand.glb") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo_hands.png", "hand.glb"}


def test_image_without_arguments_takes_the_samples(run_demo, tmp_path):
    samples = sorted(path.stem for path in DEMOS.glob("sample_*.jpg"))
    assert samples
    assert run_demo("image.py") == 0
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [f"{stem}_hands" for stem in samples]


def test_video(run_demo, tmp_path, clip):
    assert run_demo("video.py", str(clip), "--save", "out/meshes") == 0
    assert (tmp_path / "out" / "clip_hands.mp4").is_file()
    assert len(list((tmp_path / "out" / "meshes").glob("*.npz"))) == 5


@pytest.mark.parametrize("demo", ["webcam.py", "image.py", "video.py"])
def test_importing_a_demo_does_nothing(demo):
    names = runpy.run_path(str(DEMOS / demo), run_name="imported")
    assert len(names["__doc__"]) > 200


def test_the_bundled_clip_plays():
    with open_source("sample") as source:
        frames = [frame for frame, _ in source]
    assert len(frames) == source.frame_count
    assert len(frames) >= 60
