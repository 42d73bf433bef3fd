"""How a hand network bears bad pictures: ImageNet-C's corruptions on hands.

Corruptions (Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019; computed by the package `imagecorruptions-imaug`) are applied to whole images, which are 224 px in FreiHAND's
layout as in ImageNet-C, before the crop is cut. The corrupted crops do not depend on a network: they are made once and
kept in a folder, so that measuring other weights takes about a minute.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.atomic import written_whole
from handmesh.datasets.augment import NO_AUGMENT, ImagePool, make_target
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.freihand_files import FreiHandSplit
from handmesh.datasets.sample import HandSample, Target
from handmesh.evaluation.metrics import keypoint_error, pa_error_mm
from handmesh.runtime import Graph, usable_cores

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER = ("snow", "frost", "fog", "brightness")
DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
KINDS = (*NOISE, *BLUR, *WEATHER, *DIGITAL)
SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"
_SEEDED = ("impulse_noise", "glass_blur")  # have generators of their own in the package

Progress = Callable[[int, int], object]


def corrupt(image: NDArray[np.uint8], kind: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """One of KINDS at severity 1 to 5 over an (H, W, 3) uint8 RGB image of at least 32 px a side; depends on `seed`.

    Raises ValueError for another kind or severity, ModuleNotFoundError without the package.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise ValueError(f"no corruption {kind!r} of severity {severity}; kinds are {', '.join(KINDS)}, severities 1-5")
    import imagecorruptions

    with _global_seed(seed):
        own = {"seed": seed} if kind in _SEEDED else {}
        return np.asarray(imagecorruptions.corrupt(image, severity=severity, corruption_name=kind, **own), np.uint8)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """The package draws most kinds from numpy's global generator: seed it, and put it back as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@dataclass(frozen=True)
class TestHands:
    """Hands of an evaluation split and the crop size they are seen at. `rows`: their numbers in the split."""

    __test__ = False  # not for pytest to collect

    root: Path
    size: int
    rows: tuple[int, ...]

    @property
    def conditions(self) -> list[tuple[str, int]]:
        """(kind, severity) of all crop files; (CLEAN, 0) comes first."""
        return [(CLEAN, 0), *((kind, severity) for kind in KINDS for severity in SEVERITIES)]


def spread_rows(root: Path, count: int) -> tuple[int, ...]:
    """`count` evenly spaced rows of the evaluation split, or all if there are fewer."""
    total = len(FreiHandDataset(root, "evaluation"))
    return tuple(int(row) for row in np.linspace(0, total - 1, min(count, total)).astype(int))


def target_of(sample: HandSample, size: int) -> Target:
    """The unaugmented crop of a sample, with its truth."""
    return make_target(sample, size, NO_AUGMENT, ImagePool([]), np.random.default_rng(0))


def make_crops(hands: TestHands, folder: Path, *, workers: int | None = None, progress: Progress | None = None) -> None:
    """Cut the crops of every condition into `folder`, one file a hand; what is there already is kept.

    Raises ValueError if the folder holds crops of other hands.
    """
    digest = FreiHandSplit.open(hands.root, "evaluation").digest
    record = {"set": hands.root.resolve().name, "hands": digest, "size": hands.size, "kinds": list(KINDS)}
    manifest = folder / "crops.json"
    if manifest.is_file() and json.loads(manifest.read_text()) != record:
        raise ValueError(f"{folder} holds crops of {manifest.read_text().strip()}, not {record}: choose another folder")
    with written_whole(manifest) as temporary:
        temporary.write_text(json.dumps(record))
    jobs = [(hands, folder, row) for row in hands.rows if not _crops_file(folder, row).is_file()]
    done = len(hands.rows) - len(jobs)
    if not jobs:
        return
    count = min(workers or usable_cores(), len(jobs))
    if count == 1:
        for job in jobs:
            _corrupt_hand(job)
            done = _report(progress, done, hands)
        return
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        for _ in pool.imap_unordered(_corrupt_hand, jobs):
            done = _report(progress, done, hands)


def _report(progress: Progress | None, done: int, hands: TestHands) -> int:
    if progress is not None:
        progress(done + 1, len(hands.rows))
    return done + 1


def _crops_file(folder: Path, row: int) -> Path:
    return folder / f"{row:08d}.npy"


def _corrupt_hand(job: tuple[TestHands, Path, int]) -> None:
    hands, folder, row = job
    sample = FreiHandDataset(hands.root, "evaluation")[row]
    crops = []
    for number, (kind, severity) in enumerate(hands.conditions):
        image = sample.image if kind == CLEAN else corrupt(sample.image, kind, severity, row * 1000 + number)
        crops.append(target_of(replace(sample, image=image), hands.size).crop)
    with written_whole(_crops_file(folder, row)) as temporary:
        np.save(temporary, np.stack(crops))


@dataclass(frozen=True)
class Truth:
    """What hands are: joints (N, 21, 3) m from the wrist, keypoints (N, 21, 2) in normalised crop coordinates."""

    joints: NDArray[np.float64]
    joints_2d: NDArray[np.float64]


def measure_conditions(graph: Graph, hands: TestHands, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Errors of a network: kind -> measure -> one value a severity (one value for CLEAN).

    `pa_mpjpe_mm` is the mean PA-MPJPE, `2d` the mean keypoint error as a share of the hand's box.
    """
    dataset = FreiHandDataset(hands.root, "evaluation")
    targets = [target_of(dataset[row], hands.size) for row in hands.rows]
    truth = Truth(np.stack([t.joints for t in targets]), np.stack([t.joints_2d for t in targets]))
    crops = np.stack([np.load(_crops_file(folder, row), mmap_mode="r") for row in hands.rows])
    result: dict[str, dict[str, list[float]]] = {}
    for number, (kind, _) in enumerate(hands.conditions):
        joints, joints_2d = run_crops(graph, np.ascontiguousarray(crops[:, number]))
        for name, errors in measure_hands(joints, joints_2d, truth).items():
            result.setdefault(kind, {}).setdefault(name, []).append(float(errors.mean()))
    return result


def run_crops(graph: Graph, crops: NDArray[np.uint8], batch: int = 25) -> tuple[NDArray[Any], NDArray[Any]]:
    """Joints (N, 21, 3) and keypoints (N, 21, 2) of crops (N, S, S, 3)."""
    parts = [graph(crop=crops[start : start + batch]) for start in range(0, len(crops), batch)]
    return (np.concatenate([part["joints"] for part in parts]), np.concatenate([part["joints_2d"] for part in parts]))


def measure_hands(joints: NDArray[Any], joints_2d: NDArray[Any], truth: Truth) -> dict[str, NDArray[np.floating]]:
    """Per hand: `pa_mpjpe_mm` (N,) and `2d` (N,)."""
    return {
        "pa_mpjpe_mm": pa_error_mm(joints, truth.joints),
        "2d": keypoint_error(joints_2d, truth.joints_2d).mean(-1),
    }


def corruption_errors(
    errors: dict[str, dict[str, list[float]]], reference: dict[str, dict[str, list[float]]], measure: str
) -> dict[str, float]:
    """ImageNet-C's scores: kind -> the error's sum over severities as a share of a reference network's.

    `mce` is the mean over kinds; `relative_mce` the same of what each network loses against its own clean error.
    """
    shares, losses = {}, []
    own, other = errors[CLEAN][measure][0], reference[CLEAN][measure][0]
    for kind in KINDS:
        theirs, ours = np.array(reference[kind][measure]), np.array(errors[kind][measure])
        shares[kind] = float(ours.sum() / theirs.sum())
        lost = float((theirs - other).sum())
        losses.append(float((ours - own).sum()) / lost if lost else math.nan)
    return {**shares, "mce": float(np.mean(list(shares.values()))), "relative_mce": float(np.mean(losses))}
