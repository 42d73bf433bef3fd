"""Procedural skin: one texture per imagined person, painted in the hand model's own texture space.

A texture holds three panels side by side: hand, forearm, sleeve; four bytes per texel: sRGB colour and gloss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from handmesh.synthesis.texels import HAND_TEXELS, TexelMap

FOREARM_TEXELS = 128
SLEEVE_TEXELS = 128
TEXTURE_WIDTH = HAND_TEXELS + FOREARM_TEXELS + SLEEVE_TEXELS

# Diffuse reflectance of the back of the hand in sRGB, from the lightest to the darkest, ten steps like the Monk
# skin tone scale; chosen by eye beside photographs.
TONES = np.array(
    [
        [240, 207, 186], [234, 194, 168], [226, 181, 150], [211, 163, 128], [190, 140, 105],
        [165, 115, 83], [134, 90, 63], [104, 69, 50], [77, 52, 41], [56, 40, 34],
    ],
    np.float64,
) / 255.0  # fmt: skip
_DARK_PALM = np.array([0.40, 0.23, 0.16])
_METALS = np.array([[0.75, 0.52, 0.18], [0.6, 0.6, 0.63], [0.62, 0.42, 0.32], [0.04, 0.04, 0.05]])

Array = np.ndarray


@dataclass(frozen=True)
class Skin:
    """texture (HAND_TEXELS, TEXTURE_WIDTH, 4) uint8; tone 0 lightest .. 1 darkest; gloved."""

    texture: Array
    tone: float
    gloved: bool


@njit(cache=True, nogil=True, fastmath=True)
def _value_noise(position, frequency, offset, grid):
    n = grid.shape[0] - 1
    out = np.empty(position.shape[0], dtype=np.float32)
    for i in range(position.shape[0]):
        total = np.float32(0.0)
        x = (position[i, 0] * frequency + offset[0]) % n
        y = (position[i, 1] * frequency + offset[1]) % n
        z = (position[i, 2] * frequency + offset[2]) % n
        ix, iy, iz = int(x), int(y), int(z)
        fx, fy, fz = x - ix, y - iy, z - iz
        fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
        for a in range(2):
            wa = fx if a else 1 - fx
            for b in range(2):
                wb = fy if b else 1 - fy
                for c in range(2):
                    total += wa * wb * (fz if c else 1 - fz) * grid[ix + a, iy + b, iz + c]
        out[i] = total
    return out


def noise(position: Array, frequency: float, rng: np.random.Generator) -> Array:
    """(T,) float32 smooth noise of about unit variance at (T, 3) positions (m); frequency in cycles per metre."""
    grid = rng.standard_normal((25, 25, 25)).astype(np.float32)
    return _value_noise(position, frequency, rng.uniform(0, 24, 3), grid)


def _to_linear(srgb: Array) -> Array:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(linear: Array) -> Array:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def paint_skin(texels: TexelMap, rng: np.random.Generator) -> Skin:
    """Draw one person: tone, undertone, blotches, creases, nails, veins, hair and what they wear."""
    step = rng.uniform(0, len(TONES) - 1)
    i = min(int(step), len(TONES) - 2)
    tone = float(step / (len(TONES) - 1))
    back = _to_linear((1 - step + i) * TONES[i] + (step - i) * TONES[i + 1])
    undertone = np.clip(rng.normal(0.01, 0.06), -0.05, 0.15)  # cool to warm
    back = back * rng.uniform(0.85, 1.12) * np.array([1 + 0.4 * undertone, 1 - 0.4 * undertone, 1 - 1.6 * undertone])
    # Palms have little melanin: the darker the back, the more they differ, though seldom fully.
    paleness = np.clip((tone - 0.35) / 0.6, 0, 1) * rng.uniform(0.35, 0.8)
    palm = (1 - paleness) * back * rng.uniform(0.98, 1.12) + paleness * _DARK_PALM * rng.uniform(0.6, 1.1)
    palm = palm * np.array([1.05, 0.93, 0.91])
    colour = back + (palm - back) * texels.palm[:, None]
    colour, gloss = _flesh(texels, colour, tone, rng)
    gloved = bool(rng.uniform() < 0.05)
    forearm = _forearm(back, palm, rng)
    if gloved:
        colour, gloss, forearm = _glove(texels, forearm, rng)
    colour, gloss = _worn(texels, colour, gloss, gloved, rng)
    texture = np.empty((HAND_TEXELS, TEXTURE_WIDTH, 4), np.uint8)
    flat = np.concatenate([_to_srgb(colour), np.clip(gloss, 0, 1)[:, None]], 1)
    texture[:, :HAND_TEXELS] = (255 * flat + 0.5).astype(np.uint8)[texels.rows]
    for panel, start in ((forearm, HAND_TEXELS), (_sleeve(rng), HAND_TEXELS + FOREARM_TEXELS)):
        encoded = np.concatenate([_to_srgb(panel[..., :3]), np.clip(panel[..., 3:], 0, 1)], -1)
        texture[:, start : start + panel.shape[1]] = (255 * encoded + 0.5).astype(np.uint8)
    return Skin(texture, tone, gloved)


def _flesh(texels: TexelMap, colour: Array, tone: float, rng: np.random.Generator) -> tuple[Array, Array]:
    p, palm, back = texels.position, texels.palm, 1 - texels.palm
    light = 1 - 0.7 * np.clip((tone - 0.25) / 0.6, 0, 1)
    # blood under thin skin: finger tips, knuckles, palm blotches
    flush = 0.6 * texels.tip * palm + 0.45 * np.clip(noise(p, 60, rng), 0, 1) * palm + 0.4 * texels.knuckle * back
    flush = np.clip((flush + rng.uniform(0, 0.25)) * rng.uniform(0, 0.9) * light, 0, 1)
    colour = colour * (1 - flush[:, None] * np.array([0.02, 0.28, 0.28]))
    mottle = 0.045 * noise(p, 55, rng) + 0.04 * noise(p, 160, rng) + 0.04 * noise(p, 420, rng)
    colour = colour * (1 + rng.uniform(0.2, 1.3) * mottle)[:, None]
    if rng.uniform() < 0.2:  # freckles, age spots
        spots = np.clip(noise(p, rng.uniform(170, 420), rng) - rng.uniform(1.1, 1.6), 0, 1) * back
        colour = colour * (1 - rng.uniform(0.1, 0.45) * spots[:, None] * np.array([0.6, 0.9, 1.0]))
    folds = texels.crease * palm * rng.uniform(0.12, 0.55) + texels.palm_lines * rng.uniform(0.1, 0.5)
    folds = folds + texels.knuckle * back * rng.uniform(0.05, 0.38)
    wrinkles = np.exp(-np.square(noise(p, rng.uniform(120, 260), rng) / 0.12)) * rng.uniform(0, 0.14)
    folds = np.clip(folds + wrinkles, 0, 0.8)
    colour = colour * (1 - folds[:, None] * np.array([0.75, 1.0, 1.0]))
    if rng.uniform() < 0.45:  # veins shimmer blue-green through the back of the hand
        vein = np.exp(-np.square(noise(p, 42, rng) / 0.13)) * back * (texels.finger < 0) * rng.uniform(0, 0.22)
        colour = colour * (1 - vein[:, None] * np.array([1.0, 0.55, 0.4]))
    if rng.uniform() < 0.3:  # hair on the back and on the first phalanges
        strands = np.clip(noise(p * np.array([3.0, 0.6, 3.0], np.float32), 620, rng) - 0.9, 0, 1)
        where = back * ((texels.finger < 0) | ((texels.along > 4) & (texels.along < 26)))
        colour = colour * (1 - np.clip(rng.uniform(0.3, 0.9) * strands * where, 0, 0.8))[:, None]
    if rng.uniform() < 0.05:  # tattoo
        lines = np.abs(noise(p, rng.uniform(40, 130), rng)) < rng.uniform(0.05, 0.25)
        where = lines * back * (noise(p, 22, rng) > rng.uniform(-0.4, 0.6))
        ink = np.array([0.02, 0.03, 0.05]) + rng.uniform(0, 0.1, 3) * (rng.uniform() < 0.3)
        colour = colour + (ink - colour) * (where * rng.uniform(0.4, 0.85))[:, None]
    return _nails(texels, colour, tone, light, rng)


def _nails(texels: TexelMap, colour: Array, tone: float, light: float, rng) -> tuple[Array, Array]:
    gloss = 0.30 + 0.06 * noise(texels.position, 90, rng) + 0.12 * texels.palm * rng.uniform(-1, 1)
    plate = colour * 0.62 + 0.38 * np.array([0.72, 0.45, 0.40]) * (0.35 + 0.65 * light)
    shine = rng.uniform(0.5, 0.9)
    varnish = rng.uniform() < 0.12
    if varnish:
        plate = np.ones_like(colour) * np.clip(rng.uniform(0.01, 0.85, 3), 0, 1) ** 1.5
        shine = 1.0
    colour = colour + (plate - colour) * texels.nail[:, None]
    outline = rng.uniform(0.1, 0.35) * texels.nail_edge * (1 - 0.5 * texels.nail)
    return colour * (1 - outline[:, None]), gloss * (1 - texels.nail) + shine * texels.nail


def _glove(texels: TexelMap, forearm: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    base = rng.uniform(0.01, 0.75, 3) ** rng.uniform(1, 2)
    if rng.uniform() < 0.5:
        base = np.ones(3) * rng.uniform(0.01, 0.8)
    weave = 0.08 * noise(texels.position, 480, rng) + 0.06 * noise(texels.position, 70, rng)
    colour = base * (1 + rng.uniform(0.5, 2) * weave)[:, None]
    if rng.uniform() < 0.4:
        second = rng.uniform(0.01, 0.75, 3)
        colour = np.where((texels.palm > 0.55)[:, None], second * (1 + weave)[:, None], colour)
    gloss = np.full(len(weave), rng.choice([0.03, 0.1, 0.7]))
    cuff = int(rng.uniform(0.02, 0.35) * HAND_TEXELS)
    forearm = forearm.copy()
    forearm[:cuff, :, :3] = base * (1 + 0.05 * rng.standard_normal((cuff, 1, 1)))
    forearm[:cuff, :, 3] = gloss[0]
    return colour, gloss, forearm


def _worn(texels: TexelMap, colour, gloss, gloved: bool, rng) -> tuple[Array, Array]:
    """Rings, and now and then a plaster round a finger."""
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.84, 0.11, 0.03, 0.02])):
        finger = rng.integers(0, 5)
        centre, width = rng.uniform(20, 30) if finger else rng.uniform(12, 20), rng.uniform(1.0, 2.3)
        metal, shine = _METALS[rng.integers(len(_METALS))] * rng.uniform(0.7, 1.1), 1.0
        if rng.uniform() < 0.12:
            width, metal, shine = rng.uniform(7, 11), np.array([0.75, 0.55, 0.4]) * rng.uniform(0.5, 1.2), 0.05
            centre = rng.uniform(18, 60)
        band = (texels.finger == finger) * np.exp(-(((texels.along - centre) / width) ** 8))
        if gloved:
            continue
        colour = colour + (metal - colour) * band[:, None]
        gloss = gloss * (1 - band) + shine * band
    return colour, gloss


def _stretch(rng: np.random.Generator, rows: int, columns: int, width: int) -> Array:
    import cv2

    small = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(small, (width, HAND_TEXELS), interpolation=cv2.INTER_CUBIC)


def _forearm(back: Array, palm: Array, rng: np.random.Generator) -> Array:
    """(HAND_TEXELS, FOREARM_TEXELS, 4) linear colour and gloss; rows run from the wrist to the elbow."""
    inner = 0.5 - 0.5 * np.cos(np.linspace(0, 2 * np.pi, FOREARM_TEXELS))[None, :, None]
    fade = 0.3 + 0.7 * np.exp(-np.arange(HAND_TEXELS) / 45.0)[:, None, None]
    skin = back + (palm - back) * inner**0.7 * fade
    mottle = 0.06 * _stretch(rng, 24, 12, FOREARM_TEXELS) + 0.05 * _stretch(rng, 150, 60, FOREARM_TEXELS)
    skin = skin * (1 + rng.uniform(0.2, 1.1) * mottle[..., None])
    if rng.uniform() < 0.35:
        strands = np.clip(_stretch(rng, 70, 110, FOREARM_TEXELS) - 0.8, 0, 1) * (1 - inner[..., 0])
        skin = skin * (1 - rng.uniform(0.2, 0.6) * strands[..., None])
    gloss = np.full((HAND_TEXELS, FOREARM_TEXELS, 1), 0.28)
    if rng.uniform() < 0.2:  # watch strap or bracelet
        centre, half = rng.uniform(20, 120), rng.uniform(3, 28)
        band = np.exp(-(((np.arange(HAND_TEXELS) - centre) / half) ** 8))[:, None, None]
        strap = rng.uniform(0.01, 0.7, 3) if rng.uniform() < 0.5 else _METALS[rng.integers(len(_METALS))]
        skin = skin + (strap - skin) * band
        if half > 14 and rng.uniform() < 0.6:  # a watch face on the back of the wrist
            x = np.minimum(np.arange(FOREARM_TEXELS), FOREARM_TEXELS - np.arange(FOREARM_TEXELS))
            disc = np.exp(-((x / rng.uniform(14, 20)) ** 8))[None, :, None] * band
            skin = skin + (rng.uniform(0.0, 0.8) * np.ones(3) - skin) * disc
        gloss = gloss + 0.6 * band
    return np.concatenate([skin, np.clip(gloss, 0, 1)], -1)


def _sleeve(rng: np.random.Generator) -> Array:
    """(HAND_TEXELS, SLEEVE_TEXELS, 4) cloth: plain, striped or checked."""
    shape = (HAND_TEXELS, SLEEVE_TEXELS)
    colour = rng.uniform(0.01, 0.8, 3) ** 1.5 if rng.uniform() < 0.6 else np.ones(3) * rng.uniform(0.008, 0.7)
    cloth = np.ones((*shape, 3)) * colour
    for axis in (0, 1):
        if rng.uniform() < 0.2:
            period = rng.integers(4, 40)
            stripes = ((np.indices(shape)[axis] // period) % 2)[..., None] * rng.uniform(0.4, 1.0)
            cloth = cloth + (rng.uniform(0.01, 0.8, 3) - cloth) * stripes
    folds = 0.2 * _stretch(rng, 30, 12, SLEEVE_TEXELS) + 0.07 * rng.standard_normal(shape)
    cloth = cloth * np.clip(1 + folds[..., None], 0.1, 2)
    return np.concatenate([np.clip(cloth, 0.003, 1), np.full((*shape, 1), 0.04)], -1)
