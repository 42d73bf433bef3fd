"""Finding hands: a frame in, `Detection` records out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh.crop import laid_out
from handmesh.records import Detection, box_iou, check_frame
from handmesh.runtime import Graph, Precision, Runtime, load_graph

THRESHOLD = 0.25
"""The least score of a hand, unless another one is asked for."""

MIN_FRAME_SIDE = 16
"""Frames narrower or lower than this, in pixels, hold no hand that could be found."""


@dataclass(frozen=True)
class Letterbox:
    """A frame scaled by ``zoom`` and centred in a ``width`` x ``height`` picture with black bars."""

    zoom: float
    left: int
    top: int
    columns: int
    rows: int
    width: int
    height: int

    @classmethod
    def fit(cls, frame_width: int, frame_height: int, width: int, height: int) -> Letterbox:
        """The largest zoom with which a frame of ``frame_width`` x ``frame_height`` fits."""
        zoom = min(width / frame_width, height / frame_height)
        columns = min(width, max(1, round(frame_width * zoom)))
        rows = min(height, max(1, round(frame_height * zoom)))
        return cls(zoom, (width - columns) // 2, (height - rows) // 2, columns, rows, width, height)

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame (H, W, 3) in its box (height, width, 3)."""
        import cv2

        frame = laid_out(frame)
        # Whole blocks are averaged first, which is ten times as fast as averaging over fractions of pixels.
        block = max(1, min(int(1.0 / self.zoom), *frame.shape[:2]))
        below, right = (-length % block for length in frame.shape[:2])
        if below or right:
            frame = np.asarray(cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)
        height, width = frame.shape[:2]
        if block > 1:
            blocks = (width // block, height // block)
            frame = np.asarray(cv2.resize(frame, blocks, interpolation=cv2.INTER_AREA), np.uint8)
        size = (max(self.columns, round(width * self.zoom)), max(self.rows, round(height * self.zoom)))
        scaled = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        picture = np.zeros((self.height, self.width, 3), np.uint8)
        window = picture[self.top : self.top + self.rows, self.left : self.left + self.columns]
        window[...] = scaled[: self.rows, : self.columns]
        return picture

    def to_frame(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Pixels of the letterboxed picture (..., 2) to pixels of the frame."""
        return (np.asarray(points, np.float64) + 0.5 - (self.left, self.top)) / self.zoom - 0.5


class HandDetector:
    """A hand detector behind its graph. Raises ``ValueError`` if the graph's description lacks its input size."""

    def __init__(self, graph: Graph, *, threshold: float = THRESHOLD, max_iou: float = 0.5) -> None:
        """Boxes below ``threshold`` are dropped, and so is the weaker of two that overlap by more than ``max_iou``."""
        for name, value in (("threshold", threshold), ("max_iou", max_iou)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1 but is {value}")
        self.threshold = threshold
        self.max_iou = max_iou
        self._graph = graph
        self._width, self._height = int(graph.number("input_width")), int(graph.number("input_height"))
        self._stride = graph.number("stride")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "detector",
        *,
        runtime: Runtime = "onnxruntime",
        threads: int | None = None,
        precision: Precision | None = None,
        device: str = "cpu",
        threshold: float = THRESHOLD,
        max_iou: float = 0.5,
    ) -> HandDetector:
        """Open a detector by its name or from an ONNX file; errors as in `load_graph`."""
        graph = load_graph(
            name_or_path, "detector", runtime=runtime, threads=threads, precision=precision, device=device
        )
        return cls(graph, threshold=threshold, max_iou=max_iou)

    def __call__(self, frame_rgb: NDArray[np.uint8]) -> list[Detection]:
        """Hands of a frame (H, W, 3) uint8 RGB, surest first; none in frames under 16 pixels a side.

        Boxes are the tight boxes of the 21 keypoints and may reach beyond the frame, but all have a part in it. Raises
        as `check_frame`.
        """
        frame = check_frame(frame_rgb)
        if min(frame.shape[:2]) < MIN_FRAME_SIDE:
            return []
        letterbox = Letterbox.fit(frame.shape[1], frame.shape[0], self._width, self._height)
        outputs = self._graph(frame=letterbox.apply(frame)[None])
        scores, boxes, right = self._decode(outputs)
        boxes = letterbox.to_frame(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        return [
            Detection(boxes[i], "right" if right[i] >= 0.5 else "left", float(np.clip(scores[i], 0.0, 1.0)))
            for i in suppress_overlaps(boxes, scores, self.max_iou)
            if reaches_into_frame(boxes[i], frame)
        ]

    def _decode(self, outputs: dict[str, NDArray]) -> tuple[NDArray, NDArray, NDArray]:
        """Scores (n,), boxes (n, 4) in pixels of the network's input and probabilities of a right hand (n,)."""
        heatmap = outputs["heatmap"][0, 0]
        rows, columns = np.nonzero((heatmap >= self.threshold) & (heatmap > 0.0))
        centers = (np.stack([columns, rows], axis=-1) + 0.5) * self._stride - 0.5
        reach = outputs["boxes"][0, :, rows, columns]  # (n, 4) left, top, right, bottom
        boxes = np.concatenate([centers - reach[:, :2], centers + reach[:, 2:]], axis=-1)
        scores, right = heatmap[rows, columns], outputs["right"][0, 0, rows, columns]
        sound = np.isfinite(boxes).all(axis=-1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)
        return scores[sound], boxes[sound], right[sound]


def reaches_into_frame(box: NDArray[np.floating], frame: NDArray[np.uint8]) -> bool:
    """Whether a box (4,) x1, y1, x2, y2 px has a part in a frame (H, W, 3)."""
    height, width = frame.shape[:2]
    return bool(box[0] < width - 0.5 and box[1] < height - 0.5 and box[2] > -0.5 and box[3] > -0.5)


def suppress_overlaps(boxes: NDArray, scores: NDArray, max_iou: float) -> list[int]:
    """Indices of boxes (n, 4) by falling score, each overlapping no surer one by more than ``max_iou``."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not kept or box_iou(boxes[i], boxes[kept]).max() <= max_iou:
            kept.append(i)
    return kept
