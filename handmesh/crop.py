"""A box in a frame becomes the square picture that the hand network sees, and points travel both ways.

A crop is the square around the box's centre with side ``CROP_SCALE`` times the box's longer side (small hands': wider),
turned about that centre where the hand is to stand upright. Its coordinates are normalised to [-1, 1] over the square:
``x_n = (x_crop_px + 0.5) / (size / 2) - 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.skeleton import FINGER_KNUCKLES

CROP_SCALE = 1.6
"""Side of the square crop over the longer side of the tight box of the 21 projected keypoints."""

MOST_MAGNIFIED = 1.2
"""Small hands are cut out with more around them, so that a crop shows no pixel of the frame larger than this ..."""

MOST_WIDENED = 1.3
"""... as far as a crop this many times as wide as others can do."""


@dataclass(frozen=True)
class Crop:
    """A square cut-out of a frame, resized to ``size`` x ``size``.

    ``center`` (x, y) and ``side_px`` are in pixels of the frame; ``size`` is the network's input in pixels. The picture
    is turned by ``turn`` radians (x towards y), then mirrored left to right if ``mirrored``.
    """

    center: tuple[float, float]
    side_px: float
    size: int
    mirrored: bool = False
    turn: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.center, self.side_px, self.turn)):
            raise ValueError(
                f"a crop must be finite, but has centre {self.center}, side {self.side_px} and turn {self.turn}"
            )
        if self.side_px <= 0.0 or self.size < 1:
            raise ValueError(f"a crop needs a positive side and size, not {self.side_px} and {self.size}")

    @classmethod
    def from_box(
        cls, box: ArrayLike, size: int, *, mirrored: bool = False, turn: float = 0.0, scale: float = CROP_SCALE
    ) -> Crop:
        """The crop around ``box`` (4,): x1, y1, x2, y2 of the tight keypoint box in pixels of the frame."""
        x1, y1, x2, y2 = np.asarray(box, np.float64).tolist()
        side = scale * max(x2 - x1, y2 - y1)
        side = max(side, min(size / MOST_MAGNIFIED, MOST_WIDENED * side))
        return cls((0.5 * (x1 + x2), 0.5 * (y1 + y2)), side, size, mirrored, turn)

    def zoomed_box(self, zoom: float) -> NDArray[np.float64]:
        """The square box (4,) about the same centre whose crop of this size is `zoom` times as wide as this one."""
        side = self.side_px * zoom
        small = side < self.size / MOST_MAGNIFIED
        half = 0.5 * side / (CROP_SCALE * MOST_WIDENED if small else CROP_SCALE)
        return np.array([self.center[0] - half, self.center[1] - half, self.center[0] + half, self.center[1] + half])

    @property
    def affine(self) -> NDArray[np.float64]:
        """(2, 3) map from pixels of the frame to pixels of the crop."""
        linear = self._turned * (self.size / self.side_px)
        return _about(linear, self.center, 0.5 * (self.size - 1))

    @property
    def inverse(self) -> NDArray[np.float64]:
        """(2, 3) map from pixels of the crop to pixels of the frame."""
        linear = self._turned.T * (self.side_px / self.size)
        middle = 0.5 * (self.size - 1)
        return _about(linear, (middle, middle), self.center)

    @property
    def turned_back(self) -> NDArray[np.float64]:
        """(3, 3) rotation about the optical axis that undoes the turn of what is seen, once out of the mirror."""
        return roll(-self.turn)

    def to_crop(self, points_px: ArrayLike) -> NDArray[np.float64]:
        """Pixels of the frame (..., 2) to normalised coordinates of the crop."""
        return (np.asarray(points_px, np.float64) - self.center) @ (self._turned.T / (0.5 * self.side_px))

    def to_frame(self, points: ArrayLike) -> NDArray[np.float64]:
        """Normalised coordinates of the crop (..., 2) to pixels of the frame."""
        return np.asarray(points, np.float64) @ (self._turned * (0.5 * self.side_px)) + self.center

    def cut(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop (size, size, 3) of a frame (H, W, 3), black outside the frame.

        Where the frame is shrunk more than twice its pixels are first averaged in pairs both ways, and again until it
        is not, so that fine texture does not turn into noise.
        """
        import cv2

        block = 2 ** int(math.log2(max(self.side_px / self.size, 1.0)))
        affine = self.affine
        if block >= 2:
            frame, low = _average_blocks(frame, self.center, self._reach_px, block)
            # Pixel i of the averaged picture is centred at low + block * i + (block - 1) / 2 of the frame.
            affine[:, 2] += affine[:, :2] @ (np.asarray(low) + 0.5 * (block - 1))
            affine[:, :2] *= block
        if frame.size == 0:
            return np.zeros((self.size, self.size, 3), np.uint8)
        picture = cv2.warpAffine(frame, affine, (self.size, self.size), flags=cv2.INTER_LINEAR)
        return np.asarray(picture, np.uint8)

    @property
    def _turned(self) -> NDArray[np.float64]:
        """(2, 2) from directions in the frame to directions in the crop."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.array([[-cos, sin], [sin, cos]] if self.mirrored else [[cos, -sin], [sin, cos]])

    @property
    def _reach_px(self) -> float:
        """Width and height of the upright box around the turned square."""
        return self.side_px * (abs(math.cos(self.turn)) + abs(math.sin(self.turn)))


def _about(linear: NDArray[np.float64], point: ArrayLike, image: ArrayLike) -> NDArray[np.float64]:
    """(2, 3) the affine map that takes ``point`` to ``image`` and differences by ``linear`` (2, 2)."""
    return np.concatenate([linear, (np.asarray(image) - linear @ np.asarray(point))[:, None]], 1)


def laid_out(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame (H, W, 3) itself if OpenCV reads it where it is, else a copy that it can.

    Of a view such as ``frame[..., ::-1]`` OpenCV makes a copy for each crop, which takes many times as long as that.
    """
    import cv2

    if frame.strides[0] > 0 and frame.strides[1:] == (3, 1):
        return frame
    if frame.strides[2] == -1:  # BGR seen as RGB, which OpenCV turns round much faster than numpy
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame[..., ::-1]), cv2.COLOR_BGR2RGB), np.uint8)
    return np.ascontiguousarray(frame)


def _average_blocks(
    frame: NDArray[np.uint8], center: tuple[float, float], reach_px: float, block: int
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The ``reach_px`` around ``center`` averaged over ``block`` x ``block`` pixels, and the x, y of the first pixel.

    ``block`` is a power of two: averaging by two is many times as fast as by other numbers.
    The blocks' grid hangs on the centre and not on the frame, so a mirrored frame gives the mirrored picture.
    """
    import cv2

    count = math.ceil(reach_px / block) + 2
    lows, spans = [], []
    for middle, length in zip(center, (frame.shape[1], frame.shape[0]), strict=True):
        start = round(middle + 0.5 - 0.5 * count * block)
        first = max(0, math.ceil(-start / block))
        last = max(first, min(count, (length - start) // block))
        lows.append(start + first * block)
        spans.append(last - first)
    (x, y), (columns, rows) = lows, spans
    if columns == 0 or rows == 0:
        return np.zeros((0, 0, 3), np.uint8), (0, 0)
    region = frame[y : y + rows * block, x : x + columns * block]
    while len(region) > rows:
        half = (region.shape[1] // 2, region.shape[0] // 2)
        region = np.asarray(cv2.resize(region, half, interpolation=cv2.INTER_AREA), np.uint8)
    return region, (x, y)


def turn_upright(joints_2d: NDArray[np.floating]) -> float:
    """The angle in radians (x towards y) by which a picture is turned for its hand (21, 2) px to stand upright.

    Upright is a hand whose fingers' knuckles are, on average, right above the wrist.
    """
    x, y = (joints_2d[list(FINGER_KNUCKLES)].mean(0) - joints_2d[0]).tolist()
    return math.remainder(-0.5 * math.pi - math.atan2(y, x), math.tau)


def roll(angle: float) -> NDArray[np.float64]:
    """Rotation (3, 3) about the optical axis by ``angle`` radians, x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def view_rotation(ray: ArrayLike) -> NDArray[np.float64]:
    """The smallest rotation (..., 3, 3) that takes the optical axis (0, 0, 1) to the direction of ``ray`` (..., 3).

    The network describes a hand in a virtual camera looking along the ray through the crop's centre; this rotation
    leads back, once the crop's own turn has been undone (`Crop.turned_back`): ``v_cam = view_rotation(ray) @
    v_virtual``. Raises ``ValueError`` for rays that are zero, not finite or point straight backwards.
    """
    ray = np.asarray(ray, np.float64)
    length = np.sqrt(np.square(ray).sum(-1, keepdims=True))
    if not (length > 0.0).all() or np.isinf(length).any():
        raise ValueError("a view ray must be finite and not zero")
    between = ray / length + (0.0, 0.0, 1.0)  # halfway from the axis to the ray; the square of its length is 2 z
    z = between[..., 2, None, None]
    if (z <= 1e-9).any():
        raise ValueError("a view ray points straight backwards: no rotation from the optical axis is the smallest")
    # Two half turns, about the axis and then about what lies halfway, together turn twice the angle between the two.
    return (between[..., :, None] * between[..., None, :] / z - np.eye(3)) * (-1.0, -1.0, 1.0)
