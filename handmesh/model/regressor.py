"""The hand network: a crop in; MANO-style parameters, mesh, joints, keypoints, presence and side out."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.atomic import written_whole
from handmesh.model.backbone import ActivationName, Variant, backbone_features, build_backbone
from handmesh.model.hand_model import HandModel
from handmesh.model.head import HeadName, HeadOutput, build_head

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a hand network; stored beside its weights."""

    variant: Variant = "t8"
    head: HeadName = "tokens"
    input_size: int = 128  # px, a multiple of 32
    drop_path: float = 0.0
    activation: ActivationName = "gelu"  # of the backbone

    def __post_init__(self) -> None:
        if self.input_size < 64 or self.input_size % 32:
            raise ValueError(f"input_size must be a multiple of 32 and at least 64, got {self.input_size}")


class Prediction(NamedTuple):
    """A head's output with the hand that it poses; metres from the wrist, in the crop's virtual camera."""

    head: HeadOutput
    vertices: torch.Tensor  # (N, V, 3)
    joints: torch.Tensor  # (N, 21, 3)


class HandRegressor(nn.Module):
    """FastViT + head + hand model."""

    def __init__(
        self,
        config: NetworkConfig,
        hand_model: HandModelArrays | None = None,
        *,
        pretrained: bool = False,
        backbone: nn.Module | None = None,
    ) -> None:
        """`backbone` takes the place of the config's FastViT (see `handmesh.model.ablated`)."""
        super().__init__()
        self.config = config
        self.backbone: Any = backbone or build_backbone(
            config.variant, pretrained=pretrained, drop_path=config.drop_path, activation=config.activation
        )
        stages = [info["num_chs"] for info in self.backbone.feature_info]
        self.head = build_head(config.head, (stages[1], stages[2], stages[3], self.backbone.num_features))
        self.hand_model = HandModel(hand_model or load_hand_model())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255.0, persistent=False)

    def normalise(self, crops: torch.Tensor) -> torch.Tensor:
        """RGB crops (N, S, S, 3) in 0..255 -> normalised images (N, 3, S, S) float32."""
        # Contiguous on purpose: torch's own depthwise backward pass corrupts memory on channels_last input.
        images = crops.permute(0, 3, 1, 2).float().contiguous()
        return (images - self.mean) / self.std  # pyright: ignore[reportOperatorIssue]

    def regress(self, crops: torch.Tensor) -> HeadOutput:
        """Crops (N, S, S, 3) uint8 RGB -> parameters, without posing the hand."""
        return self.head(backbone_features(self.backbone, self.normalise(crops)))

    def forward(self, crops: torch.Tensor) -> Prediction:
        """Crops (N, S, S, 3) uint8 RGB -> parameters and posed hands."""
        head = self.regress(crops)
        with torch.autocast(crops.device.type, enabled=False):  # bfloat16 would move vertices by a millimetre
            vertices, joints = wrist_relative_hand(self.hand_model, head.rotations, head.betas)
        return Prediction(head, vertices, joints)


def wrist_relative_hand(
    hand_model: HandModel, rotations: torch.Tensor, betas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose hands: rotations (N, 16, 3, 3) and betas (N, 10) -> vertices (N, V, 3), joints (N, 21, 3) from the wrist."""
    hand = hand_model(rotations, betas)
    wrist = hand.keypoints[..., :1, :]
    return hand.vertices - wrist, hand.keypoints - wrist


def save_network(network: HandRegressor, path: Path, **extra: Any) -> None:
    """Write config and weights to `path` at once; extra entries must be plain values or tensors."""
    facts = {"config": asdict(network.config), "vertices": network.hand_model.vertex_count}
    save_checkpoint({**facts, "network": network.state_dict(), **extra}, path)


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write plain values and tensors to `path`, whole or not at all, for `read_checkpoint`.

    Raises OSError that names the file where it cannot be written, such as for a full disk.
    """
    with written_whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch trips over its own end of a file that the system refused to go on with
            reason = error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(
                reason.errno, f"{reason.strerror}: make room and go on; what stood there is as it was", str(path)
            ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote to `path`: plain values and tensors, on the CPU.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or not a whole one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error) as error:
        raise ValueError(f"{path} is no checkpoint, or not a whole one: {error}") from error


def load_network(path: Path, hand_model: HandModelArrays | None = None) -> HandRegressor:
    """Build the network that `save_network` wrote, which poses `hand_model` (None: the embedded one).

    Of a run that can be resumed (`last.pt`) it has the averaged weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not such a checkpoint, its keys do not fit, or it was trained on another hand model.
    """
    stored = read_checkpoint(path)
    try:
        network = HandRegressor(NetworkConfig(**stored["config"]), hand_model)
        network.load_state_dict(stored.get("ema", stored["network"]))
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a hand network checkpoint: {error}") from error
    check_hand_model(network, stored.get("vertices"), path)
    return network


def check_hand_model(network: HandRegressor, vertices: int | None, path: Path) -> None:
    """Raise ValueError if a file says that it was trained for a hand model of another number of vertices."""
    found = network.hand_model.vertex_count
    if vertices not in (None, found):
        raise ValueError(
            f"{path} was trained on a hand model of {vertices} vertices, but this one has {found}: give the file of "
            "the model that it was trained on (--hand-model, or hand_model=)"
        )
