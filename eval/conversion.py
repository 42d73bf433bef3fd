"""What is lost on the way between hand models: the open hand, another one, bare joints, and back.

python eval/conversion.py --out eval/results/conversion.json                      # another: the open hand stretched
python eval/conversion.py --other MANO_RIGHT.pkl --out eval/results/conversion.json
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.evaluation.report import write_result
from handmesh.mistakes import in_one_line
from handmesh.model.hand_model import HandModel
from handmesh.model.rotations import rotvec_to_rotmat
from handmesh.synthesis.hand_fitting import HandFit, fit_hands
from handmesh.synthesis.pose_bank import load_pose_bank

STRETCH = (1.06, 1.0, 0.95)  # along the fingers, through the palm, across: further than betas go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another hand model, such as your MANO_RIGHT.pkl")
    parser.add_argument("--count", type=int, default=200, help="recorded poses of random shapes (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    options = parser.parse_args()
    ours = load_hand_model()
    other = stretched(ours) if options.other is None else load_hand_model(options.other)
    rows: dict[str, Any] = {}
    for name, source, target in (("open to other", ours, other), ("other to open", other, ours)):
        joints, vertices = hands(source, options.count)
        for given, surface in (("joints and surface", vertices), ("joints alone", None)):
            with tqdm(total=2 * options.count, desc=f"{name}, {given}", unit="hand", mininterval=1.0) as bar:
                there = fit_hands(target, joints, surface, progress=bar.update)
                back = fit_hands(
                    source, there.keypoints, None if surface is None else there.vertices, progress=bar.update
                )
            rows[f"{name}, {given}"] = row(there, back, joints, vertices)
            print(name, given, " ".join(f"{key}={value:.3g}" for key, value in rows[f"{name}, {given}"].items()))
    facts = {
        "other": "the open hand stretched" if options.other is None else options.other.name,
        "hands": options.count,
    }
    write_result(options.out, {**facts, "stretch": STRETCH if options.other is None else None, "rows": rows})


def stretched(model: HandModelArrays) -> HandModelArrays:
    """A hand model of other proportions in place of MANO, which must not be here."""
    factors = np.array(STRETCH)
    return replace(
        model,
        v_template=model.v_template * factors,
        shapedirs=model.shapedirs * factors[:, None],
        posedirs=model.posedirs * factors[:, None],
    )


def hands(model: HandModelArrays, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, 21, 3) and vertices (N, V, 3) of recorded poses in random orientations and shapes."""
    rng = np.random.default_rng(0)
    bank = load_pose_bank()
    if bank is None:
        raise SystemExit("the pose bank is missing: reinstall handmesh")
    poses = bank[rng.choice(len(bank), count, replace=False)]
    rotvecs = np.concatenate([rng.normal(0, 1.2, (count, 1, 3)), poses], 1)
    betas = rng.normal(size=(count, 10)).clip(-2, 2)
    with torch.no_grad():
        posed = HandModel(model, torch.float64)(rotvec_to_rotmat(torch.from_numpy(rotvecs)), torch.from_numpy(betas))
    return posed.keypoints.numpy(), posed.vertices.numpy()


def row(there: HandFit, back: HandFit, joints: np.ndarray, vertices: np.ndarray) -> dict[str, float]:
    """Means, and what 95 % of hands stay below, in mm."""
    returned = {
        "joints there": there.keypoint_error_mm,
        "surface there": there.surface_error_mm,
        "joints there and back": np.linalg.norm(back.keypoints - joints, axis=-1).mean(1) * 1e3,
        "vertices there and back": np.linalg.norm(back.vertices - vertices, axis=-1).mean(1) * 1e3,
    }
    measured = {name: errors for name, errors in returned.items() if np.isfinite(errors).all()}
    means = {f"{name}, mean mm": float(errors.mean()) for name, errors in measured.items()}
    return means | {f"{name}, 95 % mm": float(np.percentile(errors, 95)) for name, errors in measured.items()}


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
