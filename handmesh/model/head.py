"""Two heads that turn backbone features into MANO-style parameters, keypoints, mask, presence and side.

`GlobalHead` is the FastViT paper's: one pooled feature, parameters regressed directly. `TokensHead` localises
the 21 keypoints on a stride-8 map, samples one token at each, and regresses the parameters from the keypoints
and their tokens, the layout that published heads on the same backbones gain most from.
"""

from __future__ import annotations

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


class ParameterRegressor(nn.Module):
    """Feature vector (N, D) -> rotations, betas, camera: a residual MLP that starts at the mean hand."""

    def __init__(self, features: int, width: int = 512, blocks: int = 2) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, JOINTS * 6 + BETAS + 3)
        nn.init.normal_(self.leave.weight, std=0.002)
        with torch.no_grad():
            self.leave.bias.zero_()
            self.leave.bias[: JOINTS * 6] = torch.tensor(_IDENTITY_6D).repeat(JOINTS)
            self.leave.bias[-3] = torch.log(torch.tensor(_INITIAL_CAMERA_SCALE))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.enter(features)
        for block in self.blocks:
            x = x + block(x)
        sixd, betas, camera = self.leave(x).split([JOINTS * 6, BETAS, 3], dim=-1)
        rotations = sixd_to_rotmat(sixd.unflatten(-1, (JOINTS, 6)))
        camera = torch.cat([camera[:, :1].exp(), camera[:, 1:]], dim=-1)
        return rotations, betas, camera


def _conv_bn_relu(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class GlobalHead(nn.Module):
    """Pooled feature -> everything (the paper's "simple regression module")."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.parameters_ = ParameterRegressor(channels[3])
        self.keypoints = nn.Linear(channels[3], POINTS * 3)
        self.flags = nn.Linear(channels[3], 2)
        self.mask = nn.Conv2d(channels[0], 1, 1)
        nn.init.normal_(self.keypoints.weight, std=0.002)

    def forward(self, features: BackboneFeatures) -> HeadOutput:
        mask = self.mask(features.stride8)[:, 0].float()
        with torch.autocast(mask.device.type, enabled=False):  # rotations and coordinates need float32
            pooled = features.final.float().mean((2, 3))
            rotations, betas, camera = self.parameters_(pooled)
            keypoints = self.keypoints(pooled).unflatten(-1, (POINTS, 3))
            presence, right = self.flags(pooled).unbind(-1)
        return HeadOutput(rotations, betas, camera, keypoints[..., :2], keypoints[..., 2], None, mask, presence, right)


class TokensHead(nn.Module):
    """Keypoint heatmaps on a stride-8 map; parameters from the keypoints, their tokens and the pooled feature."""

    def __init__(self, channels: tuple[int, int, int, int], width: int = 64, token_width: int = 24) -> None:
        super().__init__()
        self.lateral8 = nn.Conv2d(channels[0], width, 1)
        self.lateral16 = nn.Conv2d(channels[1], width, 1)
        self.lateral32 = nn.Conv2d(channels[2], width, 1)
        self.smooth = nn.Sequential(_conv_bn_relu(width, width, 3), _conv_bn_relu(width, width, 3))
        self.maps = nn.Conv2d(width, POINTS + 1, 1)  # keypoint heatmaps and the mask
        self.pooled = nn.Sequential(nn.Linear(channels[3], 256), nn.LayerNorm(256), nn.GELU())
        self.flags = nn.Linear(256, 2)
        self.tokens = nn.Linear(width, token_width)
        self.depth = nn.Sequential(nn.Linear(POINTS * (token_width + 2) + 256, 256), nn.GELU(), nn.Linear(256, POINTS))
        self.parameters_ = ParameterRegressor(POINTS * (token_width + 3) + 2 + 256)

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
        presence, right = self.flags(pooled).unbind(-1)

        centre = joints_2d.mean(1)
        shape_2d = joints_2d - centre[:, None]
        seen = torch.cat([tokens.flatten(1), shape_2d.flatten(1), pooled], -1)
        depth = self.depth(seen)  # (N, 21)
        rotations, betas, camera = self.parameters_(torch.cat([seen, depth, centre], -1))
        return HeadOutput(rotations, betas, camera, joints_2d, depth, heatmaps, mask, presence, right)


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
