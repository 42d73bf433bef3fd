"""The live loop: frames in, hands drawn on them in a window or a recording, keys to change what is shown.

A camera delivers, hands are tracked and pictures are drawn and shown in three threads (the first in `handmesh.video`,
the second in `handmesh.ahead`), each of which takes the freshest of the one before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.ahead import track_ahead
from handmesh.assets import load_hand_model
from handmesh.atomic import check_writable
from handmesh.export import export_hands
from handmesh.hand_size import HOLD_S, FlatHand
from handmesh.render import Overlay, draw_labels, draw_text
from handmesh.smoothing import Smoothing
from handmesh.video import FrameSource, VideoWriter

if TYPE_CHECKING:
    from handmesh.records import HandMesh
    from handmesh.tracker import HandTracker

Say = Callable[[str], None]

KEYS_HELP = (
    "keys: m mesh, k skeleton, x mirror, g snapshot to .glb, r record, t smoothing, h measure your hand, "
    "q or Esc quit (in the window)"
)
_TITLE = "handmesh"
_ESCAPE = 27


def display_problem() -> str | None:
    """Why no window can be shown here, or None where it can.

    A second process tries it out, because a missing display makes some window systems end the whole program.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    trial = "import cv2; cv2.namedWindow('handmesh'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        done = subprocess.run([sys.executable, "-c", trial], capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "the display does not answer"
    return None if done.returncode == 0 else "OpenCV cannot open a window on this display"


class Window:
    """A window on the screen. Closing it by its button counts as the key q."""

    def __init__(self) -> None:
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._shown = False

    def show(self, frame: NDArray[np.uint8], wait_s: float) -> str:
        """Show an RGB frame, wait for a key for at most wait_s seconds, and name the key; "" for none."""
        if not self._shown:
            cv2.resizeWindow(_TITLE, frame.shape[1], frame.shape[0])
        elif cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        self._shown = True
        cv2.imshow(_TITLE, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        key = cv2.waitKeyEx(max(1, round(1000 * wait_s)))
        if key & 0xFF00:  # of an arrow or the like, whose last byte may look like a letter
            return ""
        key &= 0xFF  # above are Shift, Num Lock and others
        return "q" if key == _ESCAPE else chr(key).lower() if key < 128 else ""

    def close(self) -> None:
        cv2.destroyAllWindows()
        cv2.waitKey(1)  # some window systems close only when asked for events


@dataclass
class Pace:
    """Milliseconds of the loop's stages and frames a second, as running means."""

    stages: dict[str, float] = field(default_factory=dict)
    fps: float = 0.0
    _last_s: float | None = None

    def note(self, stage: str, taken_ms: float) -> None:
        """Note how long a stage took."""
        self.stages[stage] = _running_mean(self.stages.get(stage), taken_ms)

    def tick(self) -> None:
        """Note that a frame is done."""
        now = time.perf_counter()
        if self._last_s is not None:
            interval = _running_mean(1 / self.fps if self.fps else None, now - self._last_s)
            self.fps = 1 / interval
        self._last_s = now

    def lines(self) -> list[str]:
        """Two lines for the picture's corner."""
        return [f"{self.fps:.0f} FPS", "  ".join(f"{name} {ms:.1f} ms" for name, ms in self.stages.items())]


def _running_mean(old: float | None, new: float, weight: float = 0.1) -> float:
    return new if old is None else old + weight * (new - old)


@dataclass(frozen=True)
class LiveReport:
    """How a live session went: frames shown, frames with a hand, mean milliseconds by stage, whether it was stopped."""

    frames: int
    frames_with_hand: int
    fps: float
    stages_ms: dict[str, float]
    stopped: bool


class LiveSession:
    """Plays sources through a tracker until they end or the user stops; keeps the view and recording in between.

    Args:
        tracker: finds the hands.
        out: folder for snapshots and for recordings started by key.
        window: None to show nothing.
        record: an .mp4 to record from the start.
        mirror: show the picture as a mirror does.
        max_frames: stop after so many frames.
        say: takes messages for the user.
    """

    def __init__(
        self,
        tracker: HandTracker,
        out: Path,
        *,
        window: Window | None = None,
        record: Path | None = None,
        mirror: bool = False,
        max_frames: int | None = None,
        say: Say,
    ) -> None:
        self.overlay = Overlay()
        self.mirror = mirror
        self.window = window
        self._tracker, self._out, self._say = tracker, out, say
        self._max_frames = max_frames
        self._smoothing = tracker.smoothing or Smoothing()
        self._record_to = record
        self._writer: VideoWriter | None = None
        self._hands: list[HandMesh] = []
        self._flat: FlatHand | None = None  # while a hand is being measured
        self._measured, self._smoothed = 0.0, tracker.smoothing
        self._pace = Pace()
        self._frames = self._frames_with_hand = 0
        self._started_s = time.perf_counter()
        self._stopped = False
        self._keys: dict[str, Callable[[], None]] = {
            "m": lambda: self._set_overlay(mesh=not self.overlay.mesh),
            "k": lambda: self._set_overlay(skeleton=not self.overlay.skeleton),
            "x": self._toggle_mirror,
            "g": self._snapshot,
            "r": self._toggle_recording,
            "t": self._toggle_smoothing,
            "h": self._toggle_measuring,
            "q": self._stop,
        }

    def play(self, source: FrameSource) -> LiveReport:
        """Play a source to its end or until the user stops, then complete the recording.

        Ctrl-C stops too. A `CameraLostError` is passed on after the recording is complete.
        """
        self._tracker.reset()
        self._stopped = False
        try:
            self._loop(source)
        except KeyboardInterrupt:
            self._say("stopped by Ctrl-C")
            self._stopped = True
        finally:
            self._finish_recording()
        elapsed = time.perf_counter() - self._started_s
        return LiveReport(
            self._frames, self._frames_with_hand, self._frames / elapsed, dict(self._pace.stages), self._stopped
        )

    def press(self, key: str) -> None:
        """Do what a key stands for; unknown keys do nothing."""
        self._unless_refused(self._keys.get(key, lambda: None))

    def settings(self) -> str:
        """What is switched on, and whether the camera's intrinsics are known where hands are in sight."""
        smoothing = f"smoothing {'on' if self._tracker.smoothing else 'off'}"
        if not self._hands:
            return smoothing
        return f"{smoothing}, camera {'assumed' if self._hands[0].camera.assumed else 'known'}"

    def _loop(self, source: FrameSource) -> None:
        begun_s = time.perf_counter()
        with closing(track_ahead(source, self._tracker)) as tracked:
            for frame, time_s, self._hands, read_ms, hands_ms in tracked:
                self._pace.note("read", read_ms)
                self._pace.note("hands", hands_ms)
                moment = time.perf_counter()
                self._unless_refused(partial(self._measure_hand, time_s))
                picture = self._draw(frame)
                self._pace.note("draw", 1e3 * (time.perf_counter() - moment))
                self._record(picture, source, time_s)
                self._frames += 1
                self._frames_with_hand += bool(self._hands)
                self._pace.tick()
                early_s = 0.0 if source.live else begun_s + time_s + 1 / source.fps - time.perf_counter()
                self._show(picture, early_s, source)
                if self._frames == self._max_frames:
                    self._stop()
                if self._stopped:
                    return

    def _draw(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = self.overlay.draw(frame, self._hands)
        if self.mirror:
            picture = np.ascontiguousarray(picture[:, ::-1])
        draw_labels(picture, self._hands, mirrored=self.mirror)
        recording = ["REC"] if self._record_to is not None else []
        measuring = [] if self._flat is None else [f"hold a hand flat and still: {100 * self._measured:.0f} %"]
        draw_text(picture, [*self._pace.lines(), self.settings(), *measuring, *recording])
        return picture

    def _show(self, picture: NDArray[np.uint8], wait_s: float, source: FrameSource) -> None:
        if self.window is None:
            return
        try:
            key = self.window.show(picture, wait_s)
        except cv2.error as error:
            self.window = None
            self._say(f"the window failed ({error.err}); going on without it")
            if self._record_to is None:
                self._unless_refused(self._toggle_recording)
            return
        self.press(key)

    def _unless_refused(self, write: Callable[[], None]) -> None:
        """Write what the user has asked for by a key; tell what the system has against it, and go on."""
        try:
            write()
        except OSError as error:
            self._say(f"error: {error}")

    def _record(self, picture: NDArray[np.uint8], source: FrameSource, time_s: float) -> None:
        if self._record_to is None:
            return
        if self._writer is None:
            self._writer = VideoWriter(self._record_to, source.fps)
        self._writer.write(picture, time_s)

    def _finish_recording(self) -> None:
        writer, self._writer, self._record_to = self._writer, None, None
        if writer is None:
            return
        writer.close()
        if writer.frames_written:
            self._say(f"recorded {writer.frames_written} frames to {writer.path}")

    def _set_overlay(self, **changes: bool) -> None:
        self.overlay = replace(self.overlay, **changes)

    def _toggle_mirror(self) -> None:
        self.mirror = not self.mirror

    def _toggle_recording(self) -> None:
        if self._record_to is not None:
            self._finish_recording()
            return
        path = free_name(self._out / "webcam.mp4")
        check_writable(path)
        self._record_to = path
        self._say(f"recording to {self._record_to}")

    def _toggle_smoothing(self) -> None:
        self._tracker.smoothing = None if self._tracker.smoothing else self._smoothing
        self._say(f"smoothing {'on' if self._tracker.smoothing else 'off'}")

    def _toggle_measuring(self) -> None:
        if self._flat is not None or self._tracker.betas is not None:
            self._end_measuring()
            self._tracker.betas = None
            self._say("every hand finds its own shape again")
            return
        self._flat = FlatHand(self._tracker.hand_model or load_hand_model())
        self._smoothed, self._tracker.smoothing = self._tracker.smoothing, None  # it wants the shapes of single frames
        self._say(f"hold one hand flat and still, palm or back to the camera, for {HOLD_S:g} seconds (h stops)")

    def _end_measuring(self) -> None:
        if self._flat is not None:
            self._flat, self._tracker.smoothing = None, self._smoothed

    def _measure_hand(self, time_s: float) -> None:
        """Once a hand has been held flat for long enough, keep its shape for all that follows."""
        if self._flat is None:
            return
        self._measured = self._flat.watch(self._hands[0] if self._hands else None, time_s)
        if self._measured < 1.0:
            return
        shape = self._flat.shape()
        self._end_measuring()
        self._tracker.betas = shape.betas
        path = free_name(self._out / "hand.json")
        shape.save(path)
        self._say(
            f"a hand of {1e3 * shape.length_m:.0f} mm as the network guesses; it stays so (h: no more) and is saved "
            f"to {path}; `handmesh calibrate-hand --hand {path} --length-mm MM` makes it metric"
        )

    def _snapshot(self) -> None:
        if not self._hands:
            self._say("no hand in sight to save")
            return
        path = free_name(self._out / "snapshot.glb")
        export_hands(self._hands, path)
        self._say(f"saved {len(self._hands)} hand(s) to {path}")

    def _stop(self) -> None:
        self._stopped = True


def free_name(path: Path) -> Path:
    """The path, numbered -2, -3, ... where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
