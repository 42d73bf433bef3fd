"""A job's workers as actors of a Ray cluster, fed by Ray Data. All machines must see the same files and folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from handmesh.bulk.parts import Entry, describe_error
from handmesh.bulk.processes import WorkerProcess
from handmesh.bulk.worker import Crew, Task, Unit

MAX_BLOCKS = 4096
"""Into how many pieces Ray cuts the list of units at the most."""


@contextmanager
def ray_crew(
    task: Task, parts: Path, workers: int | None = None, threads: int | None = None, address: str | None = None
) -> Iterator[Crew]:
    """Workers on a Ray cluster, one a processor and with one thread each unless said otherwise.

    Connects to the cluster at ``address``; without one, to that of the variable RAY_ADDRESS or the one that runs on
    this machine, or else starts one here. A caller's own connection is used and left open.

    Raises ModuleNotFoundError without the scale extra and ConnectionError if there is no cluster at that address.
    """
    ray = import_ray()
    each = threads or 1
    connected = ray.is_initialized()
    if not connected:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells every step
    try:
        size = workers or max(1, int(ray.cluster_resources().get("CPU", 0)) // each)
        yield Crew(size, lambda units: _run(units, task, parts, size, each))
    finally:
        if not connected:
            ray.shutdown()


def _run(units: Sequence[Unit], task: Task, parts: Path, workers: int, threads: int) -> Iterator[list[Entry]]:
    from ray import data

    context = data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    rows = [{"files": list(unit)} for unit in units]
    with data.DataContext.current(context):
        done = data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map(
            cast(Any, _Actor),
            fn_constructor_args=(task, parts, threads),
            compute=data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=threads,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise OSError(row["error"])
            yield [Entry(**entry) for entry in json.loads(row["entries"])]


class _Actor:
    """A worker as Ray Data wants it: rows in, rows out.

    It works in a process of its own, because Ray would give the files that one actor dies over to the next, for ever.
    """

    def __init__(self, task: Task, parts: Path, threads: int) -> None:
        self._start = lambda: WorkerProcess(task, parts, threads)
        self._process: WorkerProcess | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        try:
            entries = self._work([str(file) for file in row["files"]])
        except Exception as error:  # nothing that another actor could do better
            return {"entries": "[]", "error": describe_error(error)}
        return {"entries": json.dumps([asdict(entry) for entry in entries]), "error": ""}

    def _work(self, unit: Unit) -> list[Entry]:
        if self._process is None or not self._process.alive:
            self._process = self._start()
            self._process.answer()
        self._process.begin(unit)
        return self._process.answer() or []


def import_ray() -> Any:
    """The package, or ModuleNotFoundError that says what to install."""
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the engine ray needs the scale extra: pip install 'handmesh[scale]' ({error.name} is missing)",
            name=error.name,
        ) from error
    return ray
