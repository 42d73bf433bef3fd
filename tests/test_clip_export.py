"""A clip in one file, read back by other programs' readers: the hands stand and move as they did."""

from __future__ import annotations

import json
from dataclasses import replace

import bvh
import jsonschema
import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from hands import CAMERA
from scipy.spatial.transform import Rotation

from handmesh.assets import ASSETS, load_hand_model
from handmesh.bvh import euler_zxy
from handmesh.clip import Clip
from handmesh.clip_export import export_clip
from handmesh.estimator import build_hand
from handmesh.gltf import _visibility
from handmesh.model.hand_model import HandModel
from handmesh.records import HandMesh, PosedHand
from handmesh.skeleton import KEYPOINT_PARENTS, KEYPOINTS, MANO_JOINTS, OPENXR

FPS = 25.0
FRAMES = 20
GONE = range(6, 15)  # the left hand is out of sight
MICRON = 1e-6
TO_YUP = np.array([1.0, -1.0, -1.0])
MODEL = replace(load_hand_model(), posedirs=np.zeros_like(load_hand_model().posedirs))
"""Without pose correctives, which a skeleton alone cannot carry."""


def moving_hands(rng: np.random.Generator) -> list[list[HandMesh]]:
    """Two hands of different shape that turn and bend smoothly, also through more than half a turn."""
    model = HandModel(MODEL, torch.float64)
    frames: list[list[HandMesh]] = [[] for _ in range(FRAMES)]
    for track_id, side in enumerate(("right", "left")):
        betas = rng.normal(0, 0.8, 10)
        speed, start = rng.normal(0, 0.05, (16, 3)), rng.normal(0, 0.3, (16, 3))
        speed[0] = [0.1, 0.25, -0.15]
        for number in range(FRAMES):
            if side == "left" and number in GONE:
                continue
            rotations = Rotation.from_rotvec(start + number * speed).as_matrix()
            with torch.no_grad():
                mesh = model(torch.tensor(rotations), torch.tensor(betas))
            wrist = mesh.joints[0]
            parts = [(points - wrist).numpy() for points in (mesh.vertices, mesh.keypoints)]
            posed = PosedHand(rotations, betas, *parts, MODEL.faces)
            if side == "left":
                posed = posed.mirrored()
            place = np.array([0.1 - 0.2 * track_id, 0.01 * number, 0.5 + 0.02 * number])
            hand = build_hand(posed, side, place, CAMERA, 0.9, 0.8, track_id=track_id)
            frames[number].append(hand)
    return frames


HANDS = moving_hands(np.random.default_rng(5))


@pytest.fixture
def clip() -> Clip:
    recorded = Clip(FPS)
    for number, hands in enumerate(HANDS):
        recorded.add(3.0 + number / FPS, hands)
    return recorded


def hand_of(number: int, track_id: int) -> HandMesh | None:
    return next((hand for hand in HANDS[number] if hand.track_id == track_id), None)


class Glb:
    """A .glb through pygltflib: poses its skins at a moment, by the words of the glTF specification."""

    def __init__(self, path) -> None:
        self.gltf = pygltflib.GLTF2().load(str(path))
        self.blob = self.gltf.binary_blob()

    def array(self, number: int) -> np.ndarray:
        accessor = self.gltf.accessors[number]
        view = self.gltf.bufferViews[accessor.bufferView]
        dtype = {5126: "<f4", 5125: "<u4", 5121: "u1"}[accessor.componentType]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor.type]
        values = np.frombuffer(self.blob, dtype, accessor.count * width, view.byteOffset + (accessor.byteOffset or 0))
        if accessor.min:
            rows = values.reshape(-1, width)
            np.testing.assert_allclose(rows.min(0), accessor.min, rtol=1e-6)
            np.testing.assert_allclose(rows.max(0), accessor.max, rtol=1e-6)
        return values.reshape(-1, width)

    def local(self, node: int, time_s: float) -> np.ndarray:
        """(4, 4) of a node at a keyframe, or the last one before."""
        found = self.gltf.nodes[node]
        parts = {"translation": found.translation, "rotation": found.rotation, "scale": found.scale}
        (animation,) = self.gltf.animations
        for channel in animation.channels:
            if channel.target.node == node:
                sampler = animation.samplers[channel.sampler]
                times = self.array(sampler.input)[:, 0]
                assert (np.diff(times) > 0).all()
                row = max(int(np.searchsorted(times, time_s + 1e-4)) - 1, 0)
                parts[channel.target.path] = self.array(sampler.output)[row]
        matrix = np.eye(4)
        if parts["rotation"] is not None:
            matrix[:3, :3] = Rotation.from_quat(parts["rotation"]).as_matrix()
        if parts["scale"] is not None:
            matrix[:3, :3] = matrix[:3, :3] * parts["scale"]
        if parts["translation"] is not None:
            matrix[:3, 3] = parts["translation"]
        return matrix

    def globals_at(self, time_s: float) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}

        def visit(node: int, above: np.ndarray) -> None:
            found[node] = above @ self.local(node, time_s)
            for child in self.gltf.nodes[node].children or []:
                visit(child, found[node])

        for root in self.gltf.scenes[self.gltf.scene].nodes:
            visit(root, np.eye(4))
        return found

    def skinned(self, time_s: float) -> dict[str, np.ndarray]:
        """The posed vertices of each mesh, by its name."""
        worlds, posed = self.globals_at(time_s), {}
        for node in self.gltf.nodes:
            if node.skin is None:
                continue
            skin, mesh = self.gltf.skins[node.skin], self.gltf.meshes[node.mesh]
            attributes = mesh.primitives[0].attributes
            bind = self.array(skin.inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
            bones = np.stack([worlds[joint] for joint in skin.joints]) @ bind
            vertices = self.array(attributes.POSITION)
            weights, joints = self.array(attributes.WEIGHTS_0), self.array(attributes.JOINTS_0)
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
            points = np.concatenate([vertices, np.ones_like(vertices[:, :1])], axis=1)
            blended = (bones[joints] * weights[..., None, None]).sum(1)
            posed[mesh.name] = (blended @ points[..., None])[:, :3, 0]
        return posed


@pytest.mark.parametrize("number", [0, 1, 8, 15, FRAMES - 1])
def test_animated_glb_skins_to_the_meshes_of_every_frame(clip, tmp_path, number):
    assert export_clip(clip, tmp_path / "clip.glb", MODEL) == [tmp_path / "clip.glb"]
    posed = Glb(tmp_path / "clip.glb").skinned(number / FPS)
    assert posed.keys() == {"right_0", "left_1"}
    for track_id, name in enumerate(("right_0", "left_1")):
        hand = hand_of(number, track_id)
        if hand is None:
            assert np.ptp(posed[name], axis=0).max() < 1e-4  # hidden
        else:
            np.testing.assert_allclose(posed[name], (hand.vertices + hand.translation) * TO_YUP, atol=MICRON)


def test_a_slow_clip_shows_its_hands_all_the_time(clip, tmp_path):
    """Pictures of a folder come once a second: a hand is out of sight only where frames without it come between."""
    slow = Clip(1.0)
    for second in range(FRAMES):
        slow.add(second, clip.frames[second])
    export_clip(slow, tmp_path / "slow.glb", MODEL)
    glb = Glb(tmp_path / "slow.glb")
    (animation,) = glb.gltf.animations
    assert max(glb.array(sampler.input).max() for sampler in animation.samplers) == FRAMES
    for time_s in np.arange(0.2, FRAMES, 0.35):
        seen = {name for name, points in glb.skinned(time_s).items() if np.ptp(points, axis=0).max() > 0.01}
        assert seen == ({"right_0"} if int(time_s) in GONE else {"right_0", "left_1"})


def test_animated_glb_opens_in_trimesh_and_names_its_joints(clip, tmp_path):
    export_clip(clip, tmp_path / "clip.glb", MODEL)
    scene = trimesh.load_scene(tmp_path / "clip.glb")
    assert {name.split("_")[0] for name in scene.geometry} == {"right", "left"}
    for mesh in scene.geometry.values():
        assert mesh.faces.shape == MODEL.faces.shape
        assert mesh.volume > 0
    glb = Glb(tmp_path / "clip.glb")
    names = {node.name for node in glb.gltf.nodes}
    assert {f"right_0_{joint}" for joint in MANO_JOINTS} | {f"left_1_{joint}" for joint in MANO_JOINTS} <= names
    (animation,) = glb.gltf.animations
    for channel in animation.channels:
        if channel.target.path == "rotation":
            turns = glb.array(animation.samplers[channel.sampler].output)
            assert ((turns[1:] * turns[:-1]).sum(1) > 0).all()  # linear blends must not go the long way round


def bvh_keypoints(text: str, number: int) -> np.ndarray:
    """(21, 3) of a frame, from the hierarchy and channels that the `bvh` package reads."""
    mocap = bvh.Bvh(text)
    places: dict[str, np.ndarray] = {}

    def visit(joint, turn: np.ndarray, place: np.ndarray) -> None:
        name = joint.name
        offset = np.array([float(value) for value in joint["OFFSET"]])
        place = place + turn @ offset
        channels = mocap.joint_channels(name)
        values = [float(v) for v in mocap.frame_joint_channels(number, name, channels)]
        for channel, value in zip(channels, values, strict=True):
            if channel.endswith("position"):
                place = place + value * np.eye(3)["XYZ".index(channel[0])]
            else:
                turn = turn @ Rotation.from_euler(channel[0].lower(), value, degrees=True).as_matrix()
        places[name] = place
        for child in joint.filter("JOINT"):
            visit(child, turn, place)
        for end in joint.filter("End"):
            tip = np.array([float(value) for value in end["OFFSET"]])
            places[f"{name[:-1]}_tip"] = place + turn @ tip

    visit(next(iter(mocap.root.filter("ROOT"))), np.eye(3), np.zeros(3))
    return np.stack([places[name] for name in KEYPOINTS])


def test_bvh_moves_as_the_hands_do(clip, tmp_path):
    paths = export_clip(clip, tmp_path / "clip.bvh", MODEL)
    assert [path.name for path in paths] == ["clip_right_0.bvh", "clip_left_1.bvh"]
    for track_id, path in enumerate(paths):
        text = path.read_text()
        mocap = bvh.Bvh(text)
        assert (mocap.nframes, mocap.frame_time) == (FRAMES, pytest.approx(1 / FPS))
        for number in (0, 3, 16, FRAMES - 1):
            hand = hand_of(number, track_id)
            assert hand is not None
            wanted = (hand.joints + hand.translation) * TO_YUP
            np.testing.assert_allclose(bvh_keypoints(text, number), wanted, atol=5e-6)
    held = [bvh_keypoints(paths[1].read_text(), number) for number in (GONE[0] - 1, *GONE)]
    assert all((points == held[0]).all() for points in held)


def test_one_hand_is_one_bvh(clip, tmp_path):
    alone = Clip(FPS)
    for time_s, hands in zip(clip.times_s, clip.frames, strict=True):
        alone.add(time_s, hands[:1])
    assert export_clip(alone, tmp_path / "clip.bvh", MODEL) == [tmp_path / "clip.bvh"]


def test_bvh_keeps_time_where_frames_were_dropped(clip, tmp_path):
    kept = [*range(10), *range(10, FRAMES, 3)]
    uneven = Clip(FPS)
    for number in kept:
        uneven.add(clip.times_s[number], clip.frames[number][:1])
    (path,) = export_clip(uneven, tmp_path / "clip.bvh", MODEL)
    text = path.read_text()
    assert bvh.Bvh(text).nframes == kept[-1] + 1
    for number, shown in ((9, 9), (13, 13), (14, 13), (15, 13), (16, 16)):
        hand = hand_of(shown, 0)
        assert hand is not None
        wanted = (hand.joints + hand.translation) * TO_YUP
        np.testing.assert_allclose(bvh_keypoints(text, number), wanted, atol=5e-6)
    uneven.add(1e9, clip.frames[0][:1])
    with pytest.raises(ValueError, match="pauses too long"):
        export_clip(uneven, tmp_path / "clip.bvh", MODEL)


def test_euler_angles_turn_as_their_rotations_also_where_they_lock():
    turns = Rotation.random(200, random_state=3)
    locked = Rotation.from_euler("ZXY", [[30, 90, 10], [-170, -90, 60], [0, 90, 0]], degrees=True)
    for some in (turns, locked):
        again = Rotation.from_euler("ZXY", euler_zxy(some.as_matrix()))
        assert (some.inv() * again).magnitude().max() < 1e-7


@pytest.mark.parametrize("order", ["freihand", "openxr"])
def test_json_of_a_clip_keeps_its_schema(clip, tmp_path, order):
    export_clip(clip, tmp_path / "clip.json", MODEL, keypoints=order)
    document = json.loads((tmp_path / "clip.json").read_text())
    jsonschema.validate(document, json.loads((ASSETS / "hands.schema.json").read_text()))
    assert document["fps"] == FPS
    assert [len(frame["hands"]) for frame in document["frames"]] == [len(hands) for hands in HANDS]
    hand, record = HANDS[4][1], document["frames"][4]["hands"][1]
    names = document["keypoint_names"]
    assert len(record["joints"]) == len(record["joints_2d"]) == len(names) == (21 if order == "freihand" else 26)
    for row, name in enumerate(KEYPOINTS):
        np.testing.assert_array_equal(np.float32(record["joints"][names.index(name)]), hand.joints[row])
        np.testing.assert_array_equal(np.float32(record["joints_2d"][names.index(name)]), hand.joints_2d[row])
    np.testing.assert_array_equal(np.float32(record["hand_pose"]), hand.hand_pose)


def test_npz_in_capitals_is_npz(clip, tmp_path):
    export_clip(clip, tmp_path / "clip.NPZ", MODEL)
    with np.load(tmp_path / "clip.NPZ") as content:
        assert "joints" in content
    assert len(list(tmp_path.iterdir())) == 1


def test_openxr_joints_lie_on_the_bones_of_the_palm(clip, tmp_path):
    export_clip(clip, tmp_path / "clip.npz", MODEL, keypoints="openxr")
    with np.load(tmp_path / "clip.npz") as content:
        joints, pixels = content["joints"][0].astype(np.float64), content["joints_2d"][0]
        assert tuple(content["keypoint_names"]) == OPENXR
    at = {name: joints[row] for row, name in enumerate(OPENXR)}
    for finger in ("index", "middle", "ring", "little"):
        start, end = at[f"{finger}_metacarpal"], at[f"{finger}1"]
        assert np.linalg.norm(start) + np.linalg.norm(end - start) == pytest.approx(np.linalg.norm(end), abs=1e-6)
        assert 0 < np.linalg.norm(start) < 0.5 * np.linalg.norm(end)
    np.testing.assert_allclose(at["palm"], 0.5 * (at["middle_metacarpal"] + at["middle1"]), atol=1e-7)
    seen = CAMERA.project(joints + HANDS[0][0].translation)
    np.testing.assert_allclose(pixels, seen, atol=1e-2)


def test_npz_gives_smplx_the_same_hands(clip, tmp_path):
    """MANO's way: turned about the wrist joint where it lies at rest, then moved by transl; a left hand mirrored."""
    export_clip(clip, tmp_path / "clip.npz", MODEL)
    with np.load(tmp_path / "clip.npz") as content:
        rows = dict(content)
    assert rows["frame_count"] == FRAMES
    assert rows["frame"].tolist() == [number for number, hands in enumerate(HANDS) for _ in hands]
    np.testing.assert_allclose(rows["time_s"], 3.0 + rows["frame"] / FPS)
    model = HandModel(MODEL, torch.float64)
    for row in (0, 1, len(rows["frame"]) - 1):
        hand = hand_of(int(rows["frame"][row]), int(rows["track_id"][row]))
        assert hand is not None
        assert rows["side"][row] == hand.side
        vectors = np.concatenate([rows["global_orient"][row][None], rows["hand_pose"][row].reshape(15, 3)])
        left = hand.side == "left"
        turns = Rotation.from_rotvec(vectors * ([1, -1, -1] if left else [1, 1, 1])).as_matrix()
        with torch.no_grad():
            mesh = model(torch.tensor(turns), torch.tensor(rows["betas"][row].astype(float)))
        vertices = mesh.vertices.numpy() * ([-1, 1, 1] if left else [1, 1, 1]) + rows["transl"][row]
        np.testing.assert_allclose(vertices, hand.vertices + hand.translation, atol=2 * MICRON)


def test_flickering_sides_do_not_break_a_track(clip, caplog):
    odd = hand_of(3, 0)
    assert odd is not None
    clip.frames[3][0] = replace(odd, side="left")
    right, left = clip.tracks()
    assert (right.name, left.name) == ("right_0", "left_1")
    assert 3 not in right.frames
    assert "track 0 changes its side: 1 of 20" in caplog.text


def test_bad_names_and_empty_clips_are_refused(clip, tmp_path):
    with pytest.raises(ValueError, match=r"\.glb, \.bvh, \.json, \.npz.*folder"):
        export_clip(clip, tmp_path / "clip.obj")
    empty = Clip(FPS)
    empty.add(0.0, [])
    with pytest.raises(ValueError, match="no hand in 1 frames"):
        export_clip(empty, tmp_path / "clip.glb")
    assert not list(tmp_path.iterdir())


def test_rest_hand_keypoints_follow_the_models(clip):
    from handmesh.kinematics import RestHand

    for track in clip.tracks():
        rest = RestHand.from_model(MODEL, track.betas, track.side)
        _, joints = rest.turned(track.rotations)
        for row, number in enumerate(track.frames):
            hand = hand_of(int(number), track.track_id)
            assert hand is not None
            np.testing.assert_allclose(joints[row], hand.joints, atol=MICRON)
    assert KEYPOINT_PARENTS[1] == 0


def test_clips_refuse_what_no_file_could_hold(clip):
    for fps in (0.0, float("nan")):
        with pytest.raises(ValueError, match="fps must be a positive number"):
            Clip(fps)
    new = Clip(FPS)
    new.add(0.1, clip.frames[0])
    for time_s in (0.1, 0.0, float("nan")):
        with pytest.raises(ValueError, match="must be finite and increase"):
            new.add(time_s, [])
    with pytest.raises(ValueError, match="one track_id"):
        new.add(0.2, [clip.frames[0][0]] * 2)
    assert new.times_s == [0.1]


@pytest.mark.parametrize("start_s", [0.3, 1.7, 12.34])
def test_rounding_hides_no_hand_at_the_end(start_s):
    times_s = start_s + np.arange(5) / 5
    _, shown = _visibility(times_s - start_s, np.arange(5), times_s[-1] + 0.2 - start_s, 0.2)
    assert shown[-1]
