"""Where hand models and network weights lie, and how they are read safely.

A hand model is an ``.npz`` in MANO's layout (the embedded one needs no licence) or a licensed ``MANO_RIGHT.pkl``.
Network weights are known by name in a table with their checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.atomic import written_whole
from handmesh.mano_pickle import read_mano_pickle
from handmesh.skeleton import MANO_FINGERTIPS, MANO_PARENTS, MANO_VERTEX_COUNT

ASSETS = Path(__file__).parent / "assets"
HAND_MODEL = ASSETS / "hand_model.npz"
WEIGHTS_REGISTRY = ASSETS / "weights.json"

_LICENCE_MESSAGE = (
    "MANO is licensed by the Max Planck Society and cannot be shipped with handmesh: accept its licence at "
    "https://mano.is.tue.mpg.de, download the models and pass the path of MANO_RIGHT.pkl. "
    "Without it, leave the path out: the embedded open hand model needs no licence."
)

_JOINTS = len(MANO_PARENTS)

#: What numpy raises for a file that is cut off, damaged, pickled or no archive at all.
_NO_NPZ = (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class HandModelArrays:
    """A right-hand model in MANO's layout. Metres; V vertices, F triangles facing outwards.

    Raises ValueError naming the field if a shape, an index or a value is wrong. Arrays are converted to these dtypes.
    """

    v_template: np.ndarray  # (V, 3) float32, mean shape in the zero pose
    shapedirs: np.ndarray  # (V, 3, 10) float32, metres per standard deviation
    posedirs: np.ndarray  # (V, 3, 135) float32
    J_regressor: np.ndarray  # (16, V) float32
    weights: np.ndarray  # (V, 16) float32, rows sum to 1
    parents: np.ndarray  # (16,) int64, -1 for the root
    faces: np.ndarray  # (F, 3) int32
    hands_components: np.ndarray  # (45, 45) float32, principal poses as rows
    hands_mean: np.ndarray  # (45,) float32, mean pose as rotation vectors, radians
    fingertips: np.ndarray  # (5,) int64, vertex ids thumb to little
    uv: np.ndarray | None = None  # (T, 2) float32 in [0, 1], v up
    uv_faces: np.ndarray | None = None  # (F, 3) int32 into uv
    wrist_loop: np.ndarray | None = None  # (L,) int64, ordered border ring where the wrist was cut

    def __post_init__(self) -> None:
        V, F = len(np.atleast_1d(self.v_template)), len(np.atleast_1d(self.faces))
        layout: dict[str, tuple[type, tuple[int | None, ...]]] = {
            "v_template": (np.float32, (V, 3)),
            "shapedirs": (np.float32, (V, 3, 10)),
            "posedirs": (np.float32, (V, 3, 9 * (_JOINTS - 1))),
            "J_regressor": (np.float32, (_JOINTS, V)),
            "weights": (np.float32, (V, _JOINTS)),
            "parents": (np.int64, (_JOINTS,)),
            "faces": (np.int32, (F, 3)),
            "hands_components": (np.float32, (3 * (_JOINTS - 1), 3 * (_JOINTS - 1))),
            "hands_mean": (np.float32, (3 * (_JOINTS - 1),)),
            "fingertips": (np.int64, (5,)),
            "uv": (np.float32, (None, 2)),
            "uv_faces": (np.int32, (F, 3)),
            "wrist_loop": (np.int64, (None,)),
        }
        for name, (dtype, shape) in layout.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked(name, value, dtype, shape))
        if tuple(self.parents.tolist()) != MANO_PARENTS:
            raise ValueError(f"parents must be MANO's tree {MANO_PARENTS}, got {tuple(self.parents.tolist())}")
        if (self.uv is None) != (self.uv_faces is None):
            raise ValueError("uv and uv_faces must come together")
        for name, bound in (("faces", V), ("fingertips", V), ("wrist_loop", V), ("uv_faces", self._uv_count)):
            value = getattr(self, name)
            if value is not None and value.size and (value.min() < 0 or value.max() >= bound):
                raise ValueError(f"{name} must index 0..{bound - 1}, got {value.min()}..{value.max()}")
        if not np.allclose(self.weights.sum(1), 1, atol=1e-3):
            raise ValueError("the rows of weights must sum to 1")

    @property
    def _uv_count(self) -> int:
        return 0 if self.uv is None else len(self.uv)


def load_hand_model(path: str | os.PathLike[str] | None = None) -> HandModelArrays:
    """Read a hand model: the embedded open one, or an ``.npz`` in MANO's layout, or a licensed ``MANO_RIGHT.pkl``.

    Raises FileNotFoundError (with MANO's licence note) if there is no such file, ValueError if it is not a hand model.
    """
    path = HAND_MODEL if path is None else Path(path)
    if not path.is_file():
        note = f" {_LICENCE_MESSAGE}" if path != HAND_MODEL else " Reinstall handmesh or run data/build_hand_model.py."
        raise FileNotFoundError(f"no hand model at {path}.{note}")
    if "MANO_LEFT" in path.name.upper():
        raise ValueError(f"{path.name} is the left hand; left hands are mirrored into MANO_RIGHT, give that file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        raw: Mapping[str, Any] = read_npz(path)
    elif suffix == ".pkl":
        raw = read_mano_pickle(path)
    else:
        raise ValueError(f"a hand model must be an .npz or a MANO .pkl file, got {path}")
    try:
        return _arrays_from_mano(raw)
    except ValueError as error:
        raise ValueError(f"{path} is not a usable hand model: {error}") from error


def convert_mano(pkl: str | os.PathLike[str], npz: str | os.PathLike[str]) -> None:
    """Convert a licensed MANO pickle to an ``.npz``, once. Written whole or not at all; MANO's licence still holds."""
    model = load_hand_model(pkl)
    save_hand_model(npz, model)


def save_hand_model(path: str | os.PathLike[str], model: HandModelArrays) -> None:
    """Write a hand model as ``.npz`` under MANO's own key names. Equal models give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    for field in fields(model):
        value = getattr(model, field.name)
        if value is not None:
            arrays[{"faces": "f"}.get(field.name, field.name)] = value
    arrays["kintree_table"] = np.stack((arrays.pop("parents"), np.arange(_JOINTS)))
    save_npz(path, arrays)


def save_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` atomically, with fixed timestamps and sorted names: equal arrays give equal bytes."""
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, buffer.getvalue(), compresslevel=9)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz``, nothing pickled. Raises FileNotFoundError, and ValueError if it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except _NO_NPZ as error:
        raise ValueError(f"{path} is not a readable .npz file, it may be truncated ({error})") from error


def weights_registry() -> dict[str, dict[str, Any]]:
    """The table of embedded network weights: name -> {file, sha256, kind, ...}.

    Raises FileNotFoundError if the table is missing and ValueError if it is damaged.
    """
    if not WEIGHTS_REGISTRY.is_file():
        raise FileNotFoundError(f"the table of weights {WEIGHTS_REGISTRY} is missing. Reinstall handmesh.")
    try:
        registry = json.loads(WEIGHTS_REGISTRY.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{WEIGHTS_REGISTRY} is not valid JSON ({error}). Reinstall handmesh.") from error
    if not isinstance(registry, dict):
        raise ValueError(f"{WEIGHTS_REGISTRY} must hold an object of names. Reinstall handmesh.")
    for name, record in registry.items():
        if not isinstance(record, dict) or not {"file", "sha256", "kind"} <= record.keys():
            raise ValueError(f"{WEIGHTS_REGISTRY}: the record {name!r} lacks file, sha256 or kind. Reinstall handmesh.")
    return registry


def weights_path(name: str | os.PathLike[str]) -> Path:
    """The file of weights known by name (its SHA-256 is checked), or of the user's own weights given by path.

    Raises ValueError for an unknown name or a wrong checksum, FileNotFoundError for a missing file.
    """
    text = os.fspath(name)
    registry = weights_registry() if WEIGHTS_REGISTRY.is_file() or not Path(text).is_file() else {}
    if text not in registry:
        return _own_weights(text, known=sorted(registry))
    record = registry[text]
    path = ASSETS / record["file"]
    if not path.is_file():
        raise FileNotFoundError(
            f"the weights {text!r} should be at {path}, but there is no such file. Reinstall handmesh."
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != record["sha256"]:
        raise ValueError(
            f"the weights file {path} is damaged or has been changed: expected SHA-256 {record['sha256']}, "
            f"found {found} ({path.stat().st_size} bytes). Reinstall handmesh, or pass your own file by its path."
        )
    return path


def _own_weights(text: str, known: list[str]) -> Path:
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix or path.name != text:
        raise FileNotFoundError(f"no weights file at {path}. Embedded weights have the names: {', '.join(known)}.")
    raise ValueError(f"unknown weights {text!r}; known are {', '.join(known)}, or give the path of a file.")


def _checked(name: str, value: Any, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numeric, got dtype {array.dtype}")
    if array.ndim != len(shape) or any(w is not None and g != w for g, w in zip(array.shape, shape, strict=True)):
        expected = tuple("any" if length is None else length for length in shape)
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return np.ascontiguousarray(array, dtype=dtype)


def _arrays_from_mano(raw: Mapping[str, Any]) -> HandModelArrays:
    """MANO's own keys to our fields. Fingertips come from the file, or by FreiHAND's convention for MANO's mesh."""
    needed = (
        "v_template",
        "shapedirs",
        "posedirs",
        "J_regressor",
        "weights",
        "kintree_table",
        "f",
        "hands_components",
        "hands_mean",
    )
    missing = [key for key in needed if key not in raw]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    vertex_count = len(np.atleast_1d(raw["v_template"]))
    if "fingertips" in raw:
        fingertips = raw["fingertips"]
    elif vertex_count == MANO_VERTEX_COUNT:
        fingertips = np.array(MANO_FINGERTIPS["freihand"])
    else:
        raise ValueError(f"it lacks fingertips, and with {vertex_count} vertices it is not MANO's own mesh")
    kintree = np.asarray(raw["kintree_table"])
    if kintree.shape != (2, _JOINTS):
        raise ValueError(f"kintree_table must have shape (2, {_JOINTS}), got {kintree.shape}")
    parents = kintree[0].astype(np.int64)
    parents[0] = -1  # MANO stores the root's parent as 2**32 - 1
    return HandModelArrays(
        v_template=raw["v_template"],
        shapedirs=raw["shapedirs"],
        posedirs=raw["posedirs"],
        J_regressor=raw["J_regressor"],
        weights=raw["weights"],
        parents=parents,
        faces=raw["f"],
        hands_components=raw["hands_components"],
        hands_mean=raw["hands_mean"],
        fingertips=fingertips,
        uv=raw.get("uv"),
        uv_faces=raw.get("uv_faces"),
        wrist_loop=raw.get("wrist_loop"),
    )
