"""Photos, cut-outs and targets for the hand detector.

A `Photo` is an image with the keypoints of the hands in it; the detector's frames are composed of photos
(`frame_composer.py`), and `encode` turns the hands of a frame into the dense targets of the network.

Photos with pseudo-labels lie in `ROOT/hands/<set>/*.jpg` with a `labels.json` beside them; hand-free photos in
`ROOT/backgrounds/<set>` and `ROOT/people/<set>`. A photo that its labels.json does not name may show a hand that
nobody labelled, so it is used neither with hands nor without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.photos import PhotoDataset, read_labels, side_is_known
from handmesh.datasets.sample import HandSample
from handmesh.image_folders import image_files, is_held_out
from handmesh.skeleton import KEYPOINTS

# By person and place: nobody who is in one split is in another.
TRAIN_SETS = ("subhi_webcam", "lebanese_gestures", "asl_letters_davidlee", "sign_digits", "grocery_holding")
VALIDATION_SETS = ("emrecandir_gestures", "rf100_korean_signs")
TEST_SETS = ("dexretargeting_video", "yolov5demo_signs", "wallet_phone_earpods", "sign_detection_78n0m")

MAX_SPREAD = 0.05  # pseudo-labels that disagree by more (of the hand's size) are mostly wrong
SIGMA_FRACTION = 0.09  # standard deviation of a centre's Gaussian as a fraction of the box (0.54 / 6: TTFNet, 2019)
MIN_SIGMA_CELLS = 0.6
TRIANGLE = tuple(map(KEYPOINTS.index, ("wrist", "index1", "little1")))  # which way round they go tells the side
MIN_SEEN = 0.65  # share of a box inside the picture below which a hand is not trusted
MAX_SHARED = 0.6  # share of a second hand's box inside the first's above which it is not trusted
MIN_ARM = 0.03  # share of a picture that an arm without its hand has to cover
BOX_REGION = 0.3  # cells whose Gaussian reaches this also learn box and side


@dataclass(frozen=True)
class Hands:
    """The M hands of an image.

    keypoints: (M, 21, 2) float32 pixels. right: (M,) bool, as the hand appears in this image.
    side_known: (M,) bool. trusted: (M,) bool; around an untrusted hand nothing is learnt or counted.
    """

    keypoints: NDArray[np.float32]
    right: NDArray[np.bool_]
    side_known: NDArray[np.bool_]
    trusted: NDArray[np.bool_]

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if self.keypoints.shape != (count, 21, 2):
            raise ValueError(f"keypoints must be (M, 21, 2), got {self.keypoints.shape}")
        for name in ("right", "side_known", "trusted"):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} must be ({count},), got {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(M, 4) xyxy: the tight boxes of the keypoints."""
        return np.concatenate([self.keypoints.min(1), self.keypoints.max(1)], axis=1).astype(np.float32)

    @staticmethod
    def none() -> Hands:
        """No hands."""
        empty = np.zeros(0, bool)
        return Hands(np.zeros((0, 21, 2), np.float32), empty, empty, empty)

    @staticmethod
    def concatenate(parts: Sequence[Hands]) -> Hands:
        """All hands of several lists, in order."""
        if not parts:
            return Hands.none()
        return Hands(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in ("keypoints", "right", "side_known", "trusted"))
        )

    def select(self, index: NDArray) -> Hands:
        """The hands of a boolean mask or an index array."""
        return Hands(self.keypoints[index], self.right[index], self.side_known[index], self.trusted[index])

    def moved(self, affine: NDArray) -> Hands:
        """After the (2, 3) pixel transform `affine`; one that mirrors (negative determinant) swaps the sides."""
        keypoints = (self.keypoints @ affine[:, :2].T + affine[:, 2]).astype(np.float32)
        mirrors = np.linalg.det(affine[:, :2]) < 0
        return Hands(keypoints, self.right ^ mirrors, self.side_known, self.trusted)


@dataclass(frozen=True)
class Photo:
    """image: (H, W, 3) uint8 RGB. alpha: (H, W) uint8 for a cut-out, None for a whole photo."""

    image: NDArray[np.uint8]
    hands: Hands = field(default_factory=Hands.none)
    alpha: NDArray[np.uint8] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"{self.source}: image must be uint8 (H, W, 3), got {self.image.shape}")
        if self.alpha is not None and self.alpha.shape != self.image.shape[:2]:
            raise ValueError(f"{self.source}: alpha {self.alpha.shape} does not fit image {self.image.shape}")


def load_photos(folder: str | Path, max_side: int | None = None) -> list[Photo]:
    """The labelled photos of one set, by name; larger ones are shrunk to `max_side` pixels.

    Raises FileNotFoundError without a labels.json, ValueError for a photo that cannot be read or labels that are none.
    """
    labelled = read_labels(Path(folder))
    return [_shrunk(_read_image(path), max_side, _parse_hands(hands), str(path)) for path, hands in labelled]


def load_plain(folders: Iterable[str | Path], held_out: bool, max_side: int | None = None) -> list[Photo]:
    """The hand-free photos of some folders: those held out from training, or the others."""
    photos = []
    for folder in map(Path, folders):
        for path in image_files(folder):
            if is_held_out(path) == held_out:
                photos.append(_shrunk(_read_image(path), max_side, Hands.none(), str(path)))
    return photos


def plain_folders(root: str | Path) -> list[Path]:
    """The folders of hand-free photos under ROOT/backgrounds and ROOT/people."""
    return sorted(p for kind in ("backgrounds", "people") for p in (Path(root) / kind).iterdir() if p.is_dir())


def load_cutouts(root: str | Path, limit: int | None = None) -> list[Photo]:
    """Rendered hands with alpha from a set in FreiHAND's layout; with `limit`, evenly spread over the set.

    A person's other hand, where the set has its keypoints, is a left one; it is trusted where it lies in the image
    and beside the first. Raises ValueError where the set has no alpha.
    """
    samples = FreiHandDataset(Path(root))
    count = len(samples) if limit is None else min(limit, len(samples))
    second = samples.meta.get("second")
    cutouts = []
    for index in np.linspace(0, len(samples) - 1, count).astype(int):
        sample = samples[int(index)]
        if sample.alpha is None:
            raise ValueError(f"cut-out {index} of {root} has no alpha")
        hands = _only_hand(sample)
        if second is not None and sample.intrinsics is not None:
            rows = second[int(index) % len(second)].astype(np.float64) @ sample.intrinsics.T
            hands = _with_other(hands, rows[:, :2] / rows[:, 2:], sample.image.shape[1])
        cutouts.append(Photo(sample.image, hands, sample.alpha, f"{root}/{index:08d}"))
    return cutouts


def load_arms(root: str | Path, limit: int) -> list[Photo]:
    """Cut-outs of rendered forearms, sleeves and held things whose hand is taken away: they show no hand.

    `limit` images are looked at, evenly spread over the set; those with too little left, or another hand, are not used.
    """
    samples = FreiHandDataset(Path(root))
    second = samples.meta.get("second")
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    arms = []
    for index in np.linspace(0, len(samples) - 1, min(limit, len(samples))).astype(int):
        sample = samples[int(index)]
        if sample.alpha is None or sample.mask is None:
            raise ValueError(f"cut-out {index} of {root} needs an alpha and a mask")
        if second is not None and np.isfinite(second[int(index) % len(second)]).all():
            continue
        alpha = np.where(cv2.dilate(sample.mask, around) > 40, np.uint8(0), sample.alpha)
        if (alpha > 128).mean() >= MIN_ARM:
            arms.append(Photo(sample.image, Hands.none(), alpha, f"{root}/{index:08d} without its hand"))
    return arms


def load_photographed(folder: str | Path) -> list[Photo]:
    """The labelled hands of one set, cut out with their forearms, but for those that do not stand out (`hand_opacity`).

    Raises FileNotFoundError without a labels.json.
    """
    return [
        Photo(sample.image, _only_hand(sample), sample.alpha, str(folder))
        for sample in PhotoDataset([Path(folder)], cut_out=True)
        if sample.alpha is not None
    ]


def _only_hand(sample: HandSample) -> Hands:
    known = np.ones(1, bool)
    return Hands(sample.joints_2d[None].astype(np.float32), known & (sample.side == "right"), known, known)


def _with_other(hands: Hands, keypoints: NDArray, size: int) -> Hands:
    """`hands` and a left one with these keypoints (21, 2); only those given if they are not finite or far outside."""
    if not np.isfinite(keypoints).all():
        return hands
    low, high = np.maximum(keypoints.min(0), 0), np.minimum(keypoints.max(0), size - 1)
    seen = np.prod(np.maximum(high - low, 0)) / max(np.prod(np.ptp(keypoints, axis=0)), 1e-6)
    if seen < 0.02:
        return hands
    first = hands.boxes[0]
    shared = np.minimum(high, first[2:]) - np.maximum(low, first[:2])
    hidden = np.prod(np.maximum(shared, 0)) / max(np.prod(high - low), 1e-6)
    trusted = np.array([seen > MIN_SEEN and hidden < MAX_SHARED])
    other = Hands(keypoints[None].astype(np.float32), np.zeros(1, bool), np.ones(1, bool), trusted)
    return Hands.concatenate([hands, other])


def _parse_hands(entries: list[dict]) -> Hands:
    if not entries:
        return Hands.none()
    return Hands(
        keypoints=np.asarray([e["kp2d"] for e in entries], np.float32),
        right=np.asarray([e["side"] == "right" for e in entries]),
        side_known=np.asarray([side_is_known(e) for e in entries]),
        trusted=np.asarray([e["spread"] <= MAX_SPREAD for e in entries]),
    )


def _read_image(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not an image that can be read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _shrunk(image: NDArray[np.uint8], max_side: int | None, hands: Hands, source: str) -> Photo:
    height, width = image.shape[:2]
    if max_side is not None and max(height, width) > max_side:
        scale = max_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        hands = hands.moved(resize_affine((width, height), size))
    return Photo(image, hands, None, source)


def resize_affine(source: tuple[int, int], target: tuple[int, int]) -> NDArray[np.float64]:
    """(2, 3) transform of pixel coordinates (integer centres) under a resize from (w, h) to (w, h)."""
    scale = np.array([target[0] / source[0], target[1] / source[1]])
    return np.column_stack([np.diag(scale), 0.5 * scale - 0.5])


@dataclass(frozen=True)
class Targets:
    """Dense targets at stride 8, (h, w) cells; all float32.

    heatmap: (1, h, w) Gaussians around the centres, 1 in a centre's cell. counted: (1, h, w) 0 where nothing is
    known. boxes: (4, h, w) l, t, r, b pixels from the cell's centre. box_weight: (1, h, w) sums to 1 for each hand.
    right: (1, h, w) 1 for a right hand. right_weight: (1, h, w) like box_weight, 0 where the side is unknown.
    triangle: (6, h, w) x, y of wrist, index and little knuckle from the cell's centre, in half boxes.
    """

    heatmap: NDArray[np.float32]
    counted: NDArray[np.float32]
    boxes: NDArray[np.float32]
    box_weight: NDArray[np.float32]
    right: NDArray[np.float32]
    right_weight: NDArray[np.float32]
    triangle: NDArray[np.float32]


def encode(hands: Hands, width: int, height: int, stride: int = 8) -> Targets:
    """The targets of a frame of width x height pixels. A hand whose centre lies outside is only ignored."""
    columns, rows = width // stride, height // stride
    xs = (np.arange(columns) + 0.5) * stride - 0.5
    ys = (np.arange(rows) + 0.5) * stride - 0.5
    heatmap = np.zeros((rows, columns), np.float32)
    counted = np.ones_like(heatmap)
    boxes = np.zeros((4, rows, columns), np.float32)
    box_weight, right, right_weight = np.zeros_like(heatmap), np.zeros_like(heatmap), np.zeros_like(heatmap)
    triangle = np.zeros((6, rows, columns), np.float32)
    learnt = []
    for index, (x1, y1, x2, y2) in enumerate(hands.boxes):
        column = int(np.floor(((x1 + x2) / 2 + 0.5) / stride))
        row = int(np.floor(((y1 + y2) / 2 + 0.5) / stride))
        if not (hands.trusted[index] and 0 <= column < columns and 0 <= row < rows):
            inside = (ys[:, None] >= y1 - stride) & (ys[:, None] <= y2 + stride)
            counted[inside & (xs >= x1 - stride) & (xs <= x2 + stride)] = 0
            continue
        sigma_x = max(SIGMA_FRACTION * (x2 - x1) / stride, MIN_SIGMA_CELLS)
        sigma_y = max(SIGMA_FRACTION * (y2 - y1) / stride, MIN_SIGMA_CELLS)
        across = ((np.arange(columns) - column) / sigma_x) ** 2
        down = ((np.arange(rows) - row) / sigma_y) ** 2
        gaussian = np.exp(-0.5 * (down[:, None] + across)).astype(np.float32)
        learnt.append((index, row, column, gaussian))
    for index, _, _, gaussian in learnt:
        owned = (gaussian > heatmap) & (gaussian >= BOX_REGION)
        x1, y1, x2, y2 = hands.boxes[index]
        distances = np.broadcast_arrays(xs - x1, (ys - y1)[:, None], x2 - xs, (y2 - ys)[:, None])
        boxes[:, owned] = np.stack(distances)[:, owned]
        box_weight[owned] = gaussian[owned] / gaussian[owned].sum() if owned.any() else 0
        for place, keypoint in enumerate(TRIANGLE):
            x, y = hands.keypoints[index, keypoint]
            triangle[2 * place][owned] = np.broadcast_to((x - xs) / max(0.5 * (x2 - x1), 1.0), heatmap.shape)[owned]
            triangle[2 * place + 1][owned] = np.broadcast_to(
                (y - ys)[:, None] / max(0.5 * (y2 - y1), 1.0), heatmap.shape
            )[owned]
        right[owned] = float(hands.right[index])
        right_weight[owned] = box_weight[owned] * float(hands.side_known[index])
        heatmap = np.maximum(heatmap, gaussian)
    for _, row, column, _ in learnt:
        counted[row, column] = 1
    return Targets(heatmap[None], counted[None], boxes, box_weight[None], right[None], right_weight[None], triangle)
