"""FreiHAND's layout (Zimmermann et al., ICCV 2019), real or rendered by `handmesh.synthesis`, as training samples."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays
from handmesh.datasets.freihand_files import FreiHandSplit, Split, read_table
from handmesh.datasets.sample import HandSample
from handmesh.skeleton import MANO_VERTEX_COUNT

PALM_RANGE_M = 0.01, 1.0
"""From wrist to middle knuckle, of a set's hands; what lies beyond is not in metres."""

_log = logging.getLogger(__name__)


class FreiHandDataset:
    """Annotated right hands under ROOT, with K, xyz and what else is known of them.

    The published training images come in four copies with other backgrounds (numbers beyond the annotations), which
    are samples of their own here. Rotations and betas are those of our renders' own labels (`{split}_meta.npz`), or for
    the published archive of `{split}_mano.json` if a MANO model is given. Where they stay unknown, the keypoints alone
    are the target.
    """

    def __init__(self, root: Path, split: Split = "training", mano: HandModelArrays | None = None) -> None:
        """`mano` is the user's MANO model if the network is to have it: our renders' rotations are not MANO's then.

        Raises FileNotFoundError or ValueError that names what is missing or does not fit together, also for the
        published parameters with a model that is not MANO.
        """
        self.root, self.split = Path(root), split
        self.files = FreiHandSplit.open(self.root, split)
        self.intrinsics, self.copies = self.files.intrinsics, self.files.copies
        self.joints = read_table(self.root, split, "xyz") if self.files.joints is None else self.files.joints
        broken = ~np.isfinite(self.joints).all((1, 2))
        if broken.any():
            raise ValueError(f"{self.root}/{split}: annotations {np.flatnonzero(broken)[:10].tolist()} are not finite")
        check_joints(self.joints, f"{self.root}/{split}")
        self.rotations: NDArray[np.float64] | None = None
        self.betas: NDArray[np.float64] | None = None
        self.meta: dict[str, np.ndarray] = {}
        meta = self.root / f"{split}_meta.npz"
        if meta.is_file():
            with np.load(meta) as arrays:
                self.meta = {key: arrays[key] for key in arrays.files}
            if any(len(column) < len(self.joints) for column in self.meta.values()):
                raise ValueError(
                    f"{meta} has fewer hands than the set: run `handmesh data synthesize` again, to its end"
                )
            if mano is None:
                self.rotations = self.meta["rotations"].astype(np.float64)
                self.betas = self.meta["betas"].astype(np.float64)
        elif mano is not None and self.files.mano is not None:
            if len(mano.v_template) != MANO_VERTEX_COUNT:
                raise ValueError(
                    f"{self.root}/{split}_mano.json holds parameters of MANO, but the hand model given has "
                    f"{len(mano.v_template)} vertices: give MANO_RIGHT.pkl, or none to train on keypoints alone"
                )
            self.rotations, self.betas = mano_parameters(self.files.mano, mano)
        if mano is not None and self.rotations is None:
            _log.warning("%s/%s has no parameters of the hand model given: its keypoints alone are learnt", root, split)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> HandSample:
        """The sample of image `index`. Raises ValueError that names an image that cannot be read."""
        row = index % len(self.joints)
        joints, intrinsics = self.joints[row], self.intrinsics[row]
        projected = joints @ intrinsics.T
        return HandSample(
            image=self.files.image(index),
            joints_2d=projected[:, :2] / projected[:, 2:],
            side="right",
            intrinsics=intrinsics,
            joints=joints - joints[:1],
            rotations=None if self.rotations is None else self.rotations[row],
            betas=None if self.betas is None else self.betas[row],
            mask=self.files.layer("mask", row),  # all copies show the hand at the same place
            alpha=self.files.layer("alpha", row),
            alone="second" in self.meta and bool(np.isnan(self.meta["second"][row]).all()),
        )


def check_joints(joints: NDArray[np.float64], where: str) -> None:
    """ValueError for joints (N, 21, 3) in other axes or units than ours."""
    behind = np.flatnonzero((joints[..., 2] <= 0.0).any(1))
    if len(behind):
        raise ValueError(
            f"{where}: hands {behind[:5].tolist()} lie behind the camera: x right, y down and z forward are wanted"
        )
    palm = float(np.median(np.linalg.norm(joints[:, 9] - joints[:, 0], axis=-1)))
    if not PALM_RANGE_M[0] < palm < PALM_RANGE_M[1]:
        raise ValueError(f"{where}: hands have {palm:.3g} from wrist to middle knuckle: metres are wanted")


def mano_parameters(
    rows: NDArray[np.float64], mano: HandModelArrays
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations (N, 16, 3, 3) and betas (N, 10) of FreiHAND's annotation rows (N, 61).

    The annotated pose leaves out MANO's mean pose (lmb-freiburg/freihand, utils/model.py: `use_mean_pose=True`).
    """
    import torch

    from handmesh.model.rotations import rotvec_to_rotmat

    pose = rows[:, :48].copy()
    pose[:, 3:] += mano.hands_mean
    rotations = rotvec_to_rotmat(torch.from_numpy(pose.reshape(-1, 16, 3)))
    return rotations.numpy(), rows[:, 48:58].copy()
