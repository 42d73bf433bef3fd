"""From a frame to hand meshes: detect, crop, run the network, bring left hands back, place hands in the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.crop import CROP_SCALE, Crop, laid_out, turn_upright, view_rotation
from handmesh.detector import HandDetector, reaches_into_frame
from handmesh.duplicates import each_once
from handmesh.handedness import SURE, for_side, right_evidence, unlike_its_pair
from handmesh.placement import project_joints, solve_translation
from handmesh.records import (
    Camera,
    Detection,
    HandMesh,
    PosedHand,
    Side,
    Sighting,
    box_of_keypoints,
    check_box,
    check_frame,
    check_side,
    given_betas,
    mirror_rotations,
    other_side,
)
from handmesh.refine import Refinement, refine
from handmesh.runtime import Graph, Precision, Runtime, load_graph
from handmesh.smoothing import rotmat_to_rotvec

PRESENCE = 0.99
"""What the network must say for a detected hand to be given out, unless its file or the caller asks for another."""

ASKEW = 0.5
"""A hand that stands off upright by more radians is looked at again in a crop that is turned."""

_OUTPUTS = ("rotations", "betas", "vertices", "joints", "joints_2d", "presence", "right")


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A box of a frame in which a hand is to be estimated, as of a side that may be guessed or ``fixed``."""

    frame: NDArray[np.uint8]
    box: NDArray[np.float64]
    side: Side
    fixed: bool  # the side is known
    turn: float | None = None  # of the crop; None where nobody knows how the hand is turned
    detected: bool = False


@dataclass(frozen=True, eq=False)
class _Estimate:
    """What the network said of one crop, brought back from the mirror but still in the crop's virtual camera."""

    box: NDArray[np.float64]  # (4,) px that it was cut around
    crop: Crop
    posed: PosedHand
    joints_2d: NDArray[np.float64]  # (21, 2) px of the frame
    presence: float
    side_score: float  # probability that the hand is of the side it was run as

    @property
    def side(self) -> Side:
        return "left" if self.crop.mirrored else "right"


class HandMeshEstimator:
    """Hand meshes of single frames. Build one with `from_pretrained`; use `HandTracker` for videos.

    One instance serves one thread at a time.
    """

    def __init__(
        self,
        network: Graph,
        pose_graph: Graph,
        faces: NDArray[np.integer],
        *,
        detector: HandDetector | None = None,
        presence_threshold: float | None = None,
    ) -> None:
        """From the open parts: the hand network, the hand model's graph, its faces (F, 3) and a detector."""
        if presence_threshold is None:
            presence_threshold = network.number("presence", PRESENCE)
        if not 0.0 <= presence_threshold <= 1.0:
            raise ValueError(f"presence_threshold must lie between 0 and 1 but is {presence_threshold}")
        self.detector = detector
        self.presence_threshold = presence_threshold
        self._camera: Camera | None = None
        self.network = network
        """The hand network: crops to parameters."""
        self._pose_graph = pose_graph
        self._betas: NDArray[np.float64] | None = None
        self.refinement: Refinement | None = None
        """How every hand's joints are bent to meet its keypoints (`handmesh.refine`); None leaves them as they are."""
        self.hand_model: HandModelArrays | None = None
        """The hand model of the meshes, where it is known: `from_pretrained` knows it."""
        self._faces = np.asarray(faces, np.int32)
        self.vertex_count = int(self._faces.max()) + 1
        """V, of every mesh."""
        self._size = int(network.number("input_size"))
        self._crop_scale = network.number("crop_scale", CROP_SCALE)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "fast",
        *,
        runtime: Runtime = "onnxruntime",
        threads: int | None = None,
        precision: Precision | None = None,
        device: str = "cpu",
        detector: str | Path | None = "detector",
        hand_model: str | Path | None = None,
        pose_graph: str | Path = "hand_model",
        presence_threshold: float | None = None,
    ) -> HandMeshEstimator:
        """Open a hand network by its name or from a file, with its detector and its hand model, and warm it up.

        ``runtime``, ``threads``, ``precision``, ``device`` and file errors are those of `load_graph`; the default is
        what is fastest on a processor. Runtime "torch" runs the hand network in torch and the detector in onnxruntime
        on the processor; the hand model's small graph is always there. ``detector`` None does without: then every call
        must bring boxes. A network trained on another hand model than the embedded one needs that model's file as
        ``hand_model`` (.npz or MANO's .pkl) and its exported graph as ``pose_graph``. Detected hands that the network
        gives a presence below ``presence_threshold`` are dropped; None takes the threshold that the file names, else
        `PRESENCE`.
        """
        model = load_hand_model(hand_model)
        network = load_graph(
            name_or_path,
            "hand",
            runtime=runtime,
            threads=threads,
            precision=precision,
            device=device,
            hand_model=model,
        )
        poses = load_graph(pose_graph, "hand_model", threads=1)
        finder = None
        if detector is not None:
            in_torch = runtime == "torch"
            finder = HandDetector.from_pretrained(
                detector,
                runtime="onnxruntime" if in_torch else runtime,
                threads=threads,
                precision=None if precision == "int8" else precision,  # as it is best: it need not have an int8 twin
                device="cpu" if in_torch else device,
            )
        estimator = cls(network, poses, model.faces, detector=finder, presence_threshold=presence_threshold)
        estimator.hand_model = model
        estimator.vertex_count = len(model.v_template)
        estimator.warm_up()
        return estimator

    @property
    def betas(self) -> NDArray[np.float64] | None:
        """The shape (10,) that all hands are given, such as a calibrated one (`handmesh.hand_size`); None for none."""
        return self._betas

    @betas.setter
    def betas(self, betas: ArrayLike | None) -> None:
        self._betas = given_betas(betas)

    @property
    def camera(self) -> Camera | None:
        """The camera of all frames that come without one, resized to them; None for an assumed field of view."""
        return self._camera

    @camera.setter
    def camera(self, camera: Camera | None) -> None:
        if not isinstance(camera, Camera | None):
            raise TypeError(f"an estimator's camera must be a handmesh.Camera or None, not {type(camera).__name__}")
        self._camera = camera

    def warm_up(self) -> None:
        """Run every graph once on nothing, so that the first hands come as fast as the next."""
        for count in (1, 2):
            self.network(crop=np.zeros((count, self._size, self._size, 3), np.uint8))
        rotations = np.tile(np.eye(3, dtype=np.float32), (1, 16, 1, 1))
        self._pose_graph(rotations=rotations, betas=np.zeros((1, 10), np.float32))
        if self.detector is not None:
            self.detector(np.zeros((self._size, self._size, 3), np.uint8))

    def __call__(
        self,
        frame_rgb: NDArray[np.uint8],
        boxes: ArrayLike | None = None,
        sides: Sequence[Side | None] | None = None,
        camera: Camera | None = None,
        turns: Sequence[float | None] | None = None,
    ) -> list[HandMesh]:
        """The hands of a frame (H, W, 3) uint8 RGB; OpenCV's frames are BGR: give ``frame[..., ::-1]``.

        Without ``boxes`` the detector finds them, and hands of low presence are dropped. With ``boxes`` (N, 4), the
        tight boxes x1, y1, x2, y2 px of the hands' 21 keypoints, the detector is skipped and one mesh a box comes
        back in the same order, whatever its score. ``sides`` names each box's side; where it is missing or None, and
        for detected hands, the hand is run as a left and as a right one, and the likelier of the two is kept; of two
        hands, and no more, that look to be of one side the less sure one may be taken for the other's pair. ``turns``
        are the angles in radians (x towards y) by which the boxes' crops are turned for the hands to stand upright;
        where that is missing or None, a hand that stands more than `ASKEW` off upright is looked at twice, then in a
        turned crop. Detected hands are always looked at twice, first in the detector's box, then, as one side if that
        is sure, in the box of the keypoints seen there, turned. Without ``camera`` that of the attribute `camera` is
        used; where there is none either, a field of view of 60 degrees across the longer side is assumed, and
        ``HandMesh.camera.assumed`` says so.

        Raises ``TypeError`` or ``ValueError`` for a bad frame (`check_frame`), for boxes that are malformed, inverted
        or wholly outside the frame, for sides or turns that do not match the boxes and for a camera of another frame
        size.
        """
        (hands,) = self.batch([frame_rgb], [boxes], [sides], [camera], [turns])
        return hands

    def batch(
        self,
        frames: Sequence[NDArray[np.uint8]],
        boxes: Sequence[ArrayLike | None] | None = None,
        sides: Sequence[Sequence[Side | None] | None] | None = None,
        cameras: Sequence[Camera | None] | None = None,
        turns: Sequence[Sequence[float | None] | None] | None = None,
    ) -> list[list[HandMesh]]:
        """The hands of each of some frames, as one call a frame gives them, but with one run of the network for all.

        The arguments are those of a single frame, one entry a frame, and so are the errors.
        """
        for name, given in (("boxes", boxes), ("sides", sides), ("cameras", cameras), ("turns", turns)):
            if given is not None and (not isinstance(given, Sized) or len(given) != len(frames)):
                raise ValueError(f"{name} must have one entry for each of the {len(frames)} frames, or None")
        nothing = [None] * len(frames)
        boxes, sides = nothing if boxes is None else boxes, nothing if sides is None else sides
        cameras, turns = nothing if cameras is None else cameras, nothing if turns is None else turns
        checked = [laid_out(check_frame(frame)) for frame in frames]
        known = [check_camera(camera, frame, self.camera) for camera, frame in zip(cameras, checked, strict=True)]
        seen = self.sightings(checked, boxes, sides, known, turns)
        return [_place_hands(of_frame, camera) for of_frame, camera in zip(seen, known, strict=True)]

    def sightings(
        self,
        frames: Sequence[NDArray[np.uint8]],
        boxes: Sequence[ArrayLike | None],
        sides: Sequence[Sequence[Side | None] | None],
        cameras: Sequence[Camera],
        turns: Sequence[Sequence[float | None] | None],
    ) -> list[list[Sighting]]:
        """What `batch` makes its hands of, for callers that pose and place them themselves.

        ``frames`` are such as `check_frame` and `laid_out` give, and each has its camera.
        """
        wanted = [self._wanted(*of_frame) for of_frame in zip(frames, boxes, sides, turns, strict=True)]
        flat = [one for of_frame in wanted for one in of_frame]
        estimates, right = self._estimate(flat)
        numbers = iter(range(len(flat)))
        hands = [list(islice(numbers, len(asked))) for asked in wanted]
        hands = [self._found(own, estimates) if given is None else own for own, given in zip(hands, boxes, strict=True)]
        self._pair_up(hands, flat, estimates, right)
        return [
            self._adjusted(_turned([estimates[i] for i in own], camera), camera)
            for own, camera in zip(hands, cameras, strict=True)
        ]

    def detect(self, frame_rgb: NDArray[np.uint8]) -> list[Detection]:
        """Hands that the detector finds. Raises ``ValueError`` if this estimator has none."""
        if self.detector is None:
            raise ValueError(
                "this estimator was opened without a detector: give boxes, or open it with detector='detector'"
            )
        return self.detector(frame_rgb)

    def pose(
        self, rotations: NDArray[np.floating], betas: NDArray[np.floating], sides: Sequence[Side]
    ) -> list[PosedHand]:
        """Hands (N) about their wrists from rotations (N, 16, 3, 3) of their own sides' models and betas (N, 10)."""
        if not sides:
            return []
        left = np.array([side == "left" for side in sides])
        as_right = np.where(left[:, None, None, None], mirror_rotations(rotations), rotations)
        outputs = self._pose_graph(rotations=as_right.astype(np.float32), betas=np.asarray(betas, np.float32))
        return [self._posed(as_right[i], betas[i], outputs, i, left[i]) for i in range(len(sides))]

    def _adjusted(self, seen: list[Sighting], camera: Camera) -> list[Sighting]:
        """The hands bent to meet their keypoints and of the shape that was given, where this is wanted."""
        how, given = self.refinement, self._betas
        if not seen or (how is None and given is None):
            return seen
        rotations = [one.posed.rotations for one in seen]
        if how is not None:
            places = _places(seen, camera)
            rotations = [
                refine(one.posed, one.side, place, one.joints_2d, camera, how)[0]
                for one, place in zip(seen, places, strict=True)
            ]
        betas = np.stack([one.posed.betas if given is None else given for one in seen])
        posed = self.pose(np.stack(rotations), betas, [one.side for one in seen])
        return [replace(one, posed=hand) for one, hand in zip(seen, posed, strict=True)]

    def _wanted(
        self,
        frame: NDArray[np.uint8],
        boxes: ArrayLike | None,
        sides: Sequence[Side | None] | None,
        turns: Sequence[float | None] | None,
    ) -> list[_Wanted]:
        """What to estimate in a frame: the boxes that were given, or those that the detector finds."""
        if boxes is None:
            for name, given in (("sides", sides), ("turns", turns)):
                if given is not None:
                    raise ValueError(f"{name} were given without boxes: give the boxes that they belong to, or neither")
            return [_Wanted(frame, found.box, found.side, False, detected=True) for found in self.detect(frame)]
        checked = _check_boxes(boxes, frame)
        given = _check_sides(sides, len(checked))
        return [
            _Wanted(frame, box, side or "right", side is not None, turn)
            for box, side, turn in zip(checked, given, _check_turns(turns, len(checked)), strict=True)
        ]

    def _estimate(self, wanted: Sequence[_Wanted]) -> tuple[list[_Estimate], list[float]]:
        """One estimate each, and log odds of a right hand. Hands are looked at again, turned upright, where they turn
        out to lie `ASKEW`, and where a detector's box is rough, then in the box of the keypoints."""
        estimates, heard = self._look(wanted, [0.0] * len(wanted))
        upright = {i: turn_upright(estimates[i].joints_2d) for i, one in enumerate(wanted) if one.turn is None}
        again = [i for i, turn in upright.items() if wanted[i].detected or abs(turn) > ASKEW]
        closer = [
            replace(
                wanted[i],
                box=box_of_keypoints(estimates[i].joints_2d) if wanted[i].detected else wanted[i].box,
                side=estimates[i].side,
                fixed=wanted[i].fixed or abs(heard[i]) >= SURE,
                turn=upright[i],
            )
            for i in again
        ]
        seen, heard_then = self._look(closer, [heard[i] for i in again])
        for i, estimate, right in zip(again, seen, heard_then, strict=True):
            estimates[i], heard[i] = estimate, right
        return estimates, heard

    def _found(self, hands: Sequence[int], estimates: Sequence[_Estimate]) -> list[int]:
        """The numbers of those hands that are there, each once: the detector may find a hand and a part of it."""
        there = [i for i in hands if estimates[i].presence >= self.presence_threshold]
        return [there[n] for n in each_once([estimates[i].joints_2d for i in there])]

    def _pair_up(
        self,
        frames: Sequence[Sequence[int]],
        wanted: Sequence[_Wanted],
        estimates: list[_Estimate],
        right: Sequence[float],
    ) -> None:
        """Run a hand as the other side where it is the less sure one of a frame's only two, which look alike.

        ``frames`` holds the numbers of each frame's hands; ``estimates`` are replaced.
        """
        unlike = []
        for hands in frames:
            if len(hands) == 2:
                odds = [for_side(wanted[i].side, math.inf) if wanted[i].fixed else right[i] for i in hands]
                less = unlike_its_pair(odds)
                if less is not None:
                    unlike.append(hands[less])
        if not unlike:
            return
        others = self._run([self._as_other_side(wanted[i], estimates[i]) for i in unlike])
        for i, other in zip(unlike, others, strict=True):
            if other.presence >= min(self.presence_threshold, estimates[i].presence):
                estimates[i] = other

    def _as_other_side(self, wanted: _Wanted, seen: _Estimate) -> _Wanted:
        """The crop that was seen, to be run as the other side."""
        return replace(wanted, box=seen.box, side=other_side(seen.side), turn=seen.crop.turn)

    def _look(self, wanted: Sequence[_Wanted], heard: Sequence[float]) -> tuple[list[_Estimate], list[float]]:
        """One estimate each, and log odds of a right hand: those ``heard`` before with those of this look.

        Where the side is not ``fixed``, both sides are run in one batch and the likelier stays.
        """
        unsure = [i for i, one in enumerate(wanted) if not one.fixed]
        estimates = self._run([*wanted, *(replace(wanted[i], side=other_side(wanted[i].side)) for i in unsure)])
        right = list(heard)
        for i, other in zip(unsure, estimates[len(wanted) :], strict=True):
            right[i] += right_evidence({one.side: one.side_score for one in (estimates[i], other)})
            if for_side(other.side, right[i]) > 0:
                estimates[i] = other
        return estimates[: len(wanted)], right

    def _run(self, wanted: Sequence[_Wanted]) -> list[_Estimate]:
        """All crops through the network in one batch."""
        if not wanted:
            return []
        crops = [
            Crop.from_box(
                hand.box, self._size, mirrored=hand.side == "left", turn=hand.turn or 0.0, scale=self._crop_scale
            )
            for hand in wanted
        ]
        pictures = np.stack([crop.cut(hand.frame) for crop, hand in zip(crops, wanted, strict=True)])
        outputs = self.network(crop=pictures)
        missing = [name for name in _OUTPUTS if name not in outputs]
        if missing:
            raise ValueError(f"{self.network.path} lacks the outputs {', '.join(missing)}: export it again")
        presence, right = (np.clip(outputs[name], 0.0, 1.0).tolist() for name in ("presence", "right"))
        rotations, betas, joints_2d = outputs["rotations"], outputs["betas"], outputs["joints_2d"]
        return [
            _Estimate(
                wanted[i].box,
                crop,
                self._posed(rotations[i], betas[i], outputs, i, crop.mirrored),
                crop.to_frame(joints_2d[i]),
                presence[i],
                right[i],
            )
            for i, crop in enumerate(crops)
        ]

    def _posed(
        self, rotations: NDArray, betas: NDArray, outputs: dict[str, NDArray], i: int, mirrored: bool
    ) -> PosedHand:
        """Row ``i`` of a graph's vertices and joints with its parameters, out of the mirror if it went through it."""
        vertices = outputs["vertices"][i]
        if len(vertices) != self.vertex_count:
            raise ValueError(
                f"the network gives {len(vertices)} vertices but the hand model's faces need {self.vertex_count}: "
                "open the estimator with the hand model that the network was trained on (hand_model=, pose_graph=)"
            )
        posed = PosedHand(rotations, betas, vertices, outputs["joints"][i], self._faces)
        return posed.mirrored() if mirrored else posed


def _turned(estimates: Sequence[_Estimate], camera: Camera) -> list[Sighting]:
    """Each hand turned from its crop's (turned) virtual camera into the true one."""
    if not estimates:
        return []
    rotations = view_rotation(camera.rays([e.crop.center for e in estimates]))
    return [
        Sighting(e.side, e.posed.rotated(R @ e.crop.turned_back), e.joints_2d, e.presence, e.side_score)
        for e, R in zip(estimates, rotations, strict=True)
    ]


def _places(seen: Sequence[Sighting], camera: Camera) -> NDArray[np.float64]:
    """(N, 3) metres: where each hand stands in the camera."""
    return solve_translation(
        np.stack([one.posed.joints for one in seen]), np.stack([one.joints_2d for one in seen]), camera
    )


def _place_hands(seen: Sequence[Sighting], camera: Camera) -> list[HandMesh]:
    """The records of the hands, each where it stands."""
    if not seen:
        return []
    return [
        build_hand(one.posed, one.side, place, camera, one.score, one.side_score, joints_2d=one.joints_2d)
        for one, place in zip(seen, _places(seen, camera), strict=True)
    ]


def build_hand(
    posed: PosedHand,
    side: Side,
    translation: NDArray[np.floating],
    camera: Camera,
    score: float,
    side_score: float,
    *,
    joints_2d: NDArray[np.floating] | None = None,
    track_id: int | None = None,
) -> HandMesh:
    """The record of a hand in camera axes; ``joints_2d`` (21, 2) px are its joints' projection where not given."""
    if joints_2d is None:
        joints_2d = project_joints(posed.joints, translation, camera)
    rotvecs = rotmat_to_rotvec(posed.rotations).astype(np.float32)
    return HandMesh(
        side=side,
        score=score,
        box=box_of_keypoints(joints_2d),
        vertices=posed.vertices,
        joints=posed.joints,
        translation=translation,
        joints_2d=joints_2d,
        global_orient=rotvecs[0],
        hand_pose=rotvecs[1:],
        betas=posed.betas,
        faces=posed.faces,
        camera=camera,
        side_score=side_score,
        track_id=track_id,
    )


_assumed_camera = lru_cache(maxsize=8)(Camera.from_fov)  # a video asks for the same one in every frame


def check_camera(camera: Camera | None, frame: NDArray[np.uint8], default: Camera | None = None) -> Camera:
    """The camera of a frame: where it is None, ``default`` resized to the frame, or an assumed one.

    Raises ``TypeError`` for what is no `Camera` and ``ValueError`` for one of another frame size, or for a default
    whose frames have other proportions.
    """
    height, width = frame.shape[:2]
    if camera is None and default is not None:
        if not has_proportions(default, frame):
            raise ValueError(
                f"the camera's intrinsics are for frames of {default.width} x {default.height}, but this frame has "
                f"{width} x {height}, which is no resized one: calibrate the camera at this frame size"
            )
        return default if (default.width, default.height) == (width, height) else default.resized(width, height)
    if camera is None:
        return _assumed_camera(width, height)
    if not isinstance(camera, Camera):
        raise TypeError(f"camera must be a handmesh.Camera or None, not {type(camera).__name__}")
    if (camera.width, camera.height) != (width, height):
        raise ValueError(
            f"the camera is for frames of {camera.width} x {camera.height} but this frame has {width} x {height}: "
            f"use camera.resized({width}, {height}) if the frame was resized"
        )
    return camera


def has_proportions(camera: Camera, frame: NDArray[np.uint8]) -> bool:
    """Whether a frame (H, W, 3) may be one of the camera's, resized: its sides fit to within a pixel."""
    height, width = frame.shape[:2]
    return abs(camera.width * height - camera.height * width) <= max(width, height, camera.width, camera.height)


def _check_boxes(boxes: ArrayLike, frame: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return []
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), a row x1, y1, x2, y2 for each hand, but have {array.shape}")
    checked = [check_box(box, f"boxes[{i}]") for i, box in enumerate(array)]
    for i, box in enumerate(checked):
        if not reaches_into_frame(box, frame):
            raise ValueError(
                f"boxes[{i}] = {box.tolist()} lies outside the frame of {frame.shape[1]} x {frame.shape[0]}: "
                "give pixels of this frame (not fractions, nor pixels of a resized one)"
            )
        if ((box >= 0.0) & (box <= 1.0)).all() and min(frame.shape[:2]) > 2:
            raise ValueError(f"boxes[{i}] = {box.tolist()} lies within one pixel: give pixels, not fractions")
    return checked


def _check_sides(sides: Sequence[Side | None] | None, count: int) -> list[Side | None]:
    if sides is None:
        return [None] * count
    if isinstance(sides, str):
        raise TypeError(f'sides must be a list with one side a box, such as ["left"], not the string {sides!r}')
    if len(sides) != count:
        raise ValueError(f"sides must name one side a box: there are {count} boxes and {len(sides)} sides")
    for i, side in enumerate(sides):
        if side is not None:
            check_side(side, f"sides[{i}]")
    return list(sides)


def _check_turns(turns: Sequence[float | None] | None, count: int) -> list[float | None]:
    if turns is None:
        return [None] * count
    if not isinstance(turns, Sequence | np.ndarray) or isinstance(turns, str):
        raise TypeError(f"turns must be a list with one angle a box, not {turns!r}")
    if len(turns) != count:
        raise ValueError(f"turns must hold one angle a box: there are {count} boxes and {len(turns)} turns")
    for i, turn in enumerate(turns):
        if turn is not None and not math.isfinite(turn):
            raise ValueError(f"turns[{i}] must be a finite number of radians but is {turn}")
    return list(turns)
