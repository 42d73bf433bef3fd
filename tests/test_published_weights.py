"""The weights that ship, on the bundled clip whose truth is known."""

import numpy as np
import pytest

from handmesh import Camera, HandMeshEstimator
from handmesh.assets import weights_path, weights_registry
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.records import box_of_points
from handmesh.video import open_source, read_picture

INT8_LOSS_MM = 0.5  # a few dozen hands; over two thousand it is 0.02
FORMS_APART_MM = 5.0  # one hand; the mean over two thousand is 1.1
SAME_MM = 0.05  # runtimes round differently; a hundredth of what the weights themselves are off by
STEP = 12


@pytest.fixture(scope="module")
def scenes():
    """Every twelfth frame of the clip with the hands that are whole in it: (frame, joints_2d, joints, sides)."""
    with np.load("demos/sample.npz") as truth, open_source("sample") as source:
        result = []
        for number, (frame, _) in enumerate(source):
            points = truth["joints_2d"][number]
            inside = ((points > 0) & (points < [frame.shape[1], frame.shape[0]])).all((1, 2))
            if number % STEP == 0 and inside.any():
                joints = truth["joints"][number][inside]
                result.append((frame, points[inside], joints - joints[:, :1], truth["sides"][inside].tolist()))
        return result


def test_every_registered_file_is_there_and_whole():
    assert {"fast", "accurate", "detector", "hand_model"} <= set(weights_registry())
    for name in weights_registry():
        assert weights_path(name).stat().st_size < 12e6


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_hands_of_the_clip_are_recovered(scenes, name):
    estimator = HandMeshEstimator.from_pretrained(name)
    errors, errors_mm = [], []
    for frame, points, joints, sides in scenes:
        hands = estimator(frame, boxes=[box_of_points(p) for p in points], sides=sides)
        errors.append(keypoint_error(np.stack([hand.joints_2d for hand in hands]), points))
        errors_mm.append(pa_error_mm(np.stack([hand.joints for hand in hands]), joints))
    assert len(scenes) > 15
    assert np.concatenate(errors).mean() < 0.12
    assert np.concatenate(errors_mm).mean() < 15.0


def test_detector_finds_the_hands_of_the_clip(scenes):
    estimator = HandMeshEstimator.from_pretrained()
    found = sum(len(estimator(frame)) for frame, *_ in scenes)
    assert found >= 0.9 * sum(len(points) for _, points, *_ in scenes)


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_runtimes_agree(runtime):
    frame = read_picture("demos/sample_1.jpg")
    camera = Camera(554.0, 554.0, 319.5, 239.5, 640, 480)
    (expected,) = HandMeshEstimator.from_pretrained(precision="f32")(frame, camera=camera)
    (found,) = HandMeshEstimator.from_pretrained(runtime=runtime, precision="f32")(
        frame, boxes=[expected.box], camera=camera
    )
    again = HandMeshEstimator.from_pretrained(precision="f32")(frame, boxes=[expected.box], camera=camera)[0]
    assert np.linalg.norm(found.vertices - again.vertices, axis=-1).max() * 1e3 < SAME_MM


def test_the_float_form_of_accurate_lies_beside_the_package():
    with pytest.raises(ValueError, match="int8, which torch cannot run"):
        HandMeshEstimator.from_pretrained("accurate", runtime="torch", detector=None)
    frame, box = read_picture("demos/sample_1.jpg"), [[218.0, 177.0, 376.0, 357.0]]
    small = HandMeshEstimator.from_pretrained("accurate", detector=None)
    whole = HandMeshEstimator.from_pretrained("data/weights/accurate.onnx", runtime="torch", detector=None)
    int8, f32 = (estimator(frame, boxes=box, sides=["right"])[0] for estimator in (small, whole))
    assert pa_error_mm(int8.joints[None], f32.joints[None]).mean() < FORMS_APART_MM


@pytest.mark.skipif("fast_int8" not in weights_registry(), reason="these weights have no int8 twin")
def test_the_int8_twin_is_the_default_and_errs_no_more(scenes):
    assert HandMeshEstimator.from_pretrained().network.metadata["precision"] == "int8"
    errors_mm: dict[str, list[np.ndarray]] = {"f32": [], "int8": []}
    for precision in ("f32", "int8"):
        estimator = HandMeshEstimator.from_pretrained(precision=precision, detector=None)
        for frame, points, joints, sides in scenes:
            hands = estimator(frame, boxes=[box_of_points(p) for p in points], sides=sides)
            errors_mm[precision].append(pa_error_mm(np.stack([hand.joints for hand in hands]), joints))
    f32, int8 = (np.concatenate(errors_mm[precision]).mean() for precision in ("f32", "int8"))
    assert int8 < f32 + INT8_LOSS_MM
