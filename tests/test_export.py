"""Files of hand meshes: what is written comes back, and nothing half-written stays."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace

import jsonschema
import numpy as np
import pytest
import trimesh
from hands import sphere_hand

from handmesh import export
from handmesh.assets import ASSETS
from handmesh.export import WRITERS, export_hand, export_hands
from handmesh.records import Camera, HandMesh

LENS_CAMERA = Camera(500.0, 505.0, 319.5, 239.5, 640, 480, distortion=(-0.1, 0.02, 1e-3, -1e-3, 0.01))
HANDS = [
    sphere_hand("right", (-0.1, 0.02, 0.5), (0.03, 0.05, 0.02), LENS_CAMERA, track_id=7),
    sphere_hand("left", (0.1, -0.02, 0.7), (0.02, 0.04, 0.03)),
]
TEXT_PRECISION_M = 1e-7  # .obj has eight decimals


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_meshes_come_back_where_they_stand_in_the_camera(tmp_path, suffix):
    export_hands(HANDS, tmp_path / f"hands{suffix}")
    loaded = trimesh.load(tmp_path / f"hands{suffix}", process=False, force="mesh")
    assert isinstance(loaded, trimesh.Trimesh)
    wanted = np.concatenate([hand.vertices + hand.translation for hand in HANDS])
    np.testing.assert_allclose(loaded.vertices, wanted, atol=TEXT_PRECISION_M)
    faces = np.concatenate([HANDS[0].faces, HANDS[1].faces + len(HANDS[0].vertices)])
    np.testing.assert_array_equal(loaded.faces, faces)
    assert loaded.is_watertight
    assert loaded.volume > 0


def test_glb_has_a_named_node_a_hand_in_the_axes_of_gltf(tmp_path):
    export_hands(HANDS, tmp_path / "hands.glb")
    scene = trimesh.load_scene(tmp_path / "hands.glb", process=False)
    assert list(scene.geometry) == ["right_0", "left_1"]
    for hand, mesh in zip(HANDS, scene.geometry.values(), strict=True):
        placed = (hand.vertices + hand.translation) * [1, -1, -1]  # y up, z towards the viewer
        np.testing.assert_allclose(mesh.vertices, placed, atol=1e-7)
        np.testing.assert_array_equal(mesh.faces, hand.faces)
        assert mesh.volume > 0
        outwards = (mesh.vertices - mesh.vertices.mean(axis=0)) * mesh.vertex_normals
        assert (outwards.sum(axis=1) > 0).all()


def test_json_gives_every_field_back_to_the_last_bit(tmp_path):
    export_hands(HANDS, tmp_path / "hands.json")
    content = json.loads((tmp_path / "hands.json").read_text(encoding="utf-8"))
    assert (content["format"], content["version"]) == ("handmesh", export.JSON_VERSION)
    assert len(content["keypoint_names"]) == 21
    assert len(content["rotation_names"]) == 16
    assert {"units", "axes"} <= content.keys()
    for hand, record in zip(HANDS, content["hands"], strict=True):
        record["camera"] = Camera(**record["camera"])
        assert_equal_hands(HandMesh(**record), hand)


@pytest.mark.parametrize("mesh", [True, False])
def test_json_keeps_its_documented_schema(mesh):
    schema = json.loads((ASSETS / "hands.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(json.dumps(export.to_json(HANDS, mesh=mesh)))
    validator.validate(document)
    assert ("vertices" in document["hands"][0]) == mesh
    known = schema["$defs"]["hand"]["properties"].keys()
    assert mesh == (document["hands"][0].keys() == known)
    assert schema["$defs"]["camera"]["properties"].keys() == document["hands"][0]["camera"].keys()
    document["hands"][0]["betas"] = [0.0]
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(document)


def test_npz_gives_every_field_back(tmp_path):
    export_hands(HANDS, tmp_path / "hands.npz")
    with np.load(tmp_path / "hands.npz") as content:  # no pickles inside
        arrays = dict(content)
    for number, hand in enumerate(HANDS):
        record = {name: values[number] for name, values in arrays.items()}
        assumed = bool(record.pop("camera_assumed"))
        fx, fy, cx, cy, width, height = record["camera"].tolist()
        lens = tuple(record.pop("camera_distortion"))
        assert not any(lens[len(hand.camera.distortion) :])
        lens = lens[: len(hand.camera.distortion)]
        record["camera"] = Camera(fx, fy, cx, cy, int(width), int(height), assumed, lens)
        record["side"] = str(record["side"])
        record["track_id"] = None if record["track_id"] < 0 else int(record["track_id"])
        assert_equal_hands(HandMesh(**record), hand)


def assert_equal_hands(one: HandMesh, other: HandMesh):
    for field in fields(HandMesh):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_one_hand_is_a_list_of_one_and_saves_itself(tmp_path, suffix):
    export_hand(HANDS[0], tmp_path / f"one{suffix}")
    export_hands([HANDS[0]], tmp_path / f"list{suffix}")
    HANDS[0].save(tmp_path / f"self{suffix}")
    contents = [(tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "list", "self")]
    assert len(contents[0]) > 1000
    if suffix != ".npz":  # a zip file knows its time
        assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("suffix", [suffix.upper() for suffix in WRITERS])
def test_suffixes_in_capitals_and_missing_folders_are_fine(tmp_path, suffix):
    export_hand(HANDS[0], tmp_path / "new" / "folder" / f"HAND{suffix}")
    assert (tmp_path / "new" / "folder" / f"HAND{suffix}").stat().st_size > 1000
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1


@pytest.mark.parametrize("name", ["hand.fbx", "hand", "hand.glb.txt"])
def test_unknown_suffixes_are_named_with_the_known_ones(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.obj, \.ply, \.glb, \.json, \.npz"):
        export_hand(HANDS[0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_hand_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="no hand"):
        export_hands([], tmp_path / "hands.glb")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "hand.ply"
    path.write_text("old")

    def fail(hands, temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    monkeypatch.setitem(WRITERS, ".ply", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export_hand(HANDS[0], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
def test_files_get_the_rights_that_the_user_gives_and_links_stay_links(tmp_path):
    before = os.umask(0o077)
    try:
        export_hand(HANDS[0], tmp_path / "private.json")
    finally:
        os.umask(before)
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "private.json")
    export_hand(HANDS[1], link)
    assert link.is_symlink()
    assert json.loads((tmp_path / "private.json").read_text())["hands"][0]["side"] == "left"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb"])
def test_a_hand_without_its_mesh_makes_no_file(tmp_path, suffix):
    bare = replace(sphere_hand(), vertices=np.zeros((0, 3)), faces=np.zeros((0, 3), np.int32))
    with pytest.raises(ValueError, match="without its mesh"):
        export_hand(bare, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())
