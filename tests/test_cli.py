"""The command line on stub networks: what a user gets, sees and is told when something is wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import graphs
import numpy as np
import pytest

from handmesh import annotate, cli, hand_size, live, video
from handmesh.cli import main
from handmesh.estimator import HandMeshEstimator
from handmesh.intrinsics import save_camera
from handmesh.live import LiveSession
from handmesh.records import Camera
from handmesh.runtime import load_graph
from handmesh.tracker import HandTracker
from handmesh.video import CameraLostError, FrameSource, VideoWriter, open_source, read_picture, write_picture

FRAMES = 12


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, estimator):
    """An empty folder to work in, no display, no camera, and stub networks as the pretrained ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def hand_frame(shift: int = 0, frames_size=(256, 320)) -> np.ndarray:
    dark = np.full((*frames_size, 3), 20, np.uint8)
    return graphs.draw_hand(dark, (140 + shift, 120), 64)


@pytest.fixture
def clip(workplace):
    with VideoWriter(workplace / "clip.mp4", 25.0) as writer:
        for number in range(FRAMES):
            writer.write(hand_frame(2 * number))
        for _ in range(4):
            writer.write(np.full((256, 320, 3), 20, np.uint8))
    return workplace / "clip.mp4"


@pytest.fixture
def sample(clip, monkeypatch):
    monkeypatch.setattr(video, "SAMPLE_CLIP", clip)
    return clip


def frames_of(path):
    with open_source(path) as source:
        return [frame for frame, _ in source]


def is_drawn_on(frame, original):
    return (np.abs(frame.astype(int) - original).max(axis=-1) > 60).mean() > 0.005


def test_image_draws_and_saves(workplace, capsys):
    write_picture("photo.png", hand_frame())
    assert main(["image", "photo.png", "--save", "out/hand.glb"]) == 0
    assert is_drawn_on(read_picture("out/photo_hands.png"), hand_frame())
    assert (workplace / "out" / "hand.glb").stat().st_size > 300
    said = capsys.readouterr().out
    assert "photo.png: right hand" in said
    assert "hand.glb" in said


def test_image_with_several_pictures_names_each_mesh_and_goes_on_after_a_bad_one(workplace, capsys):
    write_picture("a.png", hand_frame())
    write_picture("c.jpg", hand_frame(20))
    (workplace / "b.png").write_bytes(b"broken")
    assert main(["image", "a.png", "b.png", "c.jpg", "--out", "drawn", "--save", "drawn/hand.json"]) == 1
    captured = capsys.readouterr()
    assert "b.png cannot be read" in captured.err
    names = sorted(path.name for path in (workplace / "drawn").iterdir())
    assert names == ["a_hand.json", "a_hands.png", "c_hand.json", "c_hands.jpg"]


def test_image_takes_folders_and_keeps_pictures_of_one_name_apart(workplace):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        write_picture(name, hand_frame())
    assert main(["image", "a", "b/*.png", "--out", "drawn", "--save", "drawn/hand.obj"]) == 0
    names = sorted(path.name for path in (workplace / "drawn").iterdir())
    assert names == ["1-2_hand.obj", "1-2_hands.png", "1_hand.obj", "1_hands.png", "2_hand.obj", "2_hands.png"]


def test_image_takes_a_file_to_draw_into_and_never_the_picture_itself(workplace, capsys):
    write_picture("a.png", hand_frame())
    write_picture("b.png", hand_frame(9))
    assert main(["image", "a.png", "--out", "some/drawn.jpg"]) == 0
    assert is_drawn_on(read_picture("some/drawn.jpg"), hand_frame())
    for arguments, message in (
        (["a.png", "b.png", "--out", "drawn.jpg"], "--out must be a folder for 2 pictures"),
        (["a.png", "--out", "./a.png"], "a.png is a file to read: name another one by --out"),
        (["a.png", "--save", "hand.fbx"], "--save must name a file that ends in .obj"),
    ):
        assert main(["image", *arguments]) == 1
        assert message in capsys.readouterr().err
    np.testing.assert_array_equal(read_picture("a.png"), hand_frame())


def test_nothing_is_drawn_over_a_picture_that_is_still_to_be_read(workplace, capsys):
    for name, shift in (("two/a.png", 0), ("two/a_hands.png", 9)):
        write_picture(name, hand_frame(shift))
    assert main(["image", "two", "--out", "two"]) == 1
    assert "two/a_hands.png is a file to read" in capsys.readouterr().err
    np.testing.assert_array_equal(read_picture("two/a_hands.png"), hand_frame(9))
    assert is_drawn_on(read_picture("two/a_hands_hands.png"), hand_frame(9))


def test_a_recording_never_takes_the_place_of_its_clip(workplace, clip, capsys):
    before = clip.read_bytes()
    assert main(["webcam", "--source", str(clip), "--no-window", "--record", "clip.mp4", "--max-frames", "2"]) == 1
    assert "clip.mp4 is a file to read: name another one by --record" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_numbered_names_keep_clear_of_files_that_are_called_so():
    assert cli._stems([Path("a/x.png"), Path("b/x.png"), Path("b/x-2.png")]) == ["x", "x-2", "x-2-2"]


def test_image_without_a_hand_says_so_and_writes_no_mesh(workplace, capsys):
    write_picture("empty.png", np.full((200, 200, 3), 20, np.uint8))
    assert main(["image", "empty.png", "--save", "hand.obj"]) == 0
    assert "no hand" in capsys.readouterr().out
    assert not (workplace / "hand.obj").exists()


def test_video_is_annotated_and_counted(workplace, clip, capsys):
    assert main(["video", str(clip), "--save", "meshes", "--format", "json"]) == 0
    said = capsys.readouterr().out
    assert f"{FRAMES + 4} frames, a mesh in " in said
    with_hand = int(said.split("a mesh in ")[1].split()[0])
    assert FRAMES <= with_hand <= FRAMES + 3  # a lost hand is bridged for up to three frames
    drawn = frames_of("out/clip_hands.mp4")
    assert len(drawn) == FRAMES + 4
    assert is_drawn_on(drawn[5], hand_frame(10))
    saved = sorted((workplace / "meshes").iterdir())
    assert [path.name for path in saved] == [f"{number:06d}.json" for number in range(with_hand)]
    content = json.loads(saved[5].read_text(encoding="utf-8"))
    assert content["hands"][0]["side"] == "right"
    assert content["hands"][0]["track_id"] == 0


def test_one_video_can_go_into_a_folder(workplace, clip):
    assert main(["video", str(clip), "--out", "drawn", "--max-frames", "2"]) == 0
    assert [path.name for path in (workplace / "drawn").iterdir()] == ["clip_hands.mp4"]


def test_a_video_is_never_drawn_on_itself_nor_several_into_one(workplace, clip, capsys):
    before, other = clip.read_bytes(), shutil.copy(clip, workplace / "other.mp4")
    assert main(["video", str(clip), "--out", "clip.mp4"]) == 1
    assert "clip.mp4 is a file to read" in capsys.readouterr().err
    assert main(["video", str(clip), str(other), "--out", "drawn.mp4"]) == 1
    assert "--out must be a folder for 2 videos" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_as_many_hands_are_followed_as_are_wanted(workplace):
    two = graphs.draw_hand(hand_frame(-60), (260, 150), 64, "left")
    write_picture(workplace / "shots" / "0.png", two)
    assert main(["video", "shots", "--save", "two.npz"]) == 0
    assert main(["video", "shots", "--save", "one.npz", "--max-hands", "1"]) == 0
    assert [len(np.load(name)["side"]) for name in ("two.npz", "one.npz")] == [2, 1]


def test_a_folder_with_a_dot_in_its_name_is_a_folder(workplace, clip):
    (workplace / "run.1").mkdir()
    assert main(["video", "clip.mp4", "--max-frames", "1", "--out", "run.1"]) == 0
    assert (workplace / "run.1" / "clip_hands.mp4").is_file()
    shutil.copy("clip.mp4", "other.mp4")
    assert main(["video", "clip.mp4", "other.mp4", "--max-frames", "1", "--save", "run.1"]) == 0
    assert {path.name for path in (workplace / "run.1").iterdir() if path.is_dir()} == {"clip", "other"}


def test_meshes_of_another_run_are_told_of(workplace, clip, caplog):
    for _ in range(2):
        assert main(["video", "clip.mp4", "--max-frames", "1", "--save", "meshes"]) == 0
    assert caplog.text.count("meshes of another run") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("calibrate --draw b.png --square-mm 25 --dictionary DICT_4X4_50", "give their --marker-mm"),
        ("video http://127.0.0.1/clip.mp4", "is an address"),
        ("calibrate-hand --length-mm 180 --out a.json", "it is a folder"),
    ],
)
def test_options_that_cannot_be_meant_are_told(workplace, capsys, command, words):
    (workplace / "a.json").mkdir()
    assert main(command.split()) == 1
    assert words in capsys.readouterr().err


def test_image_goes_on_after_a_picture_that_may_not_be_read(workplace, monkeypatch, capsys):
    write_picture("a.png", hand_frame())
    write_picture("b.png", hand_frame())
    read = annotate.read_picture

    def forbidden(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(annotate, "read_picture", forbidden)
    assert main(["image", "a.png", "b.png"]) == 1
    captured = capsys.readouterr()
    assert "Permission denied: 'a.png'" in captured.err
    assert "b.png: right hand" in captured.out


def test_progress_of_a_video_that_ends_early_has_a_line_of_its_own(workplace, clip, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["video", str(clip), "--max-frames", "11"]) == 0
    assert capsys.readouterr().err == f"\rclip.mp4: 10/{FRAMES + 4} frames\n"


def test_ctrl_c_keeps_what_has_been_drawn_of_a_video(workplace, clip, monkeypatch, capsys, caplog):
    def interrupt(done):
        if done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_progress", lambda _: interrupt)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["video", str(clip), "--save", "hands.npz"]) == 130
    assert "stopped" in capsys.readouterr().err
    assert "out/clip_hands.mp4, hands.npz ends after 5 frames" in caplog.text
    assert len(frames_of("out/clip_hands.mp4")) == 5
    assert np.load("hands.npz")["frame"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in workplace.iterdir()) == ["clip.mp4", "hands.npz", "out"]


def test_video_stops_after_max_frames_and_takes_a_folder(workplace):
    for number in range(6):
        write_picture(workplace / "shots" / f"{number}.png", hand_frame(number))
    assert main(["video", "shots", "--max-frames", "4", "--out", "some.mp4"]) == 0
    assert len(frames_of("some.mp4")) == 4


def test_several_videos_go_into_a_folder_and_a_bad_one_stops_no_other(workplace, clip, capsys):
    (workplace / "bad.mp4").write_bytes(b"no video")
    other = shutil.copy(clip, workplace / "other.mp4")
    assert main(["video", str(clip), "bad.mp4", str(other), "--out", "drawn", "--save", "meshes"]) == 1
    assert sorted(path.name for path in (workplace / "drawn").iterdir()) == ["clip_hands.mp4", "other_hands.mp4"]
    assert len(list((workplace / "meshes" / "other").iterdir())) >= FRAMES
    captured = capsys.readouterr()
    assert captured.out.count("frames a second") == 2
    assert captured.err.startswith("error: bad.mp4 cannot be read")


def test_webcam_without_camera_and_display_says_both_and_records_the_sample(workplace, sample, capsys):
    assert main(["webcam"]) == 0
    said = capsys.readouterr().out
    assert "no camera 0" in said
    assert "playing the sample clip instead" in said
    assert "no display" in said
    assert "recording to out/webcam.mp4 instead" in said
    assert "recorded 16 frames to out/webcam.mp4" in said
    drawn = frames_of(workplace / "out" / "webcam.mp4")
    assert len(drawn) == FRAMES + 4
    assert is_drawn_on(drawn[5], hand_frame(10))


def test_what_webcam_records_for_want_of_a_window_takes_no_files_place(workplace, sample, capsys):
    (workplace / "out").mkdir()
    mine = workplace / "out" / "webcam.mp4"
    shutil.copy(sample, mine)
    before = mine.read_bytes()
    assert main(["webcam", "--source", str(mine), "--max-frames", "2"]) == 0
    assert mine.read_bytes() == before
    assert len(frames_of(workplace / "out" / "webcam-2.mp4")) == 2


def test_webcam_records_a_file_without_window(clip, capsys):
    assert main(["webcam", "--source", str(clip), "--no-window", "--record", "a/b.mp4", "--max-frames", "7"]) == 0
    assert len(frames_of("a/b.mp4")) == 7
    said = capsys.readouterr().out
    assert "7 frames, a mesh in 7 of them" in said
    assert "no display" not in said


def test_webcam_with_a_camera_that_was_asked_for_and_is_missing_fails(capsys):
    assert main(["webcam", "--source", "97", "--no-window"]) == 1
    assert "no camera 97" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video", "missing.mp4"], "no file or folder missing.mp4"),
        (["image", "missing.png"], "no picture missing.png"),
        (["webcam", "--source", "missing.mp4", "--no-window"], "no file or folder missing.mp4"),
        (["webcam", "--source", "sample", "--no-window", "--record", "clip.gif"], "suffix must be .mp4"),
        (["video", "sample", "--out", "clip.gif"], "suffix must be .mp4"),
        (["video", "sample", "--results", "hands", "--refine"], "leave out --hand and --refine"),
        (["video", "sample", "--results", "hands", "--hand", "me.json"], "leave out --hand and --refine"),
    ],
)
def test_mistakes_are_one_line_and_status_one(sample, arguments, message, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["dance"], ["webcam", "--max-frames", "0"], ["video"], ["image"], ["data"]])
def test_wrong_usage_is_status_two(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_lists_only_commands_that_exist(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for words, (module, _) in cli.TRAIN_COMMANDS.items():
        assert words[0] in said
        assert importlib.util.find_spec(module) is not None


def test_help_of_data_commands_needs_no_training_extra():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'tqdm', 'scipy', 'onnx')))\n"
        "from handmesh.cli import main\n"
        "for words, (module, _) in __import__('handmesh.cli').cli.TRAIN_COMMANDS.items():\n"
        "    if words[0] in ('data', 'bench'):\n"
        "        try: main([*words, '--help'])\n"
        "        except SystemExit as ended: assert ended.code == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = [" ".join(words) for words in cli.TRAIN_COMMANDS if words[0] in ("data", "bench")]
    assert re.findall(r"^usage: handmesh ([a-z ]+) \[-h\]", done.stdout, flags=re.MULTILINE) == [*wanted]


def test_training_commands_without_their_extra_say_what_to_install(monkeypatch, capsys):
    def without_torch(_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "import_module", without_torch)
    for command in (["train", "--run", "x"], ["data", "synthesize", "x"]):
        assert main(command) == 1
        assert "pip install 'handmesh[train]' (torch is missing)" in capsys.readouterr().err


def test_packages_missing_while_a_command_runs_are_named_with_their_extra(monkeypatch, capsys):
    def main_without_tqdm(_):
        raise ModuleNotFoundError("No module named 'tqdm'", name="tqdm")

    monkeypatch.setattr(cli, "import_module", lambda _: SimpleNamespace(main=main_without_tqdm))
    assert main(["data", "synthesize", "x"]) == 1
    assert "pip install 'handmesh[train]' (tqdm is missing)" in capsys.readouterr().err


def test_a_missing_part_of_handmesh_itself_is_no_users_mistake(monkeypatch):
    def without_a_part(_):
        raise ModuleNotFoundError("No module named 'handmesh.lost'", name="handmesh.lost")

    monkeypatch.setattr(cli, "import_module", without_a_part)
    with pytest.raises(ModuleNotFoundError):
        main(["train", "--out", "x"])


@pytest.mark.parametrize(
    ("runtime", "package", "extra"), [("openvino", "openvino", "openvino"), ("torch", "torch", "train")]
)
def test_a_runtime_that_is_not_installed_is_one_line(monkeypatch, capsys, runtime, package, extra):
    monkeypatch.setattr(
        HandMeshEstimator, "from_pretrained", lambda *_, **__: load_graph("fast", "hand", runtime=runtime)
    )
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["image", "photo.png", "--runtime", runtime]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: runtime='{runtime}' needs")
    assert f"pip install 'handmesh[{extra}]'" in said
    assert said.count("\n") == 1


def test_importing_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, handmesh.cli; print([m for m in ('torch', 'cv2', 'onnxruntime', 'trimesh') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class FakeWindow:
    """Presses the next key of a list at each frame."""

    def __init__(self, keys: str) -> None:
        self.keys = list(keys)
        self.shown: list[np.ndarray] = []

    def show(self, frame, wait_s):
        self.shown.append(frame)
        return self.keys.pop(0) if self.keys else ""

    def close(self):
        pass


@pytest.mark.parametrize(
    ("code", "key"),
    [(ord("q"), "q"), (ord("Q"), "q"), (0x100071, "q"), (27, "q"), (-1, ""), (0xFF51, ""), (0xFF52, ""), (63232, "")],
)
def test_only_keys_of_characters_count(monkeypatch, code, key):
    """Linux and macOS have codes for arrows whose last byte is that of a letter: left would be q, up r."""
    for name in ("namedWindow", "resizeWindow", "imshow"):
        monkeypatch.setattr(live.cv2, name, lambda *_: None)
    monkeypatch.setattr(live.cv2, "waitKeyEx", lambda _: code)
    assert live.Window().show(hand_frame(), 0.01) == key


def play(clip, estimator, keys, **settings):
    said: list[str] = []
    window = FakeWindow(keys)
    tracker = HandTracker(estimator)
    session = LiveSession(tracker, clip.parent / "out", window=window, say=said.append, **settings)
    with open_source(clip) as source:
        report = session.play(source)
    return window.shown, said, report, session, tracker


def test_keys_change_what_is_drawn(clip, estimator):
    shown, _, report, session, _ = play(clip, estimator, "mkkmx.q")
    assert report.frames == 7
    assert report.stopped
    originals = [hand_frame(2 * number) for number in range(7)]
    hud = np.s_[60:, 100:]  # away from the corner's text
    drawn = [is_drawn_on(frame[hud], original[hud]) for frame, original in zip(shown, originals, strict=True)]
    assert drawn[0]  # the mesh
    assert session.mirror
    assert session.overlay.mesh
    assert not session.overlay.skeleton
    assert np.nonzero(shown[6][..., 1] > 200)[1].mean() < 160  # the green half, right of the middle, now left of it


def test_snapshot_recording_and_smoothing_keys(clip, estimator):
    _, said, report, _, tracker = play(clip, estimator, "grr" + "t" + "gq")
    out = clip.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["snapshot-2.glb", "snapshot.glb", "webcam.mp4"]
    assert len(frames_of(out / "webcam.mp4")) == 1
    assert tracker.smoothing is None
    assert "smoothing off" in said
    assert report.frames == 6


def test_a_hand_is_measured_by_what_single_frames_show(clip, estimator):
    *_, tracker = play(clip, estimator, ".hq")
    assert tracker.smoothing is None
    *_, tracker = play(clip, estimator, ".hhq")
    assert tracker.smoothing is not None


def test_the_picture_says_what_is_switched_on(clip, estimator):
    *_, session, _ = play(clip, estimator, "..q")
    assert session.settings() == "smoothing on, camera assumed"
    estimator.camera = Camera(300.0, 300.0, 159.5, 127.5, 320, 256)
    *_, session, _ = play(clip, estimator, "..tq")
    assert session.settings() == "smoothing off, camera known"


def test_keys_whose_files_cannot_be_written_say_so_and_the_session_goes_on(clip, estimator):
    (clip.parent / "out").write_text("no folder")
    _, said, report, _, _ = play(clip, estimator, ".g.q")
    assert any(line.startswith("error: ") and "out" in line for line in said)
    assert report.frames == 4


def test_only_the_sample_plays_again_and_not_a_file_of_its_name(workplace, sample, monkeypatch):
    monkeypatch.setattr(live, "display_problem", lambda: None)
    window = FakeWindow("." * (FRAMES + 6) + "q")
    monkeypatch.setattr(live, "Window", lambda: window)
    shutil.copy(sample, workplace / "mine.mp4")
    monkeypatch.setattr(video, "SAMPLE_CLIP", sample.rename(workplace / "sample.mp4"))
    assert main(["webcam", "--source", "sample"]) == 0
    assert len(window.shown) == FRAMES + 7
    window.shown.clear()
    (workplace / "mine").mkdir()
    assert main(["webcam", "--source", str((workplace / "mine.mp4").rename(workplace / "mine" / "sample.mp4"))]) == 0
    assert len(window.shown) == FRAMES + 4


def test_a_snapshot_without_a_hand_says_so(clip, estimator):
    _, said, _, _, _ = play(clip, estimator, "." * (FRAMES + 3) + "g")
    assert "no hand in sight to save" in said


def test_a_recording_that_cannot_be_written_is_told_and_the_session_goes_on(clip, estimator):
    (clip.parent / "out").write_text("a file")
    _, said, report, _, _ = play(clip, estimator, ".rg.q")
    assert report.frames == 5
    assert [line.split(":")[0] for line in said] == ["error", "error"]


def test_quitting_completes_a_running_recording(clip, estimator):
    _, said, _, _, _ = play(clip, estimator, "r...q")
    assert len(frames_of(clip.parent / "out" / "webcam.mp4")) == 4
    assert any(line.startswith("recorded 4 frames") for line in said)


def test_a_window_that_fails_turns_into_a_recording(clip, estimator):
    class Broken(FakeWindow):
        def show(self, frame, wait_s):
            if len(self.shown) == 2:
                raise cv2.error("no more window")
            return super().show(frame, wait_s)

    said: list[str] = []
    session = LiveSession(HandTracker(estimator), clip.parent / "out", window=Broken(""), say=said.append)
    with open_source(clip) as source:
        report = session.play(source)
    assert report.frames == FRAMES + 4
    assert "the window failed" in said[0]
    assert len(frames_of(clip.parent / "out" / "webcam.mp4")) == FRAMES + 4 - 3


class Interrupted(FrameSource):
    """Three frames, then an exception."""

    live = True

    def __init__(self, error: BaseException) -> None:
        super().__init__("test", 30.0, None)
        self.error = error

    def __iter__(self):
        for number in range(3):
            yield hand_frame(number), 10.0 + number / 30
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CameraLostError("camera 0 stopped")])
def test_ctrl_c_and_a_lost_camera_leave_a_whole_recording(workplace, estimator, error):
    said: list[str] = []
    session = LiveSession(HandTracker(estimator), workplace, record=workplace / "r.mp4", say=said.append)
    if isinstance(error, KeyboardInterrupt):
        assert session.play(Interrupted(error)).stopped
    else:
        with pytest.raises(CameraLostError):
            session.play(Interrupted(error))
    assert len(frames_of(workplace / "r.mp4")) == 3
    assert [path.name for path in workplace.iterdir()] == ["r.mp4"]


def test_display_problem_is_named(monkeypatch):
    assert "no display" in str(live.display_problem())
    monkeypatch.setenv("DISPLAY", ":987")  # nobody serves it
    assert "cannot open a window" in str(live.display_problem())


def test_a_camera_file_goes_with_every_frame(workplace, estimator, capsys):
    write_picture(workplace / "a.png", hand_frame())
    save_camera("camera.yaml", Camera(900.0, 900.0, 159.5, 127.5, 320, 256))
    assert main(["image", "a.png", "--save", "hand.json", "--camera", "camera.yaml"]) == 0
    (hand,) = json.loads((workplace / "hand.json").read_text())["hands"]
    assert (hand["camera"]["fx"], hand["camera"]["assumed"]) == (900.0, False)
    assert main(["image", "a.png", "--camera", "nowhere.yaml"]) == 1
    assert "there is no camera file nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".glb", ".bvh", ".json", ".npz"])
def test_a_clips_hands_go_into_one_file(clip, capsys, suffix):
    order = ["--keypoints", "openxr"] if suffix in (".json", ".npz") else []
    assert main(["video", str(clip), "--save", f"hands{suffix}", *order]) == 0
    assert (clip.parent / f"hands{suffix}").stat().st_size > 1000
    assert f"wrote out/clip_hands.mp4, hands{suffix}" in capsys.readouterr().out


def test_a_clip_cannot_be_one_obj(clip, capsys):
    assert main(["video", str(clip), "--save", "hands.obj"]) == 1
    assert "name a folder" in capsys.readouterr().err
    assert not (clip.parent / "out").exists()


def test_a_hand_held_flat_is_measured_by_a_key_and_keeps_its_shape(clip, estimator, monkeypatch):
    monkeypatch.setattr(hand_size, "is_flat", lambda hand: True)
    monkeypatch.setattr(hand_size, "MIN_VIEWS", 2)
    monkeypatch.setattr(live, "HOLD_S", 0.2)
    monkeypatch.setattr(live, "FlatHand", lambda model: hand_size.FlatHand(model, hold_s=0.2))
    _, said, _, _, tracker = play(clip, estimator, "h.........")
    assert any("flat and still" in line for line in said)
    assert any("saved to" in line for line in said)
    np.testing.assert_allclose(tracker.betas, graphs.BETAS, atol=1e-5)
    assert (clip.parent / "out" / "hand.json").is_file()
    _, said, _, _, tracker = play(clip, estimator, "hhq")
    assert tracker.betas is None
    assert "every hand finds its own shape again" in said


def test_a_hand_file_gives_every_hand_its_shape(workplace, estimator):
    write_picture(workplace / "a.png", hand_frame())
    hand_size.HandShape(np.linspace(0, 1, 10), 0.18, True).save("me.json")
    assert main(["image", "a.png", "--save", "hand.json", "--hand", "me.json"]) == 0
    (hand,) = json.loads((workplace / "hand.json").read_text())["hands"]
    np.testing.assert_allclose(hand["betas"], np.linspace(0, 1, 10), atol=1e-6)


def test_a_hand_file_gives_way_to_the_key_that_measures(clip, estimator, monkeypatch):
    hand_size.HandShape(np.linspace(0, 1, 10), 0.18, True).save("me.json")
    trackers = []

    class Session(LiveSession):
        def __init__(self, tracker, *arguments, **settings):
            super().__init__(tracker, *arguments, **settings)
            trackers.append(tracker)

    monkeypatch.setattr(live, "LiveSession", Session)
    assert main(["webcam", "--source", "clip.mp4", "--no-window", "--hand", "me.json"]) == 0
    np.testing.assert_allclose(trackers[0].betas, np.linspace(0, 1, 10))
    (hand,) = estimator(hand_frame())
    np.testing.assert_allclose(hand.betas, graphs.BETAS, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image", "demos/sample_1.jpg", "--out", "x.gif"], "must be a folder, or a file that ends in .jpg"),
        (["image", "demos/sample_1.jpg", "--workers", "2"], "--workers: only for --results"),
        (["image", "demos/sample_1.jpg", "--vertices", "--batch", "8"], "--vertices, --batch: only for --results"),
        (
            ["video", "handmesh/assets/sample.mp4", "--parquet", "--engine", "local"],
            "--parquet, --engine: only for --results",
        ),
        (["video", "sample", "--format", "glb"], "--format is of the meshes in a folder: name a folder by --save"),
        (["video", "sample", "--format", "obj", "--save", "x.npz"], "--format is of the meshes in a folder"),
        (["video", "sample", "--keypoints", "openxr"], "name a .json or .npz by --save, or leave it out"),
        (["video", "sample", "--keypoints", "openxr", "--save", "x.glb"], "name a .json or .npz by --save"),
        (["video", "sample", "--keypoints", "openxr", "--save", "x"], "name a .json or .npz by --save"),
        (["video", "sample", "--results", "x", "--format", "glb"], "no mesh file written: leave out --format"),
        (["video", "sample", "--results", "x", "--ray-address", "auto"], "give --engine ray, too"),
        (["video", "sample", "--out", "x.mp4", "--save", "README.md/x.glb"], "README.md"),
        (["calibrate", "sample", "--square-mm", "20", "--out", "README.md/camera.yaml"], "README.md"),
        (["calibrate-hand", "sample", "--out", "README.md/hand.json"], "README.md"),
    ],
)
def test_options_that_could_not_be_followed_are_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not Path("x.gif").exists()


class Slow(FrameSource):
    """A file that names no rate: ten frames, a tenth of a second apart, played as 30 a second."""

    def __init__(self) -> None:
        super().__init__("test", 30.0, 10)

    def __iter__(self):
        for number in range(10):
            yield hand_frame(number), number / 10


def test_a_file_of_an_unknown_rate_is_recorded_at_its_own_pace(workplace, estimator):
    LiveSession(HandTracker(estimator), workplace, record=workplace / "r.mp4", say=print).play(Slow())
    assert len(frames_of(workplace / "r.mp4")) == 28  # 0.9 s and a frame


def test_a_recording_that_never_began_is_not_announced(workplace, estimator):
    (workplace / "file").touch()
    said: list[str] = []
    session = LiveSession(HandTracker(estimator), workplace, record=workplace / "file" / "r.mp4", say=said.append)
    with pytest.raises(OSError, match="cannot write there"):
        session.play(Slow())
    assert not said
