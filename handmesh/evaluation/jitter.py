"""Trembling and lag of a hand through a clip, ours and another tracker's, by the same measures.

Trembling is the mean acceleration of the joints in mm/frame^2: the length of the second difference over three frames in
a row. A hand that truly moves accelerates too, so still and moving frames are told apart. Lag is the delay at which a
smoothed hand fits the same method's single frames best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.estimator import HandMeshEstimator
from handmesh.placement import solve_translation
from handmesh.records import Camera, HandMesh
from handmesh.smoothing import OneEuro, Smoothing, VectorFilter
from handmesh.tracker import HandTracker

STILL, MOVING = 0.006, 0.02
"""A hand that goes on average less, or more, than these shares of its size a frame, over ``WINDOW`` frames each way."""

WINDOW = 5
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Filters are tried with their cutoffs multiplied by these: a low one lags more."""

METRES_A_RADIAN = 0.08
"""Length of a finger, by which filters of joints in metres get the speeds of filters of rotations."""


@dataclass(frozen=True, eq=False)
class HandSeries:
    """One hand through T frames, NaN where it was not found.

    ``joints`` (T, 21, 3) m from the wrist, ``places`` (T, 3) m of the wrist in the camera, ``pixels`` (T, 21, 2).
    """

    joints: NDArray[np.float64]
    places: NDArray[np.float64]
    pixels: NDArray[np.float64]

    @property
    def in_camera(self) -> NDArray[np.float64]:
        """(T, 21, 3) m."""
        return self.joints + self.places[:, None]

    @property
    def found(self) -> NDArray[np.bool_]:
        return np.isfinite(self.places[:, 0])


Found = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating], float]
"""A hand of a frame: joints (21, 3), place (3,), pixels (21, 2), score."""


def series_of_hands(frames: Sequence[Sequence[HandMesh]]) -> HandSeries:
    """The clip's main hand: in each frame the one nearest to where it was, at first and after gaps the surest."""
    return _main_hand([[(h.joints, h.translation, h.joints_2d, h.score) for h in hands] for hands in frames])


def series_of_landmarks(
    frames: Sequence[Sequence[tuple[NDArray[np.floating], NDArray[np.floating], float]]], camera: Camera
) -> HandSeries:
    """The same of another tracker's landmarks: world (21, 3) m, pixels (21, 2) and score of each hand.

    They are placed in the camera as ours are, by the robust solve over 21 joints.
    """
    found: list[list[Found]] = []
    for hands in frames:
        rows: list[Found] = []
        for world, pixels, score in hands:
            joints = world - world[:1]
            place = solve_translation(joints[None].astype(float), pixels[None].astype(float), camera)[0]
            rows.append((joints, place, pixels, score))
        found.append(rows)
    return _main_hand(found)


def _main_hand(frames: Sequence[Sequence[Found]]) -> HandSeries:
    shape = len(frames)
    series = HandSeries(np.full((shape, 21, 3), np.nan), np.full((shape, 3), np.nan), np.full((shape, 21, 2), np.nan))
    last: NDArray[np.floating] | None = None
    for number, hands in enumerate(frames):
        if not hands:
            continue
        if last is None:
            chosen = max(hands, key=lambda hand: hand[3])
        else:
            before = last
            chosen = min(hands, key=lambda hand: float(np.linalg.norm(hand[2].mean(0) - before.mean(0))))
        series.joints[number], series.places[number], series.pixels[number] = chosen[:3]
        last = chosen[2]
    return series


def speeds(series: Sequence[HandSeries]) -> NDArray[np.float64]:
    """(T,) how far the keypoints go a frame, in sizes of the hand: means over the series and over a window, so that
    trembling cancels. NaN where a series lacks the hand at the window's ends."""
    found = []
    for one in series:
        size = np.ptp(one.pixels, axis=1).max(axis=-1)
        gone = np.full(len(size), np.nan)
        ends = one.pixels[2 * WINDOW :] - one.pixels[: -2 * WINDOW]
        gone[WINDOW:-WINDOW] = np.linalg.norm(ends, axis=-1).mean(axis=-1) / (2 * WINDOW)
        found.append(gone / size)
    return np.mean(found, axis=0)


def accelerations_mm(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) mean length of the second difference of points (T, 21, 3) m, at its middle frame; NaN where one lacks."""
    found = np.full(len(points), np.nan)
    found[1:-1] = 1e3 * np.linalg.norm(points[2:] - 2 * points[1:-1] + points[:-2], axis=-1).mean(axis=-1)
    return found


def lag_frames(series: HandSeries, reference: HandSeries, frames: NDArray[np.bool_]) -> float:
    """The delay, in frames, at which ``series`` fits ``reference`` best in the picture over some frames."""
    usable = np.flatnonzero(frames & series.found)
    delays = np.arange(-2.0, 6.01, 0.05)
    errors = []
    for delay in delays:
        low = np.floor(usable - delay).astype(int)
        inside = (low >= 0) & (low + 1 < len(frames))
        share = (usable - delay - low)[inside, None, None]
        earlier = (1 - share) * reference.pixels[low[inside]] + share * reference.pixels[low[inside] + 1]
        errors.append(np.nanmean((series.pixels[usable[inside]] - earlier) ** 2))
    return float(delays[int(np.argmin(errors))])


def scaled(smoothing: Smoothing, strength: float) -> Smoothing:
    """The same filters with all cutoffs multiplied."""
    return replace(
        smoothing,
        **{
            name: OneEuro(getattr(smoothing, name).min_cutoff_hz * strength, getattr(smoothing, name).beta * strength)
            for name in ("rotation", "translation", "depth")
        },
    )


def filtered(series: HandSeries, smoothing: Smoothing, fps: float, camera: Camera) -> HandSeries:
    """Another tracker's series through filters like our own: its joints in metres, its direction and log depth."""
    turning = OneEuro(smoothing.rotation.min_cutoff_hz, smoothing.rotation.beta / METRES_A_RADIAN)
    out = HandSeries(series.joints.copy(), series.places.copy(), series.pixels.copy())
    filters: list[VectorFilter] = []
    for number in range(len(series.places)):
        if not series.found[number]:
            filters = []
            continue
        filters = filters or [VectorFilter(turning), VectorFilter(smoothing.translation), VectorFilter(smoothing.depth)]
        x, y, z = series.places[number]
        time_s = number / fps
        out.joints[number] = filters[0](series.joints[number], time_s)
        u, v = filters[1]([x / z, y / z], time_s)
        depth = float(np.exp(filters[2]([np.log(z)], time_s)[0]))
        out.places[number] = depth * np.array([u, v, 1.0])
        out.pixels[number] = camera.project(out.joints[number] + out.places[number])
    return out


class Replay:
    """An estimator that remembers its answers, so that one clip can be tracked with many filters at one's cost."""

    def __init__(self, estimator: HandMeshEstimator) -> None:
        self._estimator, self._answers, self._found = estimator, {}, {}
        self.presence_threshold, self.detector = estimator.presence_threshold, estimator.detector
        self.camera, self.hand_model, self.pose = estimator.camera, estimator.hand_model, estimator.pose

    def detect(self, frame: NDArray[np.uint8]) -> Any:
        key = hash(frame.tobytes())
        if key not in self._found:
            self._found[key] = self._estimator.detect(frame)
        return self._found[key]

    def sightings(self, frames: Any, boxes: Any, sides: Any, cameras: Any, turns: Any) -> Any:
        places = [np.round(np.asarray(of_frame, float), 3).tobytes() for of_frame in boxes]
        key = (tuple(hash(frame.tobytes()) for frame in frames), tuple(places), str(sides), str(turns))
        if key not in self._answers:
            self._answers[key] = self._estimator.sightings(frames, boxes, sides, cameras, turns)
        return self._answers[key]


def measure(
    series: HandSeries, reference: HandSeries, still: NDArray[np.bool_], moving: NDArray[np.bool_], fps: float
) -> dict[str, float]:
    """Trembling on still and on moving frames, from the wrist and in the camera (mm/frame^2), and lag (ms).

    Means of no frame are left out.
    """
    facts: dict[str, float] = {"found": float(series.found.mean())}
    for name, points in (("wrist", series.joints), ("camera", series.in_camera)):
        found = accelerations_mm(points)
        for kind, frames in (("still", still), ("moving", moving)):
            values = found[frames & np.isfinite(found)]
            if len(values):
                facts[f"{name}_{kind}"] = float(values.mean())
    if moving.any():
        facts["lag_ms"] = 1e3 / fps * lag_frames(series, reference, moving)
    return facts


def track_clip(
    estimator: Any, clip: Sequence[tuple[NDArray[np.uint8], float]], smoothing: Smoothing | None, camera: Camera | None
) -> list[list[HandMesh]]:
    """A clip's hands by our tracker, at most one."""
    tracker = HandTracker(estimator, 1, smoothing=smoothing)
    return [tracker(frame, time_s, camera) for frame, time_s in clip]


def compare(
    estimator: HandMeshEstimator,
    clip: Sequence[tuple[NDArray[np.uint8], float]],
    fps: float,
    peer: Callable[[bool], list[list[tuple[NDArray[np.floating], NDArray[np.floating], float]]]] | None,
) -> dict[str, Any]:
    """Our tracker, our single frames and a peer's on one clip, at several strengths of the filters.

    ``peer`` gives another tracker's hands of every frame (`series_of_landmarks`), tracked or each frame for itself.
    """
    camera = Camera.from_fov(clip[0][0].shape[1], clip[0][0].shape[0])
    replay = Replay(estimator)
    single = series_of_hands([estimator(frame, camera=camera) for frame, _ in clip])
    raw = series_of_hands(track_clip(replay, clip, None, camera))
    judges: list[HandSeries] = [raw]
    peers: dict[str, HandSeries] = {}
    if peer is not None:
        peers = {
            "peer_frames": series_of_landmarks(peer(False), camera),
            "peer": series_of_landmarks(peer(True), camera),
        }
        judges.append(peers["peer"])
    speed = speeds(judges)
    still, moving = speed < STILL, speed > MOVING
    facts: dict[str, Any] = {
        "frames": len(clip),
        "still_frames": int(still.sum()),
        "moving_frames": int(moving.sum()),
        "single_frames": measure(single, single, still, moving, fps),
        "tracked_unsmoothed": measure(raw, raw, still, moving, fps),
    }
    for strength in STRENGTHS:
        ours = series_of_hands(track_clip(replay, clip, scaled(Smoothing(), strength), camera))
        facts[f"tracked_{strength:g}"] = measure(ours, raw, still, moving, fps)
    for name, series in peers.items():
        facts[name] = measure(series, peers["peer_frames"], still, moving, fps)
    if peers:
        for strength in STRENGTHS:
            smooth = filtered(peers["peer"], scaled(Smoothing(), strength), fps, camera)
            facts[f"peer_{strength:g}"] = measure(smooth, peers["peer"], still, moving, fps)
        if moving.any():
            facts["peer_at_our_lag"] = at_lag(facts, facts["tracked_1"]["lag_ms"])
    return facts


def at_lag(facts: dict[str, Any], lag_ms: float) -> dict[str, float]:
    """The peer's trembling at a lag, interpolated between the strengths of its filter."""
    rows = [facts[f"peer_{strength:g}"] for strength in sorted(STRENGTHS, reverse=True)]
    rows = [{**facts["peer"], "lag_ms": 0.0}, *rows]
    lags = np.array([row["lag_ms"] for row in rows])
    names = [name for name in rows[0] if name.startswith(("wrist_", "camera_")) and all(name in row for row in rows)]
    order = np.argsort(lags)
    return {"lag_ms": lag_ms} | {
        name: float(np.interp(lag_ms, lags[order], np.array([row[name] for row in rows])[order])) for name in names
    }
