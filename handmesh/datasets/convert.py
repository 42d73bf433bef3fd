"""Hands of one model as parameters of another: the open hand to MANO and back, or bare 21 joints to either.

What goes in: an .npz with parameters (`rotations`, or `global_orient` and `hand_pose`, with `betas` and perhaps the
wrist's `translation`: what handmesh itself saves), or with `joints` and perhaps `vertices`; or FreiHAND's `*_xyz.json`
or `*_mano.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays, load_hand_model, read_npz, save_npz
from handmesh.datasets.freihand import mano_parameters
from handmesh.datasets.freihand_files import read_json, stacked
from handmesh.records import mirror_rotations

if TYPE_CHECKING:
    from handmesh.synthesis.hand_fitting import HandFit

Array = NDArray[np.float64]

_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class GivenHands:
    """Hands to convert, as right ones: keypoints (N, 21, 3) m and, where known, vertices (N, P, 3); left (N,) bool says
    which of them were mirrored for that."""

    keypoints: Array
    vertices: Array | None
    left: NDArray[np.bool_]


def read_hands(path: Path, source: HandModelArrays) -> GivenHands:
    """Read what this module's head names; parameters are posed by `source`, the model that they belong to.

    Raises FileNotFoundError, and ValueError that says what the file lacks.
    """
    if path.suffix == ".json":
        rows = read_json(path)
        first = np.shape(rows[0]) if isinstance(rows, list) and rows else None
        if first == (21, 3):
            keypoints = stacked(rows, (21, 3), str(path))
            return GivenHands(keypoints, None, np.zeros(len(keypoints), bool))
        if first == (1, 61):
            return _posed(*mano_parameters(stacked(rows, (1, 61), str(path))[:, 0], source), None, source)
        raise ValueError(f"{path} must be FreiHAND's xyz, (N, 21, 3), or mano, (N, 1, 61); its first row is {first}")
    arrays = read_npz(path)
    left = _left(arrays["side"], path) if "side" in arrays else None
    if "betas" in arrays and ("rotations" in arrays or {"global_orient", "hand_pose"} <= arrays.keys()):
        betas = np.atleast_2d(arrays["betas"]).astype(np.float64)
        return _posed(_rotations(arrays), betas, left, source, arrays.get("translation"))
    if "joints" not in arrays:
        raise ValueError(f"{path} has neither parameters with betas nor joints; it has {', '.join(sorted(arrays))}")
    keypoints = _batched(arrays["joints"])
    vertices = _batched(arrays["vertices"]) if "vertices" in arrays else None
    left = np.zeros(len(keypoints), bool) if left is None else left
    if len(left) != len(keypoints):
        raise ValueError(f"{path}: {len(keypoints)} hands and {len(left)} sides do not belong together")
    keypoints = np.where(left[:, None, None], keypoints * _MIRROR, keypoints)
    if vertices is not None:
        vertices = np.where(left[:, None, None], vertices * _MIRROR, vertices)
    return GivenHands(keypoints, vertices, left)


def _left(sides: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """(N,) which of the hands are left ones."""
    words = np.array([str(side).lower() for side in np.atleast_1d(sides)])
    strange = sorted(set(words) - {"left", "right"})
    if strange:
        raise ValueError(f'{path}: a side must be "left" or "right", not {", ".join(strange)}')
    return words == "left"


def _check_rendered(path: Path) -> None:
    """ValueError unless a set's `*_mano.json` was rendered from the open hand, whose parameters it holds then."""
    split = path.name.removesuffix("_mano.json")
    if not path.with_name(f"{split}_synthesis.json").is_file():
        raise ValueError(f"{path} holds parameters of MANO, not of the open hand: give your MANO_RIGHT.pkl by --from")


def to_arrays(fit: HandFit, left: NDArray[np.bool_], *, vertices: bool) -> dict[str, NDArray[Any]]:
    """A fit as arrays to save, left hands mirrored back: rotation vectors, matrices, betas, points and errors."""
    import torch

    from handmesh.model.rotations import rotmat_to_rotvec

    mirrored = left[:, None, None]
    rotations = np.where(mirrored[..., None], mirror_rotations(fit.rotations), fit.rotations)
    rotvecs = rotmat_to_rotvec(torch.from_numpy(rotations)).numpy()
    arrays: dict[str, NDArray[Any]] = {
        "rotations": rotations,
        "global_orient": rotvecs[:, 0],
        "hand_pose": rotvecs[:, 1:],
        "betas": fit.betas,
        "translation": np.where(left[:, None], fit.translation * _MIRROR, fit.translation),
        "joints": np.where(mirrored, fit.keypoints * _MIRROR, fit.keypoints),
        "keypoint_error_mm": fit.keypoint_error_mm,
        "surface_error_mm": fit.surface_error_mm,
    }
    if vertices:
        arrays["vertices"] = np.where(mirrored, fit.vertices * _MIRROR, fit.vertices)
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "side": np.where(left, "left", "right")
    }


def _rotations(arrays: Mapping[str, NDArray[Any]]) -> Array:
    import torch

    from handmesh.model.rotations import rotvec_to_rotmat

    if "rotations" in arrays:
        return arrays["rotations"].reshape(-1, 16, 3, 3).astype(np.float64)
    orient, pose = (arrays[name].astype(np.float64) for name in ("global_orient", "hand_pose"))
    rotvecs = np.concatenate([orient.reshape(-1, 1, 3), pose.reshape(-1, 15, 3)], 1)
    return rotvec_to_rotmat(torch.from_numpy(rotvecs)).numpy()


def _posed(
    rotations: Array,
    betas: Array,
    left: NDArray[np.bool_] | None,
    source: HandModelArrays,
    translation: NDArray[Any] | None = None,
) -> GivenHands:
    """Hands of either side with their wrists at `translation` (N, 3) m, or at 0."""
    import torch

    from handmesh.model.hand_model import HandModel

    left = np.zeros(len(betas), bool) if left is None else left
    if not len(rotations) == len(betas) == len(left):
        raise ValueError(f"{len(rotations)} rotations, {len(betas)} betas and {len(left)} sides do not belong together")
    if translation is not None and np.size(translation) != 3 * len(betas):
        raise ValueError(f"translation must hold 3 numbers for each of {len(betas)} hands, got {np.shape(translation)}")
    as_right = np.where(left[:, None, None, None], mirror_rotations(rotations), rotations)
    with torch.no_grad():
        hand = HandModel(source, torch.float64)(torch.from_numpy(as_right), torch.from_numpy(betas))
    place = np.zeros((len(betas), 3)) if translation is None else np.reshape(translation, (-1, 3))
    place = np.where(left[:, None], place * _MIRROR, place)[:, None]
    wrist = hand.keypoints[:, :1]
    return GivenHands((hand.keypoints - wrist).numpy() + place, (hand.vertices - wrist).numpy() + place, left)


def _batched(points: NDArray[Any]) -> Array:
    return np.asarray(points, np.float64).reshape(-1, *points.shape[-2:])


def report(fit: HandFit) -> str:
    """The errors in a sentence."""

    def spread(errors: Array) -> str:
        return f"{errors.mean():.2f} mm on average, {np.percentile(errors, 95):.2f} for 95 % of hands"

    text = f"{len(fit.betas)} hands; joints are off by {spread(fit.keypoint_error_mm)}"
    if np.isfinite(fit.surface_error_mm).all():
        text += f"; given vertices lie {spread(fit.surface_error_mm)} from the fitted surface"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `handmesh data convert`."""
    parser = argparse.ArgumentParser(prog="handmesh data convert", description=__doc__)
    parser.add_argument("hands", type=Path, help=".npz, or FreiHAND's *_xyz.json or *_mano.json")
    parser.add_argument("output", type=Path, help="parameters of the other model, .npz")
    parser.add_argument("--from", dest="source", type=Path, metavar="MODEL", help="model of given parameters (ours)")
    parser.add_argument("--to", type=Path, metavar="MODEL", help="model to fit: your MANO_RIGHT.pkl or .npz (ours)")
    parser.add_argument("--joints-only", action="store_true", help="fit to the joints even where a surface is known")
    parser.add_argument("--vertices", action="store_true", help="write the fitted vertices too")
    options = parser.parse_args(arguments)
    from tqdm import tqdm  # here, as --help needs no more than the core

    from handmesh.synthesis.hand_fitting import fit_hands

    try:
        if options.output.suffix.lower() != ".npz":
            raise ValueError(f"the converted hands are written as .npz, not as {options.output.name}")
        if options.source is None and options.hands.name.endswith("_mano.json"):
            _check_rendered(options.hands)
        source, target = load_hand_model(options.source), load_hand_model(options.to)
        hands = read_hands(options.hands, source)
        surface = None if options.joints_only else hands.vertices
        with tqdm(total=len(hands.keypoints), unit="hand", mininterval=1.0) as bar:
            fit = fit_hands(target, hands.keypoints, surface, progress=bar.update)
        save_npz(options.output, to_arrays(fit, hands.left, vertices=options.vertices))
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{report(fit)}\nwrote {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
