"""Many files at once: what is found, what is written, what a bad file or a dying worker does, going on, and Ray."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import graphs
import numpy as np
import pytest

from handmesh import cli
from handmesh.bulk import job, parts, processes
from handmesh.bulk.inputs import find_pictures, find_videos
from handmesh.bulk.job import read_index, run_job
from handmesh.bulk.parts import Entry, drop_files, new_part, parts_in, read_entries, read_part
from handmesh.bulk.worker import Crew, Task, Worker
from handmesh.cli import main
from handmesh.estimator import HandMeshEstimator
from handmesh.export import to_arrays
from handmesh.records import Camera
from handmesh.smoothing import rotvec_to_rotmat
from handmesh.tracker import HandTracker
from handmesh.video import SAMPLE_CLIP, VideoWriter, open_source, read_picture, write_picture

REPOSITORY = Path(__file__).parents[1]

KILLER = (255, 0, 255)
"""The first pixel of a picture that ends the process which looks for hands in it."""

BATCH_TOLERANCE = 1e-4
"""Metres, pixels and radians by which hands of a batch may differ from those found alone: the order of sums."""


@dataclass(frozen=True)
class FragileTask(Task):
    """A task whose workers die over some pictures, as over one that crashes a decoder."""

    def open_estimator(self, threads: int | None = None) -> HandMeshEstimator:
        estimator = super().open_estimator(threads)
        detect = estimator.detector
        assert detect is not None

        def fragile(frame):
            if tuple(frame[0, 0]) == KILLER:
                os._exit(7)
            return detect(frame)

        estimator.detector = fragile  # type: ignore[assignment]
        return estimator


@pytest.fixture
def task(stub_folder, stub_hand_model) -> Task:
    return FragileTask(
        "image",
        weights=str(stub_folder / "hand.onnx"),
        detector=str(stub_folder / "detector.onnx"),
        pose_graph=str(stub_folder / "pose.onnx"),
        hand_model=str(stub_hand_model),
        batch=3,
    )


@pytest.fixture
def in_this_process(monkeypatch):
    """One worker without a process of its own."""

    @contextmanager
    def crew(task: Task, folder: Path, files: int, workers: int | None, threads: int | None) -> Iterator[Crew]:
        worker = Worker(task, folder, threads=1)
        yield Crew(workers or 2, lambda units: map(worker, units))

    monkeypatch.setattr(job, "local_crew", crew)


def picture(shift: int = 0, side: str = "right", size: tuple[int, int] = (256, 320)) -> np.ndarray:
    return graphs.draw_hand(np.full((*size, 3), 20, np.uint8), (140 + shift, 120), 64, side)


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Eight picture files, of one hand each, but for the third (empty) and the sixth (two hands)."""
    frames = [picture(4 * number, "left" if number % 2 else "right") for number in range(8)]
    frames[2] = np.full((256, 320, 3), 20, np.uint8)
    frames[5] = graphs.draw_hand(picture(-60), (260, 150), 64, "left")
    for number, frame in enumerate(frames):
        write_picture(tmp_path / "shots" / f"{number}.png", frame)
    return [str(tmp_path / "shots" / f"{number}.png") for number in range(8)]


def write_clip(path: Path, frames: int, start: int = 0) -> str:
    with VideoWriter(path, 25.0) as writer:
        for number in range(frames):
            writer.write(picture(3 * (start + number)))
    return str(path)


def rows_by_path(folder: Path) -> dict[str, list[dict]]:
    """All rows of a job's parts; fails if a file stands in two parts."""
    found: dict[str, list[dict]] = {}
    seen: set[str] = set()
    for path in parts_in(folder / "parts"):
        rows, entries = read_part(path)
        names = {entry.path for entry in entries}
        assert not names & seen
        assert set(rows["path"]) <= names
        seen |= names
        for number, name in enumerate(rows["path"].tolist()):
            found.setdefault(name, []).append({key: column[number] for key, column in rows.items()})
    return found


# --- which files


def test_folders_patterns_and_files_become_one_list(tmp_path, monkeypatch):
    for name in ("a/2.jpg", "a/10.png", "a/x.txt", "a/deep/3.JPG", "b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_pictures(["b.png", "a", "missing.jpg", "a/*.png"]) == [
        Path(name) for name in ("b.png", "a/2.jpg", "a/10.png", "missing.jpg")
    ]
    assert find_pictures(["a/**/*.JPG"]) == [Path("a/deep/3.JPG")]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_pictures(["c*.png"])
    (tmp_path / "a[1].png").touch()
    assert find_pictures(["a[1].png"]) == [Path("a[1].png")]


def test_what_lies_in_folders_below_a_folder_is_left_out_and_said(tmp_path, monkeypatch, caplog):
    for name in ("a/1.jpg", "a/.small/1.jpg", "a/notes/1.txt", "b/1.jpg", "b/c/d/2.JPG", "e/f/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_pictures(["a"]) == [Path("a/1.jpg")]
    assert caplog.text == ""
    Path("b/._1.jpg").write_bytes(b"what macOS keeps beside it")
    assert find_pictures(["b"]) == [Path("b/1.jpg")]
    assert "not for those below, such as b/c/d/2.JPG: name their folders, or 'b/**/*.JPG'" in caplog.text
    with pytest.raises(FileNotFoundError, match="no video in the folder e"):
        find_videos(["e"])
    assert "or 'e/**/*.mp4'" in caplog.text
    assert find_videos(["e/**/*.mp4"]) == [Path("e/f/3.mp4")]


def test_a_folder_stands_for_its_videos_or_is_one_of_pictures(tmp_path):
    for name in ("clips/2.mp4", "clips/10.MOV", "clips/1.jpg", "shots/1.jpg", "nothing/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clips = tmp_path / "clips"
    assert find_videos([clips, "sample"]) == [clips / "2.mp4", clips / "10.MOV", SAMPLE_CLIP]
    assert find_videos([tmp_path / "shots"]) == [tmp_path / "shots"]
    with pytest.raises(FileNotFoundError, match="no video in the folder"):
        find_videos([tmp_path / "nothing"])


# --- parts


@pytest.mark.parametrize("table", ["npz", "parquet"])
@pytest.mark.parametrize("vertices", [True, False])
def test_parts_give_back_what_was_written(tmp_path, estimator, table, vertices, monkeypatch):
    if table == "parquet":
        pytest.importorskip("pyarrow", reason="needs the scale extra")
    monkeypatch.setattr(parts, "_ROWS_AT_ONCE", 2)  # several groups of rows
    hands = [estimator(picture(shift)) for shift in (0, 10, 20)] + [[]]
    with new_part(tmp_path, "some", table, 6 if vertices else None) as part:
        for number, found in enumerate(hands):
            part.append("/ä/b.mp4", number, number / 25, found)
        part.end_file("/ä/b.mp4", (10, 20), note="short")
        part.append("/c.mp4", 0, 0.0, hands[0] * 2)
        part.end_file("/c.mp4", (30, 40), ValueError("cut\n off"))
        assert parts_in(tmp_path) == []
    (path,) = parts_in(tmp_path)
    rows, entries = read_part(path)
    assert entries == [
        Entry("/ä/b.mp4", None, "short", 4, 3, 3, 10, 20, path.name),
        Entry("/c.mp4", "cut off", None, 1, 1, 2, 30, 40, path.name),
    ]
    assert rows["path"].tolist() == ["/ä/b.mp4"] * 3 + ["/c.mp4"] * 2
    assert rows["frame"].tolist() == [0, 1, 2, 0, 0]
    assert rows["time_s"].tolist() == [0.0, 0.04, 0.08, 0.0, 0.0]
    wanted = to_arrays([*hands[0], *hands[1], *hands[2], *hands[0] * 2], mesh=vertices)
    wanted.pop("faces", None)
    assert set(rows) == {*wanted, "path", "frame", "time_s"}
    for name, column in wanted.items():
        np.testing.assert_array_equal(rows[name], column, err_msg=name)

    drop_files(path, {"/ä/b.mp4"})
    rows, entries = read_part(path)
    assert [entry.path for entry in entries] == ["/c.mp4"]
    np.testing.assert_array_equal(rows["joints"], wanted["joints"][3:])
    drop_files(path, {"/c.mp4"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", ["npz", "parquet"])
def test_a_part_without_hands_has_all_columns(tmp_path, table):
    if table == "parquet":
        pytest.importorskip("pyarrow", reason="needs the scale extra")
    with new_part(tmp_path, "none", table, 6) as part:
        part.append("/a.png", 0, 0.0, [])
        part.end_file("/a.png", (1, 2))
    rows, entries = read_part(tmp_path / f"none.{table}")
    assert entries == [Entry("/a.png", None, None, 1, 0, 0, 1, 2, f"none.{table}")]
    assert rows["hand_pose"].shape == (0, 15, 3)
    assert rows["vertices"].shape == (0, 6, 3)


def test_ray_that_is_not_installed_is_named_before_anything_is_written(tmp_path, pictures, task, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'handmesh\[scale\]'"):
        run_job(pictures, task, tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


def test_an_error_throws_the_part_away(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_part(tmp_path, "half", "npz"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, pictures, task, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'handmesh\[scale\]'"):
        run_job(pictures, replace(task, table="parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- one worker


def test_pictures_in_batches_are_as_each_alone(tmp_path, pictures, task):
    broken, missing = tmp_path / "broken.png", str(tmp_path / "missing.png")
    broken.write_bytes(b"no picture")
    files = [*pictures[:4], str(broken), *pictures[4:], missing]
    (tmp_path / "parts").mkdir()
    entries = Worker(task, tmp_path / "parts", threads=1)(files)
    assert [entry.path for entry in entries] == files
    assert {Path(entry.path).name: entry.error is None for entry in entries if entry.path not in pictures} == {
        "broken.png": False,
        "missing.png": False,
    }
    found = rows_by_path(tmp_path)
    estimator = task.open_estimator(threads=1)
    assert [len(found.get(file, ())) for file in pictures] == [1, 1, 0, 1, 1, 2, 1, 1]
    for file in pictures:
        for row, hand in zip(found.get(file, ()), estimator(read_picture(file)), strict=True):
            assert (row["side"], row["frame"], row["track_id"]) == (hand.side, 0, -1)
            for name in ("joints", "translation", "joints_2d", "global_orient", "hand_pose"):
                np.testing.assert_allclose(row[name], getattr(hand, name), atol=BATCH_TOLERANCE)


def test_videos_side_by_side_are_as_each_alone(tmp_path, task, caplog):
    clips = [write_clip(tmp_path / f"{number}.mp4", frames, number) for number, frames in enumerate((9, 4, 12, 6))]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    files = [*clips[:2], str(tmp_path / "bad.mp4"), *clips[2:]]
    (tmp_path / "parts").mkdir()
    entries = Worker(replace(task, kind="video", batch=2), tmp_path / "parts", threads=1)(files)
    assert {entry.path: entry.frames for entry in entries} == dict(zip(files, (9, 4, 0, 12, 6), strict=True))
    assert [entry.path for entry in entries if entry.error] == [files[2]]
    assert len({entry.part for entry in entries}) == 5
    found = rows_by_path(tmp_path)
    estimator = task.open_estimator(threads=1)
    for clip in clips:
        tracker = HandTracker(estimator)
        with open_source(clip) as source:
            alone = [(time_s, hand) for frame, time_s in source for hand in tracker(frame, time_s)]
        assert len(alone) >= 4
        for row, (time_s, hand) in zip(found[clip], alone, strict=True):
            assert (row["time_s"], row["track_id"]) == (time_s, hand.track_id)
            for name in ("joints", "translation", "joints_2d", "global_orient", "hand_pose", "betas"):
                np.testing.assert_allclose(row[name], getattr(hand, name), atol=BATCH_TOLERANCE)


def test_frames_of_a_video_can_be_limited_and_a_cut_one_is_noted(tmp_path, task):
    cut = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(cut), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (320, 256))
    for number in range(10):
        writer.write(picture(number))
    writer.release()
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "parts").mkdir()
    (entry,) = Worker(replace(task, kind="video"), tmp_path / "parts", threads=1)([str(cut)])
    assert 0 < entry.frames < 10
    assert (entry.error, entry.note) == (None, f"{entry.frames} of the 10 frames that it announces could be read")
    (limited,) = Worker(replace(task, kind="video", max_frames=2), tmp_path / "parts", threads=1)([str(cut)])
    assert (limited.frames, limited.error, limited.note) == (2, None, None)


def test_as_many_hands_of_a_video_are_followed_as_are_wanted(tmp_path, task):
    write_picture(tmp_path / "shots" / "0.png", graphs.draw_hand(picture(-60), (260, 150), 64, "left"))
    (tmp_path / "parts").mkdir()
    for wanted in (2, 1):
        worker = Worker(replace(task, kind="video", max_hands=wanted), tmp_path / "parts", threads=1)
        assert [entry.hands for entry in worker([str(tmp_path / "shots")])] == [wanted]


def test_a_camera_of_other_proportions_spoils_only_the_files_that_it_does_not_fit(tmp_path, task, pictures):
    tall = tmp_path / "tall.png"
    write_picture(tall, picture(size=(400, 320)))
    clip = write_clip(tmp_path / "clip.mp4", 4)
    (tmp_path / "parts").mkdir()
    fitting = replace(task, camera=Camera(300.0, 300.0, 159.5, 127.5, 320, 256))
    entries = Worker(fitting, tmp_path / "parts", threads=1)([pictures[0], str(tall), pictures[1]])
    assert [entry.error is None for entry in entries] == [True, False, True]
    assert "320 x 400" in str(entries[1].error)
    row = rows_by_path(tmp_path)[pictures[0]][0]
    np.testing.assert_array_equal(row["camera"], [300, 300, 159.5, 127.5, 320, 256])
    assert not row["camera_assumed"]
    (played,) = Worker(replace(fitting, kind="video"), tmp_path / "parts", threads=1)([clip])
    assert (played.frames, played.error) == (4, None)
    wrong = replace(fitting, kind="video", camera=Camera(300.0, 300.0, 159.5, 199.5, 320, 400))
    (refused,) = Worker(wrong, tmp_path / "parts", threads=1)([clip])
    assert (refused.frames, "no resized one" in str(refused.error)) == (0, True)


# --- jobs


def test_a_job_survives_bad_files_and_dying_workers_and_names_them(tmp_path, pictures, task):
    killer = picture()
    killer[0, 0] = KILLER
    write_picture(tmp_path / "killer.png", killer)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [*pictures[:5], str(tmp_path / "killer.png"), *pictures[5:], str(tmp_path / "broken.png")]
    progress = []
    report = run_job(files, task, tmp_path / "out", workers=2, on_progress=lambda *done: progress.append(done))
    assert (report.files, report.found_done, report.frames, report.hands) == (10, 0, 8, 8)
    assert {Path(entry.path).name: str(entry.error).split(",")[0] for entry in report.failed} == {
        "killer.png": "the worker that read it died: its decoder crashed",
        "broken.png": f"{tmp_path}/broken.png cannot be read as a picture: is it damaged",
    }
    assert sorted(read_index(tmp_path / "out"), key=lambda entry: files.index(entry.path))[0].hands == 1
    assert [entry.path for entry in read_index(tmp_path / "out")] == sorted(files)
    assert sum(map(len, rows_by_path(tmp_path / "out").values())) == 8
    assert progress[-1][1] == 10
    assert set((tmp_path / "out" / "parts").iterdir()) == set(parts_in(tmp_path / "out" / "parts"))


@pytest.mark.parametrize(
    ("files", "workers", "threads", "size", "each"),
    [(100, None, None, 8, 1), (3, None, None, 3, 2), (100, None, 4, 2, 4), (100, 3, None, 3, 2), (100, 3, 4, 3, 4)],
)
def test_workers_together_have_as_many_threads_as_cores(
    tmp_path, task, monkeypatch, files, workers, threads, size, each
):
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    monkeypatch.setattr(processes, "_run", lambda units, task, parts, *how: iter([how]))
    with processes.local_crew(task, tmp_path, files, workers, threads) as crew:
        assert crew.size == size
        assert list(crew.run([])) == [(size, each)]


@pytest.mark.parametrize(
    ("kind", "files", "workers", "sizes"),
    [
        ("image", 1000, 2, [64] * 15 + [40]),
        ("image", 40, 2, [5] * 8),
        ("image", 3, 2, [1] * 3),
        ("video", 20, 2, [7, 7, 6]),
        ("video", 3, 2, [2, 1]),
    ],
)
def test_work_is_cut_so_that_all_workers_have_some(kind, files, workers, sizes):
    seen = []

    def run(units):
        seen.extend(units)
        yield [Entry(file, None, None, 1, 0, 0, 0, 0, "") for unit in units for file in unit]

    names = [f"/{number:04d}" for number in range(files)]
    assert [len(done) for done in job._work(Crew(workers, run), names, Task(kind))] == [files]
    assert [len(unit) for unit in seen] == sizes
    assert sorted(name for unit in seen for name in unit) == names


class StoppedError(Exception):
    pass


def test_a_stopped_job_goes_on_where_it_was(tmp_path, pictures, task, in_this_process, monkeypatch):
    monkeypatch.setattr(job, "PICTURES_A_UNIT", 3)
    monkeypatch.setattr(job, "UNITS_A_WORKER", 1)

    def stop(done: int, of: int) -> None:
        raise StoppedError(f"{done}/{of}")

    with pytest.raises(StoppedError, match="3/8"):
        run_job(pictures, task, tmp_path / "out", on_progress=stop)
    assert [entry.path for entry in read_index(tmp_path / "out")] == pictures[:3]
    first = {path: path.read_bytes() for path in parts_in(tmp_path / "out" / "parts")}
    report = run_job(pictures, task, tmp_path / "out")
    assert (report.files, report.found_done, report.frames, report.failed) == (8, 3, 5, [])
    assert [entry.path for entry in read_index(tmp_path / "out")] == pictures
    assert all(path.read_bytes() == content for path, content in first.items())
    assert sum(map(len, rows_by_path(tmp_path / "out").values())) == 8
    again = run_job(pictures, task, tmp_path / "out")
    assert (again.found_done, again.frames) == (8, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
@pytest.mark.parametrize("table", ["npz", "parquet"])
def test_names_of_any_bytes_and_line_ends_are_kept(tmp_path, pictures, task, in_this_process, table):
    names = [os.fsdecode(b"caf\xe9.png"), "l\u2028s\x85.png", "plain.png"]
    for name, file in zip(names, pictures, strict=False):
        Path(file).rename(tmp_path / "shots" / name)
    files = [str(tmp_path / "shots" / name) for name in names]
    report = run_job(files, replace(task, table=table), tmp_path / "out")
    assert report.failed == []
    assert sorted(entry.path for entry in read_index(tmp_path / "out")) == sorted(files)
    write_picture(files[2], picture(3))
    Path(files[0]).write_bytes(Path(pictures[4]).read_bytes())
    report = run_job(files, replace(task, table=table), tmp_path / "out")
    assert (report.found_done, report.hands) == (1, 2)
    counts = [len(read_part(path)[0]["path"]) for path in parts_in(tmp_path / "out" / "parts")]
    assert sum(counts) == 3


def test_changed_and_mended_files_are_read_again_and_others_left_alone(tmp_path, pictures, task, in_this_process):
    bad = Path(pictures[1])
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    report = run_job(pictures, task, tmp_path / "out")
    assert [entry.path for entry in report.failed] == [str(bad)]
    bad.write_bytes(good)
    write_picture(pictures[0], np.full((200, 200, 3), 20, np.uint8))
    report = run_job(pictures[:4], task, tmp_path / "out")
    assert (report.files, report.found_done, report.frames, report.hands, report.failed) == (4, 2, 2, 1, [])
    found = rows_by_path(tmp_path / "out")
    assert [len(found.get(file, ())) for file in pictures] == [0, 1, 0, 1, 1, 2, 1, 1]
    assert {entry.path: entry.hands for entry in read_index(tmp_path / "out")} == {
        file: len(found.get(file, ())) for file in pictures
    }


def test_what_a_dying_worker_left_is_not_kept_twice(tmp_path, pictures, task, in_this_process):
    run_job(pictures[:4], task, tmp_path / "out")
    Worker(task, tmp_path / "out" / "parts", threads=1)([pictures[1], pictures[6]])
    report = run_job(pictures, task, tmp_path / "out")
    assert (report.found_done, report.frames) == (5, 3)
    assert sum(map(len, rows_by_path(tmp_path / "out").values())) == 8


def test_unfinished_parts_of_killed_workers_are_cleared_away(tmp_path, pictures, task, in_this_process):
    run_job(pictures[:4], task, tmp_path / "out")
    (tmp_path / "out" / "parts" / ".pictures-1.npz").write_bytes(b"left by a worker that was killed")
    run_job(pictures, task, tmp_path / "out")
    assert set((tmp_path / "out" / "parts").iterdir()) == set(parts_in(tmp_path / "out" / "parts"))


@pytest.mark.parametrize("table", ["npz", "parquet"])
def test_a_damaged_part_is_set_aside_and_its_files_are_read_again(
    tmp_path, pictures, task, in_this_process, table, caplog
):
    if table == "parquet":
        pytest.importorskip("pyarrow", reason="needs the scale extra")
    run_job(pictures[:1], replace(task, table=table), tmp_path / "out")
    (part,) = parts_in(tmp_path / "out" / "parts")
    part.write_bytes(part.read_bytes()[:100])
    report = run_job(pictures[:1], replace(task, table=table), tmp_path / "out")
    assert f"{part.name} is no whole part of a job" in caplog.text
    assert (report.found_done, report.hands) == (0, 1)
    assert part.with_name(f"{part.name}.damaged").is_file()
    assert len(parts_in(tmp_path / "out" / "parts")) == 1


def test_a_part_whose_rows_are_damaged_is_set_aside_too(tmp_path, pictures, task, in_this_process):
    run_job(pictures[2:3], task, tmp_path / "out")
    Worker(task, tmp_path / "out" / "parts", threads=1)(pictures[:2])
    (part,) = (part for part in parts_in(tmp_path / "out" / "parts") if len(read_entries(part)) == 2)
    data = bytearray(part.read_bytes())
    data[data.index(b"joints.npy") + 200] ^= 255
    part.write_bytes(data)
    os.utime(pictures[0], ns=(1, 1))  # read again: the part is to lose it
    report = run_job(pictures[:3], task, tmp_path / "out")
    assert (report.found_done, report.failed) == (1, [])
    assert part.with_name(f"{part.name}.damaged").is_file()
    assert sum(map(len, rows_by_path(tmp_path / "out").values())) == 2


def test_two_jobs_are_never_at_work_in_one_folder(tmp_path, pictures, task, in_this_process):
    refused = []

    def try_another(done, files):
        with pytest.raises(ValueError, match=r"another job is at work in .*out: wait for it") as error:
            run_job(pictures[:2], task, tmp_path / "out")
        refused.append(error)

    run_job(pictures[2:4], task, tmp_path / "out", on_progress=try_another)
    assert refused
    assert run_job(pictures[:2], task, tmp_path / "out").hands == 2
    assert len(read_index(tmp_path / "out")) == 4


KILLED_JOB = """
import sys
from pathlib import Path
from handmesh.bulk import processes, worker

class Slow:
    def __init__(self, *_): pass
    def __call__(self, files):
        import os, time
        Path(files[0]).write_text(str(os.getpid()))
        time.sleep(60)

processes.Worker = Slow
if __name__ == "__main__":
    with processes.local_crew(None, Path("."), 1, workers=1) as crew:
        list(crew.run([[sys.argv[1]]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the worker in /proc")
def test_workers_end_when_their_job_is_killed(tmp_path):
    (tmp_path / "job.py").write_text(KILLED_JOB)
    begun = tmp_path / "begun"
    with subprocess.Popen([sys.executable, "job.py", str(begun)], cwd=tmp_path) as started:
        deadline = time.monotonic() + 60
        while not (begun.is_file() and begun.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker = int(begun.read_text())
        started.kill()
    for _ in range(200):
        try:
            if "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text():
                return
        except OSError:  # it is gone
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker has outlived its job")


def test_a_folder_of_pictures_is_read_again_when_one_of_them_changes(tmp_path, task, in_this_process):
    for number in range(3):
        write_picture(tmp_path / "seq" / f"{number}.png", picture())
    run_job([str(tmp_path / "seq")], replace(task, kind="video"), tmp_path / "out")
    assert run_job([str(tmp_path / "seq")], replace(task, kind="video"), tmp_path / "out").found_done == 1
    write_picture(tmp_path / "new.png", picture()[::-1])
    (tmp_path / "seq" / "1.png").write_bytes((tmp_path / "new.png").read_bytes())
    assert run_job([str(tmp_path / "seq")], replace(task, kind="video"), tmp_path / "out").found_done == 0


def test_a_folder_holds_one_job(tmp_path, pictures, task, in_this_process):
    run_job(pictures[:1], task, tmp_path / "out")
    run_job(pictures[:1], replace(task, batch=5), tmp_path / "out")
    with pytest.raises(ValueError, match=r"another job .*vertices False, not True"):
        run_job(pictures[:1], replace(task, vertices=True), tmp_path / "out")


def test_stored_poses_give_the_meshes_back(tmp_path, pictures, task, in_this_process):
    run_job(pictures[:2], replace(task, vertices=True), tmp_path / "out")
    found = rows_by_path(tmp_path / "out")
    estimator = task.open_estimator(threads=1)
    with np.load(tmp_path / "out" / "faces.npz") as faces:
        for file in pictures[:2]:
            (row,) = found[file]
            rotvecs = np.concatenate([row["global_orient"][None], row["hand_pose"]])
            (posed,) = estimator.pose(rotvec_to_rotmat(rotvecs)[None], row["betas"][None], [row["side"]])
            np.testing.assert_allclose(posed.vertices, row["vertices"], atol=1e-5)
            np.testing.assert_array_equal(posed.faces, faces[row["side"]])


def test_a_worker_that_cannot_start_is_no_endless_loop(tmp_path, pictures, task):
    @dataclass(frozen=True)
    class Unknown(Task):
        """Cannot be found by another process, because it is no name of this module."""

    with pytest.raises((RuntimeError, AttributeError, pickle.PicklingError)):
        run_job(pictures, Unknown(**vars(task)), tmp_path / "out")


# --- the commands


def test_the_commands_write_results_and_tell_what_failed(
    tmp_path, pictures, task, in_this_process, monkeypatch, capsys
):
    estimator = task.open_estimator(threads=1)
    monkeypatch.setattr(Task, "open_estimator", lambda *_, **__: estimator)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    clip = write_clip(tmp_path / "clip.mp4", 5)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.chdir(tmp_path)
    assert main(["image", "shots", "--results", "out/pictures"]) == 0
    said = capsys.readouterr()
    assert "8 of 8 files read; now 8 frames" in said.out
    assert "listed in out/pictures/index.jsonl" in said.out
    assert said.err == ""
    assert main(["video", clip, "broken.mp4", "--results", "out/videos", "--max-frames", "3"]) == 1
    said = capsys.readouterr()
    assert "1 of 2 files read; now 3 frames" in said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"error: {tmp_path}/broken.mp4 cannot be read as a video")
    index = {Path(entry.path).name: entry for entry in read_index("out/videos")}
    assert index["broken.mp4"].error is not None
    assert index["clip.mp4"].hands == 3
    assert main(["video", clip, "broken.mp4", "--results", "out/videos", "--max-frames", "3"]) == 1
    assert "1 of 2 files read, 1 of them earlier" in capsys.readouterr().out


def test_results_and_drawings_exclude_each_other(pictures, capsys):
    assert main(["image", pictures[0], "--results", "out", "--save", "hand.glb"]) == 1
    assert "leave out --save" in capsys.readouterr().err


def test_the_page_about_jobs_tells_the_truth(tmp_path, pictures, task, in_this_process, monkeypatch, capsys):
    page = (REPOSITORY / "handmesh/bulk/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    estimator = task.open_estimator(threads=1)
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.chdir(tmp_path)
    run_job([*pictures, "missing.png"], task, Path("out/photos"))
    Path("out/photos/parts/.pictures-1.npz").write_bytes(b"left by a worker that was killed")
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith(f"['{tmp_path}/missing.png']\n")
    assert said.count("(6, 3)") == 8
    (commands,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for command in commands.splitlines():
        assert callable(cli._parser().parse_args(shlex.split(command)[1:]).run)


# --- a cluster


@dataclass(frozen=True)
class TracingTask(FragileTask):
    """A fragile task whose workers leave the name of their machine beside the networks."""

    def open_estimator(self, threads=None):
        node = os.environ.get("RAY_RAYLET_PID")  # in the workers of a machine of a cluster
        if node is not None:
            Path(str(self.hand_model)).with_name(f"node-{node}").touch()
        return super().open_estimator(threads)


@pytest.fixture
def cluster(monkeypatch) -> Iterator[str]:
    """The address of a cluster of two machines with one processor each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the scale extra")
    tests = str(Path(__file__).parent)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    machine = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = cluster_utils.Cluster()
    try:
        cluster.add_node(**machine, include_dashboard=False)
        cluster.add_node(**machine)
    except Exception as error:
        cluster.shutdown()
        if "timed out during startup" in str(error):
            pytest.skip(f"Ray cannot start here within its 30 seconds: {error}")
        raise
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
# Ray's own: it leaves sockets to be closed at the interpreter's end, and warns of what it will change.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_job_on_a_cluster_of_two_goes_on_and_survives_what_kills_workers(cluster, tmp_path, pictures, task):
    killer = picture()
    killer[0, 0] = KILLER
    write_picture(tmp_path / "killer.png", killer)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = [str(tmp_path / "killer.png"), str(tmp_path / "broken.png")]
    tracing = TracingTask(**vars(task) | {"table": "parquet"})
    out = tmp_path / "out"

    first = run_job(pictures[:3], tracing, out, engine="ray", address=cluster)
    assert (first.frames, first.failed) == (3, [])
    report = run_job([*pictures, *bad], tracing, out, engine="ray", address=cluster)
    assert (report.files, report.found_done, report.frames) == (10, 3, 5)
    assert {Path(entry.path).name: str(entry.error).split(":")[0] for entry in report.failed} == {
        "killer.png": "the worker that read it died",
        "broken.png": f"{bad[1]} cannot be read as a picture",
    }
    assert [entry.path for entry in read_index(out)] == sorted([*pictures, *bad])
    assert len(list(Path(str(task.hand_model)).parent.glob("node-*"))) == 2

    found = rows_by_path(out)
    estimator = task.open_estimator(threads=1)
    assert [len(found.get(file, ())) for file in pictures] == [1, 1, 0, 1, 1, 2, 1, 1]
    for file in pictures:
        for row, hand in zip(found.get(file, ()), estimator(read_picture(file)), strict=True):
            np.testing.assert_allclose(row["joints_2d"], hand.joints_2d, atol=BATCH_TOLERANCE)
