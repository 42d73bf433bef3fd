"""Predicting FreiHAND's evaluation split: the official file, its camera, its modes, and what interrupts it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hands import sphere_hand
from mano_imitation import write_mano_pickle
from samples import K, posed_hand, write_freihand

from handmesh.assets import load_hand_model
from handmesh.cli import main as handmesh
from handmesh.datasets.freihand_files import FreiHandSplit
from handmesh.evaluation.freihand_predict import (
    ONE_VIEW,
    TEST_TIME_VIEWS,
    NetworkHands,
    View,
    constant_hand,
    predict,
)
from handmesh.evaluation.freihand_score import Frames, read_prediction, read_truth, score
from handmesh.model.deploy import export_hand_network, fold
from handmesh.model.regressor import HandRegressor, NetworkConfig, save_network
from handmesh.records import Camera, HandMesh
from handmesh.skeleton import KEYPOINTS

SHARP = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]  # colours are not blurred
REPOSITORY = Path(__file__).parents[1]
RUNTIME_TOLERANCE_M = 1e-4  # float32 in another order, and the depth that hangs on it
WRIST, MIDDLE = np.array([0.02, -0.03, 0.5]), KEYPOINTS.index("middle1")
OFFSETS = np.linspace(0, 1, 21)[:, None] * [0.05, -0.06, 0.0]  # joints on a line from the wrist


def frame_of_dots(wrist: np.ndarray = WRIST) -> np.ndarray:
    """A picture of two dots: the wrist red, the last joint green."""
    image = np.zeros((224, 224, 3), np.uint8)
    for point, colour in ((wrist, (255, 0, 0)), (wrist + OFFSETS[-1], (0, 255, 0))):
        x, y, z = K @ point
        cv2.circle(image, (round(x / z * 16), round(y / z * 16)), 5 * 16, colour, -1, shift=4)
    return image


class DotReader:
    """An estimator that sees `frame_of_dots` in any camera that was rolled: joints on the line between the dots."""

    network = SimpleNamespace(number={"input_size": 128}.__getitem__)

    def __init__(self) -> None:
        self.boxes: list[np.ndarray] = []

    def batch(self, frames, boxes, sides, cameras: Sequence[Camera], turns) -> list[list[HandMesh]]:
        assert sides == [["right"]] * len(frames)
        assert turns == [[0.0]] * len(frames)
        self.boxes += [np.asarray(box)[0] for box in boxes]
        return [[self._read(frame, camera)] for frame, camera in zip(frames, cameras, strict=True)]

    def detect(self, frame: np.ndarray) -> list:
        return []

    def _read(self, frame: np.ndarray, camera: Camera) -> HandMesh:
        places = []
        for channel in (0, 1):
            weight = np.clip(frame[..., channel].astype(float) - 60, 0, 100)
            places.append(
                [(weight * axis).sum() / weight.sum() for axis in np.meshgrid(np.arange(224), np.arange(224))]
            )
        wrist, last = camera.rays(places) * WRIST[2]
        hand = sphere_hand(camera=camera, subdivisions=1)
        changes = {"translation": wrist, "joints": np.linspace(0, 1, 21)[:, None] * (last - wrist)}
        changes["vertices"] = changes["joints"][[5, 20, 10] * (len(hand.vertices) // 3)]
        values = {name: getattr(hand, name) for name in hand.__dataclass_fields__} | changes
        return HandMesh(**{**values, "faces": np.zeros((0, 3), int)})


@pytest.fixture
def dots(tmp_path: Path) -> FreiHandSplit:
    (tmp_path / "evaluation" / "rgb").mkdir(parents=True)
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"evaluation/rgb/{number:08d}.jpg"), frame_of_dots()[..., ::-1], SHARP)
    bone = float(np.linalg.norm(OFFSETS[MIDDLE + 1] - OFFSETS[MIDDLE]))
    tables = {"K": [K.tolist()] * 2, "xyz": [(WRIST + OFFSETS).tolist()] * 2, "scale": [bone, bone * 1.5]}
    for name, table in tables.items():
        (tmp_path / f"evaluation_{name}.json").write_text(json.dumps(table))
    return FreiHandSplit.open(tmp_path, "evaluation")


@pytest.mark.parametrize("views", [ONE_VIEW, [View(roll_deg=35.0)], [View(zoom=1.3)], TEST_TIME_VIEWS])
def test_hands_of_every_view_stand_in_the_true_camera(dots: FreiHandSplit, views: Sequence[View]) -> None:
    found = NetworkHands(DotReader(), dots, views=views)([0, 1])  # type: ignore[arg-type]
    for joints in found.joints:
        np.testing.assert_allclose(joints, WRIST + OFFSETS, atol=8e-4)  # half a pixel at half a metre
    np.testing.assert_allclose(found.vertices[0, :3], (WRIST + OFFSETS)[[5, 20, 10]], atol=8e-4)


def test_a_hand_at_the_edge_stays_in_the_frame_of_every_view(dots: FreiHandSplit) -> None:
    """Rolled about the principal point, a hand in a corner would leave the frame: a whole prediction stopped there."""
    corner = np.array([0.115, -0.11, 0.5])
    cv2.imwrite(str(dots.path("rgb", 0)), frame_of_dots(corner)[..., ::-1], SHARP)
    assert dots.joints is not None
    reader = DotReader()
    moved = replace(dots, joints=dots.joints - WRIST + corner)
    found = NetworkHands(reader, moved, views=[View(roll_deg=25.0)])([0])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.joints[0], corner + OFFSETS, atol=8e-4)
    assert ((reader.boxes[0] >= 0) & (reader.boxes[0] <= 223)).all()


def test_known_scale_resizes_the_hand_and_its_distance(dots: FreiHandSplit) -> None:
    plain = NetworkHands(DotReader(), dots)([1])  # type: ignore[arg-type]
    scaled = NetworkHands(DotReader(), dots, known_scale=True)([1])  # type: ignore[arg-type]
    np.testing.assert_allclose(scaled.joints / plain.joints, 1.5, rtol=0.03)
    bone = np.linalg.norm(scaled.joints[0, MIDDLE + 1] - scaled.joints[0, MIDDLE])
    assert dots.scale is not None
    assert bone == pytest.approx(dots.scale[1])


def test_a_rendered_split_knows_its_scale(dots: FreiHandSplit) -> None:
    assert dots.joints is not None
    np.savez(dots.root / "evaluation_labels.npz", K=dots.intrinsics, xyz=2 * dots.joints)
    rendered = FreiHandSplit.open(dots.root, "evaluation")
    near = NetworkHands(DotReader(), dots)([0])  # type: ignore[arg-type]
    far = NetworkHands(DotReader(), rendered, known_scale=True)([0])  # type: ignore[arg-type]
    bones = [np.linalg.norm(one.joints[0, MIDDLE + 1] - one.joints[0, MIDDLE]) for one in (near, far)]
    assert bones[1] == pytest.approx(2 * bones[0], rel=0.05)


def test_boxes_are_the_labels_or_the_image(dots: FreiHandSplit) -> None:
    reader = DotReader()
    NetworkHands(reader, dots)([0])  # type: ignore[arg-type]
    NetworkHands(reader, dots, "image")([0])  # type: ignore[arg-type]
    found = NetworkHands(reader, dots, "detector")([0, 1])  # type: ignore[arg-type]
    assert found.without_detection == 2
    points = (WRIST + OFFSETS) @ K.T
    points = points[:, :2] / points[:, 2:]
    np.testing.assert_allclose(reader.boxes[0], [*points.min(0), *points.max(0)])
    for box in reader.boxes[1:]:
        np.testing.assert_allclose(box, [41.5, 41.5, 181.5, 181.5])  # 1.6 times this box is the image


def test_a_mode_names_the_table_it_lacks(dots: FreiHandSplit) -> None:
    for name in ("xyz", "scale"):
        (dots.root / f"evaluation_{name}.json").unlink()
    bare = FreiHandSplit.open(dots.root, "evaluation")
    with pytest.raises(ValueError, match=r"no evaluation_xyz\.json .* use boxes 'image'"):
        NetworkHands(DotReader(), bare)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no evaluation_scale\.json"):
        NetworkHands(DotReader(), bare, "image", known_scale=True)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- the file


class Counting:
    """Hands whose joints say which frame they are of; stops when asked."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.stop_at = stop_at

    def __call__(self, numbers: Sequence[int]) -> Frames:
        if self.stop_at is not None and self.stop_at in numbers:
            raise KeyboardInterrupt
        self.asked += numbers
        place = np.array(numbers, float)[:, None, None]
        shapes = (len(numbers), 21, 3), (len(numbers), 4, 3)
        return Frames(*(np.broadcast_to(place, shape) for shape in shapes), without_detection=1)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    output, run = tmp_path / "out" / "pred.json", {"method": "counting"}
    with pytest.raises(KeyboardInterrupt):
        predict(Counting(stop_at=5), 8, output, run, batch=2)
    assert not output.exists()
    again = Counting()
    frames = predict(again, 8, output, run, batch=2)
    assert again.asked == [4, 5, 6, 7]
    np.testing.assert_array_equal(frames.joints[:, 0, 0], np.arange(8))
    assert frames.without_detection == 4  # those of the parts that were there already, too
    written = read_prediction(output)
    np.testing.assert_array_equal(written.joints, frames.joints)
    np.testing.assert_array_equal(written.vertices, frames.vertices)
    assert [path.name for path in output.parent.iterdir()] == ["pred.json"]


def test_parts_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Counting(stop_at=2), 4, tmp_path / "pred.json", {"weights": "a"}, batch=2)
    for run, batch in (({"weights": "b"}, 2), ({"weights": "a"}, 1)):
        with pytest.raises(ValueError, match="parts of another run"):
            predict(Counting(), 4, tmp_path / "pred.json", run, batch=batch)


def test_a_run_that_failed_before_its_first_part_is_in_nobodys_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Counting(stop_at=0), 4, tmp_path / "pred.json", {"weights": "a"}, batch=2)
    assert len(predict(Counting(), 4, tmp_path / "pred.json", {"weights": "b"}, batch=2).joints) == 4


def test_the_constant_hand_has_the_mean_pose(tmp_path: Path) -> None:
    mano = load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"))
    for model in (load_hand_model(), mano):
        found = constant_hand(model)([3, 4])
        assert found.joints.shape == (2, 21, 3)
        assert found.vertices.shape == (2, len(model.v_template), 3)
        np.testing.assert_allclose(found.joints[:, 0], [[0, 0, 0.7]] * 2, atol=1e-6)
        flat = model.v_template - (model.J_regressor @ model.v_template)[0]
        assert np.abs(found.vertices[0] - flat - [0, 0, 0.7]).max() > 0.02  # the mean pose is not the flat one


# ------------------------------------------------------------------------------------------------------- end to end


def write_labels(root: Path, hand_model: Path | None, count: int = 3) -> None:
    """A small evaluation split with labels of a hand model's mesh."""
    from handmesh.model.hand_model import HandModel

    write_freihand(root, count, split="evaluation")
    model = HandModel(load_hand_model(hand_model))
    vertices = []
    for seed in range(count):
        hand = posed_hand(seed)
        assert hand.rotations is not None
        assert hand.betas is not None
        mesh = model(torch.from_numpy(hand.rotations).float(), torch.from_numpy(hand.betas).float())
        shift = mesh.keypoints.mean(0) - torch.tensor([0.0, 0.0, 0.45])
        vertices.append((mesh.vertices - shift).tolist())
    (root / "evaluation_verts.json").write_text(json.dumps(vertices))


def freihand(*arguments: object) -> int:
    """eval/freihand.py in this process."""
    spec = importlib.util.spec_from_file_location("eval_freihand", REPOSITORY / "eval" / "freihand.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def test_the_shipped_weights_predict_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labels(tmp_path, None)
    output, report = tmp_path / "pred.json", tmp_path / "result.json"
    options = ["--root", tmp_path, "--out", output, "--result", report, "--threads", 1, "--precision", "f32"]
    assert freihand("predict", *options) == 0
    result = json.loads(report.read_text())
    expected = score(read_prediction(output), read_truth(tmp_path))
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-6)
    assert (result["runtime"], result["boxes"], len(result["weights_sha256"])) == ("onnxruntime", "labels", 64)
    assert result["row"] in capsys.readouterr().out
    assert result["row"].startswith("| fast |")


def test_parts_of_another_set_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("one", "other"):
        write_freihand(tmp_path / name, 2, split="evaluation")
    options = ["--out", tmp_path / "pred.json", "--constant"]
    with monkeypatch.context() as patch:
        patch.setattr("handmesh.evaluation.freihand_predict.write_prediction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            freihand("predict", "--root", tmp_path / "one", *options)
    assert freihand("predict", "--root", tmp_path / "other", *options) == 1
    assert "parts of another run" in capsys.readouterr().err
    assert freihand("predict", "--root", tmp_path / "one", *options) == 0


def test_a_set_of_keypoints_alone_is_predicted_and_scored_by_its_joints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_freihand(tmp_path / "set", 2, split="evaluation")
    assert freihand("predict", "--root", tmp_path / "set", "--out", tmp_path / "pred.json", "--constant") == 0
    assert "joints alone are scored: the labels have no vertices" in capsys.readouterr().out


def test_a_network_of_mano_predicts_manos_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MANO by .pkl: from a checkpoint through torch, from the exported graph through onnxruntime and OpenVINO."""
    mano_file = write_mano_pickle(tmp_path / "MANO_RIGHT.pkl")
    root, checkpoint, graph = tmp_path / "set", tmp_path / "net.pt", tmp_path / "net.onnx"
    write_labels(root, mano_file, 2)
    torch.manual_seed(0)
    network = HandRegressor(NetworkConfig(input_size=64), load_hand_model(mano_file))
    save_network(network, checkpoint)
    export_hand_network(fold(network), graph, name="m", float16=False)
    found = {}
    for runtime, weights in (("torch", checkpoint), ("onnxruntime", graph), ("openvino", graph)):
        if runtime == "openvino":
            pytest.importorskip("openvino")
        output = tmp_path / f"{runtime}.json"
        options = ["--root", root, "--out", output, "--weights", weights, "--runtime", runtime, "--threads", 1]
        assert freihand("predict", *options, "--hand-model", mano_file) == 0
        found[runtime] = read_prediction(output)
        assert found[runtime].vertices.shape == (2, 778, 3)
        assert "pa_mpvpe_mm = " in capsys.readouterr().out
        for points in ("joints", "vertices"):
            apart = getattr(found[runtime], points) - getattr(found["torch"], points)
            assert np.abs(apart).max() < RUNTIME_TOLERANCE_M
    for weights, runtime in ((checkpoint, "torch"), (graph, "torch"), (graph, "onnxruntime")):
        options = ["--root", root, "--out", tmp_path / "x.json", "--weights", weights, "--runtime", runtime]
        assert freihand("predict", *options) == 1
        assert "778 vertices" in capsys.readouterr().err


def test_manos_graphs_stay_out_of_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mano_file = write_mano_pickle(tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(SystemExit):
        handmesh(["export", str(tmp_path / "net.pt"), "--hand-model", str(mano_file)])
    assert "a licensed one must not lie in the package" in capsys.readouterr().err
