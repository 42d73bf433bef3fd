"""Training frames for the hand detector, composed of photos, rendered hands and hand-free pictures.

A frame is a pure function of its seed, so that training resumes exactly and validation frames stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.datasets.augment import AugmentConfig, degrade, procedural_patch
from handmesh.datasets.detection import Hands, Photo

_HIDDEN, _TOUCHED = 0.8, 0.25  # share of a box that a later layer covers: the hand is gone, or no longer trusted
_MIN_SEEN = 0.65  # share of a box inside the frame below which a hand is not trusted


@dataclass(frozen=True)
class ComposerConfig:
    """How frames are made. Probabilities unless a unit is given."""

    width: int = 256
    height: int = 192
    hand_sides: tuple[float, float] = (0.07, 0.7)  # longer box side / frame width, log-uniform
    scene: float = 0.38  # one photo fills the frame, its hand where the photo has it
    collage: float = 0.3  # photos pasted small on a hand-free picture
    rendered: float = 0.17  # rendered hands on a hand-free picture, where there are any; the rest has no hand
    person: float = 0.4  # a person without hands somewhere, where the frame is not one photo
    unstretch: float = 0.4
    letterbox: float = 0.5
    degrade: AugmentConfig = field(default_factory=lambda: AugmentConfig(blur=0.2, noise=0.25, jpeg=0.25, grey=0.04))


@dataclass(frozen=True)
class Frame:
    """image: (H, W, 3) uint8 RGB; hands in its pixels."""

    image: NDArray[np.uint8]
    hands: Hands


@dataclass(frozen=True)
class Pictures:
    """What frames are made of. `sets`: photos with hands by set; `weights`: how often each set is drawn."""

    sets: Sequence[Sequence[Photo]]
    weights: Sequence[float]
    backgrounds: Sequence[Photo]
    people: Sequence[Photo]
    rendered: Sequence[Photo] = ()

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.weights) or not all(self.sets):
            raise ValueError("every set of photos needs a weight and at least one photo")
        if not self.backgrounds:
            raise ValueError("frames need at least one background picture")

    def draw(self, rng: np.random.Generator) -> Photo:
        """A photo with hands."""
        share = np.asarray(self.weights, float) / sum(self.weights)
        return _pick(self.sets[int(rng.choice(len(self.sets), p=share))], rng)


def compose(pictures: Pictures, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """One training frame."""
    kind = rng.random()
    if kind < config.scene:
        frame = _scene(pictures, config, rng)
    elif kind < config.scene + config.collage:
        frame = _empty(pictures, config, rng)
        for _ in range(1 + rng.binomial(2, 0.35)):
            frame = paste_hand(frame, pictures.draw(rng), config, rng)
    elif pictures.rendered and kind < config.scene + config.collage + config.rendered:
        frame = _empty(pictures, config, rng)
        for _ in range(1 + rng.binomial(2, 0.35)):
            frame = paste_hand(frame, _pick(pictures.rendered, rng), config, rng)
    else:
        frame = _empty(pictures, config, rng)
    if rng.random() < config.letterbox:
        frame = _letterboxed(frame, rng)
    return _finished(frame, config, rng)


def paste_hand(frame: Frame, photo: Photo, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """`photo` pasted so that one of its hands has a random size and place in the frame, turned and mirrored."""
    height, width = frame.image.shape[:2]
    x1, y1, x2, y2 = photo.hands.boxes[rng.integers(len(photo.hands))]
    low, high = np.log(np.array(config.hand_sides) * width)
    scale = np.exp(rng.uniform(low, high)) / max(x2 - x1, y2 - y1, 1.0)
    linear = _linear(scale, photo, config, rng)
    extent = np.abs(linear) @ (x2 - x1, y2 - y1) / 2
    room = np.minimum(extent * 0.85, np.array([width, height]) * 0.45)
    centre = rng.uniform(room, np.array([width, height]) - room)
    affine = np.column_stack([linear, centre - linear @ ((x1 + x2) / 2, (y1 + y2) / 2)])
    return paste(frame, photo, affine, feather=float(rng.uniform(0, 3)) if photo.alpha is None else 0.0)


def paste(frame: Frame, photo: Photo, affine: NDArray, feather: float = 0.0) -> Frame:
    """`photo` over `frame` under the (2, 3) pixel transform `affine`; hands that it covers are given up.

    feather: standard deviation, in pixels, by which a whole photo's border is softened.
    """
    height, width = frame.image.shape[:2]
    alpha = np.full(photo.image.shape[:2], 255, np.uint8) if photo.alpha is None else photo.alpha
    image, alpha, local = _minified(photo.image, alpha, affine)
    layer = cv2.warpAffine(image, local, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    opacity = cv2.warpAffine(alpha, local, (width, height), flags=cv2.INTER_LINEAR)
    if feather > 0.3:
        opacity = cv2.GaussianBlur(opacity, (0, 0), feather)
    blend = opacity.astype(np.float32)[..., None] * np.float32(1 / 255)
    below = frame.image.astype(np.float32)
    mixed = (below + (layer.astype(np.float32) - below) * blend + 0.5).astype(np.uint8)
    return Frame(mixed, Hands.concatenate([_uncovered(frame.hands, opacity), photo.hands.moved(affine)]))


def hand_free_frame(photo: Photo, width: int, height: int, rng: np.random.Generator, zoom: float = 0.5) -> Frame:
    """A random part of `photo` that fills the frame; `zoom` is the smallest share of the photo that is shown."""
    rows, columns = photo.image.shape[:2]
    cover = max(width / columns, height / rows)
    scale = cover / np.exp(rng.uniform(np.log(zoom), 0.0))
    slack = np.array([columns * scale - width, rows * scale - height])
    affine = np.column_stack([np.eye(2) * scale, 0.5 * scale - 0.5 - rng.uniform(0, 1, 2) * np.maximum(slack, 0)])
    if rng.random() < 0.5:
        affine = affine @ np.array([[-1.0, 0, columns - 1], [0, 1, 0], [0, 0, 1]])
    image, _, local = _minified(photo.image, np.zeros(photo.image.shape[:2], np.uint8), affine)
    filled = cv2.warpAffine(image, local, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Frame(filled.astype(np.uint8, copy=False), Hands.none())


def _scene(pictures: Pictures, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """One photo that covers the frame with a hand in view, as a camera would have seen it."""
    photo = pictures.draw(rng)
    width, height = config.width, config.height
    rows, columns = photo.image.shape[:2]
    x1, y1, x2, y2 = photo.hands.boxes[rng.integers(len(photo.hands))]
    low = max(width / columns, height / rows) * rng.uniform(0.8, 1.0)
    high = max(low, config.hand_sides[1] * width / max(x2 - x1, y2 - y1, 1.0))
    scale = np.exp(rng.uniform(np.log(low), np.log(min(high, 3 * low))))
    linear = _linear(scale, photo, config, rng, turn_deg=6.0)
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    spread = np.array([width, height]) * 0.32
    wanted = np.array([width, height]) / 2 + rng.uniform(-spread, spread)
    kept = np.array([width, height]) / 2 - linear @ (np.array([columns, rows]) / 2 - middle)  # photo centred
    centre = kept + (wanted - kept) * rng.uniform(0.0, 1.0)
    margin = np.array([width, height]) * 0.1
    centre = np.clip(centre, margin, np.array([width, height]) - margin)
    affine = np.column_stack([linear, centre - linear @ middle])
    return paste(_empty(pictures, config, rng, people=False), photo, affine)


def _empty(pictures: Pictures, config: ComposerConfig, rng: np.random.Generator, people: bool = True) -> Frame:
    """A frame without hands: part of a background or a pattern, with or without a person."""
    width, height = config.width, config.height
    if rng.random() < 0.12:
        pattern = np.ascontiguousarray(procedural_patch(rng, max(width, height))[:height, :width])
        frame = Frame(pattern, Hands.none())
    else:
        frame = hand_free_frame(_pick(pictures.backgrounds, rng), width, height, rng, zoom=0.25)
    if people and pictures.people and rng.random() < config.person:
        person = _pick(pictures.people, rng)
        rows, columns = person.image.shape[:2]
        linear = _linear(np.exp(rng.uniform(np.log(0.3), np.log(1.6))) * height / rows, person, config, rng)
        middle = rng.uniform(0, 1, 2) * (width, height)
        affine = np.column_stack([linear, middle - linear @ (columns / 2, rows / 2)])
        frame = paste(frame, person, affine, feather=float(rng.uniform(0, 3)))
    return frame


def _linear(
    scale: float, photo: Photo, config: ComposerConfig, rng: np.random.Generator, turn_deg: float | None = None
) -> NDArray[np.float64]:
    """(2, 2): scale, stretch, turn and mirror."""
    turn = rng.normal(0, 12.0 if turn_deg is None else turn_deg)
    if turn_deg is None and rng.random() < (0.25 if photo.alpha is not None else 0.1):
        turn = rng.uniform(-180, 180)
    radians = np.deg2rad(turn)
    cosine, sine = np.cos(radians), np.sin(radians)
    stretch = np.ones(2)
    if photo.alpha is None and rng.random() < config.unstretch:
        ratio = np.exp(rng.uniform(-0.29, 0.29) / 2)
        stretch = np.array([ratio, 1 / ratio])
    mirror = np.array([-1.0 if rng.random() < 0.5 else 1.0, 1.0])
    return scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag(stretch * mirror)


def _minified(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8], affine: NDArray
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """Shrink by averaging first where `affine` shrinks by more than a third, so that nothing aliases."""
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    if scale > 0.67:
        return image, alpha, affine
    rows, columns = image.shape[:2]
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    back = np.array([columns / size[0], rows / size[1]])
    local = np.column_stack([affine[:, :2] * back, affine[:, 2] + affine[:, :2] @ (0.5 * back - 0.5)])
    shrink = [cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (image, alpha)]
    return shrink[0], shrink[1], local  # pyright: ignore[reportReturnType]


def _uncovered(hands: Hands, opacity: NDArray) -> Hands:
    """Hands without those that a layer hides; those that it touches are no longer trusted."""
    covered = np.zeros(len(hands))
    for index, (x1, y1, x2, y2) in enumerate(hands.boxes):
        region = opacity[max(0, int(y1)) : max(0, int(y2) + 1), max(0, int(x1)) : max(0, int(x2) + 1)]
        covered[index] = float(region.mean()) / 255 if region.size else 0.0
    changed = replace(hands, trusted=hands.trusted & (covered < _TOUCHED))
    return changed.select(covered < _HIDDEN)


def _letterboxed(frame: Frame, rng: np.random.Generator) -> Frame:
    """Bars left and right (a square or upright picture) or above and below (a wide one), as at inference."""
    height, width = frame.image.shape[:2]
    bars = np.full_like(frame.image, 0 if rng.random() < 0.7 else int(rng.integers(0, 256)))
    if rng.random() < 0.5:  # 16:9 and wider: the whole width, fewer rows
        shown = np.array([1.0, rng.choice([0.75, rng.uniform(0.6, 1.0)])])
    else:
        shown = np.array([rng.choice([0.75, 0.5625 * 0.75, rng.uniform(0.4, 1.0)]), 1.0])
    size = np.round(shown * (width, height)).astype(int)
    x, y = (np.array([width, height]) - size) // 2
    bars[y : y + size[1], x : x + size[0]] = frame.image[y : y + size[1], x : x + size[0]]
    return Frame(bars, _cut_off(frame.hands, np.array([x, y, x + size[0] - 1, y + size[1] - 1])))


def _cut_off(hands: Hands, window: NDArray) -> Hands:
    """Hands outside the window are gone; those of which too little is left are not trusted."""
    boxes = hands.boxes
    seen = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0), axis=1)
    share = np.prod(np.maximum(seen, 0), axis=1) / area
    return replace(hands, trusted=hands.trusted & (share >= _MIN_SEEN)).select(share > 0.02)


def _finished(frame: Frame, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    height, width = frame.image.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(frame.image, 0, side - height, 0, side - width, cv2.BORDER_REFLECT)
    image = degrade(square.astype(np.uint8, copy=False), config.degrade, rng)[:height, :width]
    window = np.array([0, 0, width - 1, height - 1])
    return Frame(np.ascontiguousarray(image), _cut_off(frame.hands, window))


def _pick(photos: Sequence[Photo], rng: np.random.Generator) -> Photo:
    return photos[int(rng.integers(len(photos)))]
