"""Teach the tokens head's `Lifter` on posed hands alone: keypoints with depths in, joint rotations out, no images.

    python -m handmesh.training.lifting --synthetic ROOT --out runs/lift/lift.pt

Poses and shapes come from a rendered set's labels; every batch sees them from new directions and distances, with noise
on the keypoints as a network's are noisy.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from handmesh.assets import load_hand_model
from handmesh.crop import CROP_SCALE
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.mistakes import in_one_line
from handmesh.model.conventions import hand_size
from handmesh.model.hand_model import HandModel, only_keypoints
from handmesh.model.head import Lifter, decode_parameters
from handmesh.model.regressor import save_checkpoint, wrist_relative_hand

_log = logging.getLogger(__name__)


class PoseBatches:
    """Random hands seen by random cameras, drawn from recorded rotations (M, 16, 3, 3) and betas (M, 10)."""

    def __init__(self, rotations: np.ndarray, betas: np.ndarray, seed: int = 0) -> None:
        if len(rotations) != len(betas) or len(rotations) == 0:
            raise ValueError(f"need as many poses as shapes, got {rotations.shape} and {betas.shape}")
        self.rotations = torch.tensor(rotations, dtype=torch.float32)
        self.betas = torch.tensor(betas, dtype=torch.float32)
        self.hand_model = HandModel(only_keypoints(load_hand_model()))
        self.rng = np.random.default_rng(seed)

    @torch.no_grad()
    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """joints_2d (N, 21, 2) in crop units, depths (N, 21), rotations (N, 16, 3, 3), betas, joints (N, 21, 3)."""
        rng = self.rng
        rows = torch.tensor(rng.integers(len(self.rotations), size=count))
        rotations = self.rotations[rows].clone()
        turns = Rotation.from_quat(rng.normal(size=(count, 4))) if rng.random() < 0.5 else _small_turns(count, rng)
        rotations[:, 0] = torch.tensor(turns.as_matrix(), dtype=torch.float32) @ rotations[:, 0]
        betas = torch.tensor(rng.normal(size=(count, 10)), dtype=torch.float32)
        betas[: count // 2] = self.betas[rows[: count // 2]]
        _, joints = wrist_relative_hand(self.hand_model, rotations, betas)
        distance = torch.tensor(np.exp(rng.uniform(math.log(0.25), math.log(1.5), count)), dtype=torch.float32)
        joints_2d = _crop_coordinates(joints, distance, rng)
        return joints_2d, joints[..., 2] / hand_size(joints)[:, 0], rotations, betas, joints


def _small_turns(count: int, rng: np.random.Generator) -> Rotation:
    return Rotation.from_rotvec(rng.normal(size=(count, 3)) * 0.35)


def _crop_coordinates(joints: torch.Tensor, distance: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Project hands whose middle is `distance` m before a camera that looks at the centre of their jittered crop."""
    middle = (joints.amax(1) + joints.amin(1)) / 2
    seen = joints - middle[:, None]
    seen[..., 2] += distance[:, None].clamp_min(0.15)
    projected = seen[..., :2] / seen[..., 2:]
    low, high = projected.amin(1), projected.amax(1)
    half = (high - low).amax(-1) * (CROP_SCALE / 2) * torch.tensor(rng.uniform(0.78, 1.28, len(joints))).float()
    shift = torch.tensor(rng.normal(0, 0.06, (len(joints), 2))).float() * half[:, None]
    return (projected - (low + high)[:, None] / 2 - shift[:, None]) / half[:, None, None]


def pretrain(lifter: Lifter, batches: PoseBatches, *, steps: int, batch_size: int = 512, rate: float = 2e-3) -> float:
    """Train in place with AdamW and a cosine; returns the mean joint error of the last steps in mm, root-relative."""
    optimizer = torch.optim.AdamW(lifter.parameters(), rate, weight_decay=1e-3)
    recent: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        joints_2d, depth, true_rotations, true_betas, true_joints = batches.draw(batch_size)
        noise = torch.rand(batch_size, 1, 1) * 0.04
        rotations, betas, camera = decode_parameters(
            lifter(joints_2d + torch.randn_like(joints_2d) * noise, depth + torch.randn_like(depth) * noise[..., 0] * 3)
        )
        _, joints = wrist_relative_hand(batches.hand_model, rotations, betas)
        true_size = hand_size(true_joints)
        distance = (joints / hand_size(joints) - true_joints / true_size).abs().mean()
        projected = camera[:, None, :1] * joints[..., :2] + camera[:, None, 1:]
        loss = 5 * distance + 2 * (rotations - true_rotations).abs().mean() + 2 * (projected - joints_2d).abs().mean()
        loss = loss + 0.05 * (betas - true_betas).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lifter.parameters(), 1.0)
        optimizer.step()
        scaled = joints.detach() * true_size / hand_size(joints.detach())
        recent.append(float((scaled - true_joints).norm(dim=-1).mean()) * 1e3)
        if (step + 1) % 500 == 0:
            speed = (step + 1) * batch_size / (time.monotonic() - started)
            _log.info(
                "step %d loss %.4f joints %.2f mm, %.0f hands/s", step + 1, loss.item(), np.mean(recent[-200:]), speed
            )
    return float(np.mean(recent[-200:]))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=Path, required=True, help="rendered set whose poses are used")
    parser.add_argument("--out", type=Path, required=True, help="file for `handmesh train --init`")
    parser.add_argument("--steps", type=int, default=8000)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    labels = FreiHandDataset(args.synthetic)
    if labels.rotations is None or labels.betas is None:
        parser.error(f"{args.synthetic} has no rotations and betas: it is not one of our rendered sets")
    torch.manual_seed(0)
    lifter = Lifter()
    error = pretrain(lifter, PoseBatches(labels.rotations, labels.betas), steps=args.steps)
    save_checkpoint({"lift": lifter.state_dict(), "joints_mm": error}, args.out)


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
