"""The files of FreiHAND's archives: what they hold, whether they are whole, and what the published counts are.

The training archive (FreiHAND_pub_v1 or _v2) holds `training/rgb`, `training/mask`, `evaluation/rgb`, and the tables
`training_{K,xyz,mano,scale,verts}.json` and `evaluation_{K,scale}.json`. The evaluation archive (FreiHAND_pub_v2_eval),
public since the challenge is over, adds `evaluation_{xyz,verts,mano}.json`. Both unpack into one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.records import Camera
from handmesh.skeleton import KEYPOINTS

Split = Literal["training", "evaluation"]

ANNOTATIONS: dict[Split, int] = {"training": 32_560, "evaluation": 3_960}
"""Annotated frames of the published splits."""

COPIES: dict[Split, int] = {"training": 4, "evaluation": 1}
"""Published images of each frame: green screen, then three with other backgrounds, in blocks of all frames."""

IMAGE_PX = 224

TABLES: dict[str, tuple[int | None, ...]] = {
    "K": (3, 3),  # intrinsics, px
    "xyz": (21, 3),  # m, camera axes
    "verts": (None, 3),  # m, camera axes, of MANO's mesh
    "mano": (1, 61),  # 48 pose angles less the mean pose, 10 betas, a root pixel and a scale
    "scale": (),  # m, length of the middle finger's proximal phalanx
}
"""What one row of each table looks like."""

Array = NDArray[np.float64]

_PHALANX = [KEYPOINTS.index(name) for name in ("middle1", "middle2")]


def scale_of(joints: Array) -> Array:
    """FreiHAND's `scale` (...) m of joints (..., 21, 3) m: the length of the middle finger's proximal phalanx."""
    ends = joints[..., _PHALANX, :]
    return np.linalg.norm(ends[..., 1, :] - ends[..., 0, :], axis=-1)


def camera_of(intrinsics: Array, image: NDArray[np.uint8]) -> Camera:
    """The camera of intrinsics K (3, 3) px and an image of its size."""
    height, width = image.shape[:2]
    (fx, _, cx), (_, fy, cy) = intrinsics[:2]
    return Camera(fx, fy, cx, cy, width, height)


@dataclass(frozen=True)
class FreiHandSplit:
    """Images and annotations of one split; annotations that the archive does not hold are None.

    intrinsics (N, 3, 3) px; joints (N, 21, 3) m in camera axes; scale (N,) m; mano (N, 61). `copies`: images a frame.
    """

    root: Path
    split: Split
    copies: int
    intrinsics: Array
    joints: Array | None
    scale: Array | None
    mano: Array | None

    @classmethod
    def open(cls, root: Path, split: Split) -> FreiHandSplit:
        """Read a split, published or rendered (whose labels are in `{split}_labels.npz`).

        Raises FileNotFoundError for missing images or intrinsics, ValueError that names what is not whole.
        """
        folder = root / split / "rgb"
        if not folder.is_dir():
            raise FileNotFoundError(f"no {split}/rgb under {root}: it does not look like FreiHAND's layout")
        labels = root / f"{split}_labels.npz"
        if labels.is_file():
            with np.load(labels) as arrays:
                tables = {name: stacked(arrays[name], TABLES[name], f"{labels}: {name}") for name in ("K", "xyz")}
            tables["scale"] = scale_of(tables["xyz"])
            copies = 1  # images beyond the labelled ones are those of a longer rendering that was cut short
        else:
            copies = None
            given = [name for name in ("xyz", "scale", "mano") if table_path(root, split, name).is_file()]
            tables = {name: read_table(root, split, name) for name in ("K", *given)}
        counts = {name: len(table) for name, table in tables.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the tables of {root}/{split} have different lengths: {counts}")
        frames = counts["K"]
        mano = tables.get("mano")
        return cls(
            root,
            split,
            _count_copies(folder, frames, copies),
            tables["K"],
            tables.get("xyz"),
            tables.get("scale"),
            None if mano is None else mano[:, 0],
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.intrinsics) * self.copies

    @cached_property
    def digest(self) -> str:
        """A short name of these hands: what was made of others has another one."""
        tables = [self.intrinsics] if self.joints is None else [self.intrinsics, self.joints]
        return hashlib.sha256(b"".join(table.tobytes() for table in tables)).hexdigest()[:12]

    def path(self, layer: str, index: int) -> Path:
        return self.root / self.split / layer / f"{index:08d}.jpg"

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` (H, W, 3) RGB. Raises ValueError that names a file that cannot be read."""
        return read_image(self.path("rgb", index), cv2.IMREAD_COLOR_RGB)

    def layer(self, layer: str, index: int) -> NDArray[np.uint8] | None:
        """A grey layer (H, W) such as the mask of frame `index`, if there is one."""
        path = self.path(layer, index)
        return read_image(path, cv2.IMREAD_GRAYSCALE) if path.is_file() else None


class CutOffError(ValueError):
    """A picture file lacks its end."""


def read_image(path: Path, mode: int) -> NDArray[np.uint8]:
    """An image file. Raises ValueError that names it if it cannot be read, and CutOffError for a JPEG without its end.

    OpenCV fills what is missing of such a JPEG with grey.
    """
    content = path.read_bytes() if path.is_file() else b""
    if content.startswith(b"\xff\xd8") and not content.rstrip(b"\0\r\n").endswith(b"\xff\xd9"):
        raise CutOffError(f"image {path} is cut off: get it again")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), mode) if content else None
    if image is None:
        raise ValueError(f"cannot read image {path}")
    return np.asarray(image, np.uint8)


def read_table(root: Path, split: Split, name: str) -> Array:
    """The table `{split}_{name}.json`, (N, *row). Raises FileNotFoundError, and ValueError that names what is wrong."""
    path = table_path(root, split, name)
    if not path.is_file():
        note = ""
        if split == "evaluation" and name in ("xyz", "verts"):
            note = ": the labels of the evaluation split come with the archive FreiHAND_pub_v2_eval"
        raise FileNotFoundError(f"missing annotation file {path}{note}")
    table = stacked(read_json(path), TABLES[name], str(path))
    broken = np.flatnonzero(~np.isfinite(table.reshape(len(table), -1)).all(1))
    if len(broken):
        raise ValueError(f"{path}: annotations {broken[:10].tolist()} are not finite")
    return table


def table_path(root: Path, split: Split, name: str) -> Path:
    """Where a table lies."""
    return root / f"{split}_{name}.json"


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises FileNotFoundError, or ValueError for a file that is not whole."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not a whole JSON file (was writing or unpacking it stopped?): {error}") from error


def stacked(rows: Any, row_shape: tuple[int | None, ...], name: str) -> Array:
    """(N, *row) from a list of nested lists, all of `row_shape` (None: any one length).

    Raises ValueError that names the first row that does not fit.
    """
    if not isinstance(rows, list | np.ndarray) or len(rows) == 0:
        raise ValueError(f"{name} must be a list with an entry a frame")
    shape = row_shape
    arrays: list[Array] = []
    for number, row in enumerate(rows):
        try:
            array = np.asarray(row, np.float64)
            found = str(array.shape)
        except (TypeError, ValueError):
            array, found = np.zeros((0,) * 9), "something else"
        if len(array.shape) != len(shape) or any(w not in (None, h) for w, h in zip(shape, array.shape, strict=True)):
            wanted = "(" + ", ".join("any" if length is None else str(length) for length in shape) + ")"
            raise ValueError(f"{name}, frame {number}: must hold numbers of shape {wanted}, got {found}")
        shape = array.shape
        arrays.append(array)
    return np.stack(arrays)


def image_numbers(folder: Path) -> NDArray[np.int64]:
    """The numbers of the images `%08d.jpg` in a folder, sorted."""
    with os.scandir(folder) as entries:
        numbers = [int(entry.name[:8]) for entry in entries if re.fullmatch(r"\d{8}\.jpg", entry.name)]
    return np.sort(np.array(numbers, np.int64))


def gaps(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """What is missing from sorted numbers for them to be 0 to `count` - 1."""
    return np.setdiff1d(np.arange(count), numbers)


def copies_of(numbers: NDArray[np.int64], frames: int) -> int:
    """How many images each of so many frames has, by the highest of sorted numbers; at least 1."""
    return -(-(int(numbers[-1]) + 1) // frames) if len(numbers) and frames else 1


def _count_copies(folder: Path, frames: int, copies: int | None) -> int:
    """How many images each frame has, where that is not known; raises ValueError if any of them is missing."""
    numbers = image_numbers(folder)
    copies = copies or copies_of(numbers, frames)
    missing = gaps(numbers, copies * frames)
    if len(missing):
        names = ", ".join(f"{number:08d}.jpg" for number in missing[:3])
        raise ValueError(
            f"{folder} holds {len(numbers)} images for {frames} annotations: {len(missing)} are missing, such as "
            f"{names}. Unpack the archive again, or ask `handmesh data freihand` what else is not whole"
        )
    return copies
