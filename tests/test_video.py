"""Frame sources and the video writer: what comes in what order, and how they fail."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmesh import video
from handmesh.video import (
    SAMPLE_CLIP,
    CameraLostError,
    CameraSource,
    VideoWriter,
    open_source,
    read_picture,
    write_picture,
)

CODEC_TOLERANCE = 12.0  # gray levels that MPEG-4 may change on a plain picture


def plain(level: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame of one level of red, with the upper left quarter blue."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = level
    frame[: height // 2, : width // 2] = (0, 0, 200)
    return frame


def write_frames(path, frames, fps=25.0):
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_clip(path, levels, fps=25.0, **size):
    return write_frames(path, [plain(level, **size) for level in levels], fps)


def levels_of(source):
    return [int(frame[-8:, -8:, 0].mean()) for frame, _ in source]


def test_a_video_comes_back_in_order_in_rgb_and_on_time(tmp_path):
    levels = [20, 60, 100, 140, 180, 220]
    with open_source(write_clip(tmp_path / "clip.mp4", levels)) as source:
        frames, times = zip(*source, strict=True)
        assert source.fps == pytest.approx(25.0)
        assert source.frame_count == len(levels)
        assert not source.live
    np.testing.assert_allclose(times, np.arange(6) / 25.0)
    for frame, level in zip(frames, levels, strict=True):
        assert (frame.shape, frame.dtype) == ((48, 64, 3), np.uint8)
        assert np.abs(frame.astype(float) - plain(level)).mean() < CODEC_TOLERANCE


class TimedCapture:
    """As OpenCV's: grey frames at times in ms, and a rate that the file claims."""

    def __init__(self, times_ms, fps):
        self.times_ms, self.fps, self.number = times_ms, fps, 0

    def isOpened(self):  # noqa: N802 (OpenCV's names)
        return True

    def read(self):
        self.number += 1
        return self.number <= len(self.times_ms), plain(self.number)

    def get(self, what):
        at = {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FRAME_COUNT: 5956.0}
        return at[what] if what in at else self.times_ms[self.number - 1]

    def release(self):
        pass


@pytest.mark.parametrize("fps", [1000.0, 30.0, float("nan")])
def test_frames_of_an_uneven_pace_come_at_the_files_times(tmp_path, monkeypatch, caplog, fps):
    """Browsers record so: times in whole milliseconds, pauses, and the clock's rate given as that of the frames."""
    times_ms = [40, 73, 107, 349, 383, 416, 450, 483, 517, 517, 551]  # one twice
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda _: TimedCapture(times_ms, fps))
    (tmp_path / "clip.webm").write_bytes(b"video")
    with open_source(tmp_path / "clip.webm") as source:
        assert source.fps == pytest.approx(30.0, rel=0.03)
        frames, times = zip(*source, strict=True)
    assert [frame[-1, -1, 2] for frame in frames] == [*range(1, 12)]  # red in OpenCV's order is blue here
    expected = (np.array(times_ms) - 40) / 1000
    expected[9] = expected[8] + 1 / source.fps
    np.testing.assert_allclose(times[:10], expected[:10])
    assert times[10] > times[9]
    if fps == 1000.0:
        assert source.frame_count is None
        assert not caplog.records


def test_a_clock_that_jumps_lets_a_video_go_on(tmp_path, monkeypatch):
    """Transport streams start their clocks anew, and some decoders give frames without a time a huge one."""
    times_ms = [0, 40, 95_443_000, 95_443_040, 12, 52, float("nan"), 7e15, 92]
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda _: TimedCapture(times_ms, 25.0))
    (tmp_path / "clip.ts").write_bytes(b"video")
    with open_source(tmp_path / "clip.ts") as source:
        times = [time_s for _, time_s in source]
    np.testing.assert_allclose(np.diff(times), 0.04)


def test_pictures_keep_every_value_and_come_upright(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    write_picture(tmp_path / "a.png", frame)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), frame)
    with open_source(tmp_path / "a.png") as source:
        (only, time_s) = next(iter(source))
    np.testing.assert_array_equal(only, frame)
    assert time_s == 0.0


def test_gray_and_transparent_pictures_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((5, 6), 77, np.uint8))
    cv2.imwrite(str(tmp_path / "rgba.png"), np.full((5, 6, 4), 77, np.uint8))
    for name in ("gray.png", "rgba.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name), np.full((5, 6, 3), 77, np.uint8))


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    for number in (10, 9, 1, 100, 2):
        write_picture(tmp_path / f"frame{number}.png", plain(number))
    (tmp_path / "notes.txt").write_text("not a picture")
    with open_source(tmp_path) as source:
        assert source.frame_count == 5
        pairs = list(source)
    assert levels_of(pairs) == [1, 2, 9, 10, 100]
    assert np.diff([time_s for _, time_s in pairs]).min() > 0.5  # further apart than a tracker bridges


def test_a_folder_named_by_a_number_is_no_camera(tmp_path, monkeypatch):
    write_picture(tmp_path / "0001" / "a.png", plain(5))
    monkeypatch.chdir(tmp_path)
    for spec in ("0001", Path("0001")):
        with open_source(spec) as source:
            assert levels_of(list(source)) == [5]


def test_the_word_sample_is_the_bundled_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "SAMPLE_CLIP", write_clip(tmp_path / "clip.mp4", [30, 90]))
    with open_source("sample") as source:
        assert len(list(source)) == 2


def test_a_clock_time_as_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", [30, 90]).rename("12-30.mp4" if sys.platform == "win32" else "12:30.mp4")
    (path,) = tmp_path.iterdir()
    with open_source(path.name) as source:
        assert len(list(source)) == 2


def test_paths_to_nothing_say_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing\.mp4"):
        open_source(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match="no picture in the folder"):
        open_source(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no picture"):
        read_picture(tmp_path / "missing.png")


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_files_that_are_no_video_or_picture_say_so(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.mp4 cannot be read as a video"):
        open_source(tmp_path / "bad.mp4")
    with (
        pytest.raises(ValueError, match=r"bad\.jpg cannot be read as a picture"),
        open_source(tmp_path / "bad.jpg") as source,
    ):
        list(source)


def test_a_picture_beyond_what_opencv_allows_is_refused_by_name(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    path = tmp_path / "giant.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"giant\.png .* larger than OpenCV allows"):
        read_picture(path)


def test_a_file_of_another_kind_is_to_be_converted(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"photo\.heic .* convert it to one of \.jpg"):
        read_picture(tmp_path / "photo.heic")


def test_refusing_a_file_prints_nothing_else(tmp_path):
    """What OpenCV and FFmpeg print by themselves is nothing that a user could act on."""
    (tmp_path / "cut.mp4").write_bytes(SAMPLE_CLIP.read_bytes()[:9000])
    (tmp_path / "deep.tiff").write_bytes(cv2.imencode(".tiff", np.zeros((9, 9, 3), np.float32))[1].tobytes())
    code = """
import sys
from handmesh.video import open_source
for name in ("cut.mp4", "deep.tiff"):
    try:
        list(open_source(f"{sys.argv[1]}/{name}"))
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [line.split(" cannot")[0] for line in done.stdout.splitlines()] == [
        f"{tmp_path}/cut.mp4",
        f"{tmp_path}/deep.tiff",
    ]


def test_opencv_is_as_loud_as_before_when_threads_have_opened_files(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    level = cv2.utils.logging.getLogLevel()

    def refuse() -> None:
        for _ in range(20):
            with pytest.raises(ValueError, match="is it damaged, or"):
                read_picture(tmp_path / "bad.png")

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cv2.utils.logging.getLogLevel() == level


def test_a_video_is_let_go_only_when_the_frame_that_is_being_read_has_come(tmp_path):
    source = open_source(SAMPLE_CLIP)
    reading, events = threading.Event(), []

    class SlowCapture:
        def read(self):
            reading.set()
            time.sleep(0.1)
            events.append("read")
            return False, None

        def release(self):
            events.append("released")

    source._capture.release()
    source._capture = SlowCapture()
    reader = threading.Thread(target=lambda: list(source))
    reader.start()
    reading.wait()
    source.close()
    reader.join()
    assert events == ["read", "released"]


def test_a_truncated_video_without_its_index_is_refused(tmp_path):
    whole = write_clip(tmp_path / "clip.mp4", range(0, 200, 4)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a video"):
        open_source(tmp_path / "cut.mp4")


def test_a_missing_camera_says_so():
    with pytest.raises(CameraLostError, match="no camera 97"):
        open_source("97")


def collect(source, into):
    """Put a source's frames' levels and times into a list, until it ends or fails."""
    for frame, time_s in source:
        into.append((int(frame[0, 0, 0]), time_s))


class FakeCapture:
    """A camera that delivers so many frames, every interval_s, and then fails."""

    def __init__(self, frames: int, interval_s: float = 0.005, hang: bool = False) -> None:
        self.left, self.interval_s, self.hang = frames, interval_s, hang
        self.released = threading.Event()
        self.reads = 0

    def isOpened(self):  # noqa: N802
        return True

    def get(self, _):
        return 0.0

    def read(self):
        self.reads += 1
        if self.left == 0:
            if self.hang:
                self.released.wait(10)
            return False, None
        time.sleep(self.interval_s)
        self.left -= 1
        return True, np.full((4, 4, 3), 255 - self.left % 256, np.uint8)

    def release(self):
        self.released.set()


def test_a_camera_that_vanishes_ends_with_an_error_and_is_let_go():
    capture = FakeCapture(20)
    seen = []
    with CameraSource(3, lambda _: capture, attempts=4, pause_s=0.01) as source:
        assert source.live
        with pytest.raises(CameraLostError, match=r"camera 3 stopped delivering frames \(4 reads"):
            collect(source, seen)
    assert capture.released.wait(2)
    assert capture.reads == 20 + 4
    assert seen[-1][0] == 255
    assert (np.diff([time_s for _, time_s in seen]) > 0).all()


def test_a_camera_that_falls_silent_ends_with_an_error():
    capture = FakeCapture(3, hang=True)
    seen = []
    with CameraSource(0, lambda _: capture, timeout_s=0.2) as source:
        with pytest.raises(CameraLostError, match=r"silent for 0\.2 s"):
            collect(source, seen)
        capture.release()
    assert 1 <= len(seen) <= 3


def test_a_camera_recovers_from_single_failed_reads():
    class Hiccup(FakeCapture):
        def read(self):
            if self.left and self.reads % 3 == 2:
                self.reads += 1
                return False, None
            return super().read()

    capture = Hiccup(9)
    seen = []
    with (
        CameraSource(0, lambda _: capture, attempts=3, pause_s=0.001) as source,
        pytest.raises(CameraLostError),
    ):
        collect(source, seen)
    assert seen[-1][0] == 255  # the last of the nine came through


def test_a_slow_reader_gets_the_newest_frame_not_the_next():
    capture = FakeCapture(250, interval_s=0.004)
    with CameraSource(0, lambda _: capture) as source:
        frames = iter(source)
        for _ in range(6):
            time.sleep(0.05)
            left = capture.left
            frame, time_s = next(frames)
            assert 255 - frame[0, 0, 0] <= left + 1  # one may have been on its way
            assert 0 <= time.perf_counter() - time_s < 5
        assert capture.left < 244
    assert capture.released.wait(2)


def test_closing_a_camera_ends_its_frames():
    capture = FakeCapture(10_000)
    source = CameraSource(0, lambda _: capture)
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    assert capture.released.wait(2)


class Pictures(BaseHTTPRequestHandler):
    """Sends pictures without end, as network cameras do."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        picture = cv2.imencode(".jpg", plain(180))[1].tobytes()
        with contextlib.suppress(OSError):  # until nobody listens any more
            for _ in range(1000):
                self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n\r\n" + picture + b"\r\n")
                time.sleep(0.01)

    def log_message(self, *_):
        pass


def test_a_cameras_stream_is_opened_by_its_address_and_named_without_its_password():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with open_source(f"http://me:secret@127.0.0.1:{server.server_port}/video.mjpg") as source:
                assert (source.live, source.name) == (True, "camera at 127.0.0.1")
                frame, _ = next(iter(source))
        finally:
            server.shutdown()
            thread.join()
    assert frame.shape == (48, 64, 3)


def test_addresses_and_device_files_of_no_camera_say_so():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(CameraLostError, match=r"the camera at 127\.0\.0\.1 does not answer"):
        open_source(f"http://me:secret@127.0.0.1:{port}/")
    if sys.platform != "win32":
        with pytest.raises(CameraLostError, match="no camera /dev/null"):
            open_source("/dev/null")


def test_a_camera_that_does_not_open_is_let_go():
    class Closed(FakeCapture):
        def isOpened(self):  # noqa: N802
            return False

    capture = Closed(5)
    with pytest.raises(CameraLostError, match="no camera 2"):
        CameraSource(2, lambda _: capture)
    assert capture.released.is_set()


def test_the_video_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "folder" / "clip.mp4"
    writer = VideoWriter(path, 30.0)
    writer.write(plain(50))
    assert not path.exists()
    writer.close()
    writer.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_an_error_leaves_no_video_and_no_leftovers(tmp_path):
    old = write_clip(tmp_path / "clip.mp4", [10, 20])
    before = old.read_bytes()

    def fail_halfway():
        with VideoWriter(old, 30.0) as writer:
            writer.write(plain(50))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_halfway()
    assert old.read_bytes() == before
    assert list(tmp_path.iterdir()) == [old]


def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path, full_disk):
    old = write_clip(tmp_path / "clip.mp4", [10, 20])
    before = old.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (12, 96, 128, 3), np.uint8)
    with full_disk(20_000), pytest.raises(OSError, match=r"clip\.mp4 could not be written to its end"):
        write_frames(old, noise)
    assert old.read_bytes() == before
    assert list(tmp_path.iterdir()) == [old]


def test_no_frame_makes_no_file(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 30.0):
        pass
    assert not list(tmp_path.iterdir())


def test_frames_of_other_sizes_are_fitted_into_the_first_ones(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 10.0) as writer:
        for size in ((64, 48), (128, 48), (33, 91), (1, 1)):
            writer.write(plain(200, *size))
    with open_source(tmp_path / "clip.mp4") as source:
        frames = [frame for frame, _ in source]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 4
    assert frames[1][12, 48, 0] > 150  # a wide one is shrunk to half its height,
    assert frames[1][40].max() < 40  # black below


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (64, 49)])
def test_odd_sizes_are_written(tmp_path, size):
    with VideoWriter(tmp_path / "clip.mp4", 10.0) as writer:
        writer.write(plain(200, *size))
    with open_source(tmp_path / "clip.mp4") as source:
        (frame, _) = next(iter(source))
    assert frame.shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)


def test_with_times_a_recording_keeps_true_speed(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 30.0) as writer:
        for number in range(11):  # ten frames a second for one second
            writer.write(plain(20 * number), 100.0 + number / 10)
        assert writer.frames_written == 31
        writer.write(plain(0), 101.01)  # too early for another frame
        assert writer.frames_written == 31


def test_a_picture_is_shown_until_the_next_one_came(tmp_path):
    """As in a screen recording: nothing happens for a second, then something does."""
    with VideoWriter(tmp_path / "clip.mp4", 10.0) as writer:
        for level, time_s in ((40, 0.0), (40, 0.1), (200, 1.0), (200, 1.1)):
            writer.write(plain(level), time_s)
    with open_source(tmp_path / "clip.mp4") as source:
        levels = [int(frame[-4, -4, 0]) for frame, _ in source]
    assert [level > 120 for level in levels] == [False] * 10 + [True] * 2


@pytest.mark.parametrize("fps", [64.87654321, 119.9886, 239.765625, 959.123456])
def test_slow_motion_is_written_at_its_rate(tmp_path, fps):
    with VideoWriter(tmp_path / "clip.mp4", fps) as writer:
        for _ in range(3):
            writer.write(plain(90))
    with open_source(tmp_path / "clip.mp4") as source:
        assert source.fps == pytest.approx(fps, rel=1e-3)


def test_what_cannot_be_encoded_is_told_with_its_size(tmp_path):
    with pytest.raises(OSError, match="20000x2 px"), VideoWriter(tmp_path / "clip.mp4", 30.0) as writer:
        writer.write(np.zeros((2, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fps"), [("clip.avi", 30.0), ("clip", 30.0), ("clip.mp4", 0.0), ("clip.mp4", float("nan"))]
)
def test_writer_settings_are_checked_at_once(tmp_path, name, fps):
    with pytest.raises(ValueError, match=r"\.mp4|fps"):
        VideoWriter(tmp_path / name, fps)


def test_pictures_of_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.png"):
        write_picture(tmp_path / "a.xyz", plain(3))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_pictures_too_large_for_their_format_are_told_with_their_size(tmp_path, capfd, suffix):
    with pytest.raises(ValueError, match=rf"70000 x 2 px as {suffix}; use \.png"):
        write_picture(tmp_path / f"a{suffix}", np.zeros((2, 70_000, 3), np.uint8))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only there a name may be any bytes")
def test_videos_of_names_that_end_opencv_are_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"v\xff.mp4")
    shutil.copy(SAMPLE_CLIP, path)
    with pytest.raises(ValueError, match=r"not UTF-8: rename .*v\\xff\.mp4"):
        open_source(path)
    with pytest.raises(ValueError, match="not UTF-8"):
        VideoWriter(path, 30.0)


@pytest.mark.parametrize(
    "frame",
    [
        np.full((8, 8, 3), 0.5, np.float32),
        np.full((8, 8, 3), 30000, np.uint16),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_pictures_of_other_kinds_are_refused(tmp_path, frame):
    with pytest.raises(ValueError, match="the frame"):
        video.write_picture(tmp_path / "a.png", frame)
    assert not list(tmp_path.iterdir())


def test_a_closed_video_takes_no_more_frames(tmp_path):
    writer, frame = video.VideoWriter(tmp_path / "a.mp4", 25.0), np.zeros((32, 32, 3), np.uint8)
    writer.write(frame)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(frame)
    assert writer.frames_written == 1
