"""How good a hand network is on fixed samples: run during training, and again on what is published."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from handmesh.datasets.augment import NO_AUGMENT, ImagePool, make_target
from handmesh.datasets.mixture import HandDataset
from handmesh.datasets.sample import Batch, collate
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm, pck
from handmesh.model.conventions import label_moves
from handmesh.model.head import HeadOutput
from handmesh.model.regressor import HandRegressor, Prediction, wrist_relative_hand


def fixed_batch(dataset: HandDataset, size: int, rows: Sequence[int] | None = None) -> Batch:
    """Unaugmented crops of `dataset` (of the given rows, or all), with their targets. Raises ValueError without any."""
    rng, pool = np.random.default_rng(0), ImagePool([])
    rows = range(len(dataset)) if rows is None else rows
    if len(rows) == 0:
        raise ValueError("there is no hand to measure on: photos may have no label that is trusted")
    return collate([make_target(dataset[row], size, NO_AUGMENT, pool, rng) for row in rows])


@torch.no_grad()
def predict(network: HandRegressor, crops: torch.Tensor, *, batch_size: int = 50) -> Prediction:
    """Run the network in evaluation mode over crops (N, S, S, 3), in batches on its device; results on the CPU."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    parts = [network(crops[start : start + batch_size].to(device)) for start in range(0, len(crops), batch_size)]
    network.train(training)
    columns = zip(*(part.head for part in parts), strict=True)
    head = HeadOutput._make(None if column[0] is None else torch.cat(column).cpu() for column in columns)
    vertices, joints = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("vertices", "joints"))
    return Prediction(head, vertices, joints)


def measure(network: HandRegressor, batch: Batch) -> dict[str, float]:
    """Errors on a fixed batch; 3D ones only over samples that know their 3D.

    Keypoints that name MediaPipe's spots are held against those spots on the predicted hands.
    `2d` is the mean keypoint error as a share of the box, `2d_mesh` that of the projected mesh joints; `pa_mpjpe_mm`
    and `pa_mpvpe_mm` are against exact parameters, `pa_mpjpe_keypoints_mm` against measured keypoints of hands without
    parameters, `pa_mpjpe_pseudo_mm` against labels whose 3D is a guess. `right` is the share of right hands taken for
    such, `left` that of their mirror images taken for left ones, `side` that of hands whose image looks more like a
    right hand than its mirror image does.
    """
    prediction = predict(network, batch.crops)
    head = prediction.head
    mirrored = predict(network, batch.crops.flip(2)).head.right
    truth_2d = batch.joints_2d.numpy()
    moves = label_moves(batch.mediapipe, prediction).numpy()
    camera = head.camera[:, None]
    projected = camera[..., :1] * prediction.joints[..., :2] + camera[..., 1:]
    errors = keypoint_error(head.joints_2d.numpy() + moves, truth_2d)
    result = {
        "hands": float(len(truth_2d)),
        "2d": float(errors.mean()),
        "2d_mesh": float(keypoint_error(projected.numpy() + moves, truth_2d).mean()),
        "pck_05": pck(errors, 0.05),
        "pck_10": pck(errors, 0.10),
        "presence": float((head.presence > 0).float().mean()),
        "right": float((head.right > 0).float().mean()),
        "left": float((mirrored < 0).float().mean()),
        "side": float((head.right > mirrored).float().mean()),
    }
    posed = batch.weight_parameters > 0
    if posed.any():
        device = next(network.parameters()).device
        parameters = batch.rotations[posed].to(device), batch.betas[posed].to(device)
        vertices, joints = (points.cpu() for points in wrist_relative_hand(network.hand_model, *parameters))
        result["pa_mpjpe_mm"] = float(pa_error_mm(prediction.joints[posed].numpy(), joints.numpy()).mean())
        result["pa_mpvpe_mm"] = float(pa_error_mm(prediction.vertices[posed].numpy(), vertices.numpy()).mean())
    unposed = (batch.weight_3d > 0) & ~posed
    for name, exact in (("pa_mpjpe_keypoints_mm", True), ("pa_mpjpe_pseudo_mm", False)):
        rows = unposed & ((batch.exact_depth > 0) == exact)
        if rows.any():
            errors_3d = pa_error_mm(prediction.joints[rows].numpy(), batch.joints[rows].numpy())
            result[name] = float(errors_3d.mean())
    return result
