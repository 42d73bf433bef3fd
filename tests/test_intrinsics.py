"""Cameras from files: every format gives the same camera back, and a bad file says what it lacks."""

from __future__ import annotations

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from handmesh import Camera
from handmesh.intrinsics import load_camera, parse_camera, save_camera

LENS = (-0.28, 0.11, 0.0011, -0.0007, -0.02)
CAMERA = Camera(612.5, 608.25, 323.5, 236.25, 640, 480, distortion=LENS)

ROS = """\
image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [612.5, 0, 323.5, 0, 608.25,
         236.25, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.28, 0.11, 0.0011, -0.0007, -0.02]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
"""
XML = """\
<?xml version="1.0"?>
<opencv_storage>
<image_Width>640</image_Width><image_Height>480</image_Height>
<Camera_Matrix type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
  <data>612.5 0. 323.5 0. 608.25 236.25 0. 0. 1.</data></Camera_Matrix>
<Distortion_Coefficients type_id="opencv-matrix"><rows>5</rows><cols>1</cols><dt>d</dt>
  <data>-0.28 0.11 0.0011 -0.0007 -0.02</data></Distortion_Coefficients>
</opencv_storage>
"""
COLMAP = """\
# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
1 FULL_OPENCV 640 480 612.5 608.25 324.0 236.75 -0.28 0.11 0.0011 -0.0007 -0.02 0 0 0
"""


ROS_2 = """\
header:
  stamp:
    sec: 1700000000
  frame_id: camera
height: 480
width: 640
distortion_model: plumb_bob
d:
- -0.28
- 0.11
- 0.0011
- -0.0007
- -0.02
k:
- 612.5
- 0.0
- 323.5
- 0.0
- 608.25
- 236.25
- 0.0
- 0.0
- 1.0
roi:
  x_offset: 0
---
"""
KALIBR = """\
camera_model: pinhole
distortion_coeffs: [-0.28, 0.11, 0.0011, -0.0007, -0.02]
distortion_model: radtan
intrinsics: [612.5, 608.25, 323.5, 236.25]
resolution: [640, 480]
"""
FLAT = {"fx": 612.5, "fy": 608.25, "cx": 323.5, "cy": 236.25, "width": 640, "height": 480}
FLAT |= {"k1": -0.28, "k2": 0.11, "p1": 0.0011, "p2": -0.0007, "k3": -0.02}
PYYAML = """\
dist:
- - -0.28
  - 0.11
  - 0.0011
  - -0.0007
  - -0.02
image_size: [640, 480]
mtx:
- [612.5, 0.0, 323.5]
- [0.0, 608.25, 236.25]
- - 0.0
  - 0.0
  - 1.0
"""


def test_a_lens_without_distortion_may_be_called_none(tmp_path):
    text = KALIBR.replace("radtan", "none").replace("[-0.28, 0.11, 0.0011, -0.0007, -0.02]", "[]")
    (tmp_path / "kalibr.yaml").write_text(text)
    assert not any(load_camera(tmp_path / "kalibr.yaml").distortion)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("camera_info.yaml", ROS),
        ("ros.yml", ROS),
        ("ros2.yaml", ROS_2),
        ("kalibr.yaml", KALIBR),
        ("euroc.yaml", KALIBR.replace("radtan", "radial-tangential").replace("_coeffs", "_coefficients")),
        ("tutorial.yaml", PYYAML.replace("dist:", "dist_coeff:")),
        ("flat.json", json.dumps(FLAT)),
        ("typed.yaml", KALIBR + "Distortion_Type: none\ndist_coef: null\n"),
        ("pyyaml.yaml", PYYAML),
        ("opencv.xml", XML),
        ("cameras.txt", COLMAP),
        ("ours.json", json.dumps(asdict(CAMERA))),
    ],
)
def test_every_format_gives_the_same_camera(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    camera = Camera.from_file(path)
    assert not camera.assumed
    np.testing.assert_allclose(camera.matrix, CAMERA.matrix, atol=1e-12)
    assert (camera.width, camera.height) == (640, 480)
    np.testing.assert_allclose(camera.distortion[:5], LENS)
    assert not any(camera.distortion[5:])


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".xml", ".json"])
@pytest.mark.parametrize("camera", [CAMERA, Camera(500.0, 500.0, 319.5, 239.5, 640, 480), Camera.from_fov(640, 480)])
def test_what_is_saved_is_loaded_again(tmp_path, camera, suffix):
    path = tmp_path / "new" / f"camera{suffix}"
    save_camera(path, camera, {"rms_px": 0.21, "board": "9x6"})
    assert load_camera(path) == camera


def test_a_file_of_opencv_itself_is_read(tmp_path):
    path = str(tmp_path / "made_by_opencv.yml")
    storage = cv2.FileStorage(path, cv2.FILE_STORAGE_WRITE)
    storage.write("image_size", np.array([[640, 480]], np.int32))
    storage.write("cameraMatrix", CAMERA.matrix)
    storage.write("distCoeffs", np.array([[*LENS, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    storage.release()
    np.testing.assert_allclose(load_camera(path).distortion[:5], LENS)


@pytest.mark.parametrize(
    ("line", "distortion"),
    [
        ("3 SIMPLE_PINHOLE 640 480 500 320 240", ()),
        ("3 PINHOLE 640 480 500 500 320 240", ()),
        ("3 SIMPLE_RADIAL 640 480 500 320 240 -0.1", (-0.1, 0, 0, 0, 0, 0, 0, 0)),
        ("3 RADIAL 640 480 500 320 240 -0.1 0.02", (-0.1, 0.02, 0, 0, 0, 0, 0, 0)),
        ("3 OPENCV 640 480 500 500 320 240 -0.1 0.02 1e-3 2e-3", (-0.1, 0.02, 1e-3, 2e-3, 0, 0, 0, 0)),
    ],
)
def test_colmaps_models_have_their_parameters_order_and_half_pixels(tmp_path, line, distortion):
    path = tmp_path / "cameras.txt"
    path.write_text(f"# three\n1 OPENCV_FISHEYE 2 2 1 1 1 1 0 0 0 0\n{line}\n")
    assert load_camera(path, camera_id=3) == Camera(500, 500, 319.5, 239.5, 640, 480, distortion=distortion)
    with pytest.raises(ValueError, match="2 cameras"):
        load_camera(path)
    with pytest.raises(ValueError, match="no camera 7"):
        load_camera(path, camera_id=7)
    with pytest.raises(ValueError, match=r"OPENCV_FISHEYE.*undistort"):
        load_camera(path, camera_id=1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "", "cannot be read"),
        ("a.yaml", "%YAML:1.0\n---\n: [", "cannot be read"),
        ("a.yaml", "- 1\n- 2\n", "cannot be read|no 3 x 3"),
        ("a.yml", "image_width: 3\n", "no 3 x 3 camera matrix.*it has image_width"),
        ("a.yml", ROS.replace("image_height", "rows_of_it"), "does not say the size"),
        ("a.yml", ROS.replace("plumb_bob", "equidistant"), "'equidistant'.*undistort"),
        ("a.yml", ROS.replace("612.5", "-612.5"), "fx and fy must be positive"),
        ("a.yml", ROS.replace("612.5", "wide"), "camera_matrix must hold numbers"),
        ("a.yml", ROS.replace("image_width: 640", 'image_width: "640"'), "image_width must hold numbers"),
        ("a.yml", KALIBR.replace("_coeffs", "_of_mine"), "stands under distortion_of_mine.*distortion_coefficients"),
        ("a.json", json.dumps({**FLAT, "dist": [0.1] * 12}), "distortion must be OpenCV's"),  # a thin prism's
        ("a.json", json.dumps({k: v for k, v in FLAT.items() if k[0] != "p"} | {"k4": 0.1}), "fisheye"),
        ("a.json", json.dumps({**FLAT, "fisheye_model": 1}), "fisheye"),  # as OpenCV's calibration sample says it
        ("a.json", json.dumps({**FLAT, "xi": [1.2]}), "omnidirectional"),
        (
            "a.json",
            json.dumps({"fx": 9, "fy": 9, "cx": 4, "cy": 4, "width": 9, "height": 9, "radialDistortion": [1]}),
            "stands under radialDistortion",
        ),
        ("a.json", json.dumps({**FLAT, "D": "-0.3, 0.1, 0, 0"}), "D must be a list of numbers"),
        ("a.xml", XML.replace("<cols>3", "<cols>2"), "Camera_Matrix is no matrix"),
        ("cameras.txt", "# nothing\n", "names no camera"),
        ("cameras.txt", "1 PINHOLE 640 480 500\n", "must be CAMERA_ID PINHOLE WIDTH HEIGHT fx fy cx cy"),
        ("cameras.txt", "1\n", "camera model ''"),
        ("camera.csv", "1", "cannot read a camera from 'camera.csv'"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_camera(path)


def test_opencvs_word_for_no_fisheye_is_understood(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**FLAT, "fisheye_model": 0}))
    assert load_camera(path).distortion[0] == -0.28


def test_missing_files_and_other_suffixes(tmp_path):
    with pytest.raises(FileNotFoundError, match="handmesh calibrate"):
        load_camera(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"\.yaml"):
        save_camera(tmp_path / "camera.txt", CAMERA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".yaml", ".xml", ".json"])
def test_a_full_disk_leaves_the_camera_that_was_there(tmp_path, full_disk, suffix):
    path = tmp_path / f"camera{suffix}"
    save_camera(path, CAMERA)
    with full_disk(99), pytest.raises(OSError, match="large"):
        save_camera(path, CAMERA.resized(320, 240))
    assert load_camera(path) == CAMERA
    assert list(tmp_path.iterdir()) == [path]


def test_cameras_are_written_where_opencv_takes_no_path(tmp_path, monkeypatch):
    """As on Windows, where its paths are of the code page."""
    path = tmp_path / "Kamera, grün 手.yaml"
    real = cv2.FileStorage
    monkeypatch.setattr(cv2, "FileStorage", lambda what, flags: real(what.encode("ascii").decode(), flags))
    save_camera(path, CAMERA)
    monkeypatch.undo()
    assert parse_camera(str(path)) == CAMERA


def test_a_camera_on_the_command_line(tmp_path):
    save_camera(tmp_path / "c.yaml", CAMERA)
    assert parse_camera(str(tmp_path / "c.yaml")) == CAMERA
    assert parse_camera("612.5,608,323,236,640,480") == Camera(612.5, 608, 323, 236, 640, 480)
    with pytest.raises(ValueError, match="FX,FY"):
        parse_camera("1,2,3")
    for width in ("640.7", "inf", "nan"):
        with pytest.raises(ValueError, match=r"Camera\.width"):
            parse_camera(f"612.5,608,323,236,{width},480")


def test_a_matrix_that_is_written_by_columns_is_turned_and_a_strange_one_refused(tmp_path):
    path = tmp_path / "camera.json"
    by_columns = [612.5, 0, 0, 0, 608.25, 0, 323.5, 236.25, 1]  # as Open3D writes it
    path.write_text(json.dumps({"width": 640, "height": 480, "intrinsic_matrix": by_columns}))
    assert load_camera(path) == Camera(612.5, 608.25, 323.5, 236.25, 640, 480)
    skewed = [612.5, 5, 323.5, 0, 608.25, 236.25, 0, 0, 1]
    for matrix in (skewed, [0.5 * x for x in by_columns], [600, 0, 320, 0, 600, 240, 0, 0, 0]):
        path.write_text(json.dumps({"width": 640, "height": 480, "K": matrix}))
        with pytest.raises(ValueError, match="camera matrix is no"):
            load_camera(path)
