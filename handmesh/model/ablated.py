"""Backbones to compare FastViT with: FastViT with one of its ideas taken out, and others that timm has.

Each one serves in `HandRegressor` where FastViT does. They are initialised alike: as timm does, then with layer scales
at 1 (see `initialise_for_short_training`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers.conv_bn_act import ConvNormAct
from timm.models.fastvit import (
    ConvMlp,
    FastVit,
    FastVitStage,
    MobileOneBlock,
    ReparamLargeKernelConv,
    RepMixer,
    RepMixerBlock,
)
from timm.utils.model import reparameterize_model
from torch import nn

from handmesh.model.backbone import initialise_for_short_training

SMALL_KERNEL = 3


class PoolingMixer(nn.Module):
    """PoolFormer's token mixer (Yu et al., CVPR 2022) in RepMixer's place: x + gamma * (pool(norm(x)) - norm(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x if self.norm is None else self.norm(x)
        return x + self.gamma * (self.pool(normed) - normed)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold the normalisation: its shift cancels, its scale joins gamma."""
        if self.norm is None:
            return
        assert self.norm.running_var is not None
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        self.gamma.mul_(scale.view(-1, 1, 1))
        self.norm = None


def pool_tokens(model: FastVit) -> FastVit:
    """Replace every RepMixer by pooling, in place."""
    for block in list(model.modules()):
        if isinstance(block, RepMixerBlock):
            setattr(block, "token_mixer", PoolingMixer(block.token_mixer.dim))  # noqa: B010 - timm declares RepMixer
    return model


def drop_branches(model: FastVit) -> FastVit:
    """Take the train-time over-parameterisation out, in place.

    Stem, patch embeddings, projections and the last convolution (where the paper, section 3.2, adds branches) keep one
    convolution with one normalisation each. RepMixer keeps its form: its branches are what removes its skip connection.
    """
    mixers = {id(m.mixer) for m in model.modules() if isinstance(m, RepMixer)}
    mixers |= {id(m.norm) for m in model.modules() if isinstance(m, RepMixer)}
    for module in list(model.modules()):
        if isinstance(module, MobileOneBlock) and id(module) not in mixers:
            module.conv_scale = module.identity = None
        for name, child in list(module.named_children()):
            if isinstance(child, ReparamLargeKernelConv):
                setattr(module, name, child.large_conv)
    return model


def shrink_kernels(model: FastVit) -> FastVit:
    """Replace the 7x7 convolutions of patch embeddings and feed-forward blocks by 3x3 ones, in place."""
    for module in list(model.modules()):
        if isinstance(module, ConvMlp):
            module.conv = _depthwise(module.conv.conv, SMALL_KERNEL)
            module.conv.apply(module._init_weights)
        elif isinstance(module, ReparamLargeKernelConv):
            module.large_conv = _depthwise(module.large_conv.conv, SMALL_KERNEL)
            module.large_conv.apply(model._init_weights)
            module.kernel_size = SMALL_KERNEL
    return model


def _depthwise(conv: nn.Module, kernel: int) -> ConvNormAct:
    assert isinstance(conv, nn.Conv2d)
    channels, stride = (conv.in_channels, conv.out_channels), conv.stride[0]
    return ConvNormAct(*channels, kernel_size=kernel, stride=stride, groups=conv.groups, apply_act=False)


def drop_positions(model: FastVit) -> FastVit:
    """Take the conditional positional encoding before the attention stage out, in place."""
    for stage in model.modules():
        if isinstance(stage, FastVitStage):
            stage.pos_emb = nn.Identity()
    return model


class OtherBackbone(nn.Module):
    """Any timm network whose stages have strides 4, 8, 16 and 32, behind FastViT's interface."""

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        self.net: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
        self.feature_info = [info for info in self.net.feature_info if info["reduction"] >= 4][-4:]
        self.num_features = self.net.num_features
        if not pretrained:
            initialise_for_short_training(self.net)
            for key, parameter in self.net.named_parameters():
                if key.endswith(("layer_scale1.scale", "layer_scale2.scale")):  # MetaFormer's name for gamma
                    nn.init.ones_(parameter)
        strides = [info["reduction"] for info in self.feature_info]
        if strides != [4, 8, 16, 32]:
            raise ValueError(f"{name} has stages of strides {strides}, needed are 4, 8, 16, 32")

    def forward_intermediates(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Images (N, 3, S, S) -> last map and those of strides 4, 8, 16, 32."""
        final, stages = self.net.forward_intermediates(image)
        return final, stages[-4:]


def _fastvit(variant: str) -> FastVit:
    model = timm.create_model(f"fastvit_{variant}", num_classes=0)
    assert isinstance(model, FastVit)
    return model


def _short(model: FastVit) -> FastVit:
    initialise_for_short_training(model)
    return model


#: name of an arm of an ablation -> what builds its backbone
ARMS: dict[str, Callable[[], nn.Module]] = {
    "fastvit_t8": lambda: _short(_fastvit("t8")),
    "fastvit_t8_pooling": lambda: _short(pool_tokens(_fastvit("t8"))),
    "fastvit_t8_plain": lambda: _short(drop_branches(_fastvit("t8"))),
    "fastvit_t8_small_kernels": lambda: _short(shrink_kernels(_fastvit("t8"))),
    "fastvit_t12": lambda: _short(_fastvit("t12")),
    "fastvit_s12": lambda: _short(_fastvit("s12")),
    "fastvit_sa12": lambda: _short(_fastvit("sa12")),
    "fastvit_sa12_no_cpe": lambda: _short(drop_positions(_fastvit("sa12"))),
    **{
        name: lambda name=name: OtherBackbone(name)
        for name in ("mobileone_s1", "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto", "poolformer_s12")
    },
}


def build_arm(name: str) -> nn.Module:
    """The untrained backbone of an arm. Raises ValueError for an unknown name."""
    if name not in ARMS:
        raise ValueError(f"unknown backbone {name!r}; choose one of {', '.join(ARMS)}")
    return ARMS[name]()


@torch.no_grad()
def folded_arm(backbone: nn.Module) -> nn.Module:
    """A copy in evaluation mode without training-time branches; batch norms are left to the runtime to fuse."""
    return reparameterize_model(copy.deepcopy(backbone).eval(), inplace=True)
