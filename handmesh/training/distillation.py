"""Output-level distillation: a student learns what frozen teachers say of the crops that it sees itself.

The FastViT paper's second training mode, for regression: next to the labels' own terms, keypoints, depths, rotations
and joints are drawn towards the teachers' mean. Teachers may be larger, work at another resolution, or be several;
what they say of photos, whose labels know no rotations, is where there is most to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from handmesh.assets import HandModelArrays
from handmesh.datasets.sample import Batch
from handmesh.model.conventions import hand_size
from handmesh.model.deploy import load_torch_network
from handmesh.model.regressor import HandRegressor, Prediction
from handmesh.training.losses import LossWeights, weighted_mean


class Lesson(NamedTuple):
    """The teachers' mean word on N crops, in the student's conventions."""

    joints_2d: Tensor  # (N, 21, 2) normalised crop units
    depth: Tensor  # (N, 21) hand sizes
    rotations: Tensor  # (N, 16, 3, 3); a mean of matrices, no rotation where teachers disagree
    joints: Tensor  # (N, 21, 3) hand sizes


class Teachers:
    """One or more trained networks, folded and frozen."""

    def __init__(self, networks: Sequence[HandRegressor]) -> None:
        if not networks:
            raise ValueError("distillation needs at least one teacher")
        self.networks = [network.eval().requires_grad_(False) for network in networks]

    @classmethod
    def load(cls, paths: Sequence[Path], hand_model: HandModelArrays | None = None) -> Teachers:
        """From training checkpoints or exported .onnx files, trained on the student's hand model (None: the embedded).

        Errors as `load_torch_network`: rotations and betas of another model would teach another hand.
        """
        return cls([load_torch_network(path, hand_model) for path in paths])

    @torch.no_grad()
    def teach(self, crops: Tensor) -> Lesson:
        """What they say of crops (N, S, S, 3) uint8, resized to each one's own input size."""
        lessons = []
        for network in self.networks:
            head, _, joints = network(_resized(crops, network.config.input_size))
            lessons.append(Lesson(head.joints_2d, head.depth, head.rotations, joints / hand_size(joints)))
        return Lesson(*(torch.stack(column).mean(0) for column in zip(*lessons, strict=True)))


def distillation_loss(
    prediction: Prediction, lesson: Lesson, batch: Batch, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """The weighted loss, and its unweighted distance of keypoints (detached) for the log.

    Crops without a hand teach nothing, and those of a left hand only where its keypoints are.
    """
    head = prediction.head
    hand, right = batch.presence, batch.presence * batch.right
    joints = prediction.joints / hand_size(prediction.joints)
    keypoints = weighted_mean((head.joints_2d - lesson.joints_2d).abs(), hand)
    total = (
        weights.joints_2d * keypoints
        + weights.depth * weighted_mean((head.depth - lesson.depth).abs(), right)
        + weights.rotations * weighted_mean((head.rotations - lesson.rotations).abs(), right)
        + weights.joints * weighted_mean((joints - lesson.joints).abs(), right)
    )
    return total, keypoints.detach()


def _resized(crops: Tensor, size: int) -> Tensor:
    if crops.shape[1] == size:
        return crops
    images = crops.permute(0, 3, 1, 2).float()
    images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
