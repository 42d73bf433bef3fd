"""Fit recorded 3D keypoints with the hand model's joint angles and make the pose bank of them.

Recordings differ from the hand model in bone lengths and in where exactly a joint sits, so bone *directions* are
fitted: the angle between fitted and recorded bones is the fit error. ``python -m handmesh.synthesis.pose_fitting``
rebuilds the shipped bank from the recordings named in :data:`SOURCES`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handmesh.model.rotations import rotmat_to_rotvec, rotmat_to_sixd, sixd_to_rotmat
from handmesh.synthesis.anatomy import HandAnatomy
from handmesh.synthesis.poses import SphereModel, angle_limits

# What the bank was made from: name, licence, origin.
SOURCES = (
    ("leap_playback", "Apache-2.0", "github.com/leapmotion/leapjs-playback: Leap Motion recordings"),
    ("subhi_webcam", "Apache-2.0", "github.com/SubhiH/HandsDataset: photos, keypoints by MediaPipe Hands"),
    ("asl_letters_davidlee", "public domain", "David Lee's American Sign Language letters: photos, as above"),
    ("sign_digits", "Apache-2.0", "github.com/ardamavi/Sign-Language-Digits-Dataset: photos, as above"),
)
STEPS = 140
CHUNK = 1024
MAX_ERROR_DEG = 20.0
# Bones between keypoints of one finger, and the directions that fix the palm.
_BONES = np.array([(1 + 4 * f + k, 2 + 4 * f + k) for f in range(5) for k in range(3)])
_PALM = np.array([(5, 17), (5, 9), (13, 17), (1, 5), (1, 9), (1, 17)])
_WRIST = np.array([(0, 1), (0, 5), (0, 9), (0, 13), (0, 17)])

_log = logging.getLogger(__name__)

Array = np.ndarray
Tensor = torch.Tensor


@dataclass(frozen=True)
class Fit:
    """angles (N, 16, 3) rad; orientations (N, 3, 3): the hand's axes to the recording's; error_deg (N,): mean angle
    between fitted and recorded finger bones; error_mm (N,): mean keypoint distance when the fitted directions carry the
    recorded bone lengths."""

    angles: Array
    orientations: Array
    error_deg: Array
    error_mm: Array


def fit_poses(anatomy: HandAnatomy, keypoints: Array, steps: int = STEPS) -> Fit:
    """Fit (N, 21, 3) right-hand keypoints (m, any axes and scale; the wrist may be NaN) in batches."""
    parts = [_fit_chunk(anatomy, keypoints[i : i + CHUNK], steps) for i in range(0, len(keypoints), CHUNK)]
    return Fit(*(np.concatenate([getattr(p, name) for p in parts]) for name in Fit.__dataclass_fields__))


def _fit_chunk(anatomy: HandAnatomy, keypoints: Array, steps: int) -> Fit:
    has_wrist = np.isfinite(keypoints[:, 0]).all(-1)
    target = torch.tensor(np.where(np.isfinite(keypoints), keypoints, 0.0), dtype=torch.float32)
    palm_weight = torch.tensor(has_wrist, dtype=torch.float32)[:, None]
    fingers, palm, wrist = _directions(target, _BONES), _directions(target, _PALM), _directions(target, _WRIST)
    start = np.zeros((16, 3))
    start[1:13:3, 0], start[2:13:3, 0], start[3:13:3, 0] = 0.4, 0.5, 0.3
    rest = torch.tensor(start, dtype=torch.float32).expand(len(target), 16, 3)
    low, high = (torch.tensor(a, dtype=torch.float32) for a in angle_limits())
    angles = rest.clone().requires_grad_(True)
    turn = torch.zeros(len(target), 6)
    turn[:] = _initial_turn(anatomy, target, rest)
    turn.requires_grad_(True)
    spheres = SphereModel(anatomy)
    optimiser = torch.optim.Adam([angles, turn], betas=(0.85, 0.98))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.08 * (1 - step / steps) + 0.005
        points = _posed(anatomy, angles, turn)
        loss = (1 - (_directions(points, _BONES) * fingers).sum(-1)).sum()
        loss = loss + 0.5 * (1 - (_directions(points, _PALM) * palm).sum(-1)).sum()
        loss = loss + 0.5 * (palm_weight * (1 - (_directions(points, _WRIST) * wrist).sum(-1))).sum()
        loss = loss + 0.01 * (angles - rest).square().sum() + 0.15 * angles[:, :, 1:].square().sum()
        if step > steps // 2:
            loss = loss + 1e4 * spheres.penetration(points).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            angles.clamp_(low, high)
    with torch.no_grad():
        points = _posed(anatomy, angles, turn)
        found = _directions(points, _BONES)
        cosine = (found * fingers).sum(-1).clamp(-1, 1)
        lengths = (target[:, _BONES[:, 1]] - target[:, _BONES[:, 0]]).norm(dim=-1, keepdim=True)
        off = ((found - fingers) * lengths).reshape(len(target), 5, 3, 3).cumsum(2).norm(dim=-1)
        orientations = sixd_to_rotmat(turn).numpy()
    return Fit(
        angles.detach().numpy(),
        orientations,
        np.degrees(torch.arccos(cosine).numpy()).mean(1),
        1e3 * off.mean((1, 2)).numpy(),
    )


def _directions(points: Tensor, pairs: Array) -> Tensor:
    return torch.nn.functional.normalize(points[:, pairs[:, 1]] - points[:, pairs[:, 0]], dim=-1)


def _posed(anatomy: HandAnatomy, angles: Tensor, turn: Tensor) -> Tensor:
    points = anatomy.keypoints(anatomy.rotations(angles))
    return points @ sixd_to_rotmat(turn).transpose(-1, -2)


def _initial_turn(anatomy: HandAnatomy, target: Tensor, rest: Tensor) -> Tensor:
    """(N, 6) rotation that best maps the model's palm directions to the recorded ones (Kabsch)."""
    pairs = np.concatenate([_PALM, _BONES[3::3]])
    source = _directions(anatomy.keypoints(anatomy.rotations(rest)), pairs)
    u, _, vt = torch.linalg.svd(_directions(target, pairs).transpose(-1, -2) @ source)
    sign = torch.ones(len(target), 3)
    sign[:, 2] = torch.det(u @ vt)
    return rotmat_to_sixd(u @ torch.diag_embed(sign) @ vt)


def spread_out(vectors: Array, count: int, rng: np.random.Generator) -> Array:
    """Indices of ``count`` rows that cover (N, D) vectors evenly (farthest-point sampling)."""
    chosen = [int(rng.integers(len(vectors)))]
    distance = np.full(len(vectors), np.inf)
    for _ in range(min(count, len(vectors)) - 1):
        distance = np.minimum(distance, np.square(vectors - vectors[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def read_leap(path: Path, every: int = 3) -> Array:
    """(N, 21, 3) m right-hand keypoints of the Leap recordings; left hands are mirrored."""
    with np.load(path) as file:
        joints, left = 1e-3 * file["joints_mm"][::every], file["hand"][::every] == "left"
    joints[left, :, 0] *= -1
    return joints


def read_photo_labels(path: Path, max_spread: float = 0.03) -> Array:
    """(N, 21, 3) m right-hand keypoints of the trustworthy hands in a photo set's labels.json."""
    out = []
    for record in json.loads(path.read_text()).values():
        for hand in record["hands"]:
            if hand["spread"] < max_spread:
                points = np.array(hand["kp3d"], np.float64)
                out.append(points * [-1, 1, 1] if hand["side"] == "left" else points)
    return np.array(out)


def build_bank(leap: Path, photos: Sequence[Path], output: Path, count: int = 3000) -> dict[str, dict[str, float]]:
    """Fit all recordings, keep ``count`` varied ones, write them; returns the fit errors by source."""
    from handmesh.assets import load_hand_model

    anatomy = HandAnatomy.from_arrays(load_hand_model())
    kept, report = [], {}
    for name, points in (("leap_playback", read_leap(leap)), *((p.parent.name, read_photo_labels(p)) for p in photos)):
        fit = fit_poses(anatomy, points)
        good = fit.error_deg < MAX_ERROR_DEG
        report[name] = {
            "hands": len(points),
            "kept": int(good.sum()),
            "median_deg": float(np.median(fit.error_deg)),
            "p90_deg": float(np.percentile(fit.error_deg, 90)),
            "median_mm": float(np.median(fit.error_mm)),
        }
        _log.info("%s: %s", name, report[name])
        kept.append((name, fit.angles[good]))
    rng = np.random.default_rng(0)
    per_source = count // len(kept)
    angles, origin = [], []
    for index, (_, part) in enumerate(kept):
        picked = spread_out(part.reshape(len(part), -1), per_source, rng)
        angles.append(part[picked])
        origin += [index] * len(picked)
    with torch.no_grad():
        rotations = anatomy.rotations(torch.tensor(np.concatenate(angles), dtype=torch.float32))
        poses = rotmat_to_rotvec(rotations[:, 1:]).numpy()
    sources = np.array([f"{name}: {report[name]}" for name, _ in kept])
    np.savez_compressed(output, poses=poses.astype(np.float16), source=np.array(origin, np.uint8), sources=sources)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: rebuild the pose bank."""
    parser = argparse.ArgumentParser(description="Fit recorded hands and write the pose bank.")
    parser.add_argument("--leap", type=Path, required=True, help="leap_playback.npz")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="labels.json of photo sets")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    build_bank(options.leap, options.photos, options.output, options.count)


if __name__ == "__main__":
    main()
