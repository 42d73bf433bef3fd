"""A camera's intrinsics from pictures of a printed board: a checkerboard or a ChArUco board, by OpenCV.

The board is shown from many sides; frames that show it somewhere new are kept as views, and a pinhole with Brown and
Conrady's distortion is fitted to their corners (Zhang, "A flexible new technique for camera calibration", PAMI 2000).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.records import Camera, check_frame

_log = logging.getLogger(__name__)

BoardKind = Literal["checkerboard", "charuco"]

MIN_VIEWS = 5
MIN_CORNERS = 8
NEW_VIEW = 0.04
"""A view is new if place, size or slant of the board differ from all others by more than this share of the width."""

OUTLIER = 3.0
"""Views whose error is more than so many times the median, and more than ``FINE_PX``, are dropped."""

FINE_PX = 1.0
TILTED_DEG, MIN_TILTED = 15.0, 3
"""So many views should be tilted by more than this against the picture."""

DICTIONARY = "DICT_5X5_100"


@dataclass(frozen=True)
class Board:
    """A board lying flat.

    ``columns`` x ``rows`` counts the inner corners of a checkerboard, as OpenCV does, but the squares of a ChArUco
    board; ``square_m`` is a square's side and ``marker_m`` that of a ChArUco marker, metres. Raises ``ValueError`` for
    sizes that no board has.
    """

    kind: BoardKind
    columns: int
    rows: int
    square_m: float
    marker_m: float = 0.0
    dictionary: str = DICTIONARY

    def __post_init__(self) -> None:
        if self.kind not in get_args(BoardKind):
            raise ValueError(f"a board is one of {', '.join(get_args(BoardKind))}, not {self.kind!r}")
        if self.columns < 3 or self.rows < 3:
            raise ValueError(f"a board needs at least 3 x 3, not {self.columns} x {self.rows}")
        if not self.square_m > 0.0:
            raise ValueError(f"a board's square must have a positive side, not {1e3 * self.square_m:g} mm")
        if self.kind == "charuco":
            if not 0.0 < self.marker_m < self.square_m:
                raise ValueError(
                    f"a marker must be smaller than its square of {1e3 * self.square_m:g} mm, not "
                    f"{1e3 * self.marker_m:g} mm"
                )
            if not hasattr(cv2.aruco, self.dictionary):
                known = [name for name in dir(cv2.aruco) if name.startswith("DICT_")]
                raise ValueError(f"OpenCV knows no markers {self.dictionary}; it knows {', '.join(known)}")
            markers, needed = self._markers.bytesList.shape[0], self.columns * self.rows // 2
            if needed > markers:
                raise ValueError(
                    f"{self.columns} x {self.rows} squares need {needed} markers, but {self.dictionary} has "
                    f"{markers}: take a larger --dictionary, such as DICT_4X4_1000, or fewer squares"
                )

    def find(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """The board's corners in a picture (H, W, 3) RGB: places on the board (N, 3) m and pixels (N, 2), or None."""
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if self.kind == "charuco":
            corners, numbers, _, _ = self._detector.detectBoard(gray)
            if numbers is None or len(numbers) < MIN_CORNERS:
                return None
            places, pixels = self._charuco.matchImagePoints(corners, numbers)
            places = places.reshape(-1, 3).astype(np.float32)
            if np.linalg.matrix_rank(places - places[0]) < 2:
                return None  # corners in one line show no plane
            return places, pixels.reshape(-1, 2).astype(np.float32)
        found, corners = cv2.findChessboardCornersSB(
            gray, (self.columns, self.rows), flags=cv2.CALIB_CB_NORMALIZE_IMAGE
        )
        if not found:
            return None
        grid = np.mgrid[: self.columns, : self.rows].T.reshape(-1, 2) * self.square_m
        places = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
        return places.astype(np.float32), corners.reshape(-1, 2).astype(np.float32)

    def draw(self, square_px: int = 100) -> NDArray[np.uint8]:
        """The board as a picture (H, W, 3) to print, with a white margin of one square."""
        if self.kind == "charuco":
            size = (self.columns * square_px, self.rows * square_px)
            inside = np.asarray(self._charuco.generateImage(size), np.uint8)
        else:
            squares = np.indices((self.rows + 1, self.columns + 1)).sum(axis=0) % 2
            inside = np.kron(255 * squares, np.ones((square_px, square_px))).astype(np.uint8)
        return np.repeat(np.pad(inside, square_px, constant_values=255)[..., None], 3, axis=2)

    @cached_property
    def _markers(self) -> Any:
        return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))

    @cached_property
    def _charuco(self) -> Any:
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square_m, self.marker_m, self._markers)

    @cached_property
    def _detector(self) -> Any:
        return cv2.aruco.CharucoDetector(self._charuco)


@dataclass(frozen=True)
class Calibration:
    """A fitted camera, the root of its mean squared error in px, the views used, and how many were tilted."""

    camera: Camera
    rms_px: float
    views: int
    tilted_views: int

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about it, for people."""
        found = []
        if self.rms_px > FINE_PX:
            found.append(
                f"the corners miss their places by {self.rms_px:.2f} px: is the board flat, its size as given, the "
                "picture sharp?"
            )
        if self.tilted_views < MIN_TILTED:
            found.append(
                f"only {self.tilted_views} views are tilted, and boards parallel to the picture say nothing of the "
                "focal length: show the board tilted by 30 to 45 degrees, near and far, and in the picture's corners"
            )
        return found


def calibrate(
    frames: Iterable[NDArray[np.uint8]],
    board: Board,
    *,
    views: int = 20,
    on_view: Callable[[int], None] | None = None,
) -> Calibration:
    """Fit a camera to frames (H, W, 3) RGB of a board, from the first ``views`` that show it somewhere new.

    ``on_view`` is told how many there are. Raises ``ValueError`` if fewer than ``MIN_VIEWS`` are wanted or found, or
    frames differ in size.
    """
    if views < MIN_VIEWS:
        raise ValueError(f"a camera needs at least {MIN_VIEWS} views, not {views}")
    found: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    looks: list[NDArray[np.float64]] = []
    size: tuple[int, int] | None = None
    count = 0
    for frame in frames:
        count += 1
        height, width = check_frame(frame).shape[:2]
        if size is not None and size != (width, height):
            raise ValueError(f"all pictures must be of one size: there are {size} and {(width, height)}")
        size = (width, height)
        seen = board.find(frame)
        if seen is None:
            continue
        look = _look(*seen, board) / width
        if all(np.abs(look - other).max() > NEW_VIEW for other in looks):
            found.append(seen)
            looks.append(look)
            if on_view is not None:
                on_view(len(found))
        if len(found) == views:
            break
    if size is None or len(found) < MIN_VIEWS:
        raise ValueError(
            f"the board was found in {len(found)} new places in {count} frames, but {MIN_VIEWS} are needed: show all "
            f"of it ({board.kind} {board.columns}x{board.rows}: inner corners of a checkerboard, squares of a ChArUco "
            "board), well lit and from many sides"
        )
    return _fit(found, size)


def _look(places: NDArray[np.float32], pixels: NDArray[np.float32], board: Board) -> NDArray[np.float64]:
    """Where the board's four corners stand in the picture (8,) px, wherever of it is seen."""
    edge = board.square_m * np.array([board.columns, board.rows])
    corners = np.array([[0, 0], [edge[0], 0], edge, [0, edge[1]]], np.float64)
    plane, _ = cv2.findHomography(places[:, :2].astype(np.float64), pixels.astype(np.float64))
    if plane is None:
        return np.full(8, np.inf)
    return np.asarray(cv2.perspectiveTransform(corners[None], plane), np.float64).ravel()


def _fit(found: list[tuple[NDArray[np.float32], NDArray[np.float32]]], size: tuple[int, int]) -> Calibration:
    while True:
        places, pixels = [places for places, _ in found], [pixels for _, pixels in found]
        fit: Any = cv2.calibrateCameraExtended  # its hints deny that it makes the first guess itself
        rms, K, lens, turns, _, _, _, errors = fit(places, pixels, size, None, None, flags=cv2.CALIB_FIX_K3)
        errors = np.asarray(errors).ravel()
        kept = [one for one, error in zip(found, errors, strict=True) if error <= _worst(errors)]
        if len(kept) == len(found) or len(kept) < MIN_VIEWS:
            break
        _log.info("%d views fit badly and are left out", len(found) - len(kept))
        found = kept
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = Camera(fx, fy, cx, cy, *size, distortion=tuple(np.ravel(lens)[:4].tolist()))
    tilts_deg = np.degrees([np.arccos(min(abs(cv2.Rodrigues(turn)[0][2, 2]), 1.0)) for turn in turns])
    return Calibration(camera, float(rms), len(found), int((tilts_deg > TILTED_DEG).sum()))


def _worst(errors: NDArray[np.float64]) -> float:
    return max(OUTLIER * float(np.median(errors)), FINE_PX)
