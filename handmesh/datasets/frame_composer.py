"""Training frames for the hand detector, composed of photos, rendered hands and hand-free pictures.

A frame is a pure function of its seed, so that training resumes exactly and validation frames stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.crop import roll
from handmesh.datasets.augment import AugmentConfig, degrade, procedural_patch, skin_gain
from handmesh.datasets.detection import MIN_SEEN, Hands, Photo
from handmesh.skeleton import KEYPOINTS

_WRIST, _KNUCKLE = (KEYPOINTS.index(name) for name in ("wrist", "middle1"))
_HIDDEN, _DOUBTED = 0.8, 0.4  # share of the keypoints that later layers cover: the hand is gone, or no longer trusted


@dataclass(frozen=True)
class ComposerConfig:
    """How frames are made. Probabilities unless a unit is given."""

    width: int = 256
    height: int = 192
    hand_sides: tuple[float, float] = (0.06, 0.75)  # longer box side / frame width, log-uniform
    scene: float = 0.28  # one photo fills the frame, its hand where the photo has it
    collage: float = 0.17  # photos pasted small on a hand-free picture
    cutouts: float = 0.37  # hands that are cut out on other pictures, where there are any; the rest has no hand
    photographed: float = 0.5  # a cut-out hand is a photographed one; else it is rendered
    touching: float = 0.5  # a cut-out hand has another one of about its size against it or across it
    same_skin: float = 0.7  # which has its colours
    on_photo: float = 0.3  # a cut-out hand is held before a photo with hands, its face or its chest
    elsewhere: float = 0.3  # a frame without hands is part of a labelled photo, away from its hands
    person: float = 0.4  # a person without hands somewhere, where the frame is not one photo
    arms: float = 0.3  # an arm without its hand somewhere, where the frame is not one photo
    skin: float = 0.2  # a skin-coloured thing somewhere, likewise
    turned: float = 0.4  # a hand or arm that is cut out comes from any direction
    streak: float = 0.15  # a cut-out hand moves
    cover: float = 0.08  # something stands before a hand
    unstretch: float = 0.4
    letterbox: float = 0.5
    degrade: AugmentConfig = field(default_factory=lambda: AugmentConfig(blur=0.25, noise=0.25, jpeg=0.25, grey=0.04))


@dataclass(frozen=True)
class Frame:
    """image: (H, W, 3) uint8 RGB; hands in its pixels."""

    image: NDArray[np.uint8]
    hands: Hands


@dataclass(frozen=True)
class Pictures:
    """What frames are made of. `sets`: photos with hands by set; `weights`: how often each set is drawn.

    `photographed`: hands cut out of the photos, by set too; `rendered` and `arms` are cut-outs as well.
    """

    sets: Sequence[Sequence[Photo]]
    weights: Sequence[float]
    backgrounds: Sequence[Photo]
    people: Sequence[Photo]
    rendered: Sequence[Photo] = ()
    arms: Sequence[Photo] = ()
    photographed: Sequence[Sequence[Photo]] = ()

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.weights) or not all(self.sets):
            raise ValueError("every set of photos needs a weight and at least one photo")
        if len(self.photographed) not in (0, len(self.sets)):
            raise ValueError("cut-outs of photos come by set, as the photos do")
        if not self.backgrounds:
            raise ValueError("frames need at least one background picture")

    def draw(self, rng: np.random.Generator) -> Photo:
        """A photo with hands."""
        return self._of_sets(self.sets, rng)

    @property
    def have_cutouts(self) -> bool:
        return bool(self.rendered) or any(self.photographed)

    def draw_cutout(self, photographed: float, rng: np.random.Generator) -> Photo:
        """A hand that is cut out, with this probability of a photo where both kinds are there."""
        if any(self.photographed) and (not self.rendered or rng.random() < photographed):
            return self._of_sets(self.photographed, rng)
        return pick(self.rendered, rng)

    def _of_sets(self, sets: Sequence[Sequence[Photo]], rng: np.random.Generator) -> Photo:
        share = np.array([weight if photos else 0.0 for photos, weight in zip(sets, self.weights, strict=True)])
        return pick(sets[int(rng.choice(len(sets), p=share / share.sum()))], rng)


def compose(pictures: Pictures, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """One training frame."""
    kind = rng.random()
    if kind < config.scene:
        frame = _scene(pictures, config, rng)
    elif kind < config.scene + config.collage:
        frame = _empty(pictures, config, rng)
        for _ in range(1 + rng.binomial(2, 0.35)):
            frame = paste_hand(frame, pictures.draw(rng), config, rng)
    elif pictures.have_cutouts and kind < config.scene + config.collage + config.cutouts:
        below = _scene if rng.random() < config.on_photo else _empty
        frame = below(pictures, config, rng)
        for _ in range(1 + rng.binomial(2, 0.35)):
            frame = paste_hand(frame, pictures.draw_cutout(config.photographed, rng), config, rng)
            if rng.random() < config.touching:
                frame = paste_touching(frame, pictures.draw_cutout(config.photographed, rng), config, rng)
    else:
        frame = _elsewhere(pictures.draw(rng), config, rng) if rng.random() < config.elsewhere else None
        frame = _empty(pictures, config, rng) if frame is None else frame
    if len(frame.hands) and rng.random() < config.cover:
        frame = _covered(frame, pictures, rng)
    if rng.random() < config.letterbox:
        frame = _letterboxed(frame, rng)
    return _finished(frame, config, rng)


def paste_hand(frame: Frame, photo: Photo, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """`photo` pasted so that one of its hands has a random size and place in the frame, turned and mirrored."""
    window = np.array(frame.image.shape[1::-1])
    box = photo.hands.boxes[rng.integers(len(photo.hands))]
    low, high = np.log(np.array(config.hand_sides) * window[0])
    scale = np.exp(rng.uniform(low, high)) / max(_extent(box).max(), 1.0)
    linear = _linear(scale, photo, config, rng)
    room = np.minimum(np.abs(linear) @ _extent(box) / 2 * 0.85, window * 0.45)
    return _paste_at(frame, photo, box, linear, rng.uniform(room, window - room), config, rng)


def paste_touching(frame: Frame, photo: Photo, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """The cut-out `photo` before or just beside one of the frame's hands, of about its size, mostly in its colours.

    Mostly it comes from where the other one points to, as the hands of two arms do.
    """
    mine, others = int(rng.integers(len(photo.hands))), int(rng.integers(len(frame.hands)))
    points, other = photo.hands.keypoints[mine], frame.hands.keypoints[others]
    scale = np.exp(rng.uniform(-0.35, 0.35)) * np.ptp(other, axis=0).max() / max(np.ptp(points, axis=0).max(), 1.0)
    linear = _linear(scale, photo, config, rng)
    angle = _pointing(other) + rng.normal(0, 1.0)
    turn = angle + np.pi + rng.normal(0, 0.7) - _pointing(points @ linear.T)
    linear = roll(turn)[:2, :2] @ linear
    direction = roll(angle)[:2, 0]
    reach = (np.ptp(points @ linear.T, axis=0) + np.ptp(other, axis=0)) / 2
    apart = (reach / np.maximum(np.abs(direction), 1e-6)).min()  # where boxes begin to touch, going this way
    centre = (other.min(0) + other.max(0)) / 2 + direction * apart * rng.uniform(0.2, 1.1)
    if rng.random() < config.same_skin:
        gain = skin_gain(frame.image, other, photo.image, photo.hands.keypoints.reshape(-1, 2))
        photo = replace(photo, image=(photo.image * gain).clip(0, 255).astype(np.uint8))
    window = np.array(frame.image.shape[1::-1])
    centre = np.clip(centre, 0.05 * window, 0.95 * window)
    return _paste_at(frame, photo, photo.hands.boxes[mine], linear, centre, config, rng)


def _paste_at(
    frame: Frame,
    photo: Photo,
    box: NDArray,
    linear: NDArray,
    centre: NDArray,
    config: ComposerConfig,
    rng: np.random.Generator,
) -> Frame:
    """`photo` under the (2, 2) `linear`, the middle of its `box` at `centre`, blurred by motion now and then."""
    affine = np.column_stack([linear, centre - linear @ ((box[:2] + box[2:]) / 2)])
    if photo.alpha is None:
        return paste(frame, photo, affine, feather=float(rng.uniform(0, 3)))
    streak = None
    if rng.random() < config.streak:
        size = np.sqrt(abs(np.linalg.det(linear))) * _extent(box).max()
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.1, 0.35) * size
        streak = np.array([np.cos(angle), np.sin(angle)]) * length
    return paste(frame, photo, affine, streak=streak)


def _pointing(keypoints: NDArray) -> float:
    """The direction, an angle, from the wrist of a hand (21, 2) to its middle knuckle."""
    x, y = keypoints[_KNUCKLE] - keypoints[_WRIST]
    return float(np.arctan2(y, x))


def _extent(box: NDArray) -> NDArray:
    """Width and height (2,) of a box (4,)."""
    return box[2:] - box[:2]


def paste(
    frame: Frame, photo: Photo, affine: NDArray, feather: float = 0.0, streak: NDArray[np.float64] | None = None
) -> Frame:
    """`photo` over `frame` under the (2, 3) pixel transform `affine`; hands that it covers are given up.

    feather: standard deviation, in pixels, by which a whole photo's border is softened. streak: (2,) pixels by which
    the photo moves while the frame is exposed.
    """
    height, width = frame.image.shape[:2]
    alpha = np.full(photo.image.shape[:2], 255, np.uint8) if photo.alpha is None else photo.alpha
    image, alpha, local = _minified(photo.image, alpha, affine)
    layer = cv2.warpAffine(image, local, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    opacity = cv2.warpAffine(alpha, local, (width, height), flags=cv2.INTER_LINEAR)
    if feather > 0.3:
        opacity = cv2.GaussianBlur(opacity, (0, 0), feather)
    blend = opacity.astype(np.float32)[..., None] * np.float32(1 / 255)
    above = layer.astype(np.float32) * blend
    if streak is not None:
        kernel = _streak_kernel(streak)
        above, blend = cv2.filter2D(above, -1, kernel), cv2.filter2D(blend, -1, kernel)[..., None]
        opacity = cv2.filter2D(opacity, -1, kernel)
    mixed = (frame.image * (1 - blend) + above + 0.5).astype(np.uint8)
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


def _streak_kernel(streak: NDArray[np.float64]) -> NDArray[np.float32]:
    """A line of the length and direction of `streak` (2,), its weights summing to 1."""
    reach = int(np.ceil(np.abs(streak).max() / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    x, y = (round(float(v)) for v in streak / 2)
    cv2.line(kernel, (reach - x, reach - y), (reach + x, reach + y), 1.0, 1)
    return kernel / kernel.sum()


def _elsewhere(photo: Photo, config: ComposerConfig, rng: np.random.Generator, tries: int = 8) -> Frame | None:
    """A part of a labelled photo that is well away from its hands; None if none was found."""
    rows, columns = photo.image.shape[:2]
    for _ in range(tries):
        width = columns * rng.uniform(0.35, 0.8)
        height = width * config.height / config.width
        if height > rows:
            continue
        x, y = rng.uniform(0, columns - width), rng.uniform(0, rows - height)
        margin = 0.15 * (photo.hands.boxes[:, 2:] - photo.hands.boxes[:, :2])
        apart = (photo.hands.boxes[:, :2] - margin > (x + width, y + height)).any(1)
        apart |= (photo.hands.boxes[:, 2:] + margin < (x, y)).any(1)
        if apart.all():
            scale = config.width / width
            affine = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
            blank = Frame(np.zeros((config.height, config.width, 3), np.uint8), Hands.none())
            return paste(blank, replace(photo, hands=Hands.none()), affine)
    return None


def _covered(frame: Frame, pictures: Pictures, rng: np.random.Generator) -> Frame:
    """Part of a background photo, a rod or a disc, before one of the hands."""
    x1, y1, x2, y2 = frame.hands.boxes[rng.integers(len(frame.hands))]
    size = np.array([x2 - x1, y2 - y1])
    middle = np.array([x1, y1]) + rng.uniform(-0.1, 1.1, 2) * size
    reach = float(size.max())
    shape = np.zeros(frame.image.shape[:2], np.uint8)
    length, thickness = rng.uniform(0.3, 2.0) * reach, rng.uniform(0.1, 0.35) * reach
    if rng.random() < 0.6:
        corners = cv2.boxPoints((tuple(map(float, middle)), (length, thickness), float(rng.uniform(0, 180))))
        cv2.fillPoly(shape, [corners.astype(np.int32)], 255)
    else:
        cv2.circle(shape, (int(middle[0]), int(middle[1])), max(1, int(thickness)), 255, -1)
    height, width = frame.image.shape[:2]
    over = hand_free_frame(pick(pictures.backgrounds, rng), width, height, rng, zoom=0.25)
    return paste(frame, Photo(over.image, Hands.none(), shape), np.eye(3)[:2])


def _scene(pictures: Pictures, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    """One photo that covers the frame with a hand in view, as a camera would have seen it."""
    photo = pictures.draw(rng)
    width, height = config.width, config.height
    rows, columns = photo.image.shape[:2]
    x1, y1, x2, y2 = photo.hands.boxes[rng.integers(len(photo.hands))]
    low = max(width / columns, height / rows) * rng.uniform(0.8, 1.0)
    high = max(low, config.hand_sides[1] * width / max(x2 - x1, y2 - y1, 1.0))
    scale = np.exp(rng.uniform(np.log(low), np.log(min(high, 3 * low))))
    linear = _linear(scale, photo, config, rng, turn_deg=10.0)
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
        frame = hand_free_frame(pick(pictures.backgrounds, rng), width, height, rng, zoom=0.25)
    if people and pictures.people and rng.random() < config.person:
        person = pick(pictures.people, rng)
        rows, columns = person.image.shape[:2]
        linear = _linear(np.exp(rng.uniform(np.log(0.3), np.log(1.6))) * height / rows, person, config, rng)
        middle = rng.uniform(0, 1, 2) * (width, height)
        affine = np.column_stack([linear, middle - linear @ (columns / 2, rows / 2)])
        frame = paste(frame, person, affine, feather=float(rng.uniform(0, 3)))
    if people and pictures.arms and rng.random() < config.arms:
        arm = pick(pictures.arms, rng)
        rows, columns = arm.image.shape[:2]
        linear = _linear(np.exp(rng.uniform(np.log(0.15), np.log(1.3))) * height / rows, arm, config, rng)
        middle = rng.uniform(0, 1, 2) * (width, height)
        frame = paste(frame, arm, np.column_stack([linear, middle - linear @ (columns / 2, rows / 2)]))
    if people and rng.random() < config.skin:
        frame = _with_skin(frame, rng)
    return frame


def _with_skin(frame: Frame, rng: np.random.Generator) -> Frame:
    """A smooth, skin-coloured ellipse or slab, shaded across: what is not a hand but has its colour."""
    height, width = frame.image.shape[:2]
    tone = rng.uniform(0.0, 1.0)
    colour = np.array([236, 188, 154]) * (1 - tone) + np.array([74, 44, 30]) * tone + rng.normal(0, 8, 3)
    middle = rng.uniform(0, 1, 2) * (width, height)
    reach = np.exp(rng.uniform(np.log(0.04), np.log(0.35), 2)) * width
    angle = float(rng.uniform(0, 180))
    shape = np.zeros((height, width), np.uint8)
    if rng.random() < 0.6:
        centre, axes = (int(middle[0]), int(middle[1])), (int(reach[0] / 2) + 1, int(reach[1] / 2) + 1)
        cv2.ellipse(shape, centre, axes, angle, 0, 360, 255, -1)
    else:
        corners = cv2.boxPoints((tuple(map(float, middle)), tuple(map(float, reach)), angle))
        cv2.fillPoly(shape, [corners.astype(np.int32)], 255)
    across = rng.normal(0, 1, 2) / reach
    ys, xs = np.mgrid[:height, :width]
    shade = 1 + 0.3 * np.tanh((xs - middle[0]) * across[0] + (ys - middle[1]) * across[1])
    painted = np.clip(colour * shade[..., None], 0, 255).astype(np.uint8)
    shape = cv2.GaussianBlur(shape, (0, 0), float(rng.uniform(0.5, 2.0)))
    return paste(frame, Photo(painted, Hands.none(), np.asarray(shape, np.uint8)), np.eye(3)[:2])


def _linear(
    scale: float, photo: Photo, config: ComposerConfig, rng: np.random.Generator, turn_deg: float | None = None
) -> NDArray[np.float64]:
    """(2, 2): scale, stretch, turn and mirror."""
    turn = rng.normal(0, 12.0 if turn_deg is None else turn_deg)
    if turn_deg is None and rng.random() < (config.turned if photo.alpha is not None else 0.1):
        turn = rng.uniform(-180, 180)
    elif turn_deg is not None and rng.random() < 0.15:
        turn = rng.uniform(-100, 100)  # arms that come from the side
    stretch = np.ones(2)
    if photo.alpha is None and rng.random() < config.unstretch:
        ratio = np.exp(rng.uniform(-0.29, 0.29) / 2)
        stretch = np.array([ratio, 1 / ratio])
    mirror = np.array([-1.0 if rng.random() < 0.5 else 1.0, 1.0])
    return scale * roll(np.deg2rad(turn))[:2, :2] @ np.diag(stretch * mirror)


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
    """Hands without those that a layer hides; those of which it covers much are no longer trusted."""
    height, width = opacity.shape
    columns, rows = (hands.keypoints[..., axis].round().astype(int) for axis in (0, 1))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    covered = (inside & (opacity[rows.clip(0, height - 1), columns.clip(0, width - 1)] > 127)).mean(1)
    changed = replace(hands, trusted=hands.trusted & (covered < _DOUBTED))
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
    return replace(hands, trusted=hands.trusted & (share >= MIN_SEEN)).select(share > 0.02)


def _finished(frame: Frame, config: ComposerConfig, rng: np.random.Generator) -> Frame:
    height, width = frame.image.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(frame.image, 0, side - height, 0, side - width, cv2.BORDER_REFLECT)
    image = degrade(square.astype(np.uint8, copy=False), config.degrade, rng)[:height, :width]
    window = np.array([0, 0, width - 1, height - 1])
    return Frame(np.ascontiguousarray(image), _cut_off(frame.hands, window))


def pick(photos: Sequence[Photo], rng: np.random.Generator) -> Photo:
    """Any of them."""
    return photos[int(rng.integers(len(photos)))]
