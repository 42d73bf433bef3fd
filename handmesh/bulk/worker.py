"""One worker of a job: files in, parts out, with frames decoded ahead and one run of the network for many."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from handmesh.bulk.parts import Entry, Part, Table, new_part
from handmesh.bulk.pictures import find_in_pictures
from handmesh.bulk.videos import follow_in_videos
from handmesh.estimator import HandMeshEstimator
from handmesh.records import Camera
from handmesh.runtime import Precision, Runtime

Kind = Literal["image", "video"]

Unit = Sequence[str]
"""Files that one worker works on at a time."""


@dataclass(frozen=True)
class Task:
    """What to do with each file, and with what.

    Attributes:
        kind: "image" finds the hands of single pictures, "video" follows hands through videos.
        weights, detector, hand_model, pose_graph, runtime, precision, device: as `HandMeshEstimator.from_pretrained`
            takes them.
        camera: of all files, resized to each; None for an assumed one.
        table: format of the parts.
        vertices: write the meshes' vertices too.
        max_frames: of a video; None for all.
        max_hands: to follow at most through a video.
        batch: pictures, or videos, that go through the network together.
    """

    kind: Kind
    weights: str = "fast"
    detector: str = "detector"
    hand_model: str | None = None
    pose_graph: str = "hand_model"
    runtime: Runtime = "onnxruntime"
    precision: Precision | None = None
    device: str = "cpu"
    camera: Camera | None = None
    table: Table = "npz"
    vertices: bool = False
    max_frames: int | None = None
    max_hands: int = 2
    batch: int = 8

    def open_estimator(self, threads: int | None = None) -> HandMeshEstimator:
        """The networks, each run with so many threads (None: all). Errors are those of `HandMeshEstimator`."""
        estimator = HandMeshEstimator.from_pretrained(
            self.weights,
            runtime=self.runtime,
            threads=threads,
            precision=self.precision,
            device=self.device,
            detector=self.detector,
            hand_model=self.hand_model,
            pose_graph=self.pose_graph,
        )
        estimator.camera = self.camera
        return estimator


class Worker:
    """Works on files and leaves parts in a folder: one for some pictures, or one for each video."""

    def __init__(self, task: Task, parts: Path, threads: int | None = None) -> None:
        self._task, self._parts = task, parts
        self._estimator = task.open_estimator(threads)

    def __call__(self, files: Unit) -> list[Entry]:
        """What became of each file. One that cannot be read has an error in its entry, and stops no other."""
        task = self._task
        if task.kind == "image":
            with self._new_part("pictures", files) as part:
                find_in_pictures(self._estimator, files, part, task.batch)
            return part.entries
        return follow_in_videos(
            self._estimator,
            files,
            lambda file: self._new_part(Path(file).stem, [file]),
            batch=task.batch,
            max_frames=task.max_frames,
            max_hands=task.max_hands,
        )

    def _new_part(self, name: str, files: Sequence[str]) -> AbstractContextManager[Part]:
        vertex_count = self._estimator.vertex_count if self._task.vertices else None
        return new_part(self._parts, part_name(name, files), self._task.table, vertex_count)


@dataclass(frozen=True)
class Crew:
    """Some workers.

    Attributes:
        size: how many.
        run: gives the entries of each unit when it is done, in any order; none for a unit whose worker has died.
            Raises what a worker could not do anything about, such as a full disk.
    """

    size: int
    run: Callable[[Sequence[Unit]], Iterator[list[Entry]]]


def part_name(name: str, files: Sequence[str]) -> str:
    """A name for the part of some files: readable, and always the same for the same files and no others."""
    readable = re.sub(r"[^\w-]+", "_", name)[:40]
    return f"{readable}-{hashlib.sha256(chr(0).join(files).encode(errors='surrogateescape')).hexdigest()[:12]}"
