"""Whether a copy of FreiHAND is whole: images by number, tables by shape and count, its version, its fit to MANO.

What looks like the published archive is held against its counts, another set in its layout against itself.
Nothing is downloaded: the data set and MANO are behind their own licences.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.datasets.freihand import check_joints, mano_parameters
from handmesh.datasets.freihand_files import (
    ANNOTATIONS,
    COPIES,
    IMAGE_PX,
    TABLES,
    CutOffError,
    Split,
    copies_of,
    gaps,
    image_numbers,
    read_image,
    read_table,
    scale_of,
    table_path,
)

PAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
MANO_TOLERANCE_MM = 1.0
"""Version 2's annotations are MANO's own output; version 1's, made with an older MANO, differ by up to 6 mm."""

_REQUIRED: dict[Split, tuple[str, ...]] = {"training": ("K", "xyz"), "evaluation": ("K",)}
_LABELS = ("xyz", "verts")  # of the evaluation split: an archive of their own
_POSED = 2000  # annotations that are posed to see whether MANO fits them

Watch = Callable[[Iterable[int]], Iterable[int]]
_Read = TypeVar("_Read")


@dataclass
class Findings:
    """What there is, in words, and what is wrong with it."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[], _Read]) -> _Read | None:
        """What `read` gives, or None with its error among the problems."""
        try:
            return read()
        except (FileNotFoundError, ValueError) as error:
            self.problems.append(str(error))
            return None


def check_freihand(
    root: Path, *, thorough: bool = False, mano: HandModelArrays | None = None, watch: Watch = iter
) -> Findings:
    """Look through a copy under `root`. `thorough` opens every image and reads the vertex tables too.

    `mano`: the user's MANO model, which the annotations are posed with. `watch` passes numbers on to show progress.
    Raises FileNotFoundError if there is no such folder or nothing of FreiHAND in it.
    """
    splits = [split for split in get_args(Split) if (root / split).is_dir() or table_path(root, split, "K").is_file()]
    if not splits:
        inside = [path.name for path in sorted(root.glob("FreiHAND_pub_v*")) if path.is_dir()]
        hint = f"; give {root / inside[0]}" if inside else f": download and unpack it from {PAGE} first"
        raise FileNotFoundError(f"{root} holds neither training nor evaluation of FreiHAND{hint}")
    findings = Findings()
    tables = {split: _read_tables(root, split, thorough, findings) for split in splits}
    rendered = [split for split in splits if (root / f"{split}_synthesis.json").is_file()]
    counted = [(split, table) for split in splits if split not in rendered for table in tables[split].values()]
    published = root.resolve().name.startswith("FreiHAND_pub_v") or any(
        len(table) == ANNOTATIONS[split] for split, table in counted
    )
    if rendered:
        findings.facts.append(f"{' and '.join(rendered)} rendered by handmesh")
    if not published:
        findings.facts.append("none of the published counts: a set of its own, checked against itself")
    for split in get_args(Split):
        if split in splits:
            as_published = published and split not in rendered
            frames = _check_tables(root, split, tables[split], as_published, findings)
            _check_images(root, split, frames, as_published, thorough, watch, findings)
        elif published and not rendered:
            findings.problems.append(f"{split}: neither {split}/rgb nor {split}_K.json is there")
        if mano is not None and table_path(root, split, "mano").is_file():
            _check_mano(root, split, mano, findings)
    return findings


def _read_tables(root: Path, split: Split, thorough: bool, findings: Findings) -> dict[str, NDArray[np.float64]]:
    """The tables that are there and can be read."""
    tables: dict[str, NDArray[np.float64]] = {}
    for name in TABLES:
        path = table_path(root, split, name)
        if path.is_file() and path.stat().st_size == 0:
            findings.problems.append(f"{split}: {path.name} is empty")
        elif path.is_file() and (name != "verts" or thorough):
            table = findings.attempt(lambda name=name: read_table(root, split, name))
            if table is not None:
                tables[name] = table
    return tables


def _check_tables(
    root: Path, split: Split, tables: dict[str, NDArray[np.float64]], published: bool, findings: Findings
) -> int:
    """Whether the tables are all there and of one length; returns the number of annotated frames."""
    missing = [name for name in TABLES if not table_path(root, split, name).is_file()]
    required = _REQUIRED[split] + (("mano",) if published and split == "training" else ())
    findings.problems += [f"{split}: {split}_{name}.json is missing" for name in missing if name in required]
    labels = [name for name in missing if name in _LABELS]
    if split == "evaluation" and labels:
        able = "predicting works, scoring needs" if "xyz" in labels else "joints can be scored, meshes need"
        needed = "the archive FreiHAND_pub_v2_eval" if published else "these"
        findings.facts.append(f"evaluation: no {', '.join(labels)}: {able} {needed}")
    lengths = [len(table) for table in tables.values()]  # of K first
    frames = ANNOTATIONS[split] if published else next(iter(lengths), 0)
    for name, table in tables.items():
        if len(table) != frames:
            findings.problems.append(f"{split}: {split}_{name}.json holds {len(table)} annotations instead of {frames}")
    findings.facts.append(f"{split}: {frames} annotations with {', '.join(tables) or 'nothing readable'}")
    _check_values(split, tables, published, findings)
    return frames


def _check_values(split: Split, tables: dict[str, NDArray[np.float64]], published: bool, findings: Findings) -> None:
    """The version, and whether the tables agree with each other."""
    if published and "K" in tables:
        centred = np.abs(tables["K"][:, :2, 2] - IMAGE_PX / 2).max() < 0.5
        if centred:
            findings.facts.append(f"{split}: version 2 (images warped so that the camera looks at their middle)")
        else:
            findings.problems.append(
                f"{split}: this is version 1, whose crops are not centred in the camera and whose annotations belong "
                f"to a MANO model that is no longer offered: get FreiHAND_pub_v2 from {PAGE}"
            )
    if "xyz" not in tables:
        return
    findings.attempt(lambda: check_joints(tables["xyz"], split))
    if "scale" in tables and len(tables["scale"]) == len(tables["xyz"]):
        apart = float(np.median(np.abs(scale_of(tables["xyz"]) - tables["scale"]))) * 1e3
        findings.facts.append(f"{split}: scale is the middle finger's proximal phalanx to {apart:.2f} mm (median)")


def _check_images(
    root: Path, split: Split, frames: int, published: bool, thorough: bool, watch: Watch, findings: Findings
) -> None:
    for layer in ("rgb", "mask") if split == "training" else ("rgb",):
        folder = root / split / layer
        if not folder.is_dir():
            if layer == "rgb" or published:
                findings.problems.append(f"{split}: the folder {split}/{layer} is missing")
            continue
        numbers = image_numbers(folder)
        findings.facts.append(f"{split}: {len(numbers)} images in {layer}")
        copies = COPIES[split] if published else copies_of(numbers, frames)
        count = frames * copies if layer == "rgb" else frames
        missing, extra = gaps(numbers, count), numbers[numbers >= count]
        if len(missing):
            findings.problems.append(
                f"{split}/{layer}: {len(missing)} of {count} images are missing, the first is {missing[0]:08d}.jpg"
            )
        if len(extra):
            whole = f"{'the published ' if published else ''}{count}"
            findings.problems.append(
                f"{split}/{layer}: {len(extra)} images more than {whole}, the first is {extra[0]:08d}.jpg"
            )
        _check_files(folder, numbers, published, thorough, watch, findings)


def _check_files(
    folder: Path, numbers: NDArray[np.int64], published: bool, thorough: bool, watch: Watch, findings: Findings
) -> None:
    """Empty files at once; with `thorough` whatever does not decode, for published ones to the right size."""
    with os.scandir(folder) as entries:
        empty = sorted(entry.name for entry in entries if entry.stat().st_size == 0)
    broken = {name: "is empty" for name in empty}
    for number in watch(numbers.tolist()) if thorough else ():
        path = folder / f"{number:08d}.jpg"
        if path.name in broken:
            continue
        try:
            shape = read_image(path, cv2.IMREAD_UNCHANGED).shape[:2]
        except CutOffError:
            broken[path.name] = "is cut off"
            continue
        except ValueError:
            broken[path.name] = "cannot be decoded"
            continue
        if published and shape != (IMAGE_PX, IMAGE_PX):
            broken[path.name] = f"has {shape[1]} x {shape[0]} pixels instead of {IMAGE_PX} x {IMAGE_PX}"
    where = f"{folder.parent.name}/{folder.name}"
    findings.problems += [f"{where}/{name} {what}" for name, what in list(broken.items())[:20]]
    if len(broken) > 20:
        findings.problems.append(f"{where}: {len(broken) - 20} more broken images")


def _check_mano(root: Path, split: Split, mano: HandModelArrays, findings: Findings) -> None:
    """Pose annotations with the user's MANO and compare the keypoints."""
    import torch

    from handmesh.model.hand_model import HandModel

    rows, joints = (findings.attempt(lambda name=name: read_table(root, split, name)) for name in ("mano", "xyz"))
    if rows is None or joints is None or len(rows) != len(joints):
        return
    picked = np.linspace(0, len(rows) - 1, min(_POSED, len(rows))).astype(int)
    rotations, betas = mano_parameters(rows[picked, 0], mano)
    with torch.no_grad():
        posed = HandModel(mano, torch.float64)(torch.from_numpy(rotations), torch.from_numpy(betas)).keypoints.numpy()
    apart = (posed - posed[:, :1]) - (joints[picked] - joints[picked, :1])
    error_mm = float(np.linalg.norm(apart, axis=-1).mean()) * 1e3
    findings.facts.append(f"{split}: MANO posed with the annotations misses the keypoints by {error_mm:.2f} mm (mean)")
    if error_mm > MANO_TOLERANCE_MM:
        findings.problems.append(
            f"{split}: the annotations and this MANO model do not belong together ({error_mm:.2f} mm): "
            "version 2 needs MANO_RIGHT.pkl of mano_v1_2"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `handmesh data freihand`: 0 if the copy is whole, 1 if not."""
    parser = argparse.ArgumentParser(prog="handmesh data freihand", description="Check a copy of FreiHAND.")
    parser.add_argument("--root", type=Path, required=True, help="the folder with training and evaluation in it")
    parser.add_argument("--thorough", action="store_true", help="open every image and read the vertex tables: minutes")
    parser.add_argument(
        "--hand-model", type=Path, metavar="MANO", help="your MANO_RIGHT.pkl or .npz, to pose the labels"
    )
    options = parser.parse_args(arguments)
    from tqdm import tqdm  # here, as --help needs no more than the core

    try:
        mano = None if options.hand_model is None else load_hand_model(options.hand_model)
        findings = check_freihand(options.root, thorough=options.thorough, mano=mano, watch=tqdm)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    verdict = f"{len(findings.problems)} problems" if findings.problems else "this copy is whole"
    lines = [*findings.facts, *(f"PROBLEM {problem}" for problem in findings.problems), verdict]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
