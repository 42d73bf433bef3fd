"""Average precision, recall at a rate of false alarms and sides, on cases with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handmesh.datasets.detection import Hands
from handmesh.datasets.frame_composer import Frame
from handmesh.evaluation.detection import (
    Outcome,
    average_precision,
    evaluate,
    match,
    summarise,
    write_results,
)
from handmesh.records import Detection


def _hands(boxes: list[list[float]], right: list[bool] | None = None, trusted: list[bool] | None = None) -> Hands:
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    keypoints = np.repeat(array[:, None, :2], 21, axis=1)
    keypoints[:, 1] = array[:, 2:]
    count = len(array)
    return Hands(
        keypoints,
        np.ones(count, bool) if right is None else np.asarray(right),
        np.ones(count, bool),
        np.ones(count, bool) if trusted is None else np.asarray(trusted),
    )


def _found(*rows: tuple[list[float], float], side: str = "right") -> list[Detection]:
    return [Detection(np.asarray(box, float), side, score) for box, score in rows]  # pyright: ignore[reportArgumentType]


HAND = [10.0, 10.0, 30.0, 30.0]
ELSEWHERE = [60.0, 60.0, 80.0, 80.0]


def test_one_hand_is_found_once() -> None:
    outcome = match(_found((HAND, 0.6), ([11, 10, 31, 30], 0.9)), _hands([HAND]))
    assert outcome.scores.tolist() == [0.9, 0.6]
    assert outcome.hit.tolist() == [True, False]  # the second one on the same hand is a false alarm
    assert outcome.counted.all()


def test_iou_of_half_is_enough_and_less_is_not() -> None:
    half = [10.0, 10.0, 30.0, 20.0]
    assert match(_found((half, 1.0)), _hands([HAND])).hit.tolist() == [True]
    assert match(_found(([10.0, 10.0, 30.0, 19.9], 1.0)), _hands([HAND])).hit.tolist() == [False]


def test_detections_on_untrusted_hands_do_not_count() -> None:
    outcome = match(_found((HAND, 0.9), (ELSEWHERE, 0.8)), _hands([HAND], trusted=[False]))
    assert outcome.counted.tolist() == [False, True]
    assert not outcome.hit.any()
    assert outcome.hands == 0


def test_touching_hands_are_both_found() -> None:
    beside = [30.0, 10.0, 50.0, 30.0]
    assert match(_found((beside, 0.7), (HAND, 0.6)), _hands([HAND, beside])).hit.all()


def test_nothing_found_and_nothing_there() -> None:
    assert match([], _hands([HAND])).hands == 1
    outcome = match(_found((HAND, 0.5)), Hands.none())
    assert outcome.hit.tolist() == [False]
    assert outcome.counted.tolist() == [True]


@pytest.mark.parametrize(
    ("hit", "hands", "expected"),
    [
        ([True, True], 2, 1.0),
        ([False, True, True], 2, 2 / 3),  # precision 2/3 at both recalls
        ([True, False, True], 2, (1 + 2 / 3) / 2),
        ([True, False, False], 2, 0.5),
        ([], 3, 0.0),
        ([False, False], 3, 0.0),
    ],
)
def test_average_precision_of_known_lists(hit: list[bool], hands: int, expected: float) -> None:
    assert average_precision(np.asarray(hit, bool), hands) == pytest.approx(expected, abs=1e-12)


def test_average_precision_against_the_definition() -> None:
    """The envelope integrated by hand over every recall step."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        hit = rng.random(30) < 0.6
        hands = int(hit.sum()) + int(rng.integers(0, 5))
        recall, precision = np.cumsum(hit) / hands, np.cumsum(hit) / np.arange(1, 31)
        slow = sum(precision[recall >= step / hands].max(initial=0.0) for step in range(1, hands + 1)) / hands
        assert average_precision(hit, hands) == pytest.approx(slow, abs=1e-12)


def _frame(rows: list[tuple[float, bool]], hands: int) -> Outcome:
    scores = np.array([s for s, _ in rows], float)
    hit = np.array([h for _, h in rows], bool)
    yes = np.ones(len(rows), bool)
    return Outcome(scores, hit, yes, yes, yes, yes, np.where(hit, 0.8, 0.0), hands)


def test_recall_at_the_limit_of_false_alarms() -> None:
    frames = [_frame([(0.95, True), (0.3, True)], 2), _frame([(0.5, False)], 0), _frame([(0.4, False)], 0)]
    frames += [_frame([], 0)] * 97
    report = summarise(frames)  # 100 frames: one false alarm is allowed, the second is not
    assert report.recall_at_limit == 0.5
    assert report.threshold_at_limit == 0.5
    more = summarise(frames + [_frame([], 0)] * 100)  # 200 frames allow two
    assert more.recall_at_limit == 1.0
    assert more.threshold_at_limit == pytest.approx(0.3)


def test_ties_count_against_the_detector() -> None:
    report = summarise([_frame([(0.5, True), (0.5, False)], 1)])
    assert report.recall_at_limit == 0.0
    assert report.ap50 == 0.5


def test_a_perfect_detector_is_perfect_and_a_mirrored_one_has_no_side_right() -> None:
    frames = [
        Frame(np.full((90, 120, 3), i, np.uint8), _hands([HAND, ELSEWHERE], right=[True, False])) for i in range(5)
    ]

    def perfect(image: np.ndarray) -> list[Detection]:
        hands = frames[int(image[0, 0, 0])].hands
        sides = ["right" if r else "left" for r in hands.right]
        return [Detection(b.astype(float), s, 0.9) for b, s in zip(hands.boxes, sides, strict=True)]  # pyright: ignore[reportArgumentType]

    def mirrored(image: np.ndarray) -> list[Detection]:
        return [Detection(d.box, "left" if d.side == "right" else "right", 0.9) for d in perfect(image)]

    report = evaluate(perfect, frames)
    assert (report.frames, report.hands, report.false_alarms) == (5, 10, 0)
    assert report.ap50 == report.recall == report.recall_at_limit == report.mean_iou == 1.0
    assert report.side_accuracy_right == report.side_accuracy_left == 1.0
    turned = evaluate(mirrored, frames)
    assert turned.side_accuracy_right == turned.side_accuracy_left == 0.0


def test_always_saying_right_does_not_look_good() -> None:
    frame = Frame(np.zeros((90, 120, 3), np.uint8), _hands([HAND, ELSEWHERE], right=[True, False]))
    report = evaluate(lambda _: _found((HAND, 0.9), (ELSEWHERE, 0.9)), [frame])
    assert (report.side_accuracy_right, report.side_accuracy_left) == (1.0, 0.0)
    only_right = Frame(frame.image, _hands([HAND]))
    assert np.isnan(evaluate(lambda _: _found((HAND, 0.9)), [only_right]).side_accuracy_left)


def test_frames_without_hands_have_no_recall() -> None:
    report = summarise([_frame([(0.9, False)], 0)])
    assert np.isnan(report.ap50)
    assert np.isnan(report.recall)
    assert report.false_alarms == 1


def test_results_are_plain_json_with_a_stamp(tmp_path: Path) -> None:
    path = tmp_path / "results" / "detector.json"
    write_results(path, {"empty": summarise([_frame([], 0)])}, {"model": "m"})
    stored = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert stored["model"] == "m"
    assert "commit" in stored["stamp"]
    assert stored["results"]["empty"]["recall"] is None
