"""A job: the hands of many files into a folder, by workers on this machine or on a Ray cluster.

The folder holds ``job.json``, what the job does; ``parts``, the results (see `handmesh.bulk.parts`); ``index.jsonl``, a
line for each file; and with vertices ``faces.npz``, the triangles of right and left hands. A job that was stopped goes
on when it is started again: files that have been read, and have not changed since, are left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from handmesh.assets import load_hand_model, save_npz, weights_path
from handmesh.atomic import written_whole
from handmesh.bulk.parquet import check_parquet
from handmesh.bulk.parts import Entry, clear_unfinished, drop_files, file_state, new_part, parts_in, read_entries
from handmesh.bulk.processes import local_crew
from handmesh.bulk.ray_cluster import import_ray, ray_crew
from handmesh.bulk.worker import Crew, Task, part_name
from handmesh.estimator import HandMeshEstimator

_log = logging.getLogger(__name__)

Engine = Literal["local", "ray"]

FORMAT_VERSION = 1
INDEX = "index.jsonl"
PICTURES_A_UNIT = 64
"""Pictures that a worker gets at a time and that share a part, where there are enough for all workers."""

UNITS_A_WORKER = 4
"""Into how many units, at least, a worker's share of pictures is cut: so all workers end at about the same time, and a
stopped job has little to do again."""


@dataclass(frozen=True)
class JobReport:
    """How a job went.

    Attributes:
        files: that were asked for.
        found_done: of these, read by an earlier run.
        failed: of these, could not be read, or not to their end.
        noted: of these, read but with something to be said about them.
        frames, frames_with_hand, hands: of this run.
        elapsed_s: seconds of this run, the workers' start too.
    """

    files: int
    found_done: int
    failed: list[Entry]
    noted: list[Entry]
    frames: int
    frames_with_hand: int
    hands: int
    elapsed_s: float


def run_job(
    files: Sequence[str | os.PathLike[str]],
    task: Task,
    folder: Path,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> JobReport:
    """Find the hands of files and leave them in a folder; goes on where an earlier run was stopped.

    Args:
        files: pictures or videos, as `inputs` finds them.
        task: what to do with each.
        folder: of the results.
        engine: where the workers run.
        workers, threads: how many, and threads of each (as many workers as the cores hold, of one thread each).
        address: of the Ray cluster.
        on_progress: is told how many of how many files are done.

    Files that cannot be read do not stop the job: their entries in the index say why, and the next run tries them
    again. Raises ValueError if the folder holds the results of another task or another job is at work there, and for
    bad weights and missing packages what `Task.open_estimator`, `check_parquet`, `import_ray` and `ray_crew` raise.
    """
    started_s = time.perf_counter()
    wanted = dict.fromkeys(os.path.abspath(file) for file in files)
    if task.table == "parquet":
        check_parquet()
    if engine == "ray":
        import_ray()
    estimator = task.open_estimator(threads=1)  # what is wrong with the task is told here, not by each worker
    vertex_count = estimator.vertex_count
    with _alone_in(folder):
        _claim_folder(folder, task, _describe(task, estimator))
        parts = folder / "parts"
        entries = _known_entries(parts, wanted)
        waiting = [file for file in wanted if file not in entries]
        found_done = len(wanted) - len(waiting)
        new: dict[str, Entry] = {}
        try:
            if waiting:
                with _crew(engine, task, parts, len(waiting), workers, threads, address) as crew:
                    for done in _work(crew, waiting, task):
                        new.update({entry.path: entry for entry in done})
                        if on_progress is not None:
                            on_progress(found_done + len(new), len(wanted))
            lost = [file for file in waiting if file not in new]
            if lost:
                new.update({entry.path: entry for entry in _give_up(lost, task, parts, vertex_count)})
            clear_unfinished(parts)
        finally:
            _write_index(folder, [*entries.values(), *new.values()])
    now = [entry for entry in (entries | new).values() if entry.path in wanted]
    return JobReport(
        files=len(wanted),
        found_done=found_done,
        failed=[entry for entry in now if entry.error is not None],
        noted=[entry for entry in now if entry.error is None and entry.note is not None],
        frames=sum(entry.frames for entry in new.values()),
        frames_with_hand=sum(entry.frames_with_hand for entry in new.values()),
        hands=sum(entry.hands for entry in new.values()),
        elapsed_s=time.perf_counter() - started_s,
    )


def read_index(folder: str | os.PathLike[str]) -> list[Entry]:
    """What became of each file of a job, by name. Raises FileNotFoundError where no job has been run."""
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: no job has been run there")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")  # names may hold other line ends
    return [Entry(**json.loads(line)) for line in lines if line]


def _crew(
    engine: Engine,
    task: Task,
    parts: Path,
    files: int,
    workers: int | None,
    threads: int | None,
    address: str | None,
) -> AbstractContextManager[Crew]:
    if engine == "ray":
        return ray_crew(task, parts.absolute(), workers, threads, address)
    return local_crew(task, parts, files, workers, threads)


def _work(crew: Crew, files: Sequence[str], task: Task) -> Iterator[list[Entry]]:
    """Have files worked on; those whose workers died once more, each alone, to find out whose fault it was."""
    left = dict.fromkeys(files)
    share = len(files) / crew.size
    first = min(PICTURES_A_UNIT, share / UNITS_A_WORKER) if task.kind == "image" else min(task.batch, share)
    for size in (math.ceil(first), 1):
        for entries in crew.run(_units(list(left), size, task)):
            for entry in entries:
                del left[entry.path]
            yield entries
        if not left:
            return


def _units(files: Sequence[str], size: int, task: Task) -> list[Sequence[str]]:
    """Files in units of a size: pictures in their order, videos so that all units take about as long."""
    if task.kind == "image":
        return [files[start : start + size] for start in range(0, len(files), size)]
    by_size = sorted(files, key=file_state, reverse=True)
    count = math.ceil(len(files) / size)
    return [by_size[first::count] for first in range(count)]


def _give_up(files: Sequence[str], task: Task, parts: Path, vertex_count: int) -> list[Entry]:
    """Entries for files whose workers have died."""
    died = OSError("the worker that read it died: its decoder crashed, or there was too little memory")
    with new_part(parts, part_name("lost", files), task.table, vertex_count if task.vertices else None) as part:
        return [part.end_file(file, file_state(file), died) for file in files]


def _known_entries(parts: Path, wanted: Collection[str]) -> dict[str, Entry]:
    """The entries of earlier runs by file.

    Wanted files that have failed or changed are taken out of their parts, and so is what a worker had written before
    it died and another wrote again.
    """
    known: dict[str, Entry] = {}
    for path in parts_in(parts):
        path.open("rb").close()  # a part that cannot be opened need not be damaged: raises OSError
        try:
            entries = read_entries(path)
            again = {entry.path for entry in entries if entry.path in wanted and not entry.is_current}
            again |= {entry.path for entry in entries if entry.path in known}
            if again:
                drop_files(path, again)
        except ValueError as error:
            path.replace(path.with_name(f"{path.name}.damaged"))
            _log.warning("%s; it is set aside as %s.damaged", error, path.name)
            continue
        known.update({entry.path: entry for entry in entries if entry.path not in again})
    return known


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other jobs out of a folder; a job that is killed lets them in. Raises ValueError if one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another job is at work in {folder}: wait for it, or choose another folder") from None
    except NotImplementedError:
        _log.warning("%s is on a file system without locks: let no other job write there meanwhile", folder)
    try:
        yield
    finally:
        lock.release()


def _claim_folder(folder: Path, task: Task, about: dict[str, Any]) -> None:
    """Write down what is done in a folder. Raises ValueError if it already holds something else."""
    path = folder / "job.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete {folder} to begin anew") from error
        differences = [
            f"{key} {found.get(key)!r}, not {value!r}" for key, value in about.items() if found.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{folder} holds the results of another job ({'; '.join(differences)}): choose another folder, or "
                "delete it to begin anew"
            )
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    if task.vertices:
        right = load_hand_model(task.hand_model).faces
        save_npz(folder / "faces.npz", {"right": right, "left": right[:, ::-1]})
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _describe(task: Task, estimator: HandMeshEstimator) -> dict[str, Any]:
    """What makes a difference to the results, as JSON has it."""
    networks = {
        "weights": estimator.network.path,
        "detector": weights_path(task.detector),
        "pose_graph": weights_path(task.pose_graph),
    }
    camera = None if task.camera is None else asdict(task.camera) | {"distortion": list(task.camera.distortion)}
    return {
        "format": "handmesh-job",
        "version": FORMAT_VERSION,
        "kind": task.kind,
        "table": task.table,
        "vertices": task.vertices,
        "max_frames": task.max_frames,
        "max_hands": task.max_hands,
        "runtime": task.runtime,
        "precision": task.precision,
        "device": task.device,
        "camera": camera,
        **{f"{name}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in networks.items()},
    }


def _write_index(folder: Path, entries: Iterable[Entry]) -> None:
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in sorted(entries, key=lambda entry: entry.path)]
    with written_whole(folder / INDEX) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
