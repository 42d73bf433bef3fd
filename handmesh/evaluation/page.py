"""The served page in a headless Chromium of this computer: for its tests, and to see whether it grows over time.

Needs the `web` and `dev` extras. The browser is never downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handmesh.video import SAMPLE_CLIP

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
WARM_UP_S = 10.0


def find_chromium() -> str | None:
    """The browser's path, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_camera_clip(path: Path, frames: int = 60) -> Path:
    """The beginning of the bundled clip as the .mjpeg that Chromium's fake camera plays again and again."""
    capture = cv2.VideoCapture(str(SAMPLE_CLIP))
    with path.open("wb") as file:
        for _ in range(frames):
            file.write(cv2.imencode(".jpg", capture.read()[1])[1].tobytes())
    capture.release()
    return path


def launch(play: Any, clip: Path | None = None, flags: list[str] = SOFTWARE_GL) -> Any:
    """A headless Chromium by Playwright, with a fresh profile, whose camera shows the clip. Close it after use."""
    chromium = find_chromium()
    if chromium is None:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium")
    camera = [f"--use-file-for-fake-video-capture={clip}"] if clip else []
    return play.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags, *camera])


class Served:
    """A running ``handmesh serve`` on loopback."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "handmesh", "serve", "--port", str(port), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = re.fullmatch(r"serving at (http://127\.0\.0\.1:(\d+)/\S*) .*\n", self.process.stdout.readline())
        if said is None:
            self.process.kill()
            raise RuntimeError("the server did not start")
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


def soak(folder: Path, seconds: float, every_s: float = 5.0) -> dict[str, Any]:
    """Leave the page with a camera, both views and all styles on for so long, and note what it holds.

    Memory is read after the browser's garbage was collected. Growth is the slope of a line through the samples after
    `WARM_UP_S`, a minute. Needs Linux for the memory of processes.

    What the page's process shares with others rises to some 475 MB and stays there: Chromium keeps so many pictures
    on their way to drawing, also for a page that does nothing but draw a video into a canvas.
    """
    from playwright.sync_api import sync_playwright

    if seconds <= WARM_UP_S:
        raise ValueError(f"the first {WARM_UP_S:g} seconds do not count: leave the page on for longer than {seconds:g}")
    with sync_playwright() as play, Served() as server:
        browser = launch(play, write_camera_clip(folder / "clip.mjpeg"))
        page = browser.new_context(permissions=["camera"], viewport={"width": 1200, "height": 800}).new_page()
        page.goto(server.url)
        page.wait_for_selector("#status[data-state=open]")
        page.click("#start-camera")
        for style in ("wireframe", "skeleton"):
            page.check(f"#{style}")
        page.wait_for_selector("#hands li.right, #hands li.left")
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable")
        began_s = time.monotonic()
        samples = []
        while (now_s := time.monotonic() - began_s) < seconds:
            samples.append({"seconds": now_s, **_sample(page, tools, server.process.pid)})
            page.wait_for_timeout(1000 * every_s)
        browser.close()
    settled = [sample for sample in samples if sample["seconds"] >= WARM_UP_S]
    minutes = np.array([sample["seconds"] for sample in settled]) / 60
    growth = {
        name: float(np.polyfit(minutes, [sample[name] for sample in settled], 1)[0])
        for name in settled[0]
        if name not in ("seconds", "fps")
    }
    return {
        "seconds": seconds,
        "fps_median": float(np.median([sample["fps"] for sample in settled])),
        "growth_a_minute": growth,
        "samples": samples,
    }


def _sample(page: Any, tools: Any, server_pid: int) -> dict[str, float]:
    tools.send("HeapProfiler.collectGarbage")
    metrics = {metric["name"]: metric["value"] for metric in tools.send("Performance.getMetrics")["metrics"]}
    fps = page.inner_text("#fps")
    return {
        "fps": float(fps) if fps.isdecimal() else 0.0,
        "heap_mb": metrics["JSHeapUsedSize"] / 1e6,
        "nodes": metrics["Nodes"],
        "listeners": metrics["JSEventListeners"],
        "renderer_private_mb": max((_resident_mb(pid, "RssAnon") for pid in _renderers()), default=0.0),
        "renderer_shared_mb": max((_resident_mb(pid, "RssShmem") for pid in _renderers()), default=0.0),
        "server_mb": _resident_mb(server_pid, "RssAnon"),
    }


def _renderers() -> list[int]:
    """Chromium's processes that run pages."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if b"--type=renderer" in command and b"chromium" in command:
                found.append(int(entry.name))
    return found


def _resident_mb(pid: int, kind: str) -> float:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1e3 if found else 0.0
