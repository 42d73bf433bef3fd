"""Hands through a video: the same hand keeps its number and its side, moves smoothly and is seldom searched for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.assets import HandModelArrays
from handmesh.crop import laid_out
from handmesh.detector import reaches_into_frame
from handmesh.duplicates import is_part
from handmesh.estimator import HandMeshEstimator, build_hand, check_camera
from handmesh.handedness import SURE, SideBelief, right_evidence
from handmesh.identity import (
    APART_FRAMES,
    ENTANGLED_IOU,
    Rivalries,
    View,
    new_hands,
    overlap,
    recall,
    trust,
    undo_exchange,
)
from handmesh.placement import project_joints, solve_translation
from handmesh.records import Camera, Detection, HandMesh, PosedHand, Side, Sighting, check_frame, given_betas
from handmesh.smoothing import Smoothing
from handmesh.track import SHORTEST_S, Track

_log = logging.getLogger(__name__)

MAX_GAP_S = 0.5
"""After a longer pause the hands have moved on, and all are searched for as if they had been out of sight."""

MILLISECONDS_S, MILLISECONDS_FRAMES = 5.0, 3
"""So many frames in a row that come after longer pauses look like times in milliseconds: the log warns."""

STARTS = 0.35
"""The score that a detection needs: more than in single pictures, as the next frames give another chance."""

STAYS = 0.5
"""The presence at which a known hand is still there; new ones need the estimator's threshold, which is higher."""

SAME_HAND_IOU = 0.3
"""A detection that overlaps a hand in sight by more is that hand."""

SAME_PLACE_IOU = 0.8
"""Of two crops that overlap by more one is enough."""

SEARCH_FOR_LOST_EVERY = 2
"""While a hand has just gone out of sight the detector runs every so many frames."""

EDGE_WAITS_S = 0.3
"""So long a hand that comes in over the picture's edge waits to be seen whole before it is taken for a lost one."""

EDGE_FORGOTTEN_S = 1.0
"""The wait begins anew for a hand that comes so long after the last one was seen waiting."""

HIDDEN_S = 1.0
"""So long a hand that has gone behind another is looked for along its path."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A frame on its way through a tracker: what is asked of the network between `_prepare` and `_advance`."""

    frame: NDArray[np.uint8]
    views: list[View]
    camera: Camera
    dt_s: float

    @property
    def boxes(self) -> list[NDArray[np.float64]]:
        return [view.box for view in self.views for _ in view.sides]

    @property
    def sides(self) -> list[Side]:
        return [side for view in self.views for side in view.sides]

    @property
    def turns(self) -> list[float]:
        return [view.turn for view in self.views for _ in view.sides]

    def answer(self, hands: Sequence[Sighting]) -> None:
        """Give what the network saw to the views that asked for it."""
        answers = iter(hands)
        for view in self.views:
            view.answers = {side: next(answers) for side in view.sides}


class HandTracker:
    """Follows up to ``max_hands`` hands through a video. Raises ``ValueError`` for settings out of range.

    **Crops.** Each hand's next crop comes from its last mesh and its path, and is turned so that the hand stands
    upright. The detector runs while fewer than ``max_hands`` hands are in sight: in every frame while there is none,
    every other while one has just gone, else in every ``detect_every``-th.

    **Numbers.** A hand keeps its ``track_id`` while another one hides it, and for ``remember_s`` seconds out of sight:
    coming back, it is known by side, place and size. After a pause of more than `MAX_GAP_S` between frames all hands
    count as out of sight; frames of another size begin anew. Where two hands look like one, the one that is where it
    was expected is seen and the other one is taken to be behind it.

    **Sides.** What the network says of left and right adds up over frames (`SideBelief`) and decides *before* the crop
    how it is mirrored. A settled side changes after about ``flip_after`` frames of certainty against it. Nothing is
    learnt of hands that are in each other's crops; with ``max_hands`` 2, the two are expected to be a pair.

    **Losses.** New hands need the estimator's threshold of presence. A known one whose presence falls below `STAYS` is
    given out along its path for ``bridge_frames`` more frames (its low score shows it).

    **Smoothing.** Rotations, direction and depth are filtered apart (`Smoothing`, which states the lag; ``None`` turns
    it off), the shape settles on one value, the hand is posed again and placed where its joints fit the keypoints, and
    ``joints_2d`` is where they are seen then: all fields of a mesh fit each other. Nothing waits for later frames:
    apart from the filters' lag at rest, a mesh belongs to its own frame.
    """

    def __init__(
        self,
        estimator: HandMeshEstimator,
        max_hands: int = 2,
        *,
        detect_every: int = 5,
        bridge_frames: int = 3,
        flip_after: int = 20,
        remember_s: float = 3.0,
        smoothing: Smoothing | None = Smoothing(),  # noqa: B008 (frozen)
    ) -> None:
        if estimator.detector is None:
            raise ValueError("a tracker must be able to find hands: open the estimator with a detector")
        limits = {"max_hands": 1, "detect_every": 1, "bridge_frames": 0, "flip_after": 1, "remember_s": 0}
        given = {
            "max_hands": max_hands,
            "detect_every": detect_every,
            "bridge_frames": bridge_frames,
            "flip_after": flip_after,
            "remember_s": remember_s,
        }
        for name, least in limits.items():
            if not given[name] >= least:
                raise ValueError(f"{name} must be at least {least} but is {given[name]}")
            if name != "remember_s" and not isinstance(given[name], Integral):
                raise ValueError(f"{name} counts: it must be an int, such as {least}, but is {given[name]!r}")
        self.max_hands = max_hands
        self.detect_every = detect_every
        self.bridge_frames = bridge_frames
        self.flip_after = flip_after
        self.remember_s = remember_s
        self.smoothing = smoothing
        self._betas: NDArray[np.float64] | None = None
        self._estimator = estimator
        self.reset()

    @property
    def hand_model(self) -> HandModelArrays | None:
        """The estimator's."""
        return self._estimator.hand_model

    @property
    def smoothing(self) -> Smoothing | None:
        """How hands are filtered; ``None`` gives them out as the network sees them."""
        return self._smoothing

    @smoothing.setter
    def smoothing(self, smoothing: Smoothing | None) -> None:
        if not isinstance(smoothing, Smoothing | None):
            raise TypeError(f"smoothing must be a Smoothing, or None for none, not {type(smoothing).__name__}")
        self._smoothing = smoothing

    @property
    def betas(self) -> NDArray[np.float64] | None:
        """The shape (10,) that all hands are given, such as a calibrated one; ``None`` lets each find its own."""
        return self._betas

    @betas.setter
    def betas(self, betas: ArrayLike | None) -> None:
        self._betas = given_betas(betas)

    def reset(self) -> None:
        """Forget all hands and times, as before the first frame of a video. The shape ``betas`` stays."""
        self._tracks: list[Track] = []  # in sight, or just gone and still looked for along their paths
        self._remembered: list[Track] = []  # gone; looked for nowhere
        self._rivalries = Rivalries()
        self._time_s: float | None = None
        self._frame_size: tuple[int, int] | None = None
        self._since_detection = self._slow_frames = 0
        self._waits_since_s = self._waited_s = -math.inf
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

    def _prepare(self, frame: NDArray[np.uint8], timestamp_s: float, camera: Camera, dt_s: float) -> _Step:
        """What the network is to be asked about the next frame, which `_checked` has passed."""
        self._warn_of_milliseconds(dt_s)
        self._forget_what_is_stale(frame, dt_s)
        self._time_s, self._frame_size = float(timestamp_s), frame.shape[:2]
        for track in self._tracks:
            track.move_on(dt_s)
        self._remember([track for track in self._tracks if not reaches_into_frame(track.box, frame)])
        for track in self._remembered:
            track.missed_s += dt_s
        self._remembered = [track for track in self._remembered if track.missed_s <= self.remember_s]
        views = [View(track.box, track.asks, track, turn=track.turn) for track in self._tracks]
        views += [View(found.box, _both(found.side), None) for found in self._detect(frame)]
        away = self._drawn_away(frame)
        views += [View(box, _both(track.side), None, path_of=track, turn=track.turn) for track, box in away]
        return _Step(frame, views, camera, dt_s)

    def _advance(self, step: _Step, hands: Sequence[Sighting]) -> list[HandMesh]:
        """Go on to the next frame with what the network has answered."""
        step.answer(hands)
        seen = self._follow([view for view in step.views if view.track is not None], step.dt_s)
        self._judge_sides(seen)
        seen += self._start([view for view in step.views if view.track is None], seen)
        self._give_out(seen, step.camera, step.dt_s)
        shown = [track for track in self._tracks if track.missed <= self.bridge_frames]
        shown = sorted(shown, key=lambda track: (track.missed, track.id))[: self.max_hands]
        return [track.hand for track in sorted(shown, key=lambda track: track.id)]

    def _checked(
        self, frame_rgb: NDArray[np.uint8], timestamp_s: float, camera: Camera | None
    ) -> tuple[NDArray[np.uint8], float, Camera, float]:
        """The next frame as OpenCV reads it, its time, its camera and the seconds since the last one, or what is to be
        raised of them; changes nothing."""
        frame = laid_out(check_frame(frame_rgb))
        return frame, timestamp_s, check_camera(camera, frame, self._estimator.camera), self._check_time(timestamp_s)

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

    def _warn_of_milliseconds(self, dt_s: float) -> None:
        self._slow_frames = self._slow_frames + 1 if MILLISECONDS_S < dt_s < math.inf else 0
        if self._slow_frames == MILLISECONDS_FRAMES:
            _log.warning(
                "frames come %g s apart, so that no hand is followed from one to the next: are these milliseconds? "
                "Times must be seconds",
                dt_s,
            )

    def _forget_what_is_stale(self, frame: NDArray[np.uint8], dt_s: float) -> None:
        if not self._tracks and not self._remembered:
            return
        if self._frame_size != frame.shape[:2]:
            _log.info("the frame size changed from %s to %s: searching anew", self._frame_size, frame.shape[:2])
            self._forget()
        elif dt_s > MAX_GAP_S:
            _log.info("%.2f s without a frame: searching anew", dt_s)
            self._remember(list(self._tracks))

    def _forget(self) -> None:
        """Go on without any hand; numbers that were given are not given again."""
        self._tracks, self._remembered = [], []

    def _detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        """Hands not yet in sight, if it is time to look for them."""
        in_sight = [track for track in self._tracks if track.missed == 0]
        self._since_detection += 1
        often = SEARCH_FOR_LOST_EVERY if len(in_sight) < len(self._tracks) else self.detect_every
        if in_sight and self._since_detection < min(often, self.detect_every):
            return []
        if len(in_sight) >= self.max_hands and not any(track.is_doubtful for track in in_sight):
            return []
        self._since_detection = 0
        found = [one for one in self._estimator.detect(frame) if one.score >= STARTS]
        found = [d for d in found if all(overlap(d.box, track.hand.box) < SAME_HAND_IOU for track in in_sight)]
        return found[: self.max_hands]

    def _drawn_away(self, frame: NDArray[np.uint8]) -> list[tuple[Track, NDArray[np.float64]]]:
        """Hidden tracks whose crop another hand may have drawn away, and where their own paths lead."""
        boxes = [(track, track.path_box) for track in self._tracks if track.missed and track.hidden]
        return [
            (track, box)
            for track, box in boxes
            if box is not None and reaches_into_frame(box, frame) and overlap(box, track.box) < SAME_PLACE_IOU
        ]

    def _follow(self, views: Sequence[View], dt_s: float) -> list[View]:
        """The views in which the track's own hand was found; the other tracks miss it."""
        least = min(STAYS, self._estimator.presence_threshold)
        seen = [view for view in views if view.best.score >= least]
        time_s = self._time_s
        assert time_s is not None
        for first, second in combinations(list(seen), 2):
            if first in seen and second in seen:
                for loser in self._rivalries.contest(first, second, time_s):
                    seen.remove(loser)
                    if loser.owner.seen_apart < APART_FRAMES:
                        _log.debug("two tracks follow one hand: %d ends", loser.owner.id)
                        self._tracks.remove(loser.owner)
        for view in views:
            track = view.owner
            if view in seen:
                track.seen_apart += 1
                continue
            if track not in self._tracks:
                continue  # a twin that has ended
            hidden = track.hidden or any(overlap(track.box, other.best.box) > ENTANGLED_IOU / 2 for other in seen)
            track.miss(dt_s, view.best.score, hidden)
            patience = HIDDEN_S if hidden else 0.0
            if track.missed > self.bridge_frames and track.missed_s >= patience:
                self._remember([track])
        return seen

    def _judge_sides(self, seen: Sequence[View]) -> None:
        """Let the beliefs about sides hear this frame's answers, and decide."""
        for view in seen:
            view.owner.hear(view.side_scores, trust(view, seen, self._lost))
        undo_exchange([view.owner for view in seen])
        for view in seen:
            if view.owner.belief.decide(self._partner(view.owner)):
                _log.debug("track %d is a %s hand after all", view.owner.id, view.owner.side)
                view.owner.forget_motion()

    @property
    def _lost(self) -> list[Track]:
        """Tracks out of sight that are still looked for."""
        return [track for track in self._tracks if track.missed]

    def _partner(self, track: Track) -> SideBelief | None:
        """The belief about the other hand, where there is just one other that is in sight or near."""
        others = [other for other in self._tracks if other is not track]
        return others[0].belief if self.max_hands == 2 and len(others) == 1 else None

    def _start(self, views: Sequence[View], seen: list[View]) -> list[View]:
        """Give each newly found hand the track of the lost one that it is, or a new one."""
        present = [view for view in views if view.best.score >= self._estimator.presence_threshold]
        found = new_hands(self._made_whole(present, seen), seen)
        self._give_way(found, seen)
        if len(seen) >= self.max_hands:
            return []
        in_sight = [view.owner for view in seen]
        lost = [track for track in self._tracks if track not in in_sight] + self._remembered
        found = self._seen_whole(found, lost)
        recall(found, lost)
        found = [view for view in found if view.path_of is None or view.path_of is view.track]
        found = sorted(found, key=lambda view: view.track is None)[: self.max_hands - len(seen)]  # known ones first
        for view in found:
            if view.track is None:
                belief = SideBelief(view.side_scores, self.flip_after)
                view.track = Track(self._next_id, belief, self.smoothing)
                self._next_id += 1
                self._tracks.append(view.track)
                belief.decide(self._partner(view.track))
            elif view.track.missed > self.bridge_frames:
                view.track.forget_motion()
            if view.track in self._remembered:
                self._remembered.remove(view.track)
                self._tracks.append(view.track)
        return found

    def _seen_whole(self, found: Sequence[View], lost: Sequence[Track]) -> list[View]:
        """Without hands that come in over the picture's edge and may be either of two lost ones: these wait a little,
        as half a hand tells its side badly."""
        assert self._frame_size is not None
        assert self._time_s is not None
        height, width = self._frame_size
        limits = np.array([-0.5, -0.5, 0.5 - width, 0.5 - height])  # of a box x1, y1, -x2, -y2 inside
        whole = [view for view in found if np.all(view.best.box * [1, 1, -1, -1] >= limits)]
        if len(whole) < len(found) and len({track.side for track in lost}) == 2:
            if self._time_s - self._waited_s > EDGE_FORGOTTEN_S:
                self._waits_since_s = self._time_s
            self._waited_s = self._time_s
            if self._time_s - self._waits_since_s < EDGE_WAITS_S:
                return whole
        if found:  # else it may be that nobody has looked
            self._waited_s = -math.inf
        return list(found)

    def _made_whole(self, found: Sequence[View], seen: list[View]) -> list[View]:
        """Let tracks that have shrunk onto a part of their hand follow the whole hand, now found; the rest is new."""
        new = []
        for view in found:
            parts = [
                part for part in seen if view.path_of is None and is_part(part.best.joints_2d, view.best.joints_2d)
            ]
            for part in parts:
                seen.remove(part)
                if view.track is None:
                    view.track = part.owner
                    view.owner.forget_motion()
                else:
                    self._tracks.remove(part.owner)
            (seen if parts else new).append(view)
        return new

    def _give_way(self, found: Sequence[View], seen: list[View]) -> None:
        """Where all places are taken, what is hardly a hand, as nobody can tell its side, makes room for a sure one."""
        doubtful = [view for view in seen if view.owner.is_doubtful]
        sure = [view for view in found if abs(right_evidence(view.side_scores)) >= SURE]
        while doubtful and len(seen) + len(sure) > self.max_hands:
            view = doubtful.pop()
            _log.debug("track %d was hardly a hand: it makes room", view.owner.id)
            seen.remove(view)
            self._tracks.remove(view.owner)

    def _remember(self, tracks: Sequence[Track]) -> None:
        """Look for these hands no more, but know them if they come back."""
        for track in tracks:
            self._tracks.remove(track)
            track.missed, track.hidden = max(track.missed, self.bridge_frames + 1), False
            self._remembered.append(track)

    def _give_out(self, seen: Sequence[View], camera: Camera, dt_s: float) -> None:
        """Set every track's mesh to give out, and the crop of its next frame."""
        if seen:
            self._show(seen, camera, dt_s)
        for track in self._lost:
            track.carry_on(camera, dt_s)

    def _show(self, seen: Sequence[View], camera: Camera, dt_s: float) -> None:
        """Pose and place the hands that are seen, and tell their tracks."""
        smoothing, given = self.smoothing, self._betas  # read once, as another thread may set them meanwhile
        time_s = self._time_s
        assert time_s is not None
        trusts = [trust(view, seen, self._lost) for view in seen]
        sightings = [view.best for view in seen]
        for view in seen:
            view.owner.filter_by(smoothing)
        as_seen = smoothing is None and given is None
        posed = [one.posed for one in sightings] if as_seen else self._steadied(seen, trusts, smoothing, given)
        joints, keypoints = np.stack([hand.joints for hand in posed]), np.stack([one.joints_2d for one in sightings])
        places = solve_translation(joints, keypoints, camera)
        nearest = places[:, 2].min()
        for view, one, hand, place, how_far in zip(seen, sightings, posed, places, trusts, strict=True):
            track = view.owner
            shown_at = place if smoothing is None else _smooth_place(track, place, time_s)
            if not math.isinf(dt_s) and track.shown is not None and not track.missed:
                track.velocity = (shown_at - track.shown.translation.astype(np.float64)) / max(dt_s, SHORTEST_S)
            track.shown = build_hand(
                hand,
                one.side,
                shown_at,
                camera,
                one.score,
                one.side_score,
                joints_2d=one.joints_2d if as_seen else None,
                track_id=track.id,
            )
            # The nearest hand is seen whole even where another one is in its crop.
            track.see(project_joints(hand.joints, place, camera), 1.0 if place[2] <= nearest else how_far)
            track.note_path(view.side_scores, how_far)

    def _steadied(
        self, seen: Sequence[View], trusts: Sequence[float], smoothing: Smoothing | None, given: NDArray | None
    ) -> list[PosedHand]:
        """The hands with filtered rotations and the settled or given shape, posed again."""
        time_s = self._time_s
        assert time_s is not None
        tracks, hands = [view.owner for view in seen], [view.best for view in seen]
        rotations = [hand.posed.rotations for hand in hands]
        if smoothing is not None:
            turned = zip(tracks, rotations, strict=True)
            rotations = [track.rotation_filter(raw, time_s) for track, raw in turned]
        shapes = [
            track.shape(hand.posed.betas, hand.score * (0.05 + how_far))
            for track, hand, how_far in zip(tracks, hands, trusts, strict=True)
        ]
        betas = np.stack(shapes if given is None else [given] * len(seen))
        return self._estimator.pose(np.stack(rotations), betas, [hand.side for hand in hands])


def track_together(
    trackers: Sequence[HandTracker],
    frames: Sequence[NDArray[np.uint8]],
    timestamps_s: Sequence[float],
    cameras: Sequence[Camera | None] | None = None,
) -> list[list[HandMesh]]:
    """The next frames of several videos, each by its own tracker, with one run of the network for all.

    Gives what each tracker alone would give. Raises ``ValueError`` unless all share one estimator and none comes
    twice; other errors are those of `HandTracker`, and after any of them all trackers are as they were. What goes wrong
    later, such as Ctrl-C or a runtime that fails, ends their tracks.
    """
    if len({id(tracker) for tracker in trackers}) != len(trackers):
        raise ValueError("a tracker follows one video: give each video its own")
    if len({id(tracker._estimator) for tracker in trackers}) > 1:
        raise ValueError("trackers go together only if they share one estimator")
    given = zip(trackers, frames, timestamps_s, cameras or [None] * len(trackers), strict=True)
    checked = [tracker._checked(frame, time_s, camera) for tracker, frame, time_s, camera in given]
    if not checked:
        return []
    try:
        steps = [tracker._prepare(*one) for tracker, one in zip(trackers, checked, strict=True)]
        answers = trackers[0]._estimator.sightings(
            [s.frame for s in steps],
            [s.boxes for s in steps],
            [s.sides for s in steps],
            [s.camera for s in steps],
            [s.turns for s in steps],
        )
        return [tracker._advance(step, hands) for tracker, step, hands in zip(trackers, steps, answers, strict=True)]
    except BaseException:
        for tracker in trackers:
            tracker._forget()  # a track may be half begun
        raise


def _smooth_place(track: Track, place: NDArray[np.float64], time_s: float) -> NDArray[np.float64]:
    """A translation filtered as a direction and a log depth: depth is the noisiest and must not shake the rest."""
    x, y, z = place
    u, v = track.direction_filter([x / z, y / z], time_s)
    (log_z,) = track.depth_filter([math.log(z)], time_s)
    return math.exp(log_z) * np.array([u, v, 1.0])


def _both(first: Side) -> tuple[Side, Side]:
    return ("right", "left") if first == "right" else ("left", "right")
