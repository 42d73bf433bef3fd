"""FreiHAND's layout (Zimmermann et al., ICCV 2019), real or rendered by `handmesh.synthesis`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from handmesh.datasets.sample import HandSample

Split = Literal["training", "evaluation"]


class FreiHandDataset:
    """Annotated hands under ROOT: `{split}/rgb/%08d.jpg`, masks, and K, xyz (and rotations, betas of our renders).

    Rendered sets keep their labels in `{split}_labels.npz` and `{split}_meta.npz`; the published archive has
    `{split}_K.json` and `{split}_xyz.json`. The published training images come in four copies with other
    backgrounds (numbers beyond the annotations), which are samples of their own here.
    """

    def __init__(self, root: Path, split: Split = "training") -> None:
        """Raises FileNotFoundError or ValueError that names what is missing or does not fit together."""
        self.root, self.split = Path(root), split
        if not (self.root / split / "rgb").is_dir():
            raise FileNotFoundError(f"no {split}/rgb under {self.root}: it does not look like FreiHAND's layout")
        labels = self.root / f"{split}_labels.npz"
        if labels.is_file():
            with np.load(labels) as arrays:
                self.intrinsics = arrays["K"].astype(np.float64)
                self.joints = arrays["xyz"].astype(np.float64)
        else:
            self.intrinsics = np.asarray(_read_json(self.root / f"{split}_K.json"), np.float64)
            self.joints = np.asarray(_read_json(self.root / f"{split}_xyz.json"), np.float64)
        if self.intrinsics.shape[1:] != (3, 3) or self.joints.shape != (len(self.intrinsics), 21, 3):
            raise ValueError(
                f"labels of {self.root}/{split} must be K (N, 3, 3) and xyz (N, 21, 3), got "
                f"{self.intrinsics.shape} and {self.joints.shape}"
            )
        broken = ~np.isfinite(self.joints).all((1, 2))
        if broken.any():
            raise ValueError(f"{self.root}/{split}: annotations {np.flatnonzero(broken)[:10].tolist()} are not finite")
        self.rotations = self.betas = None
        meta = self.root / f"{split}_meta.npz"
        self.meta: dict[str, np.ndarray] = {}
        if meta.is_file():
            with np.load(meta) as arrays:
                self.meta = {key: arrays[key] for key in arrays.files}
            self.rotations = self.meta["rotations"].astype(np.float64)
            self.betas = self.meta["betas"].astype(np.float64)
        images = sum(1 for _ in (self.root / split / "rgb").glob("*.jpg"))
        self.copies = images // len(self.joints)
        if self.copies == 0 or images % len(self.joints):
            raise ValueError(f"{self.root}/{split}: {images} images for {len(self.joints)} annotations")

    def __len__(self) -> int:
        return len(self.joints) * self.copies

    def __getitem__(self, index: int) -> HandSample:
        """The sample of image `index`. Raises ValueError that names an image that cannot be read."""
        row = index % len(self.joints)
        joints, intrinsics = self.joints[row], self.intrinsics[row]
        projected = joints @ intrinsics.T
        return HandSample(
            image=self._read("rgb", index, cv2.IMREAD_COLOR_RGB),
            joints_2d=projected[:, :2] / projected[:, 2:],
            side="right",
            intrinsics=intrinsics,
            joints=joints - joints[:1],
            rotations=None if self.rotations is None else self.rotations[row],
            betas=None if self.betas is None else self.betas[row],
            mask=self._read_optional("mask", row),
            alpha=self._read_optional("alpha", row),
        )

    def _path(self, layer: str, index: int) -> Path:
        return self.root / self.split / layer / f"{index:08d}.jpg"

    def _read(self, layer: str, index: int, mode: int) -> np.ndarray:
        image = cv2.imread(str(self._path(layer, index)), mode)
        if image is None:
            raise ValueError(f"cannot read image {self._path(layer, index)}")
        return image

    def _read_optional(self, layer: str, index: int) -> np.ndarray | None:
        if not self._path(layer, index).is_file():
            return None
        return self._read(layer, index, cv2.IMREAD_GRAYSCALE)


def _read_json(path: Path) -> list:
    if not path.is_file():
        raise FileNotFoundError(f"missing annotation file {path}")
    with path.open() as file:
        return json.load(file)
