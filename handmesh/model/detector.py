"""The hand detector: one frame in, a map of hand centres, boxes and sides out.

An anchor-free detector with one scale (Zhou et al., "Objects as Points", 2019): EfficientNet-Lite0 features, a
light feature pyramid that brings them to stride 8, and small heads. A hand is the tight box of its 21 projected
keypoints; it lives in the cell that holds the box's centre.

ImageNet features hardly tell a picture from its mirror image, which is all that separates a left hand from a right
one. So the side is put together from two things that they do tell: where wrist, index and little knuckle lie (which way
round the palm's triangle goes), and whether palm or back is seen.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from handmesh.model.deploy import export_graph

INPUT_WIDTH = 256
INPUT_HEIGHT = 192
STRIDE = 8
DETECTOR_VERSION = 1
_FEATURE_LEVELS = (2, 3, 4)  # the backbone's maps at strides 8, 16 and 32
_MAX_LOG_SIZE = 4.0  # a box is at most e^4 = 55 strides wide, more than any frame that the network sees
_TURN_GAIN = 3.0  # a palm seen flat has a triangle of about 0.7 square half boxes
_PRIOR = 0.02  # probability of a hand centre that an untrained cell answers (Lin et al., "Focal loss", 2017)
_MEAN, _STD = 127.0, 128.0  # of EfficientNet-Lite's ImageNet training (TensorFlow TPU repository)


@dataclass(frozen=True)
class DetectorOutput:
    """Dense predictions at stride 8; (h, w) = (H, W) / 8.

    centre: (N, 1, h, w) logit that a hand's box centre lies in this cell.
    boxes: (N, 4, h, w) left, top, right, bottom distances in input pixels from the cell's centre.
    right: (N, 1, h, w) logit that the hand is a right hand.
    triangle: (N, 6, h, w) x, y of wrist, index and little knuckle from the cell's centre, in half sides of the box.
    facing: (N, 1, h, w) logit that a right hand's triangle would go round clockwise as seen: its back faces the camera.
    """

    centre: Tensor
    boxes: Tensor
    right: Tensor
    triangle: Tensor
    facing: Tensor


class DetectorNetwork(nn.Module):
    """Frames to dense hand centres, boxes and sides.

    `backbone` gives features at strides 8, 16 and 32: timm's `tf_efficientnet_lite0`, untrained here; whoever trains
    loads ImageNet weights into it first.
    """

    def __init__(self, channels: int = 64, tower_depth: int = 3) -> None:
        super().__init__()
        import timm

        backbone: Any = timm.create_model(
            "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=_FEATURE_LEVELS
        )
        self.backbone: nn.Module = backbone
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in backbone.feature_info.channels())
        self.tower = nn.Sequential(*(_separable(channels) for _ in range(tower_depth)))
        self.centre = nn.Conv2d(channels, 1, 1)
        self.box = nn.Conv2d(channels, 4, 1)
        self.right = nn.Conv2d(channels, 1, 1)
        self.palm = nn.Conv2d(channels, 7, 1)
        for head in (self.centre, self.box, self.right, self.palm):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(self.centre.bias, float(np.log(_PRIOR / (1 - _PRIOR))))  # pyright: ignore[reportArgumentType]

    def forward(self, frames: Tensor) -> DetectorOutput:
        """frames: (N, H, W, 3) uint8 RGB, H and W multiples of 32."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 (N, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        pixels = (frames.permute(0, 3, 1, 2).float() - _MEAN) / _STD  # (N, 3, H, W)
        merged = self._merge(self.backbone(pixels))
        features = self.tower(merged)
        palm = self.palm(features).float()
        triangle, facing = palm[:, :6], palm[:, 6:]
        return DetectorOutput(
            centre=self.centre(features).float(),
            boxes=_distances(self.box(features).float()),
            right=self.right(features).float() + facing * turn(triangle),
            triangle=triangle,
            facing=facing,
        )

    def _merge(self, maps: list[Tensor]) -> Tensor:
        """Top-down sum of the maps at the finest map's resolution: (N, channels, h, w)."""
        merged = self.laterals[-1](maps[-1])
        for lateral, finer in zip(list(self.laterals)[-2::-1], maps[-2::-1], strict=True):
            merged = lateral(finer) + functional.interpolate(merged, scale_factor=2.0, mode="nearest")
        return merged


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def turn(triangle: Tensor) -> Tensor:
    """(N, 1, h, w) in -1..1: which way round the triangle (N, 6, h, w) goes, 1 for clockwise as seen, 0 edge on."""
    x0, y0, x1, y1, x2, y2 = triangle.split(1, dim=1)
    return torch.tanh(_TURN_GAIN * ((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)))


def _distances(raw: Tensor) -> Tensor:
    """(N, 4, h, w) centre offset in strides and logarithm of the size in strides -> l, t, r, b in pixels.

    The box's centre may lie half a cell from the cell's own, so a distance of a thin hand may be negative.
    """
    offset, log_size = raw[:, :2], raw[:, 2:]
    half = 0.5 * torch.exp(log_size.clamp(-2.0, _MAX_LOG_SIZE) + 1.6)  # starts at 5 strides, 40 px
    return STRIDE * torch.cat([half - offset, half + offset], dim=1)


class _DetectorGraph(nn.Module):
    """What is deployed: probabilities, with centres that are not the largest of their 3x3 neighbours set to 0."""

    def __init__(self, model: DetectorNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(frame)
        centre = torch.sigmoid(output.centre)
        peaks = functional.max_pool2d(centre, kernel_size=3, stride=1, padding=1)
        heatmap = torch.where(centre >= peaks, centre, torch.zeros_like(centre))
        return heatmap, output.boxes, torch.sigmoid(output.right)


def deployed(model: DetectorNetwork) -> nn.Module:
    """A copy of `model` in evaluation mode that computes what the exported graph computes.

    frame (N, H, W, 3) uint8 -> heatmap (N, 1, h, w), boxes (N, 4, h, w), right (N, 1, h, w).
    """
    return _DetectorGraph(deepcopy(model).cpu().float()).eval().requires_grad_(False)


def export_detector(
    model: DetectorNetwork, path: str | Path, width: int = INPUT_WIDTH, height: int = INPUT_HEIGHT
) -> Path:
    """Write the ONNX graph `frame` -> `heatmap`, `boxes`, `right` and return its path.

    Batch normalisations are folded by the exporter; large parameters are stored in float16. The file appears at once
    or not at all. Raises ValueError for sizes that are not multiples of 32.
    """
    if width % 32 or height % 32 or min(width, height) <= 0:
        raise ValueError(f"detector input must be multiples of 32, got {width}x{height}")
    metadata = {
        "kind": "detector",
        "input_width": width,
        "input_height": height,
        "stride": STRIDE,
        "version": DETECTOR_VERSION,
    }
    frame = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    outputs = ("heatmap", "boxes", "right")
    export_graph(deployed(model), (frame,), ("frame",), outputs, Path(path), metadata, float16=True, open_axes=())
    return Path(path)
