"""A job's workers as processes of this machine. A worker that dies takes one unit of work with it, and no more."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from handmesh.bulk.parts import Entry
from handmesh.bulk.worker import Crew, Task, Unit, Worker
from handmesh.runtime import usable_cores


@contextmanager
def local_crew(
    task: Task, parts: Path, files: int, workers: int | None = None, threads: int | None = None
) -> Iterator[Crew]:
    """Workers on this machine for so many files, no more than these: together as many threads as this process may use
    cores, one a worker unless said otherwise.

    Running them raises RuntimeError if one cannot even start.
    """
    cores = usable_cores()
    size = min(workers or max(1, cores // (threads or 1)), files)
    each = threads or max(1, cores // size)
    yield Crew(size, lambda units: _run(units, task, parts, size, each))


def _run(units: Sequence[Unit], task: Task, parts: Path, workers: int, threads: int) -> Iterator[list[Entry]]:
    waiting = deque(units)
    crew = [WorkerProcess(task, parts, threads) for _ in range(min(workers, len(units)))]
    try:
        while crew:
            ready = wait([process.connection for process in crew])
            for process in [process for process in crew if process.connection in ready]:
                answer = process.answer()
                if answer is not None:
                    yield answer
                if not process.alive and waiting:
                    crew[crew.index(process)] = WorkerProcess(task, parts, threads)
                elif not process.alive or not waiting:
                    crew.remove(process)
                    process.end()
                else:
                    process.begin(waiting.popleft())
    finally:
        for process in crew:
            process.end()


class WorkerProcess:
    """A worker in a process of its own, which says when it is ready and then answers unit after unit."""

    def __init__(self, task: Task, parts: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks in whatever state
        self.connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, task, parts, threads), daemon=True)
        self._process.start()
        its_end.close()  # so that the connection ends when the process does
        self._started = False
        self.alive = True

    def begin(self, unit: Unit) -> None:
        """Have it work on some files."""
        with suppress(OSError):  # it has just died: its answer will be that
            self.connection.send(unit)

    def answer(self) -> list[Entry] | None:
        """The entries of its unit, none if it died over it; None where it has only become ready.

        Raises what it could not do anything about, and RuntimeError if it cannot even start.
        """
        try:
            answer: Any = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            if not self._started:
                raise RuntimeError(
                    f"a worker process ended before it could begin (exit code {self._process.exitcode}); "
                    "a script that starts jobs must do so below: if __name__ == '__main__'"
                ) from None
            return []
        if isinstance(answer, Exception):
            raise answer
        self._started = True
        return answer

    def end(self) -> None:
        """End it, whatever it is doing: a part that it has not completed is thrown away."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _end_with_the_job() -> None:
    """End this worker when its job is killed, so that the job can go on at once, in another process, without it."""
    job = multiprocessing.parent_process()
    if job is not None:
        job.join()
        os._exit(1)


def _serve(connection: Connection, task: Task, parts: Path, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that an unfinished part is cleared away
    logging.getLogger("handmesh").setLevel(logging.ERROR)  # warnings about files stand in their entries
    threading.Thread(target=_end_with_the_job, daemon=True).start()
    try:
        worker = Worker(task, parts, threads)
        connection.send(None)
        while True:
            connection.send(worker(connection.recv()))
    except (EOFError, BrokenPipeError):
        return  # the job is over
    except Exception as error:
        connection.send(error)
