"""The detector finds drawn squares in frames of any shape, once each, and says nothing where there is none."""

from __future__ import annotations

import tracemalloc

import graphs
import numpy as np
import pytest

from handmesh.detector import THRESHOLD, HandDetector, Letterbox, reaches_into_frame, suppress_overlaps
from handmesh.records import box_iou
from handmesh.runtime import Graph


@pytest.fixture
def detector(stub_folder) -> HandDetector:
    return HandDetector.from_pretrained(stub_folder / "detector.onnx", threads=1)


def outputs_detector(boxes, scores, right, **settings) -> HandDetector:
    """A detector whose graph answers with these (4, h, w), (h, w) and (h, w) arrays for a 64 x 64 input."""
    answer = {"heatmap": scores[None, None], "boxes": boxes[None], "right": right[None, None]}
    description = {"kind": "detector", "input_width": 64, "input_height": 64, "stride": 8}
    return HandDetector(Graph("stub", description, lambda inputs: answer), **settings)


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(512, 640, 0.5), (256, 320, 1.0), (256, 160, 1.0), (128, 160, 2.0), (1024, 500, 0.25)]
)
def test_hands_are_found_where_they_are(detector, height, width, zoom):
    frame = np.random.default_rng(0).integers(0, 50, (height, width, 3), np.uint8)
    size = 64 / zoom
    center = (0.45 * width, 0.6 * height)
    for side in ("right", "left"):
        (found,) = detector(graphs.draw_hand(frame, center, size, side))
        assert found.side == side
        assert found.score > 0.7
        wanted = np.array([*(np.array(center) - size / 2), *(np.array(center) + size / 2)])
        # Half a stride of 8 px in each direction is the stub's own resolution.
        assert np.abs(found.box - wanted).max() <= 5 / zoom
        assert box_iou(found.box, wanted) > 0.75


def test_two_hands_are_told_apart_and_the_surer_comes_first(detector, dim_frame):
    frame = graphs.draw_hand(dim_frame, (180, 200), 128, "left")
    frame = graphs.draw_hand(frame, (460, 300), 100, "right")
    first, second = detector(frame)
    assert (first.side, second.side) == ("left", "right")
    assert first.score > second.score


@pytest.mark.parametrize("shape", [(1, 1), (15, 200), (200, 15), (64, 64), (480, 640)])
def test_no_hand_gives_an_empty_list(detector, shape):
    for value in (0, 40):
        assert detector(np.full((*shape, 3), value, np.uint8)) == []


def test_bad_frames_are_refused(detector):
    with pytest.raises(TypeError, match="None"):
        detector(None)
    with pytest.raises(ValueError, match="no pixels"):
        detector(np.zeros((0, 0, 3), np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (320, 256), (37, 911), (1, 1), (3000, 20)])
def test_letterbox_maps_the_frame_into_its_picture_and_back(size):
    letterbox = Letterbox.fit(*size, 320, 256)
    assert letterbox.columns <= 320
    assert letterbox.rows <= 256
    picture = letterbox.apply(np.full((size[1], size[0], 3), 255, np.uint8))
    assert picture.shape == (256, 320, 3)
    assert (picture == 255).sum() == 3 * letterbox.columns * letterbox.rows
    corners = np.array([[letterbox.left - 0.5, letterbox.top - 0.5], [0, 0]])
    np.testing.assert_allclose(letterbox.to_frame(corners)[0], [-0.5, -0.5], atol=1e-9)
    end = [letterbox.left + letterbox.columns - 0.5, letterbox.top + letterbox.rows - 0.5]
    # The picture has whole pixels, so its far edge may be half a pixel off.
    assert np.abs(letterbox.to_frame(end) - (np.array(size) - 0.5)).max() <= 0.51 / letterbox.zoom


def test_a_frame_far_longer_than_high_takes_little_memory():
    frame = np.full((16, 60_000, 3), 255, np.uint8)
    tracemalloc.start()
    picture = Letterbox.fit(60_000, 16, 320, 256).apply(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * frame.nbytes
    assert (picture == 255).sum() == 3 * 320


def test_decoded_boxes_are_distances_from_the_cells_centre():
    scores, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    boxes = np.zeros((4, 8, 8), np.float32)
    scores[2, 5], right[2, 5], boxes[:, 2, 5] = 0.9, 0.2, [1, 2, 3, 4]
    (found,) = outputs_detector(boxes, scores, right)(np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_allclose(found.box, [43.5 - 1, 19.5 - 2, 43.5 + 3, 19.5 + 4])
    assert (found.side, found.score) == ("left", pytest.approx(0.9))


def test_weak_inverted_and_endless_boxes_are_dropped():
    scores, right = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    boxes = np.full((4, 8, 8), 3, np.float32)
    scores[0, 0] = THRESHOLD - 0.01
    scores[0, 4], boxes[:, 0, 4] = 0.9, [-5, 1, 4, 1]
    scores[4, 0], boxes[:, 4, 0] = 0.9, [1, np.inf, 1, 1]
    assert outputs_detector(boxes, scores, right)(np.zeros((64, 64, 3), np.uint8)) == []
    assert len(outputs_detector(boxes, scores, right, threshold=0.2)(np.zeros((64, 64, 3), np.uint8))) == 1


def test_boxes_in_the_black_bars_beside_the_frame_are_dropped():
    scores, right = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    scores[4, 0] = scores[4, 4] = 0.9
    found = outputs_detector(np.full((4, 8, 8), 3, np.float32), scores, right)(np.zeros((64, 32, 3), np.uint8))
    assert [detection.box.tolist() for detection in found] == [[16.5, 32.5, 22.5, 38.5]]


def test_scores_and_sides_are_kept_within_their_ranges():
    scores, right = np.zeros((8, 8), np.float32), np.full((8, 8), 0.45, np.float32)
    boxes, frame = np.full((4, 8, 8), 3, np.float32), np.zeros((64, 64, 3), np.uint8)
    assert outputs_detector(boxes, scores, right, threshold=0.0)(frame) == []
    scores[4, 2] = 1.00001  # as rounding may have it
    (found,) = outputs_detector(boxes, scores, right)(frame)
    assert (found.score, found.side) == (1.0, "left")
    assert outputs_detector(boxes, scores, right)(np.zeros((15, 64, 3), np.uint8)) == []


@pytest.mark.parametrize("shape", [(20, 60, 3), (60, 20, 3)])
def test_boxes_reach_into_a_frame_up_to_the_edge_of_its_last_pixels(shape):
    frame, (height, width) = np.zeros(shape, np.uint8), shape[:2]
    assert reaches_into_frame(np.array([width - 0.6, height - 0.6, width + 9, height + 9]), frame)
    assert reaches_into_frame(np.array([-9, -9, -0.4, -0.4]), frame)
    for outside in (
        [width - 0.5, 0, width + 9, 9],
        [0, height - 0.5, 9, height + 9],
        [-9, 0, -0.5, 9],
        [0, -9, 9, -0.5],
    ):
        assert not reaches_into_frame(np.array(outside), frame)


def test_overlap_suppression_keeps_the_surest_and_the_distant():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [9, 9, 19, 19], [0, 0, 10, 10]], float)
    assert suppress_overlaps(boxes, np.array([0.5, 0.9, 0.3, 0.5]), 0.5) == [1, 2]
    assert suppress_overlaps(boxes, np.array([0.5, 0.9, 0.3, 0.5]), 1.0) == [1, 0, 3, 2]
    assert suppress_overlaps(np.zeros((0, 4)), np.zeros(0), 0.5) == []


@pytest.mark.parametrize("settings", [{"threshold": 1.5}, {"max_iou": -0.1}, {"threshold": float("nan")}])
def test_settings_out_of_range_are_refused(stub_folder, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        HandDetector.from_pretrained(stub_folder / "detector.onnx", **settings)
