"""Chromium and a served page for tests and measurements: found on this computer, never downloaded."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2

from handmesh.video import SAMPLE_CLIP

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def write_camera_clip(path: Path, frames: int = 60) -> Path:
    """The beginning of the bundled clip as the .mjpeg that Chromium's fake camera plays."""
    capture = cv2.VideoCapture(str(SAMPLE_CLIP))
    with path.open("wb") as file:
        for _ in range(frames):
            file.write(cv2.imencode(".jpg", capture.read()[1])[1].tobytes())
    capture.release()
    return path


def launch(play: Any, clip: Path | None = None, flags: list[str] = SOFTWARE_GL) -> Any:
    """A headless Chromium by Playwright, with a fresh profile, whose camera shows the clip. Close it after use."""
    camera = [f"--use-file-for-fake-video-capture={clip}"] if clip else []
    return play.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags, *camera])


class Served:
    """A running ``handmesh serve``."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "handmesh", "serve", "--port", str(port), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = re.fullmatch(r"serving at (http://127\.0\.0\.1:(\d+)/\S*) .*\n", self.process.stdout.readline())
        assert said, "the server did not start"
        self.url, self.port = said[1], int(said[2])

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self.process.terminate()
        self.process.wait(20)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()
