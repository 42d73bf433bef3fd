"""Backgrounds: random views of photos in the directories given, and drawn ones that need no file at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handmesh.image_folders import load_images

_LONG_SIDE, _SHORT_SIDE = 480, 64

Array = np.ndarray


def load_photos(directories: Sequence[Path | str], *, also_held_out: bool) -> list[Array]:
    """All photos below the directories, as uint8 RGB of at most 480 px, without those of less than 64.

    Those that are kept out of training (`handmesh.image_folders.is_held_out`) come only where ``also_held_out``.
    Errors as `load_images`.
    """
    return load_images(directories, _LONG_SIDE, smallest_px=_SHORT_SIDE, also_held_out=also_held_out)


def view_of_photo(photo: Array, size: int, rng: np.random.Generator) -> Array:
    """(size, size, 3) uint8: a random square of a photo, turned and mirrored at times."""
    import cv2

    h, w = photo.shape[:2]
    side = min(h, w) * float(np.exp(rng.uniform(np.log(0.3), np.log(1.15))))
    angle = rng.normal(0, 0.2) if rng.uniform() < 0.8 else rng.uniform(-np.pi, np.pi)
    c, s = np.cos(angle) * side / size, np.sin(angle) * side / size
    flip = -1.0 if rng.uniform() < 0.5 else 1.0
    A = np.array([[flip * c, -s], [flip * s, c]])
    centre = np.array([rng.uniform(min(side / 2, w / 2), max(w - side / 2, w / 2)),
                       rng.uniform(min(side / 2, h / 2), max(h - side / 2, h / 2))])  # fmt: skip
    shift = centre - A @ np.full(2, (size - 1) / 2)
    M = np.concatenate([A, shift[:, None]], 1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(photo, M, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)


def drawn_background(size: int, rng: np.random.Generator) -> Array:
    """(size, size, 3) uint8: walls, gradients, stripes and simple shapes in random colours."""
    import cv2

    base = rng.uniform(0, 255, 3) if rng.uniform() < 0.5 else np.ones(3) * rng.uniform(10, 250) + rng.normal(0, 12, 3)
    image = np.ones((size, size, 3), np.float32) * base.astype(np.float32)
    cells = int(rng.integers(2, 6))
    soft = rng.normal(size=(cells, cells, 3)) * [1, 1, 1] * 0.4 + rng.normal(size=(cells, cells, 1))
    image += cv2.resize(soft.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC) * rng.uniform(3, 35)
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    for _ in range(int(rng.integers(0, 14)) if rng.uniform() < 0.7 else 0):
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        p = [int(v) for v in rng.uniform(-0.2 * size, 1.2 * size, 8)]
        kind = rng.integers(4)
        if kind == 0:
            cv2.rectangle(image, (p[0], p[1]), (p[2], p[3]), colour, -1)
        elif kind == 1:
            cv2.line(image, (p[0], p[1]), (p[2], p[3]), colour, int(rng.integers(1, size // 8)), cv2.LINE_AA)
        elif kind == 2:
            axes = (abs(p[2]) // 2 + 2, abs(p[3]) // 3 + 2)
            cv2.ellipse(image, (p[0], p[1]), axes, p[4], 0, 360, colour, -1, cv2.LINE_AA)
        else:
            cv2.fillPoly(image, [np.array(p, np.int32).reshape(4, 2)], colour, cv2.LINE_AA)
    grain = rng.normal(size=(size, size, 1)).astype(np.float32) * rng.uniform(0, 9)
    return (cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 3.0)) + grain).clip(0, 255).astype(np.uint8)


def random_background(photos: list[Array], size: int, rng: np.random.Generator) -> Array:
    """A photo's view (four times in five, if there are photos) or a drawn background, out of focus at times."""
    import cv2

    if photos and rng.uniform() < 0.8:
        image = view_of_photo(photos[rng.integers(len(photos))], size, rng)
    else:
        image = drawn_background(size, rng)
    if rng.uniform() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 5.0))
    return image
