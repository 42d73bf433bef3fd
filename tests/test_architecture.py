"""The package's shape: which file may import which, what the core never imports, and imports that do nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import handmesh

PACKAGE = Path(handmesh.__file__).parent

# A file imports only from files of a lower number.
LAYERS = {
    "skeleton": 0,
    "mano_pickle": 0,
    "atomic": 0,
    "mistakes": 0,
    "image_folders": 0,
    "records": 1,
    "crop": 1,
    "alignment": 1,
    "assets": 1,
    "raster": 1,
    "normals": 0,
    "distortion": 0,
    "placement": 2,
    "intrinsics": 2,
    "calibrate": 2,
    "hand_size": 2,
    "keypoints": 2,
    "kinematics": 2,
    "runtime": 2,
    "smoothing": 2,
    "render": 2,
    "export": 3,
    "clip": 3,
    "duplicates": 2,
    "handedness": 2,
    "refine": 3,
    "track": 3,
    "identity": 4,
    "gltf": 4,
    "bvh": 4,
    "clip_export": 5,
    "video": 2,
    "detector": 3,
    "estimator": 4,
    "tracker": 5,
    "annotate": 6,
    "ahead": 3,
    "live": 6,
    "server": 6,
    "bulk": 6,
    "cli": 7,
    "__main__": 8,
}

# Imports inside a function that go up on purpose.
UPWARD = {
    ("records", "export"),  # HandMesh.save hands the record to its writer
    ("records", "intrinsics"),  # Camera.from_file
    ("runtime", "model"),  # runtime="torch" runs the network as training saved it
}

# Parts that need the train extra, lowest first: each imports only from parts before it and from the core.
TRAINING_PARTS = ["model", "synthesis", "datasets", "evaluation", "training"]

HEAVY = {"torch", "torchvision", "timm", "numba", "anny", "smplx", "onnx", "onnxscript", "safetensors", "matplotlib"}
TORCH_ADAPTER = "runtime"

# Packages of the scale extra, each with the one file that imports it.
SCALE = {"ray": "bulk/ray_cluster.py", "pyarrow": "bulk/parquet.py"}

CORE_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
BULK_FILES = sorted((PACKAGE / "bulk").glob("*.py"))
SERVER_FILES = sorted((PACKAGE / "server").rglob("*.py"))
TRAINING_FILES = sorted(path for part in TRAINING_PARTS for path in (PACKAGE / part).rglob("*.py"))
ALL_FILES = [PACKAGE / "__init__.py", *CORE_FILES, *BULK_FILES, *SERVER_FILES, *TRAINING_FILES]


def part_of(path: Path) -> str:
    """The name a file has in the tables above: its own, or its folder's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative import"
            assert node.module is not None
            if node.module == "handmesh":
                yield from (f"handmesh.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            else:
                yield node.module


def own_imports(path: Path) -> set[str]:
    """The parts of handmesh that a file imports, without its own folder."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("handmesh.")}
    return parts - ({part_of(path)} if path.parent != PACKAGE else set())


@pytest.mark.parametrize("path", [*CORE_FILES, *BULK_FILES, *SERVER_FILES], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_files_import_only_from_lower_layers(path):
    name = part_of(path)
    assert name in LAYERS, f"give {name}.py its place in the table of layers"
    for other in own_imports(path):
        if (name, other) in UPWARD or (name == "cli" and other in TRAINING_PARTS):
            continue
        assert other in LAYERS, f"{name}.py imports handmesh.{other}, which the core must not need"
        assert LAYERS[other] < LAYERS[name], f"{name}.py (layer {LAYERS[name]}) imports {other}.py ({LAYERS[other]})"


@pytest.mark.parametrize("path", [*CORE_FILES, *BULK_FILES, *SERVER_FILES], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_files_never_import_the_training_libraries(path):
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    allowed = {"torch"} if part_of(path) == TORCH_ADAPTER else set()
    assert heavy <= allowed, f"{path.name} imports {sorted(heavy - allowed)}"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_of_the_scale_extra_are_imported_in_one_file_each(path):
    found = {name.split(".")[0] for name in imports(path)} & {*SCALE, "pandas"}
    assert found == {name for name, home in SCALE.items() if path == PACKAGE / home}


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_training_parts_import_only_from_earlier_parts(path):
    place = TRAINING_PARTS.index(part_of(path))
    later = own_imports(path) & {*TRAINING_PARTS[place + 1 :], "cli", "__main__", "server"}
    assert not later, f"{path.relative_to(PACKAGE)} imports {sorted(later)}"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_only_define_things(path):
    """Top-level code defines names: it calls nothing for its effect and writes into nobody else's object."""
    for node in ast.parse(path.read_text()).body:
        where = f"{path.relative_to(PACKAGE)}, line {node.lineno}"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{where}: a call or expression for its effect"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
            assert all(isinstance(name, ast.Name) for name in names), f"{where}: assigns into another object"
        elif isinstance(node, ast.If):
            test = ast.unparse(node.test)
            assert test in ("TYPE_CHECKING", "__name__ == '__main__'"), f"{where}: runs code at import"
        else:
            definitions = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            assert isinstance(node, definitions), f"{where}: {type(node).__name__} at import"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = "import json, sys, handmesh; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(run_python(code)))
    assert not loaded & (HEAVY | {"numpy", "cv2", "scipy", "onnxruntime", "openvino", "trimesh", "pyrender"})


def test_importing_the_core_loads_no_training_library_and_has_no_effect():
    modules = [f"handmesh.{path.stem}" for path in CORE_FILES if path.stem != "__main__"]
    modules += [f"handmesh.bulk.{path.stem}" for path in BULK_FILES if path.stem != "__init__"]
    code = f"""
import importlib, json, logging, os, sys, threading
import cv2  # sets variables for Qt's fonts by itself
before = dict(os.environ), len(logging.getLogger().handlers), threading.active_count()
for name in {modules!r}:
    importlib.import_module(name)
from handmesh import *
assert (dict(os.environ), len(logging.getLogger().handlers), threading.active_count()) == before
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 1, "importing prints"
    assert not set(json.loads(lines[0])) & (HEAVY | {"onnxruntime", "openvino", "pyrender", *SCALE})


def test_an_estimator_runs_where_torch_is_not_installed(stub_folder):
    code = f"""
import sys
for name in {sorted(HEAVY)!r}:
    sys.modules[name] = None  # importing it raises ImportError
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import numpy as np
from handmesh import HandDetector, HandMeshEstimator, HandTracker
from handmesh.runtime import load_graph
folder = Path({str(stub_folder)!r})
network, poses = (load_graph(folder / f"{{n}}.onnx", k) for n, k in (("hand", "hand"), ("pose", "hand_model")))
detector = HandDetector.from_pretrained(folder / "detector.onnx")
estimator = HandMeshEstimator(network, poses, np.array([[0, 1, 2], [3, 4, 5]]), detector=detector)
frame = np.zeros((512, 640, 3), np.uint8)
frame[100:228, 100:164, 0] = frame[100:228, 164:228, 1] = 255
(hand,) = estimator(frame)
(tracked,) = HandTracker(estimator)(frame, 0.0)
print(hand.side, tracked.track_id)
try:
    load_graph(folder / "hand.onnx", "hand", runtime="torch")
except ImportError as error:
    print(error)
"""
    first, second = run_python(code).splitlines()
    assert first == "right 0"
    assert "pip install 'handmesh[train]'" in second


def test_every_public_name_is_there_and_no_other():
    for name in handmesh.__all__:
        assert getattr(handmesh, name) is not None
        assert name in dir(handmesh)
    with pytest.raises(AttributeError, match="no attribute 'HandMeshh'"):
        _ = handmesh.HandMeshh
