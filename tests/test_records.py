"""Records refuse nonsense, cameras are inverse to themselves and mirrors obey their laws."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, asdict, replace

import graphs
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from handmesh.records import (
    Camera,
    Detection,
    HandMesh,
    PosedHand,
    box_iou,
    box_of_points,
    check_box,
    check_frame,
    given_betas,
    mirror_rotations,
    other_side,
)

CAMERA = Camera(500.0, 510.0, 300.0, 250.0, 640, 480)
POSED = PosedHand(graphs.ROTATIONS, graphs.BETAS, graphs.VERTICES, graphs.JOINTS, graphs.FACES)


@pytest.fixture
def hand() -> HandMesh:
    return HandMesh(
        side="right",
        score=0.9,
        box=np.array([10.0, 20.0, 110.0, 120.0]),
        vertices=graphs.VERTICES,
        joints=graphs.JOINTS,
        translation=np.array([0.1, 0.0, 0.5]),
        joints_2d=np.zeros((21, 2)),
        global_orient=np.zeros(3),
        hand_pose=np.zeros((15, 3)),
        betas=np.zeros(10),
        faces=graphs.FACES,
        camera=CAMERA,
    )


def test_frame_of_rgb_passes_through_untouched():
    frame = np.zeros((4, 5, 3), np.uint8)
    assert check_frame(frame) is frame
    assert check_frame(frame[:1, :1]).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (None, TypeError, "could not be read"),
        ([[1, 2, 3]], TypeError, "numpy array"),
        (np.zeros((4, 5), np.uint8), ValueError, "GRAY2RGB"),
        (np.zeros((4, 5, 1), np.uint8), ValueError, "GRAY2RGB"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, "drop alpha"),
        (np.zeros((4, 5, 2), np.uint8), ValueError, r"\(4, 5, 2\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), ValueError, "one picture at a time"),
        (np.zeros((4, 5, 3), np.float32), ValueError, r"\* 255"),
        (np.zeros((4, 5, 3), bool), ValueError, "uint8"),
        (np.zeros((4, 5, 3), np.int64), ValueError, r"0 to 255 use frame.astype\(np.uint8\)$"),
        (np.zeros((4, 5, 3), np.uint16), ValueError, ">> 8"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "no pixels"),
        (np.zeros((5, 0, 3), np.uint8), ValueError, "no pixels"),
    ],
)
def test_other_frames_are_refused_with_advice(frame, error, words):
    with pytest.raises(error, match=words):
        check_frame(frame)


def test_camera_rays_and_projection_are_inverse():
    points = np.random.default_rng(0).uniform(-50, 700, (4, 7, 2))
    depth = np.random.default_rng(1).uniform(0.1, 3, (4, 7, 1))
    np.testing.assert_allclose(CAMERA.project(depth * CAMERA.rays(points)), points, atol=1e-9)
    np.testing.assert_allclose(CAMERA.rays(points) @ CAMERA.matrix.T, [[[*p, 1] for p in q] for q in points])


def test_projection_of_points_behind_the_camera_is_nan():
    projected = CAMERA.project([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert np.isnan(projected[:2]).all()
    np.testing.assert_array_equal(projected[2], [300.0, 250.0])


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (1, 1)])
def test_assumed_camera_sees_its_field_of_view_across_the_longer_side(width, height):
    camera = Camera.from_fov(width, height, 90.0)
    assert camera.assumed
    assert not CAMERA.assumed
    edges = [[-0.5, camera.cy], [width - 0.5, camera.cy]] if width >= height else None
    edges = edges or [[camera.cx, -0.5], [camera.cx, height - 0.5]]
    first, last = camera.rays(edges)
    np.testing.assert_allclose(first @ last, 0.0, atol=1e-12)


def test_resized_camera_keeps_the_rays_of_pixel_corners():
    small = CAMERA.resized(320, 120)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5], [0.0, 0.0]])
    there = (corners + 0.5) * (0.5, 0.25) - 0.5
    np.testing.assert_allclose(small.rays(there), CAMERA.rays(corners), atol=1e-12)


def test_mirrored_camera_sees_mirrored_points_at_mirrored_pixels():
    points = np.random.default_rng(0).uniform(0.2, 1.0, (9, 3))
    seen, mirrored = CAMERA.project(points), CAMERA.mirrored().project(points * (-1, 1, 1))
    np.testing.assert_allclose(mirrored, np.stack([639 - seen[:, 0], seen[:, 1]], -1), atol=1e-9)
    assert CAMERA.mirrored().mirrored() == CAMERA


@pytest.mark.parametrize("name", ["fx", "fy", "cx", "cy", "width", "height"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_camera_must_be_finite(name, value):
    with pytest.raises(ValueError, match=f"Camera.{name} must be a finite"):
        replace(CAMERA, **{name: value})


@pytest.mark.parametrize("change", [{"fx": 0.0}, {"fy": -1.0}, {"width": 0}, {"height": 480.5}])
def test_camera_must_make_sense(change):
    with pytest.raises(ValueError, match=f"Camera.*{next(iter(change))} .*must be"):
        replace(CAMERA, **change)


def test_camera_of_numpys_numbers_is_one_of_plain_ones():
    fx, fy, cx, cy = np.array([500, 505, 319.5, 239.5], np.float32)
    camera = Camera(fx, fy, cx, cy, *np.array([640, 480]))
    assert camera == Camera(500.0, 505.0, 319.5, 239.5, 640, 480)
    assert json.loads(json.dumps(asdict(camera)))["fx"] == 500.0


@pytest.mark.parametrize("fov", [0.0, 180.0, float("nan")])
def test_field_of_view_must_lie_within_a_half_turn(fov):
    with pytest.raises(ValueError, match="fov_deg"):
        Camera.from_fov(640, 480, fov)


@pytest.mark.parametrize("box", [[5, 0, 5, 9], [9, 0, 5, 9], [0, 9, 9, 0], [0, 0, np.nan, 9], [0, 0, 9], 3.0])
def test_boxes_must_be_boxes(box):
    with pytest.raises(ValueError, match="my box"):
        check_box(box, "my box")


def test_overlap_of_boxes_has_its_known_values():
    a = np.array([0.0, 0, 2, 2])
    others = np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [5, 5, 6, 6], [0.5, 0.5, 1.5, 1.5]])
    np.testing.assert_allclose(box_iou(a, others), [1, 1 / 3, 0, 0, 0.25])
    np.testing.assert_allclose(box_iou(others, a), box_iou(a, others))


def test_box_of_points_is_tight():
    points = np.array([[[0.0, 5], [3, -1]], [[2, 2], [2, 2]]])
    np.testing.assert_array_equal(box_of_points(points), [[0, -1, 3, 5], [2, 2, 2, 2]])


@pytest.mark.parametrize("change", [{"side": "up"}, {"score": 1.1}, {"score": np.nan}, {"box": [1, 1, 0, 0]}])
def test_detection_refuses(change):
    with pytest.raises(ValueError, match=f"Detection.{next(iter(change))}"):
        Detection(**{"box": [0, 0, 1, 1], "side": "left", "score": 0.5, **change})


def test_mirrored_rotation_vectors_turn_their_signs():
    rotvecs = np.random.default_rng(0).normal(size=(20, 3))
    rotvecs[:2] = [[0, 0, 0], [0, np.pi, 0]]
    mirrored = mirror_rotations(Rotation.from_rotvec(rotvecs).as_matrix())
    np.testing.assert_allclose(mirrored, Rotation.from_rotvec(rotvecs * (1, -1, -1)).as_matrix(), atol=1e-12)


def test_mirroring_twice_changes_nothing():
    twice = POSED.mirrored().mirrored()
    for name in ("rotations", "betas", "vertices", "joints", "faces"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(POSED, name))


def test_mirror_commutes_with_turning():
    turn = graphs.random_rotations(np.random.default_rng(5), 1)[0]
    first, second = POSED.rotated(turn).mirrored(), POSED.mirrored().rotated(mirror_rotations(turn))
    for name in ("rotations", "vertices", "joints"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-6)


def test_a_turned_hand_is_posed_in_the_new_axes():
    """As the graph of the hand model poses a first rotation that is none itself: the turn comes after it."""
    before, turn = (rotation.astype(float) for rotation in graphs.random_rotations(np.random.default_rng(6), 2))
    posed = replace(POSED, rotations=np.concatenate([before[None], POSED.rotations[1:]]))
    turned = posed.rotated(turn)
    np.testing.assert_allclose(turned.rotations[0], turn @ before, atol=1e-12)
    np.testing.assert_array_equal(turned.rotations[1:], POSED.rotations[1:])
    np.testing.assert_allclose(turned.joints, [turn @ joint for joint in POSED.joints], atol=1e-6)


def test_mirrored_surface_keeps_its_volume_and_its_normals_outside():
    right, left = (trimesh.Trimesh(p.vertices, p.faces, process=False) for p in (POSED, POSED.mirrored()))
    assert right.volume > 0
    assert left.volume == pytest.approx(right.volume)
    np.testing.assert_allclose(left.face_normals, right.face_normals * (-1, 1, 1), atol=1e-6)


def test_hand_is_frozen_to_its_arrays(hand):
    with pytest.raises(FrozenInstanceError):
        hand.score = 0.1
    with pytest.raises(ValueError, match="read-only"):
        hand.vertices[0] = 0.0
    graphs.VERTICES[0, 0] += 0.0  # the caller's own array stays writable
    assert hand.vertices.dtype == hand.betas.dtype == np.float32
    assert hand.track_id is None


def test_what_the_caller_writes_later_changes_no_record():
    box, betas = np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(10)
    shown = box[:]
    shown.flags.writeable = False
    found, given, seen = Detection(box, "left", 0.5), given_betas(betas), Detection(shown, "left", 0.5)
    box[:], betas[:] = 7.0, np.nan
    np.testing.assert_array_equal(seen.box, [1, 2, 3, 4])
    np.testing.assert_array_equal(found.box, [1, 2, 3, 4])
    np.testing.assert_array_equal(given, np.zeros(10))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda hand: pickle.loads(pickle.dumps(hand))])
def test_copies_of_a_hand_are_read_only_too(hand, way):
    again = way(hand)
    np.testing.assert_array_equal(again.vertices, hand.vertices)
    for array in (again.vertices, again.box, again.faces):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_number_of_numpys_is_written_like_any_other(hand, tmp_path):
    replace(hand, track_id=np.int64(3)).save(tmp_path / "hand.json")
    assert json.loads((tmp_path / "hand.json").read_text())["hands"][0]["track_id"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"side": "Right"},
        {"score": -0.1},
        {"side_score": float("nan")},
        {"box": [0, 0, 0, 1]},
        {"vertices": np.zeros((6, 2))},
        {"vertices": np.full((6, 3), np.nan)},
        {"joints": np.zeros((16, 3))},
        {"translation": np.zeros((1, 3))},
        {"joints_2d": np.zeros((21, 3))},
        {"global_orient": np.zeros((3, 3))},
        {"hand_pose": np.zeros(45)},
        {"betas": np.zeros(16)},
        {"faces": np.array([[0, 1, 6]])},
        {"faces": np.array([[0, 1, -1]])},
    ],
)
def test_hand_refuses_what_does_not_fit(hand, change):
    with pytest.raises(ValueError, match=f"HandMesh.{next(iter(change))}"):
        replace(hand, **change)
    with pytest.raises(TypeError, match=r"HandMesh.camera"):
        replace(hand, camera=None)


def test_trimesh_stands_in_the_camera(hand):
    mesh = hand.to_trimesh()
    np.testing.assert_allclose(mesh.vertices, graphs.VERTICES + np.float32([0.1, 0.0, 0.5]), atol=1e-7)
    np.testing.assert_array_equal(mesh.faces, graphs.FACES)
    assert mesh.is_watertight


def test_trimesh_keeps_every_vertex_in_its_place(hand):
    twice = replace(hand, vertices=np.concatenate([hand.vertices, hand.vertices]))
    assert len(twice.to_trimesh().vertices) == 2 * len(hand.vertices)


def test_sides_are_each_others_other():
    assert other_side("left") == "right"
    assert other_side("right") == "left"
