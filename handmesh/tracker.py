"""Hands through a video: the same hand keeps its number and its side, moves smoothly and is seldom searched for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays
from handmesh.estimator import (
    HandMeshEstimator,
    box_of_keypoints,
    build_hand,
    check_camera,
)
from handmesh.placement import project_joints
from handmesh.records import (
    Camera,
    Detection,
    HandMesh,
    PosedHand,
    Side,
    box_iou,
    check_frame,
    other_side,
)
from handmesh.smoothing import RotationFilter, Smoothing, VectorFilter, rotvec_to_rotmat

_log = logging.getLogger(__name__)

MAX_GAP_S = 0.5
"""After a longer pause the hands have moved on, and all are searched for anew."""

SAME_HAND_IOU = 0.3
"""A detection that overlaps a tracked hand by more is that hand."""

REGAIN_IOU = 0.1
"""A detection that overlaps a hand lost a moment ago by more may be that hand."""

SAME_HAND_DISTANCE = 0.3
"""Two tracks whose keypoints lie nearer than this share of their boxes' size follow one hand."""

ROI_SIZE_GAIN = 0.5
"""Share of a new box's size taken over into the next crop: a hand's place changes faster than its size."""

MOTION_DECAY = 0.7
"""A hand out of sight goes on with this share of its speed each frame."""


@dataclass(eq=False)
class _Track:
    id: int
    side: Side
    center: NDArray[np.float64]  # (2,) px, of the next crop's box
    size: float  # px, longer side of the next crop's box
    hand: HandMesh  # as last given out
    smoothing: Smoothing | None
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # (3,) m/s of the translation
    missed: int = 0
    disagreements: int = 0

    def __post_init__(self) -> None:
        self.forget_motion()

    @property
    def box(self) -> NDArray[np.float64]:
        """(4,) the square, tight box that the next crop is cut around."""
        return np.concatenate([self.center - 0.5 * self.size, self.center + 0.5 * self.size])

    def forget_motion(self) -> None:
        config = self.smoothing or Smoothing()
        self.rotation_filter = RotationFilter(config.rotation)
        self.translation_filter = VectorFilter(config.translation)
        self.betas_filter = VectorFilter(config.betas)
        self.velocity = np.zeros(3)

    def aim(self, box: NDArray[np.float64], size_gain: float = 1.0) -> None:
        """Cut the next crop around ``box`` (4,)."""
        self.center = 0.5 * (box[:2] + box[2:])
        self.size += size_gain * (float((box[2:] - box[:2]).max()) - self.size)


@dataclass(frozen=True, eq=False)
class _Step:
    """The next frame of a video: the crops to look at, tracked hands first, its camera, and seconds since the last."""

    frame: NDArray[np.uint8]
    boxes: list[NDArray[np.float64]]
    sides: list[Side | None]
    camera: Camera
    dt_s: float


class HandTracker:
    """Follows up to ``max_hands`` hands through a video. Raises ``ValueError`` for settings out of range.

    Each hand's next crop comes from its last mesh. The detector runs while fewer than ``max_hands`` hands are in
    sight: in every frame while there is none, else in every ``detect_every``-th. A hand whose presence falls below
    the estimator's threshold is carried on along its path for ``bridge_frames`` frames (its low score shows it) and
    then given up. Its side changes only after the network has disagreed for ``flip_after`` frames in a row.

    Rotations, translation and shape are smoothed apart (`Smoothing`; ``None`` turns it off) and the hand is posed
    again from them, so all fields of a mesh fit each other.
    """

    def __init__(
        self,
        estimator: HandMeshEstimator,
        max_hands: int = 2,
        *,
        detect_every: int = 5,
        bridge_frames: int = 3,
        flip_after: int = 5,
        smoothing: Smoothing | None = Smoothing(),  # noqa: B008 (frozen)
    ) -> None:
        if estimator.detector is None:
            raise ValueError("a tracker must be able to find hands: open the estimator with a detector")
        limits = {"max_hands": 1, "detect_every": 1, "bridge_frames": 0, "flip_after": 1}
        given = {
            "max_hands": max_hands,
            "detect_every": detect_every,
            "bridge_frames": bridge_frames,
            "flip_after": flip_after,
        }
        for name, least in limits.items():
            if given[name] < least:
                raise ValueError(f"{name} must be at least {least} but is {given[name]}")
        self.max_hands = max_hands
        self.detect_every = detect_every
        self.bridge_frames = bridge_frames
        self.flip_after = flip_after
        self.smoothing = smoothing
        self._estimator = estimator
        self.reset()

    @property
    def hand_model(self) -> HandModelArrays | None:
        """The estimator's."""
        return self._estimator.hand_model

    def reset(self) -> None:
        """Forget all hands and times, as before the first frame of a video."""
        self._tracks: list[_Track] = []
        self._time_s: float | None = None
        self._frame_size: tuple[int, int] | None = None
        self._since_detection = 0
        self._next_id = 0

    def __call__(
        self, frame_rgb: NDArray[np.uint8], timestamp_s: float, camera: Camera | None = None
    ) -> list[HandMesh]:
        """The hands of the next frame (H, W, 3) uint8 RGB, by ``track_id``, taken at ``timestamp_s`` seconds.

        ``camera`` as in `HandMeshEstimator`. Raises ``TypeError`` or ``ValueError`` for a bad frame, camera or time;
        the tracker then stays as it was. Times must increase: call `reset` before another video.
        """
        (hands,) = track_together([self], [frame_rgb], [timestamp_s], [camera])
        return hands

    def _prepare(self, frame_rgb: NDArray[np.uint8], timestamp_s: float, camera: Camera | None) -> _Step:
        """What the network is to be asked about the next frame."""
        frame = check_frame(frame_rgb)
        camera = check_camera(camera, frame, self._estimator.camera)
        dt_s = self._check_time(timestamp_s)
        self._forget_what_is_stale(frame, dt_s)
        self._time_s, self._frame_size = float(timestamp_s), frame.shape[:2]

        self._tracks = [track for track in self._tracks if _overlaps_frame(track.box, frame)]
        found = self._detect(frame)
        boxes = [track.box for track in self._tracks] + [detection.box for detection in found]
        sides: list[Side | None] = [track.side for track in self._tracks]
        return _Step(frame, boxes, sides + [None] * len(found), camera, dt_s)

    def _advance(self, step: _Step, hands: Sequence[HandMesh]) -> list[HandMesh]:
        """Go on to the next frame with what the network has answered."""
        known = len(self._tracks)
        seen = self._follow(hands[:known])
        seen += self._start(hands[known:])
        self._merge_tracks_of_one_hand(seen)
        self._drop_surplus(seen)
        self._give_out(seen, step.camera, step.dt_s)
        return [track.hand for track in sorted(self._tracks, key=lambda track: track.id)]

    def _check_time(self, timestamp_s: float) -> float:
        """Seconds since the last frame; infinite for the first."""
        if isinstance(timestamp_s, bool) or not isinstance(timestamp_s, int | float | np.number):
            raise TypeError(f"timestamp_s must be a number of seconds, not {type(timestamp_s).__name__}")
        if not math.isfinite(timestamp_s):
            raise ValueError(f"timestamp_s must be a finite number of seconds but is {timestamp_s}")
        if self._time_s is None:
            return math.inf
        if timestamp_s <= self._time_s:
            raise ValueError(
                f"timestamps must increase: {timestamp_s} s came after {self._time_s} s; "
                "call tracker.reset() before another video"
            )
        return float(timestamp_s) - self._time_s

    def _forget_what_is_stale(self, frame: NDArray[np.uint8], dt_s: float) -> None:
        if not self._tracks:
            return
        if self._frame_size != frame.shape[:2]:
            _log.info("the frame size changed from %s to %s: searching anew", self._frame_size, frame.shape[:2])
        elif dt_s > MAX_GAP_S:
            _log.info("%.2f s without a frame: searching anew", dt_s)
        else:
            return
        self._tracks = []

    def _detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        """Hands not yet tracked, if it is time to look for them. Lost hands found again get their crop there."""
        in_sight = [track for track in self._tracks if track.missed == 0]
        room = self.max_hands - len(in_sight)
        self._since_detection += 1
        if room == 0 or (in_sight and self._since_detection < self.detect_every):
            return []
        self._since_detection = 0
        found = self._estimator.detect(frame)
        found = [d for d in found if all(_iou(d.box, t.hand.box) < SAME_HAND_IOU for t in in_sight)]
        lost = [track for track in self._tracks if track.missed > 0]
        for track, detection in _pair(lost, found):
            track.aim(detection.box)
            found.remove(detection)
            room -= 1
        return found[: max(room, 0)]

    def _follow(self, hands: Sequence[HandMesh]) -> list[tuple[_Track, HandMesh]]:
        """Hand each track its new mesh; those without a hand in their crop are bridged or given up."""
        seen = []
        for track, hand in zip(list(self._tracks), hands, strict=True):
            if hand.score < self._estimator.presence_threshold:
                track.missed += 1
                track.hand = replace(track.hand, score=hand.score)
                if track.missed > self.bridge_frames:
                    self._tracks.remove(track)
                continue
            track.missed = 0
            track.disagreements = track.disagreements + 1 if hand.side_score < 0.5 else 0
            seen.append((track, hand))
        return seen

    def _start(self, hands: Sequence[HandMesh]) -> list[tuple[_Track, HandMesh]]:
        """A track for each new hand."""
        started = []
        for hand in hands:
            if hand.score < self._estimator.presence_threshold:
                continue
            track = _Track(self._next_id, hand.side, np.zeros(2), 0.0, hand, self.smoothing)
            self._next_id += 1
            self._tracks.append(track)
            started.append((track, hand))
        return started

    def _merge_tracks_of_one_hand(self, seen: list[tuple[_Track, HandMesh]]) -> None:
        """Of two tracks on one hand keep the older, unless the network takes only the younger's side for right."""
        for first, second in [(a, b) for i, a in enumerate(seen) for b in seen[i + 1 :]]:
            if first not in seen or second not in seen or not _is_same_hand(first[1], second[1]):
                continue
            older, younger = sorted((first, second), key=lambda pair: pair[0].id)
            loser = older if older[1].side_score < 0.5 <= younger[1].side_score else younger
            _log.debug("tracks %d and %d follow one hand: %d ends", older[0].id, younger[0].id, loser[0].id)
            seen.remove(loser)
            self._tracks.remove(loser[0])

    def _drop_surplus(self, seen: list[tuple[_Track, HandMesh]]) -> None:
        """Keep ``max_hands`` tracks: those in sight before those only bridged, then the oldest."""
        for track in sorted(self._tracks, key=lambda t: (t.missed, t.id))[self.max_hands :]:
            self._tracks.remove(track)
            seen[:] = [pair for pair in seen if pair[0] is not track]

    def _give_out(self, seen: Sequence[tuple[_Track, HandMesh]], camera: Camera, dt_s: float) -> None:
        """Set every track's mesh to give out, and the crop of its next frame."""
        for track, hand in zip([t for t, _ in seen], self._smooth(seen, camera), strict=True):
            if not math.isinf(dt_s) and track.hand.track_id is not None:
                track.velocity = (hand.translation - track.hand.translation.astype(np.float64)) / dt_s
            track.hand = hand
        for track, raw in seen:
            box = box_of_keypoints(project_joints(raw.joints, raw.translation, camera))
            track.aim(box, ROI_SIZE_GAIN if track.size > 0.0 else 1.0)
            if track.disagreements >= self.flip_after:
                track.side, track.disagreements = other_side(track.side), 0
                track.forget_motion()
        for track in self._tracks:
            if track.missed > 0:
                _carry_on(track, camera, dt_s)

    def _smooth(self, seen: Sequence[tuple[_Track, HandMesh]], camera: Camera) -> list[HandMesh]:
        """The meshes with their tracks' numbers, filtered and posed again."""
        if self.smoothing is None:
            return [replace(hand, track_id=track.id) for track, hand in seen]
        if not seen:
            return []
        time_s = self._time_s
        assert time_s is not None
        rotvecs = np.stack([np.concatenate([hand.global_orient[None], hand.hand_pose]) for _, hand in seen])
        raw = rotvec_to_rotmat(rotvecs.reshape(-1, 3)).reshape(-1, 16, 3, 3)
        rotations = np.stack([t.rotation_filter(r, time_s) for (t, _), r in zip(seen, raw, strict=True)])
        betas = np.stack([track.betas_filter(hand.betas, time_s) for track, hand in seen])
        posed = self._estimator.pose(rotations, betas, [hand.side for _, hand in seen])
        return [
            self._build(track, hand, shape, camera, time_s) for (track, hand), shape in zip(seen, posed, strict=True)
        ]

    def _build(self, track: _Track, raw: HandMesh, posed: PosedHand, camera: Camera, time_s: float) -> HandMesh:
        x, y, z = raw.translation.astype(np.float64)
        # Filtered as a direction and a log depth: depth is by far the noisiest, and must not shake the picture.
        u, v, log_z = track.translation_filter([x / z, y / z, math.log(z)], time_s)
        translation = math.exp(log_z) * np.array([u, v, 1.0])
        return build_hand(posed, raw.side, translation, camera, raw.score, raw.side_score, track_id=track.id)


def track_together(
    trackers: Sequence[HandTracker],
    frames: Sequence[NDArray[np.uint8]],
    timestamps_s: Sequence[float],
    cameras: Sequence[Camera | None] | None = None,
) -> list[list[HandMesh]]:
    """The next frames of several videos, each by its own tracker, with one run of the network for all.

    Gives what each tracker alone would give. Raises ``ValueError`` unless all share one estimator and none comes
    twice; other errors are those of `HandTracker`.
    """
    if len({id(tracker) for tracker in trackers}) != len(trackers):
        raise ValueError("a tracker follows one video: give each video its own")
    if len({id(tracker._estimator) for tracker in trackers}) > 1:
        raise ValueError("trackers go together only if they share one estimator")
    given = zip(trackers, frames, timestamps_s, cameras or [None] * len(trackers), strict=True)
    steps = [tracker._prepare(frame, time_s, camera) for tracker, frame, time_s, camera in given]
    if not steps:
        return []
    answers = trackers[0]._estimator.batch(
        [s.frame for s in steps], [s.boxes for s in steps], [s.sides for s in steps], [s.camera for s in steps]
    )
    return [tracker._advance(step, hands) for tracker, step, hands in zip(trackers, steps, answers, strict=True)]


def _carry_on(track: _Track, camera: Camera, dt_s: float) -> None:
    """Move a hand out of sight along its path, and its crop with it."""
    track.velocity = MOTION_DECAY * track.velocity
    moved = track.hand.translation + track.velocity * dt_s
    moved[2] = max(moved[2], 0.5 * float(track.hand.translation[2]))
    joints_2d = project_joints(track.hand.joints, moved, camera)
    track.center = track.center + (joints_2d - track.hand.joints_2d).mean(axis=0)
    track.hand = replace(
        track.hand, translation=moved, joints_2d=joints_2d, box=box_of_keypoints(joints_2d), camera=camera
    )


def _pair(lost: Sequence[_Track], found: Sequence[Detection]) -> list[tuple[_Track, Detection]]:
    """Lost hands with the detections they may be: same side first, then the larger overlap, each used once."""
    choices = [(t.side == d.side, _iou(t.box, d.box), i, j) for i, t in enumerate(lost) for j, d in enumerate(found)]
    pairs: dict[int, int] = {}
    for _, overlap, i, j in sorted(choices, reverse=True):
        if overlap > REGAIN_IOU and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(lost[i], found[j]) for i, j in pairs.items()]


def _is_same_hand(a: HandMesh, b: HandMesh) -> bool:
    apart = np.linalg.norm(a.joints_2d - b.joints_2d, axis=-1).mean()
    size = max(float((hand.box[2:] - hand.box[:2]).max()) for hand in (a, b))
    return bool(apart < SAME_HAND_DISTANCE * size)


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(box_iou(a, b))


def _overlaps_frame(box: NDArray[np.float64], frame: NDArray[np.uint8]) -> bool:
    height, width = frame.shape[:2]
    return bool(box[0] < width - 0.5 and box[1] < height - 0.5 and box[2] > -0.5 and box[3] > -0.5)
