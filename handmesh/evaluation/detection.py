"""How well hands are found: average precision, recall at a bearable rate of false alarms, and sides.

What is measured is the deployed detector (`handmesh.detector.HandDetector`), from the frame to its boxes.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.detection import (
    TEST_SETS,
    VALIDATION_SETS,
    Hands,
    Photo,
    load_photographed,
    load_photos,
    load_plain,
    plain_folders,
)
from handmesh.datasets.frame_composer import ComposerConfig, Frame, hand_free_frame, paste_hand, paste_touching, pick
from handmesh.detector import THRESHOLD, HandDetector
from handmesh.evaluation.report import write_result
from handmesh.mistakes import in_one_line
from handmesh.records import Detection, box_iou
from handmesh.runtime import load_graph

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
FALSE_ALARMS_PER_FRAME = 0.01
_LOWEST_SCORE = 0.02

Detect = Callable[[NDArray[np.uint8]], Sequence[Detection]]


@dataclass(frozen=True)
class Outcome:
    """The detections of one frame, surest first, against its hands.

    scores: (D,). hit: (D,) True where a detection found a trusted hand. counted: (D,) False where it lies on an
    untrusted one. side_right: (D,) True where the side was right, and is_right: (D,) the true side; both
    meaningful where `hit` and `side_known`. hands: number of trusted ones.
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    side_right: NDArray[np.bool_]
    side_known: NDArray[np.bool_]
    is_right: NDArray[np.bool_]
    iou: NDArray[np.float64]
    hands: int


@dataclass(frozen=True)
class DetectionReport:
    """Numbers over many frames; shares in [0, 1], NaN where nothing was there to be counted.

    `recall_at_limit` is the recall at one false alarm per 100 frames, `threshold_at_limit` the score that gives it;
    the other numbers are at `HandDetector`'s threshold. Sides are counted apart for true right and left hands: a
    detector that always says "right" would look perfect on right hands alone.
    """

    frames: int
    hands: int
    ap50: float
    recall_at_limit: float
    threshold_at_limit: float
    recall: float
    false_alarms: int
    side_accuracy_right: float
    side_accuracy_left: float
    mean_iou: float


def match(detections: Sequence[Detection], hands: Hands, min_iou: float = MIN_IOU) -> Outcome:
    """Give each detection, surest first, the free hand that it overlaps most, if by at least `min_iou`."""
    ordered = sorted(detections, key=lambda d: -d.score)
    count = len(ordered)
    hit, side_right, side_known, is_right = (np.zeros(count, bool) for _ in range(4))
    counted, overlap = np.ones(count, bool), np.zeros(count)
    free = np.ones(len(hands), bool)
    for index, detection in enumerate(ordered):
        if not len(hands):
            break
        iou = np.asarray(box_iou(detection.box, hands.boxes), float)
        candidates = np.where(free & hands.trusted, iou, -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= min_iou:
            free[best] = False
            hit[index], overlap[index] = True, candidates[best]
            side_known[index] = hands.side_known[best]
            is_right[index] = hands.right[best]
            side_right[index] = (detection.side == "right") == bool(hands.right[best])
        else:
            counted[index] = not _on_untrusted(detection, hands)
    scores = np.array([d.score for d in ordered], float)
    return Outcome(scores, hit, counted, side_right, side_known, is_right, overlap, int(hands.trusted.sum()))


def _on_untrusted(detection: Detection, hands: Hands) -> bool:
    """Whether most of a detection lies in the box of a hand whose label is not trusted."""
    box = np.asarray(detection.box, float)
    area = max(float(np.prod(box[2:] - box[:2])), 1e-9)
    for other in hands.boxes[~hands.trusted]:
        shared = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        if np.prod(np.maximum(shared, 0)) / area > 0.5:
            return True
    return False


def summarise(outcomes: Sequence[Outcome], false_alarms_per_frame: float = FALSE_ALARMS_PER_FRAME) -> DetectionReport:
    """The report over all frames. Ties between scores count against the detector."""
    hands = sum(o.hands for o in outcomes)
    counted = [o.counted for o in outcomes]
    scores = _joined([o.scores[c] for o, c in zip(outcomes, counted, strict=True)])
    hit = _joined([o.hit[c] for o, c in zip(outcomes, counted, strict=True)]).astype(bool)
    order = np.lexsort((hit, -scores))
    scores, hit = scores[order], hit[order]
    alarms = np.cumsum(~hit)
    within = int(np.searchsorted(alarms, false_alarms_per_frame * len(outcomes), side="right"))
    working = scores >= THRESHOLD
    at_work = [o.hit & (o.scores >= THRESHOLD) for o in outcomes]
    sided = [(o, w & o.side_known) for o, w in zip(outcomes, at_work, strict=True)]
    overlaps = _joined([o.iou[w] for o, w in zip(outcomes, at_work, strict=True)])
    return DetectionReport(
        frames=len(outcomes),
        hands=hands,
        ap50=average_precision(hit, hands),
        recall_at_limit=_share(float(hit[:within].sum()), hands),
        threshold_at_limit=float(scores[within - 1]) if within else 1.0,
        recall=_share(float((hit & working).sum()), hands),
        false_alarms=int((~hit & working).sum()),
        side_accuracy_right=_mean(_joined([o.side_right[w & o.is_right] for o, w in sided])),
        side_accuracy_left=_mean(_joined([o.side_right[w & ~o.is_right] for o, w in sided])),
        mean_iou=_mean(overlaps),
    )


def average_precision(hit: NDArray[np.bool_], hands: int) -> float:
    """Area under the precision-recall curve, precision made monotonic (PASCAL VOC 2010 on).

    hit: detections by falling score. NaN without hands.
    """
    if hands == 0:
        return float("nan")
    if not len(hit):
        return 0.0
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hit].sum() / hands)


def evaluate(detect: Detect, frames: Iterable[Frame]) -> DetectionReport:
    """Run a detector over frames and sum up."""
    return summarise([match(detect(frame.image), frame.hands) for frame in frames])


def _joined(parts: Sequence[NDArray]) -> NDArray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")


def composed_frames(root: Path, sets: Sequence[str], seed: int = 20, repeats: int = 1) -> Iterator[Frame]:
    """Each labelled photo pasted at a random size and place on a held-out hand-free picture of 640 x 480.

    The frames depend on `seed` and the files only.
    """
    config = ComposerConfig(width=640, height=480, hand_sides=(0.07, 0.7), unstretch=0.0)
    plain = load_plain(plain_folders(root), held_out=True)
    for number, photo in enumerate(p for name in sets for p in load_photos(root / "hands" / name) if len(p.hands)):
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, number, repeat])
            below = hand_free_frame(pick(plain, rng), config.width, config.height, rng)
            yield paste_hand(below, photo, config, rng)


def touching_frames(root: Path, sets: Sequence[str], seed: int = 21) -> Iterator[Frame]:
    """Each hand that is cut out of labelled photos, another one of them against or across it, as `composed_frames`."""
    config = ComposerConfig(width=640, height=480, hand_sides=(0.1, 0.4), streak=0.0)
    plain = load_plain(plain_folders(root), held_out=True)
    cutouts = [photo for name in sets for photo in load_photographed(root / "hands" / name)]
    for number, photo in enumerate(cutouts):
        rng = np.random.default_rng([seed, number])
        below = hand_free_frame(pick(plain, rng), config.width, config.height, rng)
        alone = paste_hand(below, photo, config, rng)
        yield paste_touching(alone, pick(cutouts, rng), config, rng)


def as_frames(photos: Iterable[Photo]) -> Iterator[Frame]:
    """Photos as they are."""
    return (Frame(photo.image, photo.hands) for photo in photos)


def video_frames(path: Path, labels: Path, every: int) -> Iterator[Frame]:
    """All frames of a clip whose every `every`-th is labelled; keypoints in between are interpolated.

    The labelled photos may be a smaller copy of the clip's frames. Raises ValueError for an unreadable clip or one
    whose labels do not have exactly one hand each.
    """
    photos = load_photos(labels)
    if any(len(p.hands) != 1 for p in photos):
        raise ValueError(f"{labels}: every frame must have exactly one hand")
    keypoints = np.stack([p.hands.keypoints[0] for p in photos])  # (K, 21, 2)
    known = np.ones(1, bool)
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path} is not a clip that can be read")
    index = 0
    while True:
        ok, image = capture.read()
        if not ok:
            break
        place = min(index / every, len(keypoints) - 1.0)
        before = int(place)
        after = min(before + 1, len(keypoints) - 1)
        between = keypoints[before] + (keypoints[after] - keypoints[before]) * np.float32(place - before)
        scale = image.shape[1] / photos[0].image.shape[1]
        moved = ((between + 0.5) * scale - 0.5).astype(np.float32)[None]
        right = photos[before].hands.right
        yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8), Hands(moved, right, known, known))
        index += 1
    capture.release()


def full_report(model: Path, root: Path, clip: Path | None, threads: int | None = None) -> dict[str, DetectionReport]:
    """Validation, held-out hand-free pictures and test, by name."""
    detect = HandDetector(load_graph(model, "detector", threads=threads), threshold=_LOWEST_SCORE)
    folders = plain_folders(root)
    streams: dict[str, Iterable[Frame]] = {
        "validation/composed": composed_frames(root, VALIDATION_SETS, repeats=2),
        "validation/touching": touching_frames(root, VALIDATION_SETS),
        **{f"validation/{name}": as_frames(load_photos(root / "hands" / name)) for name in VALIDATION_SETS},
        **{
            f"held_out/{kind}": as_frames(load_plain([f for f in folders if f.parent.name == kind], held_out=True))
            for kind in ("backgrounds", "people")
        },
        **{f"test/{name}": as_frames(load_photos(root / "hands" / name)) for name in TEST_SETS},
    }
    if clip is not None:
        streams["test/clip"] = video_frames(clip, root / "hands" / "dexretargeting_video", every=10)
    reports = {}
    for name, frames in streams.items():
        reports[name] = evaluate(detect, frames)
        logger.info("%s: %s", name, reports[name])
    return reports


def write_results(path: Path, reports: dict[str, DetectionReport], facts: dict[str, object]) -> None:
    """One stamped result file: what was run on what, then the numbers (NaN as null)."""
    rows = {
        name: {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(report).items()}
        for name, report in reports.items()
    }
    write_result(path, {**facts, "results": rows})


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate an exported detector and write the results."""
    parser = argparse.ArgumentParser(prog="handmesh.evaluation.detection", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the exported detector (.onnx)")
    parser.add_argument("--data", type=Path, required=True, help="folder with hands/, backgrounds/ and people/")
    parser.add_argument("--clip", type=Path, help="the clip that the set dexretargeting_video was sampled from")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reports = full_report(args.model, args.data, args.clip, args.threads)
    facts = {
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "min_iou": MIN_IOU,
        "working_threshold": THRESHOLD,
        "false_alarms_per_frame": FALSE_ALARMS_PER_FRAME,
    }
    write_results(args.output, reports, facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
