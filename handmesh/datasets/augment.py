"""From an annotated image to a training target: a tracker-like crop, new backgrounds, what cameras do to pictures."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

from handmesh.crop import CROP_SCALE, Crop, roll, turn_upright, view_rotation
from handmesh.datasets.sample import HandSample, Target
from handmesh.skeleton import FINGER_KNUCKLES

MASK_STRIDE = 8
_MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class AugmentConfig:
    """How far training crops stray from the ideal one. Probabilities unless a unit is given."""

    scale_range: tuple[float, float] = (0.78, 1.28)  # factor on the side that a crop has in use
    shift: float = 0.06  # standard deviation, box sides
    turn_deg: float = 12.0  # standard deviation
    large_turn: float = 0.1  # turn by any angle
    large_photo_turn: float = 0.4  # the same for photos that a tracker labelled: people hold hands up for those
    upright: float = 0.6  # instead of these, turn until the hand stands upright ...
    upright_turn_deg: float = 15.0  # ... but for this standard deviation
    keep_left: float = 0.2  # show the hand mirrored, so that `right` is 0
    reflect: float = 0.4  # continue a picture by its mirror image beyond its border, not by black as in use
    new_background: float = 0.7  # of rendered hands
    new_photo_background: float = 0.4
    occluder: float = 0.2
    other_hand: float = 0.15  # show another cut-out hand of about the same size before or behind the hand
    spectrum: float = 0.3  # give rendered crops the coarse amplitudes of a photo
    colour: float = 1.0
    grey: float = 0.05
    blur: float = 0.45
    noise: float = 0.35
    jpeg: float = 0.4
    channel_gain: float = 0.0  # multiply each colour channel by 1 - this to 1 + this
    light: float = 0.0  # multiply by .8 to 1.2 and add -.4 to .1 of white, as is published for FreiHAND
    beside: float = 0.6  # cut crops without a hand from beside one: arms, sleeves, bodies


NO_AUGMENT = AugmentConfig((1.0, 1.0), *[0.0] * (len(fields(AugmentConfig)) - 1))


class ImagePool:
    """Photos to cut random patches from, as backgrounds, occluders and crops without a hand."""

    def __init__(self, images: list[np.ndarray]) -> None:
        """`images`: (H, W, 3) uint8 RGB each, any size; may be empty, then patches are procedural."""
        self.images = images

    def patch(self, rng: np.random.Generator, size: int, *, smallest: float = 0.2) -> np.ndarray:
        """A random, turned and mirrored square of a random photo, (size, size, 3) uint8.

        `smallest` is the least side of the square as a share of the photo's shorter side.
        """
        if not self.images or rng.random() < 0.15:
            return procedural_patch(rng, size)
        image = self.images[rng.integers(len(self.images))]
        height, width = image.shape[:2]
        side = min(height, width) * np.exp(rng.uniform(np.log(smallest), 0.0))
        cx, cy = (rng.uniform(side / 2, max(extent - side / 2, side / 2 + 1e-3)) for extent in (width, height))
        to_patch = crop_affine((cx, cy), side, size, turn=rng.normal(0, 0.3), mirrored=rng.random() < 0.5)
        return cv2.warpAffine(image, to_patch, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def procedural_patch(rng: np.random.Generator, size: int) -> np.ndarray:
    """Colour gradients, shapes and stripes, (size, size, 3) uint8."""
    cells = int(rng.integers(2, 7))
    coarse = rng.normal(size=(cells, cells, 3)).astype(np.float32) * rng.uniform(5, 60) + rng.uniform(0, 255, 3)
    patch = np.ascontiguousarray(cv2.resize(coarse.astype(np.float32), (size, size)).clip(0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 8)):
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        x, y = (int(v) for v in rng.uniform(0, size, 2))
        w, h = (int(v) for v in rng.uniform(2, size / 2, 2))
        kind = rng.integers(3)
        if kind == 0:
            cv2.rectangle(patch, (x, y), (x + w, y + h), colour, -1)
        elif kind == 1:
            cv2.ellipse(patch, (x, y), (w, h), rng.uniform(0, 180), 0, 360, colour, -1)
        else:
            cv2.line(patch, (x, y), (x + 4 * w - size, y + 4 * h - size), colour, int(rng.integers(1, 16)))
    if rng.random() < 0.4:
        _draw_fan(patch, rng)
    return cv2.GaussianBlur(patch, (0, 0), rng.uniform(0.3, 3)) if rng.random() < 0.5 else patch


def _draw_fan(patch: np.ndarray, rng: np.random.Generator) -> None:
    """Strokes out of one point, as of a plant: what is easily taken for fingers."""
    size = len(patch)
    root, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.15, 0.5) * size
    colour, width = rng.uniform(0, 255, 3), int(rng.integers(1, max(2, size // 14)))
    start, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, np.pi)
    for angle in start + np.linspace(0, spread, int(rng.integers(3, 12))):
        tip = root + radius * rng.uniform(0.7, 1.2) * np.array([np.cos(angle), np.sin(angle)])
        shade = tuple(float(c) for c in (colour + rng.normal(0, 12)).clip(0, 255))
        cv2.line(patch, (int(root[0]), int(root[1])), (int(tip[0]), int(tip[1])), shade, width, cv2.LINE_AA)


def crop_affine(
    centre: tuple[float, float], side: float, size: int, *, turn: float = 0.0, mirrored: bool = False
) -> np.ndarray:
    """The affine map (2, 3) from image pixels to the pixels of a square crop, turned by `turn` rad (x towards y)."""
    return Crop(centre, side, size, mirrored, -turn if mirrored else turn).affine  # turned before it is mirrored


def make_target(
    sample: HandSample,
    size: int,
    config: AugmentConfig,
    pool: ImagePool,
    rng: np.random.Generator,
    other: HandSample | None = None,
) -> Target:
    """Cut, mirror, turn and degrade one sample into a training target of `size` px, with an `other` hand in its way."""
    low, high = sample.joints_2d.min(0), sample.joints_2d.max(0)
    box_side = float(max(high - low))
    centre = (low + high) / 2 + rng.normal(0, 1, 2) * config.shift * box_side
    side = Crop.from_box([*low, *high], size).side_px * rng.uniform(*config.scale_range)
    turn = np.radians(rng.normal(0, config.turn_deg))
    if rng.random() < (config.large_turn if sample.exact_depth else config.large_photo_turn):
        turn = rng.uniform(-np.pi, np.pi)
    keep_left = rng.random() < config.keep_left
    mirrored = (sample.side == "left") != keep_left
    if rng.random() < config.upright:
        upright = turn_upright(sample.joints_2d)
        turn = (-upright if mirrored else upright) + np.radians(rng.normal(0, config.upright_turn_deg))
    to_crop = crop_affine((centre[0], centre[1]), side, size, turn=turn, mirrored=mirrored)

    image, mask = _cut_layers(sample, to_crop, size, config, pool, rng)
    joints_px = sample.joints_2d @ to_crop[:, :2].T + to_crop[:, 2]
    if other is not None and other.alpha is not None:
        opacity = None if sample.alpha is None else _warp(sample.alpha, to_crop, size, cv2.BORDER_REPLICATE)
        image, mask = _add_hand(image, mask, opacity, joints_px, other, other.alpha, rng)
    if rng.random() < config.occluder:
        image, mask = _occlude(image, mask, pool, rng)
    if sample.alpha is not None and sample.exact_depth and rng.random() < config.spectrum:
        image = blend_amplitudes(image, pool.patch(rng, size), rng)
    image = degrade(image, config, rng)

    T_crop_cam = _view_change(sample, centre, turn)
    known_3d = sample.joints is not None and not keep_left
    # Other trackers' spots are told from ours by the mesh, which is that of a right hand.
    trust_2d = 0.0 if keep_left and sample.convention != "freihand" else sample.trust_2d
    posed = known_3d and sample.rotations is not None and sample.betas is not None
    rotations = np.tile(np.eye(3), (16, 1, 1))
    if posed:
        assert sample.rotations is not None
        rotations = sample.rotations.astype(np.float64)
        if sample.side == "left":
            rotations = _MIRROR @ rotations @ _MIRROR
        rotations = np.concatenate([T_crop_cam[None] @ rotations[:1], rotations[1:]])
    joints = np.zeros((21, 3))
    if known_3d:
        assert sample.joints is not None
        joints = (sample.joints @ (_MIRROR if sample.side == "left" else np.eye(3))) @ T_crop_cam.T
    return Target(
        crop=image,
        joints_2d=(joints_px + 0.5) * (2 / size) - 1,
        joints=joints,
        rotations=rotations,
        betas=sample.betas if posed and sample.betas is not None else np.zeros(10),
        mask=np.zeros((size // MASK_STRIDE,) * 2) if mask is None else _shrink(mask, size // MASK_STRIDE) / 255.0,
        presence=1.0,
        right=0.0 if keep_left else 1.0,
        weight_2d=trust_2d,
        weight_projection=0.0 if keep_left or sample.stretched else trust_2d,
        weight_3d=sample.trust_3d if known_3d else 0.0,
        exact_depth=1.0 if sample.exact_depth else 0.0,
        weight_parameters=1.0 if posed else 0.0,
        weight_mask=0.0 if mask is None else 1.0,
        weight_right=_side_weight(keep_left, config.keep_left) if sample.side_known else 0.0,
        mediapipe=0.0 if sample.convention == "freihand" else 1.0,
    )


def _side_weight(kept_left: bool, chance: float) -> float:
    """Weight of a sample's side, such that both sides count the same; 1 on average."""
    return 0.5 / (chance if kept_left else 1 - chance) if 0 < chance < 1 else 1.0


def make_negative(pool: ImagePool, size: int, config: AugmentConfig, rng: np.random.Generator) -> Target:
    """A crop of some photo without any hand."""
    return _no_hand(degrade(pool.patch(rng, size, smallest=0.15), config, rng))


def make_beside(
    sample: HandSample, size: int, config: AugmentConfig, pool: ImagePool, rng: np.random.Generator
) -> Target | None:
    """A crop from beside the hand of a sample, mostly along its arm, without any part of it.

    None where the image may show another hand, or where no such crop was found.
    """
    if not sample.alone:
        return None
    joints = sample.joints_2d
    low, high = joints.min(0), joints.max(0)
    extent, (height, width) = float(max(high - low)), sample.image.shape[:2]
    along_arm = joints[0] - joints[list(FINGER_KNUCKLES)].mean(0)  # from the knuckles' middle over the wrist
    for _ in range(6):
        angle = rng.uniform(-np.pi, np.pi)
        if rng.random() < 0.7:
            angle = np.arctan2(along_arm[1], along_arm[0]) + rng.normal(0, 0.3)
        side = extent * CROP_SCALE * rng.uniform(0.3, 0.9)
        away = 0.5 * side * rng.uniform(1.0, 1.4) + extent * rng.uniform(0.0, 0.5)
        x, y = joints[0] + away * np.array([np.cos(angle), np.sin(angle)])
        to_crop = crop_affine((x, y), side, size, turn=rng.uniform(-np.pi, np.pi), mirrored=rng.random() < 0.5)
        off_middle = np.abs(joints @ to_crop[:, :2].T + to_crop[:, 2] - 0.5 * (size - 1)).max(1)
        flesh = 0.08 * extent * size / side
        if not (0 <= x < width and 0 <= y < height) or off_middle.min() < 0.5 * size + flesh:
            continue
        image, mask = _cut_layers(sample, to_crop, size, config, pool, rng)
        if mask is None or not mask.any():
            return _no_hand(degrade(image, config, rng))
    return None


def _no_hand(crop: np.ndarray) -> Target:
    cells = len(crop) // MASK_STRIDE
    return Target(
        crop=crop,
        joints_2d=np.zeros((21, 2)),
        joints=np.zeros((21, 3)),
        rotations=np.tile(np.eye(3), (16, 1, 1)),
        betas=np.zeros(10),
        mask=np.zeros((cells, cells)),
        presence=0.0,
        right=0.0,
        weight_2d=0.0,
        weight_projection=0.0,
        weight_3d=0.0,
        exact_depth=0.0,
        weight_parameters=0.0,
        weight_mask=1.0,
        weight_right=0.0,
        mediapipe=0.0,
    )


def _view_change(sample: HandSample, centre: np.ndarray, turn: float) -> np.ndarray:
    """Rotation (3, 3) from (mirrored, for a left hand) camera axes to the crop's virtual camera, turned by `turn`."""
    T_turned_view = roll(turn)
    if sample.intrinsics is None:
        return T_turned_view
    ray = np.linalg.solve(sample.intrinsics, np.array([centre[0], centre[1], 1.0]))
    if sample.side == "left":
        ray = _MIRROR @ ray
    return T_turned_view @ view_rotation(ray).T


def _cut_layers(
    sample: HandSample,
    to_crop: np.ndarray,
    size: int,
    config: AugmentConfig,
    pool: ImagePool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The crop's pixels, on a new background now and then, and its hand mask."""
    source, matrix_scale = sample.image, np.hypot(*to_crop[:, 0])
    if matrix_scale < 0.5:  # twice or more too fine: average first, or thin fingers break up
        width = round(1 / matrix_scale) | 1  # odd, as an even box moves the picture by half a pixel
        source = cv2.blur(source, (width, width))
    image = _warp(source, to_crop, size, cv2.BORDER_REFLECT if rng.random() < config.reflect else cv2.BORDER_CONSTANT)
    mask = None if sample.mask is None else _warp(sample.mask, to_crop, size, cv2.BORDER_CONSTANT)
    chance = config.new_background if sample.exact_depth else config.new_photo_background
    if sample.alpha is not None and rng.random() < chance:
        opacity = _warp(sample.alpha, to_crop, size, cv2.BORDER_REPLICATE).astype(np.float32)[..., None] * (1 / 255)
        background = pool.patch(rng, size)
        if rng.random() < 0.25:
            background = cv2.GaussianBlur(background, (0, 0), rng.uniform(0.5, 4))
        replicated = _warp(source, to_crop, size, cv2.BORDER_REPLICATE)
        image = (replicated * opacity + background * (1 - opacity)).astype(np.uint8)
    return image, mask


def _warp(layer: np.ndarray, to_crop: np.ndarray, size: int, border: int) -> np.ndarray:
    return cv2.warpAffine(layer, to_crop, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


def _add_hand(
    image: np.ndarray,
    mask: np.ndarray | None,
    opacity: np.ndarray | None,
    joints_px: np.ndarray,
    other: HandSample,
    alpha: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Put a cut-out hand over part of the crop's, or behind it if its `opacity` is known; mostly of the same colour."""
    size = len(image)
    (low, high), (low_other, high_other) = ((j.min(0), j.max(0)) for j in (joints_px, other.joints_2d))
    extent, extent_other = max(high - low), max(high_other - low_other)
    scale = rng.uniform(0.7, 1.3) * extent / extent_other
    angle, away = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 0.9) * extent
    middle, centre = (low_other + high_other) / 2, (low + high) / 2 + away * np.array([np.cos(angle), np.sin(angle)])
    to_other = crop_affine(
        (middle[0], middle[1]), size / scale, size, turn=rng.uniform(-np.pi, np.pi), mirrored=rng.random() < 0.5
    )
    to_other[:, 2] += centre - (size - 1) / 2
    theirs = _warp(other.image, to_other, size, cv2.BORDER_REPLICATE).astype(np.float32)
    share = _warp(alpha, to_other, size, cv2.BORDER_REPLICATE).astype(np.float32)[..., None] * (1 / 255)
    if rng.random() < 0.7:
        theirs = theirs * skin_gain(image, joints_px, other.image, other.joints_2d).astype(np.float32)
    hides_most = (_pixels_at(share, joints_px) > 0.5).mean() > 0.5
    if hides_most and opacity is None:
        return image, mask
    behind = opacity is not None and (rng.random() < 0.5 or hides_most)
    if behind:
        assert opacity is not None
        share = share * (1 - opacity.astype(np.float32)[..., None] * (1 / 255))
    image = (image * (1 - share) + theirs * share).clip(0, 255).astype(np.uint8)
    return image, mask if mask is None or behind else np.where(share[..., 0] > 0.5, np.uint8(0), mask)


def skin_gain(image: np.ndarray, joints_px: np.ndarray, other: np.ndarray, other_px: np.ndarray) -> np.ndarray:
    """Factors (3,), .3 to 3, that give another picture's hand, keypoints (N, 2), the colours of this picture's hand."""
    wanted, theirs = _pixels_at(image, joints_px).mean(0), _pixels_at(other, other_px).mean(0)
    return ((wanted + 1) / (theirs + 1)).clip(0.3, 3.0)


def _pixels_at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The pixels (N, ...) next to points (N, 2); those outside count at the border."""
    at = points.round().astype(int).clip(0, np.array(image.shape[1::-1]) - 1)
    return image[at[:, 1], at[:, 0]]


def _occlude(
    image: np.ndarray, mask: np.ndarray | None, pool: ImagePool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Paste a rod, card or blob of some photo over the crop."""
    size = len(image)
    shape = np.zeros((size, size), np.uint8)
    centre = tuple(float(v) for v in rng.uniform(0.1, 0.9, 2) * size)
    extent = (float(rng.uniform(0.06, 0.25) * size), float(rng.uniform(0.1, 0.6) * size))
    angle = float(rng.uniform(0, 180))
    if rng.random() < 0.6:
        cv2.fillPoly(shape, [cv2.boxPoints((centre, extent, angle)).astype(np.int32)], 255)
    else:
        axes = (int(extent[0] * 0.6) + 1, int(extent[1] * 0.5) + 1)
        cv2.ellipse(shape, (int(centre[0]), int(centre[1])), axes, angle, 0, 360, 255, -1)
    opacity = cv2.GaussianBlur(shape, (3, 3), 0.7).astype(np.float32)[..., None] * (1 / 255)
    image = (image * (1 - opacity) + pool.patch(rng, size) * opacity).astype(np.uint8)
    return image, None if mask is None else np.where(shape > 0, np.uint8(0), mask)


def blend_amplitudes(image: np.ndarray, photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` with its coarsest waves as strong as those of `photo`, wholly or in part; (S, S, 3) uint8 each.

    Phases, which hold the shapes, stay: Fourier domain adaptation (Yang and Soatto, CVPR 2020).
    """
    waves, other = (np.fft.rfft2(layer.astype(np.float32), axes=(0, 1)) for layer in (image, photo))
    reach, share = int(rng.integers(1, 5)), np.float32(rng.uniform(0.1, 0.8))
    for rows in (slice(0, reach + 1), slice(-reach, None)):
        block = waves[rows, : reach + 1]
        strength = np.abs(block)
        wanted = strength + share * (np.abs(other[rows, : reach + 1]) - strength)
        block *= wanted / np.maximum(strength, 1e-6)
    return np.fft.irfft2(waves, s=image.shape[:2], axes=(0, 1)).clip(0, 255).astype(np.uint8)


def degrade(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """What light, lens, sensor and codec do: colour, blur, low resolution, noise, JPEG. (S, S, 3) uint8 in and out."""
    size = len(image)
    if rng.random() < config.grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if config.channel_gain:
        gains = 1 + rng.uniform(-1, 1, 3) * config.channel_gain
        image = cv2.LUT(image, (np.arange(256.0)[:, None] * gains).clip(0, 255).astype(np.uint8)[:, None, :])
    if config.light and rng.random() < config.light:
        levels = np.arange(256.0) * rng.uniform(0.8, 1.2) + 255 * rng.uniform(-0.4, 0.1)
        image = cv2.LUT(image, levels.clip(0, 255).astype(np.uint8))
    if rng.random() < config.colour:
        image = _shift_colours(image, rng)
    if rng.random() < config.blur:
        image = _blur(image, rng)
    if rng.random() < config.noise:
        image = cv2.add(image, _grain(size, rng), dtype=cv2.CV_8U)
    if rng.random() < config.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 92))]
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        image = decoded
    return image


def _grain(size: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (size, size, 3) float32, coarse half of the time as demosaicing and codecs leave it."""
    strength = np.float32(rng.uniform(1, 12))
    if rng.random() < 0.5:
        return rng.standard_normal((size, size, 3), np.float32) * strength
    coarse = rng.standard_normal((size // 2, size // 2, 3), np.float32) * strength
    return cv2.resize(coarse, (size, size))


def _shift_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, gamma, white balance and saturation."""
    if rng.random() < 0.4:
        keep = rng.uniform(0.2, 1.5)
        luma = np.array([0.299, 0.587, 0.114])
        image = cv2.transform(image, np.eye(3) * keep + (1 - keep) * luma[None])
    levels = np.arange(256.0)[:, None]
    mean = float(image[::4, ::4].mean())
    levels = (levels - mean) * np.exp(rng.normal(0, 0.15)) + mean * np.exp(rng.normal(0, 0.25))
    levels = levels * np.exp(rng.normal(0, 0.07, 3)) + rng.normal(0, 5)
    if rng.random() < 0.4:
        levels = 255 * (levels.clip(0, 255) / 255) ** np.exp(rng.normal(0, 0.3))
    return cv2.LUT(image, levels.clip(0, 255).astype(np.uint8)[:, None, :])


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Focus blur, motion blur, or a low-resolution source."""
    size = len(image)
    kind = rng.random()
    if kind < 0.4:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8) * size / 128)
    if kind < 0.65:
        length = int(rng.integers(3, max(4, 10 * size // 128))) | 1  # an even kernel moves the picture
        kernel = np.zeros((length, length), np.float32)
        angle, middle = rng.uniform(0, np.pi), (length - 1) / 2
        dx, dy = middle * np.cos(angle), middle * np.sin(angle)
        ends = [(round(middle + s * dx), round(middle + s * dy)) for s in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0, 1)
        return cv2.filter2D(image, -1, kernel / kernel.sum())
    low = int(rng.integers(size * 3 // 10, size * 9 // 10))
    return cv2.resize(_shrink(image, low), (size, size), interpolation=cv2.INTER_LINEAR)


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
