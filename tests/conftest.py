"""Fixtures shared by all tests: an estimator on stub networks and frames with drawn hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import graphs
import numpy as np
import pytest

from handmesh.assets import HandModelArrays, save_hand_model
from handmesh.detector import HandDetector
from handmesh.estimator import HandMeshEstimator
from handmesh.runtime import load_graph
from handmesh.skeleton import MANO_PARENTS


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """In its block no file grows beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")

    @contextmanager
    def limited(most: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def stub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hand.onnx, pose.onnx and detector.onnx that see the squares of `graphs.draw_hand`."""
    folder = tmp_path_factory.mktemp("stubs")
    graphs.build_hand_graph(folder / "hand.onnx")
    graphs.build_pose_graph(folder / "pose.onnx")
    graphs.build_detector_graph(folder / "detector.onnx")
    return folder


@pytest.fixture(scope="session")
def stub_hand_model(stub_folder: Path) -> Path:
    """A hand model's file with the stub networks' faces."""
    V = len(graphs.VERTICES)
    model = HandModelArrays(
        v_template=graphs.VERTICES,
        shapedirs=np.zeros((V, 3, 10)),
        posedirs=np.zeros((V, 3, 135)),
        J_regressor=np.full((16, V), 1 / V),
        weights=np.full((V, 16), 1 / 16),
        parents=np.array(MANO_PARENTS),
        faces=graphs.FACES,
        hands_components=np.eye(45),
        hands_mean=np.zeros(45),
        fingertips=np.arange(5),
    )
    save_hand_model(stub_folder / "hand_model.npz", model)
    return stub_folder / "hand_model.npz"


@pytest.fixture
def make_estimator(stub_folder: Path, tmp_path: Path) -> Callable[..., HandMeshEstimator]:
    """Builds a stub estimator; keyword arguments replace outputs of its hand network by constants."""

    def make(*, detector: bool = True, presence_threshold: float | None = 0.5, **fixed) -> HandMeshEstimator:
        hand = graphs.build_hand_graph(tmp_path / "hand.onnx", **fixed) if fixed else stub_folder / "hand.onnx"
        return HandMeshEstimator(
            load_graph(hand, "hand", threads=1),
            load_graph(stub_folder / "pose.onnx", "hand_model", threads=1),
            graphs.FACES,
            detector=HandDetector.from_pretrained(stub_folder / "detector.onnx", threads=1) if detector else None,
            presence_threshold=presence_threshold,
        )

    return make


@pytest.fixture
def estimator(make_estimator: Callable[..., HandMeshEstimator]) -> HandMeshEstimator:
    """An estimator that sees the squares of `graphs.draw_hand`."""
    return make_estimator()


@pytest.fixture
def dim_frame() -> np.ndarray:
    """(512, 640, 3) uint8 dark noise, in which no hand is found."""
    return np.random.default_rng(0).integers(0, 50, (512, 640, 3), np.uint8)
