"""Times taken fairly: several contenders in turns, the first turn thrown away, medians and percentiles of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.runtime import Arrays, Graph

Runs = Callable[[int], list[float]]
"""Run something so many times and say how many milliseconds each run took."""


def repeated(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Runs:
    """A contender that calls a function of this process.

    `time.process_time` as the clock counts work instead of time: for what runs on one thread of a busy machine.
    """

    def runs(count: int) -> list[float]:
        times = []
        for _ in range(count):
            before = clock()
            run()
            times.append(1e3 * (clock() - before))
        return times

    return runs


class ClockOutside:
    """Seconds, as `time.perf_counter` counts them, that pass while a graph does not run: `graph` is the one to use."""

    def __init__(self, graph: Graph) -> None:
        self._run, self._inside_s = graph.run, 0.0
        self.graph = replace(graph, run=self._timed)

    def __call__(self) -> float:
        return time.perf_counter() - self._inside_s

    def _timed(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        outputs = self._run(inputs)
        self._inside_s += time.perf_counter() - start
        return outputs


def in_turns(contenders: Mapping[str, Runs], *, turns: int, runs: int) -> dict[str, list[float]]:
    """Milliseconds of every contender: in each turn all run one after another, `runs` times each.

    The first turn warms up and does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, contender in contenders.items():
            taken = contender(runs)
            if turn > 0:
                times[name] += taken
    return times


def summary(times_ms: list[float]) -> dict[str, Any]:
    """Median, percentiles and count of milliseconds."""
    p10, median, p90, p99 = np.percentile(times_ms, [10, 50, 90, 99]).tolist()
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "p99_ms": p99, "runs": len(times_ms)}
