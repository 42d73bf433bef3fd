from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handmesh import assets
from handmesh.assets import (
    HAND_MODEL,
    HandModelArrays,
    convert_mano,
    load_hand_model,
    save_hand_model,
    save_npz,
    weights_path,
)
from handmesh.mano_pickle import read_mano_pickle
from handmesh.skeleton import FINGERS, MANO_FINGERTIPS, MANO_JOINTS, MANO_PARENTS

# ------------------------------------------------------------------------------------------- the embedded hand model


@pytest.fixture(scope="module")
def model() -> HandModelArrays:
    return load_hand_model()


def test_embedded_model_is_small() -> None:
    assert HAND_MODEL.stat().st_size < 1.5e6


def test_embedded_model_is_watertight_and_faces_outwards(model: HandModelArrays) -> None:
    import trimesh

    mesh = trimesh.Trimesh(model.v_template, model.faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert 1e-4 < mesh.volume < 6e-4  # cubic metres; positive only if faces look outwards


def test_embedded_model_lies_like_manos_right_hand(model: HandModelArrays) -> None:
    joints = dict(zip(MANO_JOINTS, model.J_regressor @ model.v_template, strict=True))
    middle, index, little = joints["middle1"], joints["index1"], joints["little1"]
    assert np.linalg.norm(joints["wrist"]) < 5e-4
    assert middle[0] < -0.07  # fingers along -x
    assert abs(middle[1]) < 1e-3
    assert abs(middle[2]) < 1e-3
    assert index[2] > 0.015 > -0.015 > little[2]  # the index side is +z
    tips = model.v_template[model.fingertips]
    assert (tips[:, 1] < -0.01).all()  # fingers curl towards the palm, -y
    assert tips[0, 2] > 0.03  # the thumb is on the index side


def test_embedded_fingertips_end_their_fingers(model: HandModelArrays) -> None:
    joints = model.J_regressor @ model.v_template
    for finger, tip in zip(FINGERS, model.fingertips, strict=True):
        last = MANO_JOINTS.index(f"{finger}3")
        own = np.flatnonzero(model.weights[:, last] > 0.5)
        assert tip in own
        reach = np.linalg.norm(model.v_template[own] - joints[last], axis=1)
        assert np.linalg.norm(model.v_template[tip] - joints[last]) > reach.max() - 0.003


def test_embedded_betas_move_every_coordinate_of_the_size_axis(model: HandModelArrays) -> None:
    energy = (model.shapedirs.astype(np.float64) ** 2).sum((0, 1))
    assert (np.diff(energy) <= 0).all()  # strongest first
    flat = model.shapedirs.reshape(-1, 10).astype(np.float64)
    gram = flat.T @ flat / np.sqrt(np.outer(energy, energy))
    np.testing.assert_allclose(gram, np.eye(10), atol=1e-3)
    lengths = [np.ptp((model.v_template + b * model.shapedirs[..., 0])[:, 0]) for b in (-2, 0, 2)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_embedded_wrist_loop_is_a_ring_round_the_cap(model: HandModelArrays) -> None:
    assert model.wrist_loop is not None
    loop = model.wrist_loop.tolist()
    edges = {frozenset(edge) for a, b, c in model.faces.tolist() for edge in ((a, b), (b, c), (c, a))}
    assert len(set(loop)) == len(loop)
    assert all(frozenset(edge) in edges for edge in zip(loop, loop[1:] + loop[:1], strict=True))
    assert (model.v_template[loop, 0] > 0.005).all()  # behind the wrist joint
    np.testing.assert_array_equal(model.weights[loop, 0], 1)


def test_embedded_pose_space_is_orthonormal(model: HandModelArrays) -> None:
    np.testing.assert_allclose(model.hands_components @ model.hands_components.T, np.eye(45), atol=1e-4)


def test_embedded_texture_covers_the_unit_square_without_overlap(model: HandModelArrays) -> None:
    assert model.uv is not None
    assert model.uv_faces is not None
    assert model.uv.min() >= 0
    assert model.uv.max() <= 1
    a, b, c = (model.uv[model.uv_faces[:, i]].astype(np.float64) for i in range(3))
    edge, other = b - a, c - a
    area = np.abs(edge[:, 0] * other[:, 1] - edge[:, 1] * other[:, 0]).sum() / 2
    assert 0.2 < area < 1
    position = {}
    for corners, texels in zip(model.faces.tolist(), model.uv_faces.tolist(), strict=True):
        for vertex, texel in zip(corners, texels, strict=True):
            assert position.setdefault(texel, vertex) == vertex  # a texel belongs to one vertex


# -------------------------------------------------------------------------------------------------- files, good and bad


def test_saved_model_reads_back_and_is_byte_identical(model: HandModelArrays, tmp_path: Path) -> None:
    save_hand_model(tmp_path / "a.npz", model)
    again = load_hand_model(tmp_path / "a.npz")
    save_hand_model(tmp_path / "b.npz", again)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for name in ("v_template", "shapedirs", "weights", "J_regressor", "faces", "uv", "wrist_loop", "fingertips"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


def test_suffixes_may_be_in_capitals(model: HandModelArrays, tmp_path: Path) -> None:
    save_hand_model(tmp_path / "hand.NPZ", model)
    np.testing.assert_array_equal(load_hand_model(tmp_path / "hand.NPZ").faces, model.faces)


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(
    model: HandModelArrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("handmesh.atomic.os.open", refuse)
    with pytest.raises(PermissionError, match=r"cannot write there: Permission denied: '.*/hand\.npz'"):
        save_hand_model(tmp_path / "hand.npz", model)


def test_saving_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        save_npz(tmp_path / "a.npz", {"good": np.zeros(3), "object": np.array([object()])})
    assert list(tmp_path.iterdir()) == []


def test_missing_model_states_the_licence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MANO_RIGHT\.pkl.*licensed"):
        load_hand_model(tmp_path / "MANO_RIGHT.pkl")


def mano_arrays(model: HandModelArrays) -> dict[str, np.ndarray]:
    with np.load(HAND_MODEL) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("key", ["v_template", "shapedirs", "weights", "kintree_table", "f", "fingertips"])
def test_missing_key_is_named(model: HandModelArrays, tmp_path: Path, key: str) -> None:
    arrays = mano_arrays(model)
    del arrays[key]
    save_npz(tmp_path / "m.npz", arrays)
    with pytest.raises(ValueError, match=rf"m\.npz .*{key}"):
        load_hand_model(tmp_path / "m.npz")


BAD: dict[str, Any] = {
    "v_template": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a),
    "shapedirs": lambda a: a[..., :9],
    "weights": lambda a: a * 0.5,
    "J_regressor": lambda a: a[:, :-1],
    "f": lambda a: a + 1,
    "fingertips": lambda a: a - 10_000,
    "kintree_table": lambda a: a[:, ::-1],
    "posedirs": lambda a: a.astype("U8"),
    "uv_faces": lambda a: a + 1_000_000,
    "hands_mean": lambda a: a[None],
}


@pytest.mark.parametrize("key", BAD)
def test_bad_array_is_named(model: HandModelArrays, tmp_path: Path, key: str) -> None:
    arrays = mano_arrays(model)
    arrays[key] = BAD[key](arrays[key])
    save_npz(tmp_path / "m.npz", arrays)
    field = {"f": "faces", "kintree_table": "parents"}.get(key, key)
    with pytest.raises(ValueError, match=rf"m\.npz .*{field}"):
        load_hand_model(tmp_path / "m.npz")


@pytest.mark.parametrize("keep", [0, 10, 1000, 100_000, -1])
def test_truncated_model_is_a_value_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(HAND_MODEL.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"m\.npz"):
        load_hand_model(path)


def test_damaged_bytes_are_a_value_error(tmp_path: Path) -> None:
    content = bytearray(HAND_MODEL.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.npz"):
        load_hand_model(tmp_path / "m.npz")


def test_other_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hand.obj").touch()
    with pytest.raises(ValueError, match=r"\.npz or a MANO \.pkl"):
        load_hand_model(tmp_path / "hand.obj")


def test_uv_needs_uv_faces(model: HandModelArrays) -> None:
    with pytest.raises(ValueError, match="together"):
        replace(model, uv=None)


# ------------------------------------------------------------------------------------------------------ MANO's pickle

#: Writes a stand-in for MANO_RIGHT.pkl the way Python 2 did: chumpy objects, a scipy matrix, protocol 2 or 0.
FAKE_CHUMPY = """
import copyreg, pickle, sys, types
import numpy as np

def module(name, **members):
    made = types.ModuleType(name)
    for key, member in members.items():
        member.__module__ = name
        setattr(made, key, member)
    sys.modules[name] = made

class Ch:
    def __init__(self, **state):
        self.__dict__.update(state)

class Select(Ch):
    pass

class csc_matrix(Ch):
    pass

module("chumpy")
module("chumpy.ch", Ch=Ch)
module("chumpy.reordering", Select=Select)
module("scipy.sparse.csc", csc_matrix=csc_matrix)

arrays = dict(np.load(sys.argv[1]))
regressor = arrays["J_regressor"].astype("f8")
columns = [np.flatnonzero(column) for column in regressor.T]
arrays["J_regressor"] = csc_matrix(
    _shape=regressor.shape, maxprint=50,
    data=np.concatenate([regressor[rows, j] for j, rows in enumerate(columns)]),
    indices=np.concatenate(columns).astype("i4"),
    indptr=np.cumsum([0] + [len(rows) for rows in columns]).astype("i4"),
)
full = np.concatenate((arrays["shapedirs"], np.zeros_like(arrays["shapedirs"])), axis=2).astype("f8")
picked = np.arange(full.size).reshape(full.shape)[..., :10]
arrays["shapedirs"] = Select(
    a=Ch(x=full, _status="new"), idxs=picked.ravel(), preferred_shape=picked.shape, _dirty_vars=set()
)
arrays["v_template"] = Ch(x=arrays["v_template"].astype("f8"))
arrays["kintree_table"] = arrays["kintree_table"].astype("u4")
arrays |= {"bs_style": "lbs", "bs_type": "lrotmin"}
with open(sys.argv[2], "wb") as file:
    pickle.dump(arrays, file, protocol=int(sys.argv[3]))
"""


def write_fake_mano(target: Path, protocol: int) -> None:
    subprocess.run([sys.executable, "-c", FAKE_CHUMPY, str(HAND_MODEL), str(target), str(protocol)], check=True)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_mano_pickle_is_read_without_chumpy(model: HandModelArrays, tmp_path: Path, protocol: int) -> None:
    assert "chumpy" not in sys.modules
    path = tmp_path / "MANO_RIGHT.pkl"
    write_fake_mano(path, protocol)
    found = load_hand_model(path)
    for name in ("v_template", "shapedirs", "J_regressor", "weights", "parents", "faces", "hands_mean"):
        np.testing.assert_array_equal(getattr(found, name), getattr(model, name))


def test_mano_is_converted_once(tmp_path: Path) -> None:
    pkl, npz = tmp_path / "MANO_RIGHT.pkl", tmp_path / "made" / "mano_right.npz"
    write_fake_mano(pkl, 2)
    convert_mano(pkl, npz)
    np.testing.assert_array_equal(load_hand_model(npz).shapedirs, load_hand_model(pkl).shapedirs)
    assert [path.name for path in npz.parent.iterdir()] == ["mano_right.npz"]


def test_fingertips_of_manos_own_mesh_come_from_the_table() -> None:
    rng = np.random.default_rng(0)
    raw = {
        "v_template": rng.normal(size=(778, 3)),
        "shapedirs": rng.normal(size=(778, 3, 10)),
        "posedirs": rng.normal(size=(778, 3, 135)),
        "J_regressor": np.full((16, 778), 1 / 778),
        "weights": np.full((778, 16), 1 / 16),
        "kintree_table": np.array([[2**32 - 1, *MANO_PARENTS[1:]], range(16)], dtype=np.uint32),
        "f": np.zeros((1538, 3), dtype=np.uint32),
        "hands_components": np.eye(45),
        "hands_mean": np.zeros(45),
    }
    found = assets._arrays_from_mano(raw)
    assert tuple(found.fingertips) == MANO_FINGERTIPS["freihand"]
    assert tuple(found.parents) == MANO_PARENTS


def test_left_hand_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MANO_LEFT.pkl").touch()
    with pytest.raises(ValueError, match="MANO_RIGHT"):
        load_hand_model(tmp_path / "MANO_LEFT.pkl")


class Evil:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("function", ["system", "open", "eval", "copyreg", "load"])
def test_malicious_pickle_raises_and_runs_nothing(tmp_path: Path, function: str, protocol: int) -> None:
    import builtins

    trace = tmp_path / "trace"
    evil = {
        "system": Evil(os.system, f"touch {trace}"),
        "open": Evil(builtins.open, str(trace), "w"),
        "eval": Evil(eval, f"open({str(trace)!r}, 'w')"),
        "copyreg": Evil(Path.touch, trace),
        "load": Evil(np.load, str(trace)),
    }[function]
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"v_template": evil}, protocol=protocol))
    with pytest.raises(ValueError, match="nothing was run"):
        load_hand_model(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cchumpy.ch\n__builtins__\n.",  # a name under chumpy is a record, never an import
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"\x80\x02}X\x01\x00\x00\x00acchumpy.ch\nCh\n)\x81s.",  # an object without a state
    ],
)
def test_handwritten_pickles_are_refused(tmp_path: Path, attack: bytes) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(attack)
    with pytest.raises(ValueError, match=r"MANO pickle|into an array"):
        read_mano_pickle(path)


class EvilState(Evil):
    """Pickles to a call, and to a state of what comes of it."""

    def __init__(self, state: Any, function: Any, *arguments: Any) -> None:
        super().__init__(function, *arguments)
        self.state = state

    def __reduce__(self) -> Any:
        return *self.call, self.state


def test_pickled_dtypes_cannot_point_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A dtype of eight bytes that are a pointer to an object, while its flags say that there is none.
    pointer = EvilState((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0), np.dtype, "V8", False, True)
    shape = Evil(np.ndarray, (2,), pointer, b"A" * 16)

    class csc_matrix:  # noqa: N801 (scipy's)
        def __reduce__(self) -> Any:
            rest = {"data": np.ones(1), "indices": np.zeros(1, int), "indptr": np.array([0, 1])}
            return csc_matrix, (), {"_shape": shape, **rest}

    csc_matrix.__module__, csc_matrix.__qualname__ = "scipy.sparse.csc", "csc_matrix"
    module = types.ModuleType("scipy.sparse.csc")
    module.csc_matrix = csc_matrix  # pyright: ignore
    monkeypatch.setitem(sys.modules, "scipy.sparse.csc", module)
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"J_regressor": csc_matrix()}, protocol=2))
    code = f"from handmesh.mano_pickle import read_mano_pickle\nread_mano_pickle({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1  # an error of Python's, no crash
    assert "cannot be read as a MANO pickle" in done.stderr


def test_pickles_change_nothing_here(tmp_path: Path) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    # The function by which arrays are made, with other defaults: GLOBAL, then BUILD with a state for slots.
    path.write_bytes(b"cnumpy.core.multiarray\n_reconstruct\n(N(dS'__defaults__'\n(I1\nI2\nI3\ntstb.")
    with pytest.raises(ValueError, match="a function has no state"):
        read_mano_pickle(path)


def test_array_within_itself_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    itself = b"cchumpy.ch\nCh\n)\x81q\x01}X\x01\x00\x00\x00xh\x01sb"  # made, remembered, then its own "x"
    path.write_bytes(b"\x80\x02}X\x0a\x00\x00\x00v_template" + itself + b"s.")
    with pytest.raises(ValueError, match="v_template"):
        read_mano_pickle(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"f": np.zeros(3)})])
def test_wrong_pickle_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"MANO_RIGHT\.pkl"):
        load_hand_model(path)


def test_truncated_pickle_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    write_fake_mano(path, 2)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"MANO_RIGHT\.pkl"):
        load_hand_model(path)


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of one weights file, `net`, in a folder of its own."""
    content = b"weights" * 1000
    (tmp_path / "net.onnx").write_bytes(content)
    record = {"file": "net.onnx", "sha256": hashlib.sha256(content).hexdigest(), "kind": "hand"}
    (tmp_path / "weights.json").write_text(json.dumps({"net": record}))
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    monkeypatch.setattr(assets, "WEIGHTS_REGISTRY", tmp_path / "weights.json")
    return tmp_path


def test_weights_by_name(registry: Path) -> None:
    assert weights_path("net") == registry / "net.onnx"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"x" + b[1:]])
def test_damaged_weights_name_file_and_checksums(registry: Path, damage: Any) -> None:
    path = registry / "net.onnx"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(damage(path.read_bytes()))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"net\.onnx") as error:
        weights_path("net")
    assert all(part in str(error.value) for part in (expected, found, "Reinstall"))


def test_missing_weights_are_named(registry: Path) -> None:
    (registry / "net.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.onnx.*Reinstall"):
        weights_path("net")


def test_unknown_name_lists_known_ones(registry: Path) -> None:
    with pytest.raises(ValueError, match="unknown weights 'nett'; known are net"):
        weights_path("nett")


def test_own_weights_by_path(registry: Path) -> None:
    own = registry / "own.onnx"
    own.write_bytes(b"mine")
    assert weights_path(own) == own
    assert weights_path(str(own)) == own
    with pytest.raises(FileNotFoundError, match=r"other\.onnx"):
        weights_path(registry / "other.onnx")


@pytest.mark.parametrize("content", ["{", "[]", '{"net": {"file": "net.onnx"}}'])
def test_damaged_registry_is_a_value_error(registry: Path, content: str) -> None:
    (registry / "weights.json").write_text(content)
    with pytest.raises(ValueError, match=r"weights\.json"):
        weights_path("net")


def test_missing_registry_is_named(registry: Path) -> None:
    (registry / "weights.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.json"):
        weights_path("net")


def test_assets_import_without_torch() -> None:
    code = "import sys, handmesh.assets; assert not {'torch', 'scipy', 'cv2', 'trimesh'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
