"""A z-buffer in numpy: shaded triangles in, the visible tone at every pixel out, with no OpenGL.

Hand meshes have thousands of triangles of a few pixels each, so nothing here loops over triangles: all are cut into
pieces of image rows at once, the rows into pixels at once, and the nearest pixel wins. The cost follows the area.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

EMPTY = -1
TONES = 256
_BLOCK_PX = 8192
_SLIVER_PX2 = 1e-2  # twice a triangle's area on the image; below this its gradients are mostly rounding


def rasterise(
    points: NDArray[np.floating],
    depth: NDArray[np.floating],
    tones: NDArray[np.floating],
    triangles: NDArray[np.integer],
    layers: NDArray[np.integer],
    width: int,
    height: int,
) -> NDArray[np.int64]:
    """Layer and tone of the nearest triangle at every pixel.

    Depth is interpolated as 1/z, which is linear on the image, so surfaces that intersect are cut where they meet. A
    triangle has the pixels whose centre it covers; of two that share an edge exactly one has a centre on that edge, so
    closed meshes show no pinholes. At equal depth the greater layer, then the brighter tone wins.

    Args:
        points: (V, 2) projected vertices, pixels with integer centres.
        depth: (V,) z in the camera, any positive unit.
        tones: (V,) brightness, 0 to 1, interpolated linearly on the image.
        triangles: (F, 3) vertex ids, either winding; none may have a vertex with depth <= 0.
        layers: (F,) whose triangle it is, 0 or greater.
        width: image width, pixels.
        height: image height, pixels.

    Returns:
        (height, width) `layer * TONES + round(tone * (TONES - 1))`; `EMPTY` where there is no triangle.
    """
    x, y = points[:, 0].astype(np.float32)[triangles], points[:, 1].astype(np.float32)[triangles]  # (F, 3)
    rows = _cut_into_rows(x, y, width, height)
    nearness, nearness_dx = _at_start(rows, x, y, (1.0 / depth).astype(np.float32)[triangles])
    tone, tone_dx = _at_start(rows, x, y, (tones * (TONES - 1)).astype(np.float32)[triangles])
    layer = layers[rows.triangle].astype(np.int64) * TONES
    first_pixel = rows.y * width + rows.start
    nearest = np.full(height * width, EMPTY, np.int64)
    for part in _blocks(rows.length):
        length = rows.length[part]
        along = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)  # (P,) pixels from start
        along_px = along.astype(np.float32)
        w = np.repeat(nearness[part], length) + np.repeat(nearness_dx[part], length) * along_px
        value = np.repeat(tone[part], length) + np.repeat(tone_dx[part], length) * along_px
        # One integer holds depth above, layer and tone below; the bits of non-negative floats sort as integers do.
        key = np.maximum(w, 0).view(np.int32).astype(np.int64) << 32
        key += np.repeat(layer[part], length)
        key += np.clip(value + 0.5, 0, TONES - 1).astype(np.int64)
        np.maximum.at(nearest, np.repeat(first_pixel[part], length) + along, key)
    nearest <<= 32
    nearest >>= 32  # the lower half with its sign, in place
    return nearest.reshape(height, width)


class _Rows(NamedTuple):
    """Pieces of image rows inside triangles: `length` pixels of row y from column `start` on, each (R,)."""

    triangle: Ints
    y: Ints
    start: Ints
    length: Ints


def _blocks(length: Ints) -> Iterator[slice]:
    """Runs of rows with about `_BLOCK_PX` pixels each: temporary arrays that stay in the cache."""
    ends = np.cumsum(length)
    cuts = np.searchsorted(ends, np.arange(_BLOCK_PX, ends[-1] if len(ends) else 0, _BLOCK_PX))
    return (slice(a, b) for a, b in pairwise([0, *cuts.tolist(), len(length)]))


def _cut_into_rows(x: Floats, y: Floats, width: int, height: int) -> _Rows:
    """Rows of triangles with corners x, y (F, 3); the middle corner cuts each into a half above and one below it."""
    order = np.argsort(y, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)  # top, middle, bottom
    border = np.ceil(np.clip(y, 0, height)).astype(np.intp)
    count = np.concatenate([border[:, 1] - border[:, 0], border[:, 2] - border[:, 1]])  # (2F,) rows of each half
    first = np.concatenate([border[:, 0], border[:, 1]])
    row = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)  # (R,)
    triangle = np.repeat(np.tile(np.arange(len(x)), 2), count)

    # Every edge is followed from its upper end, whichever triangle asks, so neighbours agree on where it runs.
    ends = ((0, 1), (1, 2), (0, 2))
    upper, middle, long = (
        np.divide(x[:, b] - x[:, a], y[:, b] - y[:, a], out=np.zeros_like(x[:, 0]), where=y[:, b] > y[:, a])
        for a, b in ends
    )  # pixels to the right per row down
    row_px = row.astype(np.float32)
    long_x = x[:, 0][triangle] + (row_px - y[:, 0][triangle]) * long[triangle]
    short_x = np.repeat(np.concatenate([x[:, 0], x[:, 1]]), count)
    short_x += (row_px - np.repeat(np.concatenate([y[:, 0], y[:, 1]]), count)) * np.repeat(
        np.concatenate([upper, middle]), count
    )
    start = np.ceil(np.clip(np.minimum(long_x, short_x), 0, width)).astype(np.intp)
    stop = np.ceil(np.clip(np.maximum(long_x, short_x), 0, width)).astype(np.intp)
    return _Rows(triangle, row, start, stop - start)


def _at_start(rows: _Rows, x: Floats, y: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Values given at triangles' corners (F, 3): at every row's start and their change per pixel, each (R,)."""
    x1, x2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    y1, y2 = y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    v1, v2 = values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    area = x1 * y2 - x2 * y1
    usable = np.abs(area) > _SLIVER_PX2
    dx = np.divide(v1 * y2 - v2 * y1, area, out=np.zeros_like(area), where=usable)
    dy = np.divide(v2 * x1 - v1 * x2, area, out=np.zeros_like(area), where=usable)
    at = rows.triangle
    right = rows.start.astype(np.float32) - x[:, 0][at]
    down = rows.y.astype(np.float32) - y[:, 0][at]
    at_start = values[:, 0][at] + dx[at] * right + dy[at] * down
    return at_start.astype(np.float32, copy=False), dx[at]
