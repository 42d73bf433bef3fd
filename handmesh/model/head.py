"""Two heads that turn backbone features into MANO-style parameters, keypoints, mask, presence and side.

`GlobalHead` is the FastViT paper's: one pooled feature, parameters regressed directly. `TokensHead` localises
the 21 keypoints on a stride-8 map, samples one token at each, gives every keypoint a depth, and lifts keypoints
and depths to joint rotations; heads with keypoint tokens are what published work on these backbones gained most from.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F

from handmesh.model.backbone import BackboneFeatures
from handmesh.model.rotations import sixd_to_rotmat
from handmesh.skeleton import KEYPOINTS, MANO_JOINTS

HeadName = Literal["global", "tokens"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

JOINTS = len(MANO_JOINTS)
POINTS = len(KEYPOINTS)
BETAS = 10
_IDENTITY_6D = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# A hand of 0.19 m fills 1 / CROP_SCALE of the crop's two units: the camera starts there.
_INITIAL_CAMERA_SCALE = 7.0


class HeadOutput(NamedTuple):
    """What a head says of N crops; 2D quantities are in normalised crop coordinates, [-1, 1] inside the crop."""

    rotations: torch.Tensor  # (N, 16, 3, 3) global orientation in the crop's virtual camera, then local joints
    betas: torch.Tensor  # (N, 10)
    camera: torch.Tensor  # (N, 3) weak perspective s, tx, ty: x = s * X + tx, X in metres from the wrist
    joints_2d: torch.Tensor  # (N, 21, 2)
    depth: torch.Tensor  # (N, 21) depth from the wrist in hand sizes (wrist to middle knuckle)
    heatmaps: torch.Tensor | None  # (N, 21, S / 8, S / 8) logits over cells; None for the global head
    mask: torch.Tensor  # (N, S / 8, S / 8) logits of "a cell shows the hand"
    presence: torch.Tensor  # (N,) logit of "there is a hand"
    right: torch.Tensor  # (N,) logit of "it is a right hand"


PARAMETERS = JOINTS * 6 + BETAS + 3


class ParameterRegressor(nn.Module):
    """Features (N, D) -> undecoded parameters (N, PARAMETERS): a residual MLP."""

    def __init__(self, features: int, width: int, blocks: int, *, start: Literal["mean", "zero"]) -> None:
        """`start` is what an untrained regressor says: the mean hand, or nothing to add to another's word."""
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, PARAMETERS)
        nn.init.normal_(self.leave.weight, std=0.002)
        nn.init.zeros_(self.leave.bias)
        if start == "mean":
            with torch.no_grad():
                self.leave.bias[: JOINTS * 6] = torch.tensor(_IDENTITY_6D).repeat(JOINTS)
                self.leave.bias[-3] = math.log(_INITIAL_CAMERA_SCALE)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.enter(features)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def decode_parameters(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, PARAMETERS) -> rotations (N, 16, 3, 3), betas (N, 10), camera (N, 3)."""
    sixd, betas, camera = raw.split([JOINTS * 6, BETAS, 3], dim=-1)
    rotations = sixd_to_rotmat(sixd.unflatten(-1, (JOINTS, 6)))
    return rotations, betas, torch.cat([camera[:, :1].exp(), camera[:, 1:]], dim=-1)


def _conv_bn_relu(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class GlobalHead(nn.Module):
    """Pooled feature -> everything (the paper's "simple regression module")."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.regress = ParameterRegressor(channels[3], 512, 2, start="mean")
        self.keypoints = nn.Linear(channels[3], POINTS * 3)
        self.flags = nn.Linear(channels[3], 2)
        self.mask = nn.Conv2d(channels[0], 1, 1)
        nn.init.normal_(self.keypoints.weight, std=0.002)

    def forward(self, features: BackboneFeatures) -> HeadOutput:
        mask = self.mask(features.stride8)[:, 0].float()
        with torch.autocast(mask.device.type, enabled=False):  # rotations and coordinates need float32
            pooled = features.final.float().mean((2, 3))
            rotations, betas, camera = decode_parameters(self.regress(pooled))
            keypoints = self.keypoints(pooled).unflatten(-1, (POINTS, 3))
            presence, right = self.flags(pooled).unbind(-1)
        return HeadOutput(rotations, betas, camera, keypoints[..., :2], keypoints[..., 2], None, mask, presence, right)


class Lifter(nn.Module):
    """2D keypoints (N, 21, 2) with depths (N, 21) -> undecoded parameters: inverse kinematics by a network.

    It sees no pixels, so millions of posed hands teach it before the first image (`handmesh.training.lifting`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.regress = ParameterRegressor(POINTS * 3, 512, 2, start="mean")

    def forward(self, joints_2d: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        centre = joints_2d.mean(1)
        raw = self.regress(torch.cat([(joints_2d - centre[:, None]).flatten(1), depth], -1))
        shift = torch.cat([torch.zeros_like(raw[:, :-2]), centre], -1)  # the camera moves along with the keypoints
        return raw + shift


class TokensHead(nn.Module):
    """Keypoint heatmaps on a stride-8 map; parameters lifted from the keypoints, refined from tokens sampled there."""

    def __init__(self, channels: tuple[int, int, int, int], width: int = 64, token_width: int = 24) -> None:
        super().__init__()
        self.lateral8 = nn.Conv2d(channels[0], width, 1)
        self.lateral16 = nn.Conv2d(channels[1], width, 1)
        self.lateral32 = nn.Conv2d(channels[2], width, 1)
        self.smooth = nn.Sequential(_conv_bn_relu(width, width, 3), _conv_bn_relu(width, width, 3))
        self.maps = nn.Conv2d(width, POINTS + 1, 1)  # keypoint heatmaps and the mask
        self.pooled = nn.Sequential(nn.Linear(channels[3], 256), nn.LayerNorm(256), nn.GELU())
        self.presence = nn.Linear(256, 1)
        self.tokens = nn.Linear(width, token_width)
        seen = POINTS * (token_width + 2) + 256
        self.depth = nn.Sequential(nn.Linear(seen, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, POINTS))
        self.lift = Lifter()
        # Which hand it is follows from where the thumb is and whether the palm shows: no linear function of either.
        self.side = nn.Sequential(nn.Linear(seen + POINTS, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 1))
        self.refine = ParameterRegressor(seen + POINTS, 256, 1, start="zero")

    def forward(self, features: BackboneFeatures) -> HeadOutput:
        top = F.interpolate(self.lateral32(features.stride32), scale_factor=2.0, mode="nearest")
        top = F.interpolate(self.lateral16(features.stride16) + top, scale_factor=2.0, mode="nearest")
        merged = self.smooth(self.lateral8(features.stride8) + top)
        maps = self.maps(merged)
        with torch.autocast(merged.device.type, enabled=False):  # coordinates need float32
            return self._regress(maps.float(), merged.float(), features.final.float().mean((2, 3)))

    def _regress(self, maps: torch.Tensor, merged: torch.Tensor, final: torch.Tensor) -> HeadOutput:
        heatmaps, mask = maps[:, :POINTS], maps[:, POINTS]
        attention = heatmaps.flatten(2).softmax(-1)  # (N, 21, cells)
        joints_2d = attention @ cell_centres(heatmaps)  # (N, 21, 2)
        tokens = self.tokens(attention @ merged.flatten(2).transpose(1, 2))  # (N, 21, token_width)
        pooled = self.pooled(final)
        presence = self.presence(pooled)[:, 0]

        spread = joints_2d - joints_2d.mean(1, keepdim=True)
        seen = torch.cat([tokens.flatten(1), spread.flatten(1), pooled], -1)
        depth = self.depth(seen)  # (N, 21)
        seen = torch.cat([seen, depth], -1)
        right = self.side(seen)[:, 0]
        raw = self.lift(joints_2d, depth) + self.refine(seen)
        return HeadOutput(*decode_parameters(raw), joints_2d, depth, heatmaps, mask, presence, right)


def cell_centres(heatmaps: torch.Tensor) -> torch.Tensor:
    """Normalised crop coordinates (h * w, 2) of the cells of heatmaps (..., h, w), row by row."""
    height, width = heatmaps.shape[-2:]
    y = (torch.arange(height, device=heatmaps.device, dtype=heatmaps.dtype) + 0.5) * (2.0 / height) - 1.0
    x = (torch.arange(width, device=heatmaps.device, dtype=heatmaps.dtype) + 0.5) * (2.0 / width) - 1.0
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


def build_head(name: HeadName, channels: tuple[int, int, int, int]) -> GlobalHead | TokensHead:
    """Build a head for features of these channels: strides 8, 16, 32 and the final map.

    Raises:
        ValueError: unknown name.
    """
    if name == "global":
        return GlobalHead(channels)
    if name == "tokens":
        return TokensHead(channels)
    raise ValueError(f"unknown head {name!r}; choose one of {', '.join(HEADS)}")
