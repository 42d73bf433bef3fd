"""Calibration on pictures of boards rendered through a known camera."""

from __future__ import annotations

import signal

import cv2
import numpy as np
import pytest

from handmesh import Camera, video
from handmesh.calibrate import Board, calibrate
from handmesh.cli import main
from handmesh.video import FrameSource, write_picture

CHECKERBOARD = Board("checkerboard", 8, 5, 0.03)
CHARUCO = Board("charuco", 8, 6, 0.03, 0.022)
CAMERA = Camera(520.0, 515.0, 330.0, 235.0, 640, 480, distortion=(-0.2, 0.08, 0.001, -0.0015))
FOCAL = 0.004  # of a 640 px picture, at a twentieth of a pixel a corner
VIEWS = 9


def picture_of(board: Board, rng: np.random.Generator, camera: Camera = CAMERA) -> np.ndarray:
    """The board before gray, standing somewhere in the camera's view, through its lens."""
    texture = cv2.GaussianBlur(board.draw(40)[..., 0], (0, 0), 0.8)
    width_m = board.square_m * texture.shape[1] / 40
    height_m = board.square_m * texture.shape[0] / 40
    turn = cv2.Rodrigues(np.array([*rng.uniform(-0.7, 0.7, 2), rng.uniform(-0.3, 0.3)]))[0]
    place = np.array([rng.uniform(-0.07, 0.07), rng.uniform(-0.05, 0.05), rng.uniform(0.38, 0.55)])
    place = place - turn @ np.array([width_m / 2, height_m / 2, 0])
    ys, xs = np.mgrid[:480, :640]
    rays = camera.rays(np.stack([xs, ys], axis=-1))
    normal = turn[:, 2]
    points = rays * (normal @ place / (rays @ normal))[..., None] - place
    u, v = (points @ turn)[..., 0], (points @ turn)[..., 1]
    scale = 40 / board.square_m
    seen = cv2.remap(
        texture,
        (u * scale - 0.5).astype(np.float32),
        (v * scale - 0.5).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=120,
    )
    noisy = seen + rng.normal(0, 2, seen.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module", params=["checkerboard", "charuco"])
def shown(request) -> tuple[Board, list[np.ndarray]]:
    board = CHECKERBOARD if request.param == "checkerboard" else CHARUCO
    rng = np.random.default_rng(4)
    return board, [picture_of(board, rng) for _ in range(VIEWS + 2)]


def test_the_camera_that_took_the_pictures_is_found(shown):
    board, pictures = shown
    told: list[int] = []
    found = calibrate(pictures, board, views=VIEWS, on_view=told.append)
    assert found.views >= VIEWS - 2
    assert told == list(range(1, VIEWS + 1))
    assert found.rms_px < 0.2
    assert found.warnings == []
    camera = found.camera
    assert not camera.assumed
    assert (camera.width, camera.height) == (640, 480)
    assert camera.fx == pytest.approx(CAMERA.fx, rel=FOCAL)
    assert camera.fy == pytest.approx(CAMERA.fy, rel=FOCAL)
    np.testing.assert_allclose([camera.cx, camera.cy], [CAMERA.cx, CAMERA.cy], atol=3)
    seen = np.stack(np.meshgrid(np.linspace(60, 580, 7), np.linspace(50, 430, 5)), axis=-1)
    angles = np.arctan(camera.rays(seen)[..., :2]) - np.arctan(CAMERA.rays(seen)[..., :2])
    assert np.degrees(np.abs(angles)).max() < 0.4


def test_the_same_view_again_is_no_new_view(shown):
    board, pictures = shown
    again = [picture for picture in pictures[:6] for _ in range(3)]
    told: list[int] = []
    calibrate(again, board, on_view=told.append)
    assert told == list(range(1, 7))


def test_a_board_of_another_size_is_not_found(shown):
    _, pictures = shown
    with pytest.raises(ValueError, match=r"0 new places in 2 frames.*charuco 5x4: inner corners"):
        calibrate(pictures[:2], Board("charuco", 5, 4, 0.03, 0.01, "DICT_4X4_50"))


def test_too_few_views_and_mixed_sizes_are_refused(shown):
    board, pictures = shown
    with pytest.raises(ValueError, match=r"3 new places in 3 frames, but 5 are needed"):
        calibrate(pictures[:3], board)
    with pytest.raises(ValueError, match="one size"):
        calibrate([pictures[0], pictures[1][:400]], board)
    with pytest.raises(ValueError, match="0 new places in 0 frames"):
        calibrate([], board)


def test_corners_in_one_line_are_no_view():
    board = Board("charuco", 12, 6, 0.03, 0.02)
    picture = board.draw(40)
    assert board.find(picture) is not None
    picture[3 * 40 :] = 255  # two rows of squares, and between them one line of eleven corners
    assert len(board._detector.detectBoard(picture[..., 0])[1]) == 11
    assert board.find(picture) is None


def test_a_single_tilt_is_doubtful():
    """Boards that all lie parallel to the picture say little of the focal length, and the result says so."""

    class Flat:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def uniform(self, low, high, n=None):
            return self.rng.uniform(low, high, n) * (0.02 if n == 2 else 1.0)

        def normal(self, *args):
            return self.rng.normal(*args)

    flat = Flat()
    found = calibrate([picture_of(CHECKERBOARD, flat) for _ in range(6)], CHECKERBOARD)  # type: ignore[arg-type]
    assert any("tilted" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": 2}, "3 x 3"),
        ({"square_m": 0.0}, "positive side, not 0 mm"),
        ({"marker_m": 0.032}, "smaller than its square of 30 mm, not 32 mm"),
        ({"dictionary": "DICT_NONE"}, "knows no markers DICT_NONE"),
        ({"kind": "charucco"}, "one of checkerboard, charuco, not 'charucco'"),
    ],
)
def test_boards_that_cannot_be_are_refused(change, words):
    given = {"kind": "charuco", "columns": 8, "rows": 6, "square_m": 0.03, "marker_m": 0.02} | change
    with pytest.raises(ValueError, match=words):
        Board(**given)


def test_the_command_writes_a_camera_that_the_loader_reads(shown, tmp_path, monkeypatch, capsys):
    board, pictures = shown
    monkeypatch.chdir(tmp_path)
    for number, picture in enumerate(pictures[:VIEWS]):
        write_picture(tmp_path / "views" / f"{number}.png", picture)
    how = ["--board", f"{board.columns}x{board.rows}", "--square-mm", "30"]
    if board.kind == "charuco":
        how += ["--marker-mm", "22"]
    assert main(["calibrate", "views", "--out", "camera.yaml", *how]) == 0
    said = capsys.readouterr().out
    assert "camera.yaml" in said
    assert "--camera camera.yaml" in said
    assert Camera.from_file("camera.yaml").fx == pytest.approx(CAMERA.fx, rel=2 * FOCAL)


def test_ctrl_c_ends_a_camera_early_with_the_views_so_far(shown, tmp_path, monkeypatch, capsys):
    board, pictures = shown

    class Camera97(FrameSource):
        live = True

        def __iter__(self):
            for number, picture in enumerate(pictures[:VIEWS]):
                if number == VIEWS - 1:
                    signal.raise_signal(signal.SIGINT)
                yield picture, float(number)
            raise AssertionError("a camera goes on without end")

    monkeypatch.setattr(video, "open_source", lambda _: Camera97("camera 97", 30.0, None))
    monkeypatch.chdir(tmp_path)
    how = ["--board", f"{board.columns}x{board.rows}", "--square-mm", "30", "--views", "99"]
    if board.kind == "charuco":
        how += ["--marker-mm", "22"]
    before = signal.getsignal(signal.SIGINT)
    assert main(["calibrate", "97", *how]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert f"view {VIEWS} of 99" in capsys.readouterr().out
    assert Camera.from_file("camera.yaml").fx == pytest.approx(CAMERA.fx, rel=2 * FOCAL)
    assert main(["calibrate", "97", "--out", "camera.txt", *how]) == 1
    assert "cannot write a camera to 'camera.txt'" in capsys.readouterr().err


def test_the_command_draws_a_board_to_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "--draw", "board.png", "--board", "8x5", "--square-mm", "30"]) == 0
    picture = cv2.imread("board.png")
    assert picture is not None
    assert picture.shape == (800, 1100, 3)
    assert main(["calibrate", "--board", "8x5", "--square-mm", "30"]) == 1
    assert "name a camera, a video or a folder of pictures" in capsys.readouterr().err
    assert main(["calibrate", "x", "--board", "8", "--square-mm", "30"]) == 1
    assert "COLUMNSxROWS" in capsys.readouterr().err


def test_too_few_views_and_too_few_markers_are_told_before_anything_is_read():
    with pytest.raises(ValueError, match="at least 5 views, not 4"):
        calibrate(iter([]), CHARUCO, views=4)
    with pytest.raises(ValueError, match=r"20 x 15 squares need 150 markers, but \w+ has 100: take a larger"):
        Board("charuco", 20, 15, 0.03, 0.02)


def test_frames_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="grayscale"):
        calibrate([np.zeros((9, 9), np.uint8)], Board("checkerboard", 9, 6, 0.025))
