"""The training loss: every term is a weighted mean over the samples that know its target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from handmesh.datasets.sample import Batch
from handmesh.model.conventions import hand_size, label_moves
from handmesh.model.hand_model import HandModel
from handmesh.model.head import cell_centres
from handmesh.model.regressor import Prediction, wrist_relative_hand


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms; lengths are in hand sizes (wrist to middle knuckle), 2D in normalised crop units."""

    heatmaps: float = 0.5
    joints_2d: float = 4.0
    rotations: float = 2.0
    joints: float = 5.0
    vertices: float = 5.0
    depth: float = 2.0
    projection: float = 3.0
    aligned_joints: float = 0.0  # what PA-MPJPE and PA-MPVPE measure
    aligned_vertices: float = 0.0
    betas: float = 0.5
    mean_shape: float = 0.2  # pull towards betas 0 where the shape is not known, as a share of `betas`
    mask: float = 0.3
    presence: float = 0.2
    right: float = 1.0
    pseudo_depth: float = 0.3  # of the depth axis of labels that are a guess
    heatmap_sigma: float = 0.1  # normalised crop units


def training_loss(
    prediction: Prediction, batch: Batch, hand_model: HandModel, weights: LossWeights
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and its unweighted terms (detached scalars)."""
    head = prediction.head
    with torch.no_grad():
        true_vertices, posed_joints = wrist_relative_hand(hand_model, batch.rotations, batch.betas)
        true_size = hand_size(torch.where(batch.weight_parameters[:, None, None] > 0, posed_joints, batch.joints))
    size = hand_size(prediction.joints)
    true_joints = batch.joints / true_size
    joints = prediction.joints / size
    vertices, true_vertices = prediction.vertices / size, true_vertices / true_size
    axes = torch.ones(len(joints), 1, 3, device=joints.device)
    axes[:, :, 2] = torch.where(batch.exact_depth > 0, 1.0, weights.pseudo_depth)[:, None]
    unknown_shape = batch.presence * (1 - batch.weight_parameters)  # their betas are 0 in the batch
    shape_weight = batch.weight_parameters + weights.mean_shape * unknown_shape
    projected = head.camera[:, None, :1] * prediction.joints[..., :2] + head.camera[:, None, 1:]
    true_2d = batch.joints_2d - label_moves(batch.mediapipe, prediction)

    terms = {
        "joints_2d": weighted_mean((head.joints_2d - true_2d).abs(), batch.weight_2d),
        "projection": weighted_mean((projected - true_2d).abs(), batch.weight_projection),
        "rotations": weighted_mean((head.rotations - batch.rotations).abs(), batch.weight_parameters),
        "betas": weighted_mean((head.betas - batch.betas).abs(), shape_weight),
        "joints": weighted_mean((joints - true_joints).abs() * axes, batch.weight_3d),
        "vertices": weighted_mean((vertices - true_vertices).abs(), batch.weight_parameters),
        "aligned_joints": weighted_mean(
            aligned_distance(joints, true_joints), batch.weight_3d * (batch.exact_depth > 0)
        ),
        "aligned_vertices": weighted_mean(aligned_distance(vertices, true_vertices), batch.weight_parameters),
        "depth": weighted_mean((head.depth - true_joints[..., 2]).abs() * axes[..., 2], batch.weight_3d),
        "mask": weighted_mean(
            F.binary_cross_entropy_with_logits(head.mask, batch.mask, reduction="none"), batch.weight_mask
        ),
        "presence": F.binary_cross_entropy_with_logits(head.presence, batch.presence),
        "right": weighted_mean(
            F.binary_cross_entropy_with_logits(head.right, batch.right, reduction="none"), batch.weight_right
        ),
    }
    if head.heatmaps is not None:
        terms["heatmaps"] = _heatmap_loss(head.heatmaps, true_2d, batch.weight_2d, weights.heatmap_sigma)
    total = sum((getattr(weights, name) * term for name, term in terms.items()), size.new_zeros(()))
    return total, {name: term.detach() for name, term in terms.items()}


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of (N, ...) over everything but samples, weighted over samples; zero if no sample has weight."""
    return (values.flatten(1).mean(1) if values.dim() > 1 else values).mul(weights).sum() / weights.sum().clamp_min(1.0)


def _heatmap_loss(heatmaps: torch.Tensor, true_2d: torch.Tensor, weight_2d: torch.Tensor, sigma: float) -> torch.Tensor:
    """Cross-entropy of (N, 21, h, w) logits with a Gaussian round each keypoint that lies inside the crop."""
    distance = (cell_centres(heatmaps) - true_2d[:, :, None]).square().sum(-1)  # (N, 21, cells)
    target = (-distance / (2 * sigma**2)).softmax(-1)
    entropy = -(target * heatmaps.flatten(2).log_softmax(-1)).sum(-1)  # (N, 21)
    inside = (true_2d.abs().amax(-1) < 1.0).float() * weight_2d[:, None]
    return (entropy * inside).sum() / inside.sum().clamp_min(1.0)


def aligned_distance(points: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(N,) mean distance of points (N, P, 3) to the truth after the best similarity onto it (Umeyama, 1991).

    No gradient flows through the similarity: at its best, small changes of it change (squared) distances by nothing.
    """
    centred, wanted = points - points.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True)
    with torch.no_grad():
        u, spread, vh = torch.linalg.svd(centred.transpose(1, 2) @ wanted)  # (N, 3, 3)
        signs = torch.ones_like(spread)
        signs[:, 2] = torch.linalg.det(u @ vh).sign()
        scale = (spread * signs).sum(1) / centred.square().sum((1, 2)).clamp_min(1e-9)
        move = scale[:, None, None] * (u * signs[:, None]) @ vh
    return (centred @ move - wanted).square().sum(-1).clamp_min(1e-12).sqrt().mean(1)
