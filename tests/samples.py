"""Small annotated hands for tests: posed by the open hand model, seen by a camera, painted as dots."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch

from handmesh.assets import load_hand_model
from handmesh.datasets.sample import HandSample
from handmesh.model.hand_model import HandModel
from handmesh.model.rotations import rotvec_to_rotmat

K = np.array([[300.0, 0.0, 111.5], [0.0, 300.0, 111.5], [0.0, 0.0, 1.0]])


def posed_hand(seed: int, *, offset: tuple[float, float, float] = (0.0, 0.0, 0.45)) -> HandSample:
    """A random right hand in front of a 224 px camera, with every annotation."""
    generator = torch.Generator().manual_seed(seed)
    rotvecs = torch.randn(16, 3, generator=generator) * 0.25
    rotvecs[0] *= 4
    betas = torch.randn(10, generator=generator)
    rotations = rotvec_to_rotmat(rotvecs)
    with torch.no_grad():
        hand = HandModel(load_hand_model())(rotations, betas)
    joints = (hand.keypoints - hand.keypoints[:1]).double().numpy()
    seen = joints - joints.mean(0) + offset
    projected = seen @ K.T
    joints_2d = projected[:, :2] / projected[:, 2:]
    image = np.full((224, 224, 3), 60, np.uint8)
    mask = np.zeros((224, 224), np.uint8)
    for x, y in joints_2d:
        cv2.circle(image, (round(x), round(y)), 7, (220, 170, 150), -1)
        cv2.circle(mask, (round(x), round(y)), 7, 255, -1)
    return HandSample(
        image, joints_2d, "right", K, joints, rotations.double().numpy(), betas.double().numpy(), mask, mask
    )


def mirrored(sample: HandSample) -> HandSample:
    """The same scene in a mirror: a left hand."""
    width = sample.image.shape[1]
    flip = np.diag([-1.0, 1.0, 1.0])
    assert sample.intrinsics is not None
    assert sample.joints is not None
    assert sample.rotations is not None
    intrinsics = sample.intrinsics.copy()
    intrinsics[0, 2] = width - 1 - intrinsics[0, 2]
    return HandSample(
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        joints_2d=np.array([width - 1, 0.0]) + sample.joints_2d * [-1.0, 1.0],
        side="left",
        intrinsics=intrinsics,
        joints=sample.joints @ flip,
        rotations=flip @ sample.rotations @ flip,
        betas=sample.betas,
        mask=None if sample.mask is None else np.ascontiguousarray(sample.mask[:, ::-1]),
    )


class HandList(list[HandSample]):
    """A dataset of hands in memory."""


def write_freihand(root: Path, count: int, *, split: str = "training") -> None:
    """A tiny set in FreiHAND's published layout."""
    samples = [posed_hand(seed) for seed in range(count)]
    (root / split / "rgb").mkdir(parents=True)
    (root / split / "mask").mkdir()
    for number, sample in enumerate(samples):
        assert sample.mask is not None
        cv2.imwrite(str(root / split / "rgb" / f"{number:08d}.jpg"), sample.image[..., ::-1])
        cv2.imwrite(str(root / split / "mask" / f"{number:08d}.jpg"), sample.mask)
    placed = []
    for sample in samples:
        assert sample.joints is not None
        placed.append((sample.joints - sample.joints.mean(0) + [0.0, 0.0, 0.45]).tolist())
    (root / f"{split}_xyz.json").write_text(json.dumps(placed))
    (root / f"{split}_K.json").write_text(json.dumps([K.tolist()] * count))
