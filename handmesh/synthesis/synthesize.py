"""Render a synthetic data set in FreiHAND's layout: sharded, resumable, the same whatever the number of processes.

Image ``i`` depends on the seed and ``i`` alone. A shard is finished when its label file exists; an interrupted run
renders only what is missing. ``python -m handmesh.synthesis.synthesize --help`` runs it from the shell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from handmesh.assets import HAND_MODEL
from handmesh.runtime import usable_cores
from handmesh.synthesis.tables import write_arrays, write_json, write_tables

if TYPE_CHECKING:
    from handmesh.model.hand_model import HandModel
    from handmesh.synthesis.scene import Photo, PosedHand, Studio

SHARD = 512
IMAGES_PER_SKIN = 8
MAX_SKINS = 360
JPEG_QUALITY = 92
BETA_LIMIT = 2.0
UNSEEN_BETAS = (2.5, 3.5)
SECOND_HAND = 0.1  # share of the images that show the person's other hand too

Split = Literal["training", "evaluation"]
SEEDS: dict[Split, int] = {"training": 1, "evaluation": 90001}  # splits of one seed would show the same hands
Progress = Callable[[int, int], object]
Array = np.ndarray

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every process needs to know. count: images in all; skins: size of the pool of people."""

    root: Path
    count: int
    seed: int
    split: Split
    skins: int
    backgrounds: tuple[Path, ...]
    environments: tuple[Path, ...]
    shard_size: int = SHARD
    unseen_shapes: bool = False
    second_hand: float = SECOND_HAND

    def __post_init__(self) -> None:
        if self.count < 1 or self.skins < 1:
            raise ValueError(f"count and skins must be positive, got {self.count} and {self.skins}")
        if self.seed < 0:
            raise ValueError(f"a seed must not be negative, got {self.seed}")
        if not 0 <= self.second_hand <= 1:
            raise ValueError(f"second_hand is a share, from 0 to 1, got {self.second_hand}")
        if self.split not in SEEDS:
            raise ValueError(f"split must be training or evaluation, got {self.split}")

    @property
    def folder(self) -> Path:
        return self.root / self.split

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def images(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def labels(self, shard: int) -> Path:
        """The last shard of a smaller count is not a finished shard of a larger one: the length is in the name."""
        return self.folder / "shards" / f"{shard:05d}_{len(self.images(shard))}.npz"

    def skin(self, index: int) -> Path:
        return self.folder / "skins" / f"{index:04d}.npz"

    def rng(self, purpose: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, index])


_POSES, _SKIN, _IMAGE, _SKIN_CHOICE = range(4)


def synthesize(
    root: Path | str,
    count: int,
    seed: int,
    *,
    split: Split = "training",
    workers: int | None = None,
    backgrounds: Sequence[Path | str] = (),
    environments: Sequence[Path | str] = (),
    skins: int | None = None,
    shard_size: int = SHARD,
    write_vertices: bool | None = None,
    unseen_shapes: bool = False,
    second_hand: float = SECOND_HAND,
    progress: Progress | None = None,
) -> float:
    """Render ``count`` images under ``root/split``; returns images per second of this run (0 if all was there).

    backgrounds: directories of photos (searched recursively); without any, drawn backgrounds are used. The training
    split leaves out those that `handmesh train` keeps to measure on (`handmesh.image_folders.is_held_out`).
    environments: directories of .hdr environment maps. workers: processes, by default one per core.
    skins: how many people, by default as many as a set that is there in part has, else one for 8 images, up to 360.
    shard_size: images that are rendered, and after an interruption repeated, together.
    write_vertices: also write ``{split}_verts.json`` (by default for the evaluation split only: it is large).
    unseen_shapes: give every hand a shape outside of what sets have otherwise, to test on.
    second_hand: share of the images with the person's other hand (its keypoints are `second` in the labels).
    progress(done, total) is called after every shard. Raises ValueError if ``root`` holds another run (other seed
    or sources), or its other split has the same seed, or an environment map cannot be read, FileNotFoundError for a
    directory that is missing or has no photo.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    maps = sorted(p for d in environments for p in _existing(d).rglob("*.hdr"))
    photos = tuple(_existing(d).resolve() for d in backgrounds)
    pool = _skins_of(Path(root), split, count) if skins is None else skins
    job = Job(Path(root), count, seed, split, pool, photos, tuple(maps), shard_size, unseen_shapes, second_hand)
    _prepare(job)
    _log.info("rendering %d images into %s", count, job.folder)
    missing = [s for s in range(job.shards) if not job.labels(s).exists()]
    done = count - sum(len(job.images(s)) for s in missing)
    fresh, start = 0, time.perf_counter()
    with _processes(job, workers) as run:
        for _ in run(_make_skin, [i for i in range(job.skins) if not job.skin(i).exists()]):
            pass
        start = time.perf_counter()
        for shard in run(_render_shard, missing):
            fresh += len(job.images(shard))
            if progress is not None:
                progress(done + fresh, count)
    rate = fresh / (time.perf_counter() - start) if fresh else 0.0
    shards = [job.labels(shard) for shard in range(job.shards)]
    write_tables(job.root, split, shards, split == "evaluation" if write_vertices is None else write_vertices)
    _log.info("%d images, %.1f images/s", fresh, rate)
    return rate


def _existing(directory: Path | str) -> Path:
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory")
    return path


def _record_path(root: Path, split: Split) -> Path:
    return root / f"{split}_synthesis.json"


def _skins_of(root: Path, split: Split, count: int) -> int:
    """How many people a set has that is there in part, or will have."""
    path = _record_path(root, split)
    return json.loads(path.read_text())["skins"] if path.exists() else min(MAX_SKINS, -(-count // IMAGES_PER_SKIN))


def _prepare(job: Job) -> None:
    for split in SEEDS:
        other = _record_path(job.root, split)
        if split != job.split and other.exists() and json.loads(other.read_text())["seed"] == job.seed:
            raise ValueError(
                f"the {split} split of {job.root} has the seed {job.seed}, too: {job.split} would show its "
                "hands; choose another seed"
            )
    path = _record_path(job.root, job.split)
    if not path.exists() and (any(job.root.glob(f"{job.split}_*.json")) or any((job.folder / "rgb").glob("*.jpg"))):
        raise ValueError(f"{job.root} holds a {job.split} split that was not rendered here: choose another root")
    for name in ("rgb", "mask", "alpha", "shards", "skins"):
        (job.folder / name).mkdir(parents=True, exist_ok=True)
    record = {
        "seed": job.seed,
        "skins": job.skins,
        "backgrounds": [p.name for p in job.backgrounds],
        "environments": [p.name for p in job.environments],
        "shard_size": job.shard_size,
        "hand_model_sha256": hashlib.sha256(HAND_MODEL.read_bytes()).hexdigest(),
    }
    if job.unseen_shapes:
        record["unseen_shapes"] = True
    if job.second_hand != SECOND_HAND:
        record["second_hand"] = job.second_hand
    before = json.loads(path.read_text()) if path.exists() else record
    others = [key for key in before | record if before.get(key) != record.get(key)]
    if others:
        there, asked = ({key: one.get(key) for key in others} for one in (before, record))
        raise ValueError(f"{path} belongs to another run, of {there}, not {asked}: choose another root or delete it")
    write_json(path, record)


@contextmanager
def _processes(job: Job, workers: int | None) -> Iterator[Callable[[Callable[[int], int], list[int]], Iterator[int]]]:
    """Yields run(function, indices), an unordered map over single-threaded worker processes."""
    count = workers or usable_cores()
    if count == 1:
        _start_worker(job)
        yield lambda function, indices: (function(i) for i in indices)
        return
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))  # read by the children's libraries while they load
    try:
        with multiprocessing.get_context("spawn").Pool(count, _start_worker, (job,)) as pool:
            yield pool.imap_unordered
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class _Worker:
    job: Job
    studio: Studio
    model: HandModel
    bank: Array | None


_worker: _Worker | Exception | None = None


def _start_worker(job: Job) -> None:
    """Set this process up. An error waits for the first task: a pool starts processes that fail at once for ever."""
    global _worker
    try:
        _worker = _open_worker(job)
    except Exception as error:
        _worker = error


def _started() -> _Worker:
    """This process's worker. Raises what went wrong when it was set up."""
    if isinstance(_worker, Exception):
        raise _worker
    assert _worker is not None
    return _worker


def _open_worker(job: Job) -> _Worker:
    import cv2
    import torch

    from handmesh.assets import load_hand_model
    from handmesh.model.hand_model import HandModel
    from handmesh.synthesis.backgrounds import load_photos
    from handmesh.synthesis.lighting import Environment
    from handmesh.synthesis.pose_bank import load_pose_bank
    from handmesh.synthesis.scene import Studio

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    arrays = load_hand_model()
    photos = load_photos(job.backgrounds, also_held_out=job.split == "evaluation")
    environments = [Environment.read(p) for p in job.environments]
    studio = Studio(arrays, photos, environments, second_hand=job.second_hand)
    return _Worker(job, studio, HandModel(arrays), load_pose_bank())


def _make_skin(index: int) -> int:
    from handmesh.synthesis.skin import paint_skin

    worker = _started()
    job = worker.job
    skin = paint_skin(worker.studio.texels, job.rng(_SKIN, index))
    values = {"texture": skin.texture, "tone": np.float32(skin.tone), "gloved": np.bool_(skin.gloved)}
    write_arrays(job.skin(index), values)
    return index


def _render_shard(shard: int) -> int:
    from handmesh.synthesis.skin import Skin

    worker = _started()
    job, studio = worker.job, worker.studio
    hands, rotations, betas = _pose_shard(worker, shard)
    rows: dict[str, list] = {}
    tone = 0.0
    gloved = False
    for place, index in enumerate(job.images(shard)):
        if place % IMAGES_PER_SKIN == 0:
            person = int(job.rng(_SKIN_CHOICE, index // IMAGES_PER_SKIN).integers(job.skins))
            with np.load(job.skin(person)) as file:
                tone, gloved = float(file["tone"]), bool(file["gloved"])
                studio.wear(Skin(file["texture"], tone, gloved))
        hand = hands[place]
        photo = studio.photograph(hand, job.rng(_IMAGE, index), hands[place - 1])
        _write_images(job, index, photo)
        values = {
            "K": photo.intrinsics.astype(np.float32),
            "xyz": (hand.keypoints + photo.translation).astype(np.float32),
            "rotations": rotations[place],
            "betas": betas[place],
            "translation": photo.translation.astype(np.float32),
            "side": "right",
            "skin_tone": np.float32(tone),
            "gloved": gloved,
            "view": _view(studio.anatomy.frame @ hand.orientation.T, photo.translation),
            "pose_class": hand.pose_class,
            "held": photo.held,
            "occluded": photo.occluded,
            "second": photo.second,
            "seed": np.int64(job.seed),
            "presence": np.float32(1.0),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    arrays = {name: np.array(column) for name, column in rows.items()}
    write_arrays(job.labels(shard), arrays)
    return shard


def _pose_shard(worker: _Worker, shard: int) -> tuple[list[PosedHand], Array, Array]:
    """Poses of a whole shard (also when only its first images are wanted), so that counts do not change images."""
    import torch

    from handmesh.synthesis.poses import sample_orientations, sample_poses
    from handmesh.synthesis.scene import PosedHand

    rng = worker.job.rng(_POSES, shard)
    anatomy = worker.studio.anatomy
    count = worker.job.shard_size
    poses = sample_poses(anatomy, count, rng, bank=worker.bank)
    rotations = poses.rotations.copy()
    rotations[:, 0] = sample_orientations(anatomy, count, rng)
    betas = np.clip(rng.normal(size=(count, 10)), -BETA_LIMIT, BETA_LIMIT).astype(np.float32)
    if worker.job.unseen_shapes:
        _leave_known_shapes(betas, rng)
    with torch.no_grad():
        mesh = worker.model(torch.from_numpy(rotations), torch.from_numpy(betas))
        wrist = mesh.keypoints[:, :1]
        vertices, keypoints = (mesh.vertices - wrist).numpy(), (mesh.keypoints - wrist).numpy()
    hands = [PosedHand(vertices[i], keypoints[i], rotations[i, 0], str(poses.names[i])) for i in range(count)]
    return hands, rotations, betas


def _leave_known_shapes(betas: Array, rng: np.random.Generator) -> None:
    """Move one of the first three coefficients of every hand (N, 10) beyond BETA_LIMIT, in place."""
    rows, chosen = np.arange(len(betas)), rng.integers(3, size=len(betas))
    betas[rows, chosen] = rng.choice([-1, 1], len(betas)) * rng.uniform(*UNSEEN_BETAS, len(betas))


def _view(frame: Array, translation: Array) -> str:
    """What the camera mostly sees: palm, back, side, or the hand end-on. frame rows: canonical axes."""
    towards = -translation / np.linalg.norm(translation)
    if abs(frame[1] @ towards) > 0.8:
        return "end"
    facing = float(frame[2] @ towards)
    return "palm" if facing > 0.5 else "back" if facing < -0.5 else "side"


def _write_images(job: Job, index: int, photo: Photo) -> None:
    import cv2

    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    images = {"rgb": np.ascontiguousarray(photo.rgb[..., ::-1]), "mask": photo.mask, "alpha": photo.alpha}
    for name, image in images.items():
        path = job.folder / name / f"{index:08d}.jpg"
        if not cv2.imwrite(str(path), image, quality):
            raise OSError(f"could not write {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module; `handmesh data synthesize` offers the same."""
    parser = argparse.ArgumentParser(
        prog="handmesh data synthesize",
        description="Render synthetic hands in FreiHAND's layout. What is there already is kept.",
    )
    parser.add_argument("root", type=Path, help="directory that receives training/ or evaluation/ and the labels")
    parser.add_argument("--count", type=int, default=60_000, help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="(default: 1, and 90001 for the evaluation split)")
    parser.add_argument("--split", choices=("training", "evaluation"), default="training", help="default: training")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--backgrounds", type=Path, nargs="*", default=[], help="directories of photos without hands")
    parser.add_argument("--environments", type=Path, nargs="*", default=[], help="directories of .hdr maps")
    parser.add_argument("--skins", type=int, help="different people (default: one for 8 images, up to 360)")
    parser.add_argument(
        "--second-hand", type=float, default=SECOND_HAND, help="share with the other hand (default: %(default)s)"
    )
    parser.add_argument("--write-vertices", action="store_true", default=None, help="verts.json for training, too")
    parser.add_argument("--unseen-shapes", action="store_true", help="hands shaped as in no other set, to test on")
    options = vars(parser.parse_args(arguments))
    from tqdm import tqdm  # here, as --help needs no more than the core

    seed = options.pop("seed")
    seed = SEEDS[options["split"]] if seed is None else seed
    with tqdm(total=options["count"], unit="image", smoothing=0.05) as bar:
        synthesize(
            options.pop("root"),
            options.pop("count"),
            seed,
            progress=lambda done, _: bar.update(done - bar.n),
            **options,
        )


if __name__ == "__main__":
    main()
