"""Folders of pictures without labels: backgrounds, occluders, hand-free pictures."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HELD_OUT_PERCENT = 15  # of the hand-free pictures
VIEWS_PER_PANORAMA = 8  # `hdri_crops` shows each panorama this often, in sequence

_log = logging.getLogger(__name__)


def image_files(folder: Path | str) -> list[Path]:
    """All image files below a folder, sorted. Raises FileNotFoundError where it is missing or holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"there is no image ({', '.join(IMAGE_SUFFIXES)}) below {folder}")
    return files


def is_held_out(path: Path) -> bool:
    """Whether a hand-free picture is kept out of training: fixed by its name and folder, by panorama for its views."""
    folder, group = path.parent.name, path.stem
    if folder == "hdri_crops" and group.isdigit():
        group = str(int(group) // VIEWS_PER_PANORAMA)
    return zlib.crc32(f"{folder}/{group}".encode()) % 100 < HELD_OUT_PERCENT


def load_images(
    folders: Sequence[Path | str], longest_px: int, *, smallest_px: int = 0, also_held_out: bool = True
) -> list[np.ndarray]:
    """All images below some folders, in the order of their paths, uint8 RGB shrunk to `longest_px`.

    Those that cannot be read are left out with a warning, those whose shorter side is below `smallest_px` without one,
    and so are those that `is_held_out`, unless `also_held_out`.
    Raises FileNotFoundError for a folder that is missing or holds no image file, ValueError for one of which none is
    left.
    """
    import cv2  # here, as `handmesh data synthesize --help` needs none

    images: list[np.ndarray] = []
    for folder in folders:
        before = len(images)
        unreadable: list[Path] = []
        for path in image_files(folder):
            if is_held_out(path) and not also_held_out:
                continue
            image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            if image is None:
                unreadable.append(path)
            elif min(image.shape[:2]) >= smallest_px:
                shrink = longest_px / max(image.shape[:2])
                if shrink < 1:
                    image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
                images.append(image)
        if unreadable:
            _log.warning("%d images below %s cannot be read, such as %s", len(unreadable), folder, unreadable[0])
        if len(images) == before:
            wanted = f"can be read and has sides of {smallest_px} px or more"
            kept = "" if also_held_out else f"; about {HELD_OUT_PERCENT} % are kept out of training, by name"
            raise ValueError(f"no image below {folder} {wanted}{kept}")
    return images
