"""Backbones of the field, built by timm with random weights, folded as far as they can be, and exported to ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from handmesh.model.deploy import export_graph

PEERS = (
    "fastvit_t8",
    "mobileone_s1",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_atto",
    "poolformer_s12",
)
SIZES = (128, 224)

_log = logging.getLogger(__name__)


def build_folded(name: str) -> nn.Module:
    """One of timm's models without its classifier, in evaluation mode, its training branches folded."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        return reparameterize_model(model)


def export_backbone(model: nn.Module, size: int, path: Path, *, any_size: bool = False) -> None:
    """Write a backbone for one picture (1, 3, size, size) float32, through the passes of our own graphs.

    With `any_size` pictures of any other size may come too.
    """
    example = torch.zeros(1, 3, size, size)
    meta = {"kind": "backbone", "input_size": size}
    axes = (2, 3) if any_size else ()
    export_graph(model, (example,), ("image",), ("features",), path, meta, float16=False, open_axes=axes)


def export_peers(folder: Path) -> None:
    """All PEERS in all SIZES, as NAME_SIZE.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PEERS:
        model = build_folded(name)
        for size in SIZES:
            _log.info("exporting %s at %d px", name, size)
            export_backbone(model, size, folder / f"{name}_{size}.onnx")
