"""FastViT backbones (Vasu et al., ICCV 2023), as implemented by timm."""

from __future__ import annotations

import logging
import math
from typing import Literal, NamedTuple, get_args

import timm
import torch
from timm.models.fastvit import ConvMlp, FastVit
from torch import nn

Variant = Literal["t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

ActivationName = Literal["gelu", "relu6"]
ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {"gelu": nn.GELU, "relu6": nn.ReLU6}

_log = logging.getLogger(__name__)


class BackboneFeatures(NamedTuple):
    """Feature maps (N, C, S / stride, S / stride)."""

    stride8: torch.Tensor
    stride16: torch.Tensor
    stride32: torch.Tensor
    final: torch.Tensor  # stride 32, after the last, channel-doubling convolution


def build_backbone(
    variant: Variant = "t8",
    *,
    pretrained: bool = False,
    drop_path: float = 0.0,
    activation: ActivationName = "gelu",
) -> FastVit:
    """Build one of timm's FastViT models without its classifier.

    Args:
        variant: one of VARIANTS, e.g. "t8" (3.3 M parameters) or "ma36" (42 M).
        pretrained: load timm's ImageNet-1k weights from the model hub. Without them the network is
            initialised for short training from scratch, see `initialise_for_short_training`.
        drop_path: stochastic-depth rate of the deepest block.
        activation: "gelu" is the paper's; "relu6" costs nothing where a runtime folds it into the convolution
            before it, above all in int8, whose range it becomes.

    Raises:
        ValueError: unknown variant or activation.
        ConnectionError: `pretrained` was asked for and the hub cannot be reached.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown FastViT variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    name = f"fastvit_{variant}"
    how = {"num_classes": 0, "drop_path_rate": drop_path, "act_layer": ACTIVATIONS[activation]}
    if not pretrained:
        model = timm.create_model(name, **how)
        assert isinstance(model, FastVit)
        initialise_for_short_training(model)
        return model
    try:
        model = timm.create_model(f"{name}.apple_in1k", pretrained=True, **how)
    except Exception as error:  # timm, huggingface_hub and their HTTP client each raise types of their own
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be fetched from the model hub ({error}); "
            "train without them (--no-pretrained) or pass --init CHECKPOINT"
        ) from error
    assert isinstance(model, FastVit)
    _log.info("loaded ImageNet weights of %s", name)
    return model


def initialise_for_short_training(model: nn.Module) -> None:
    """Start layer scales at 1 and the MLPs at variance-preserving values, in place.

    The published layer scale (1e-5) assumes hundreds of epochs: residual branches stay shut for the first
    hundred thousand samples.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, ConvMlp):
            nn.init.normal_(module.fc1.weight, std=math.sqrt(2.0 / module.fc1.in_channels))
            nn.init.normal_(module.fc2.weight, std=0.5 / math.sqrt(module.fc2.in_channels))


def backbone_features(model: nn.Module, image: torch.Tensor) -> BackboneFeatures:
    """Run a FastViT on normalised images (N, 3, S, S); S is a multiple of 32."""
    final, stages = model.forward_intermediates(image)  # pyright: ignore[reportCallIssue]
    return BackboneFeatures(stages[1], stages[2], stages[3], final)
