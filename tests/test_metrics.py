import numpy as np
import pytest

from handmesh.evaluation.metrics import keypoint_error, pa_error_mm, pck, root_error_mm

RNG = np.random.default_rng(0)
HANDS = RNG.normal(size=(4, 21, 3)) * 0.05


def test_similarity_is_no_error():
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = 1.3 * HANDS @ turn.T + [0.1, -0.2, 0.5]
    np.testing.assert_allclose(pa_error_mm(moved, HANDS), 0, atol=1e-9)
    assert root_error_mm(moved, HANDS).min() > 1


def test_a_mirrored_hand_is_an_error():
    assert pa_error_mm(HANDS * [-1, 1, 1], HANDS).min() > 5


def test_root_error_of_one_moved_point():
    other = HANDS.copy()
    other[:, 7, 2] += 0.021
    np.testing.assert_allclose(root_error_mm(other + 1.0, HANDS), 1.0)


def test_keypoint_error_is_a_share_of_the_longer_box_side():
    truth = np.zeros((1, 21, 2))
    truth[0, 1] = [100.0, 40.0]
    predicted = truth + np.array([3.0, 4.0])
    np.testing.assert_allclose(keypoint_error(predicted, truth), 0.05)
    assert pck(np.array([0.01, 0.05, 0.2]), 0.05) == pytest.approx(1 / 3)
