"""Where frames come from and where they go: cameras, video files, pictures; and a video writer.

Frames are (H, W, 3) uint8 RGB here and everywhere; OpenCV's BGR stays inside this file.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.atomic import written_whole
from handmesh.records import check_frame

_log = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
TimedFrame = tuple[Frame, float]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SAMPLE_CLIP = Path(__file__).parent / "assets" / "sample.mp4"

PICTURES_PER_SECOND = 1.0
"""Pictures of a folder need not show the same hands: so far apart in time, a tracker searches each anew."""
LONGEST_PAUSE_S = 60.0
"""Frames of a video file are not farther apart; its clock may be wrong."""

_PLAIN_FPS = 65.0  # any rate below can be written as it is
_UNKNOWN_FPS = 30.0  # where a container or a camera names no rate
_LIKELY_FPS = 240.0  # what a file says beyond is more often the rate of its clock, such as Matroska's, 1000
_TIMED_FRAMES = 8  # from whose times the rate then comes


class CameraLostError(OSError):
    """A camera stopped delivering frames."""


class FrameSource:
    """Frames with their times, once through. Use it in a ``with`` statement, so that cameras and files are let go.

    Attributes:
        name: what it is, for people.
        fps: frames a second; what a recording should use.
        frame_count: how many frames will come, None where that is unknown.
        live: frames come when they happen, and those that nobody fetches in time are skipped.
    """

    live = False

    def __init__(self, name: str, fps: float, frame_count: int | None) -> None:
        self.name = name
        self.fps = fps
        self.frame_count = frame_count

    def __iter__(self) -> Iterator[TimedFrame]:
        """(H, W, 3) uint8 RGB frames with strictly increasing seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the camera or file go. Closing twice is no error."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(spec: str | int | os.PathLike[str]) -> FrameSource:
    """Open a camera by index, device file or the address of its stream (``rtsp://...``, ``http://...``), a video file,
    a picture, a folder of pictures, or ``"sample"``, the bundled clip. Of a number that is no ``int``, a file or folder
    of that name comes first.

    Raises:
        FileNotFoundError: there is nothing at that path, or no picture in that folder.
        ValueError: the file is neither a picture nor a video that can be read.
        CameraLostError: there is no such camera, or it delivers nothing.
    """
    text = str(spec)
    if text.isdecimal() and (isinstance(spec, int) or not Path(text).exists()):
        return CameraSource(int(text))
    if text == "sample":
        return VideoFileSource(SAMPLE_CLIP)
    path = Path(text)
    if "://" in text or path.is_char_device():
        return CameraSource(text)
    if path.is_dir():
        return PictureSource(pictures_in(path), str(path))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file or folder {path}; a source is a camera's index or address, a video, a picture, a folder "
            "of pictures or the word sample"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return PictureSource([path], path.name)
    return VideoFileSource(path)


def read_picture(path: str | os.PathLike[str]) -> Frame:
    """A picture file as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture that can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    return decode_picture(path.read_bytes(), str(path))


def decode_picture(data: bytes, name: str, doubt: str | None = None) -> Frame:
    """The bytes of a picture file as `read_picture` gives it.

    Raises ValueError that names it by ``name``, and says what may be wrong: ``doubt``, or what the name tells.
    """
    if not data:
        raise ValueError(f"{name} cannot be read as a picture: it is empty")
    with _quiet_opencv:
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise ValueError(
                f"{name} cannot be read as a picture: it is larger than OpenCV allows, or damaged ({error.err})"
            ) from error
    if picture is None:
        known = Path(name).suffix.lower() in IMAGE_SUFFIXES
        advice = "is it damaged, or of a rare kind?" if known else f"convert it to one of {', '.join(IMAGE_SUFFIXES)}"
        raise ValueError(f"{name} cannot be read as a picture: {doubt or advice}")
    return _rgb(picture)


def write_picture(path: str | os.PathLike[str], frame: Frame) -> None:
    """Write a frame as a picture in the format of the suffix, whole or not at all; makes missing folders.

    Raises:
        ValueError, TypeError: the suffix is unknown, the frame is not (H, W, 3) uint8, or too large for its format.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}: its suffix must be one of {', '.join(IMAGE_SUFFIXES)}")
    check_frame(frame)
    with _quiet_opencv:
        try:
            done, data = cv2.imencode(path.suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        except cv2.error:
            done, data = False, np.zeros(0, np.uint8)
    if not done:
        height, width = frame.shape[:2]
        raise ValueError(f"OpenCV cannot write {width} x {height} px as {path.suffix}; use .png, or a smaller picture")
    with written_whole(path) as temporary:
        temporary.write_bytes(data.tobytes())


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, without hidden ones: macOS leaves some beside pictures on other disks."""
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder by name, 2 before 10. Raises FileNotFoundError where there is none."""
    found = [path for path in files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"there is no picture in the folder {folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return sorted(found, key=natural_order)


def natural_order(path: Path) -> list[str | int]:
    """A key that sorts paths by their names, 2 before 10."""
    parts = re.split(r"(\d+)", path.name.lower())  # texts at even places, digits at odd ones
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


class PictureSource(FrameSource):
    """Picture files one after another, a second apart."""

    def __init__(self, paths: list[Path], name: str) -> None:
        super().__init__(name, PICTURES_PER_SECOND, len(paths))
        self._paths = paths

    def __iter__(self) -> Iterator[TimedFrame]:
        for number, path in enumerate(self._paths):
            yield read_picture(path), number / PICTURES_PER_SECOND


class VideoFileSource(FrameSource):
    """A video file, every frame of it at the time that the file gives it, counted from the first one's."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no video {path}")
        _check_name(path)
        self._reading = threading.Lock()  # letting a file go while another thread reads it ends the program
        with _quiet_opencv:
            self._capture = cv2.VideoCapture(str(path.absolute()))  # FFmpeg takes the 12 of 12:30.mp4 for a protocol
            first = self._read() if self._capture.isOpened() else None
        if first is None:
            self._capture.release()
            raise ValueError(
                f"{path} cannot be read as a video: not a single frame of it can be decoded; is it damaged or cut off?"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._ahead = [first]
        if not 0 < fps <= _LIKELY_FPS:  # nor a number, perhaps
            self._ahead += islice(iter(self._read, None), _TIMED_FRAMES - 1)
            fps, count = _rate(self._ahead), 0
        super().__init__(path.name, fps, count if count > 0 else None)

    def __iter__(self) -> Iterator[TimedFrame]:
        ahead, self._ahead = self._ahead, []
        start_s = ahead[0][1] if ahead else 0.0
        number, time_s = 0, 0.0
        for frame, at_s in chain(ahead, iter(self._read, None)):
            if number:
                since_s = at_s - start_s
                time_s = since_s if 0 < since_s - time_s <= LONGEST_PAUSE_S else time_s + 1 / self.fps
                if abs(since_s - time_s) > LONGEST_PAUSE_S:  # the file's clock has been set anew, or is broken
                    start_s = at_s - time_s
            yield _rgb(frame), time_s
            number += 1
        if self.frame_count is not None and number < self.frame_count:
            _log.warning("%s: read %d of the %d frames that it announces", self.name, number, self.frame_count)

    def _read(self) -> tuple[NDArray[Any], float] | None:
        """The next frame as OpenCV decodes it and its time in the file in seconds; None at the end."""
        with self._reading:
            done, frame = self._capture.read()
            return (frame, 1e-3 * self._capture.get(cv2.CAP_PROP_POS_MSEC)) if done else None

    def close(self) -> None:
        with self._reading:
            self._capture.release()


def _rate(frames: list[tuple[NDArray[Any], float]]) -> float:
    """Frames a second by the median of the times between them, but no less than usual: recordings begin with pauses."""
    apart_s = np.diff([at_s for _, at_s in frames])
    usual_s = float(np.median(apart_s)) if len(apart_s) else 0.0
    return max(1 / usual_s, _UNKNOWN_FPS) if usual_s > 0 else _UNKNOWN_FPS


class CameraSource(FrameSource):
    """A live camera. A thread fetches frames as they come and keeps only the newest: a slow reader does not lag.

    Args:
        where: index of the camera, as OpenCV counts them, its device file, or the address of its stream.
        open_capture: makes the capture object (OpenCV's own, unless a test brings another).
        attempts: failed reads in a row after which the camera counts as lost.
        pause_s: seconds between failed reads.
        timeout_s: seconds without any answer after which it counts as lost too.
    """

    live = True

    def __init__(
        self,
        where: int | str,
        open_capture: Callable[[Any], Any] = cv2.VideoCapture,
        attempts: int = 10,
        pause_s: float = 0.1,
        timeout_s: float = 15.0,
    ) -> None:
        remote = urlsplit(where).hostname if isinstance(where, str) and "://" in where else None
        name = f"camera {where if remote is None else f'at {remote}'}"  # an address may hold a password
        with _quiet_opencv:
            self._capture = open_capture(where)
            opened = self._capture.isOpened()
        if not opened:
            self._capture.release()
            raise CameraLostError(
                f"there is no {name}, or another program is using it, or the system does not let this one"
                if remote is None
                else f"the {name} does not answer, or sends nothing that can be decoded: check address and network"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        super().__init__(name, float(fps) if 1 <= fps <= 240 else _UNKNOWN_FPS, None)
        self._attempts, self._pause_s, self._timeout_s = attempts, pause_s, timeout_s
        self._news = threading.Condition()
        self._newest: TimedFrame | None = None
        self._lost = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name=self.name, daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        failures = 0
        try:
            while not self._closing.is_set() and failures < self._attempts:
                done, frame = self._capture.read()
                if not done:
                    failures += 1
                    self._closing.wait(self._pause_s)
                    continue
                failures = 0
                with self._news:
                    self._newest = (_rgb(frame), time.perf_counter())
                    self._news.notify()
        finally:
            self._capture.release()
            with self._news:
                self._lost = True
                self._news.notify()

    def __iter__(self) -> Iterator[TimedFrame]:
        last_s = -np.inf
        while not self._closing.is_set():
            with self._news:
                answered = self._news.wait_for(lambda: self._newest is not None or self._lost, self._timeout_s)
                newest, self._newest = self._newest, None
            if newest is None:
                if self._closing.is_set():
                    return
                self.close()
                how = f"{self._attempts} reads in a row failed" if answered else f"silent for {self._timeout_s:g} s"
                raise CameraLostError(f"{self.name} stopped delivering frames ({how}); is it still plugged in?")
            if newest[1] > last_s:
                last_s = newest[1]
                yield newest

    def close(self) -> None:
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)


class VideoWriter:
    """Writes frames as an .mp4 that appears under its name when it is complete, or not at all.

    Leaving the ``with`` block by an error throws the video away; `close` keeps what has come so far. The first frame
    sets the size; frames of another size are fitted into it, with black bars. Nothing is made where no frame comes.

    With times, frames are repeated or left out so that the video runs at true speed whatever the pace they come at;
    without, each is written once.

    Raises:
        ValueError: the suffix is not .mp4, the rate is not positive, or the name is none that OpenCV takes.
        OSError: by `write`, it may not be written there; by `close`, the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"cannot write the video {self.path.name!r}: its suffix must be .mp4")
        if not (np.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be positive, got {fps}")
        _check_name(self.path)
        # OpenCV makes a decimal fraction of the rate, and MPEG-4 has no room for many digits of a high one.
        self.fps = float(fps) if fps < _PLAIN_FPS else round(float(fps), 2 if fps < 10 * _PLAIN_FPS else 1)
        self.frames_written = 0
        self._size = (0, 0)  # width, height
        self._writer: cv2.VideoWriter | None = None
        self._start_s: float | None = None
        self._last: NDArray[Any] | None = None  # as it is written
        self._cleanup = ExitStack()

    def write(self, frame: Frame, time_s: float | None = None) -> None:
        """Append an (H, W, 3) uint8 RGB frame, seen at time_s seconds if the video shall keep time."""
        check_frame(frame)
        writer = self._writer or self._open(frame)
        if not writer.isOpened():
            raise ValueError(f"{self.path} has been closed and takes no more frames")
        picture = cv2.cvtColor(_fit(frame, self._size), cv2.COLOR_RGB2BGR)
        due = self._due(time_s)
        while self.frames_written < due:  # until this frame came, the last one was to be seen
            self.frames_written += 1
            writer.write(picture if self._last is None or self.frames_written == due else self._last)
        self._last = picture

    def close(self) -> None:
        """Complete the file and give it its name. Closing twice is no error."""
        self._cleanup.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def _open(self, frame: Frame) -> cv2.VideoWriter:
        height, width = frame.shape[:2]
        self._size = (width + width % 2, height + height % 2)  # encoders want even sizes
        with ExitStack() as cleanup:
            temporary = cleanup.enter_context(written_whole(self.path))
            with _quiet_opencv:
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, self._size)
            cleanup.push(lambda kind, *_: None if kind else self._check_whole(temporary))
            cleanup.callback(writer.release)
            if not writer.isOpened():
                raise OSError(
                    f"OpenCV cannot write {self.path} ({width}x{height} px, {self.fps:g} frames a second): it has no "
                    "MPEG-4 encoder, may not write there, or the pictures are too large for one"
                )
            self._cleanup = cleanup.pop_all()
        self._writer = writer
        return writer

    def _check_whole(self, temporary: Path) -> None:
        """OpenCV does not tell where frames do not get to the disk: read how many have."""
        with _quiet_opencv:
            written = cv2.VideoCapture(str(temporary))
            count = int(written.get(cv2.CAP_PROP_FRAME_COUNT))
            written.release()
        if count < 0.9 * self.frames_written:  # some decoders estimate it
            raise OSError(f"{self.path} could not be written to its end: is the disk full?")

    def _due(self, time_s: float | None) -> int:
        """How many frames should be there with this one."""
        if time_s is None:
            return self.frames_written + 1
        if self._start_s is None:
            self._start_s = time_s
        return int((time_s - self._start_s) * self.fps + 0.5) + 1


def _check_name(path: Path) -> None:
    """Raise ValueError for a name over which OpenCV's video functions end the program."""
    try:
        os.fsdecode(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ValueError(f"OpenCV reads and writes no video whose path is not UTF-8: rename {shown}") from None


def _fit(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame, resized only if it must be, in the upper left corner of a picture of (width, height) px."""
    width, height = size
    if not (0 <= width - frame.shape[1] <= 1 and 0 <= height - frame.shape[0] <= 1):
        scale = min(width / frame.shape[1], height / frame.shape[0])
        fitted = (max(round(frame.shape[1] * scale), 1), max(round(frame.shape[0] * scale), 1))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame = np.asarray(cv2.resize(frame, fitted, interpolation=how), np.uint8)
    bottom, right = height - frame.shape[0], width - frame.shape[1]
    return np.pad(frame, ((0, bottom), (0, right), (0, 0)))


def _rgb(frame: NDArray[Any]) -> Frame:
    """What OpenCV decoded, BGR or gray, as RGB."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB), np.uint8)


class _QuietOpenCV:
    """While a thread is in its ``with`` block, OpenCV does not print what our own errors say better.

    FFmpeg, which OpenCV reads videos with, asks once in a program's life how much to print: nothing, unless the
    variable OPENCV_FFMPEG_LOGLEVEL has been set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._level = 0

    def __enter__(self) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        with self._lock:
            if self._inside == 0:
                self._level = cv2.utils.logging.getLogLevel()
                cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                cv2.utils.logging.setLogLevel(self._level)


_quiet_opencv = _QuietOpenCV()
