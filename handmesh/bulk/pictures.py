"""The hands of many picture files: decoded ahead by threads, and many at a time through the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from handmesh.bulk.parts import FileState, Part, file_state
from handmesh.estimator import HandMeshEstimator
from handmesh.records import HandMesh
from handmesh.video import Frame, read_picture

READERS = 2
"""Threads that decode."""

DECODED_AHEAD = 4
"""Pictures that wait in memory for the network."""

MAX_BATCH_PIXELS = 24_000_000
"""Pictures of more pixels together (72 MB) do not wait for each other."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """A file as it was when it was read, and its frame or what is wrong with it."""

    file: str
    state: FileState
    frame: Frame | Exception


def find_in_pictures(estimator: HandMeshEstimator, files: Sequence[str], part: Part, batch: int) -> None:
    """Add the hands of picture files, and their entries, to a part; ``batch`` pictures share a run of the network."""
    with ThreadPoolExecutor(READERS) as readers:
        for group in _batches(_read_ahead(files, readers), batch):
            for picture, hands in zip(group, _find_hands(estimator, group), strict=True):
                if isinstance(hands, Exception):
                    part.end_file(picture.file, picture.state, hands)
                else:
                    part.append(picture.file, 0, 0.0, hands)
                    part.end_file(picture.file, picture.state)


def _read_ahead(files: Iterable[str], readers: ThreadPoolExecutor) -> Iterator[_Picture]:
    coming: deque[Future[_Picture]] = deque()
    for file in files:
        coming.append(readers.submit(_read, file))
        if len(coming) > DECODED_AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _read(file: str) -> _Picture:
    state = file_state(file)
    try:
        return _Picture(file, state, read_picture(file))
    except Exception as error:  # whatever a decoder says: it is told by the file's name, and others go on
        return _Picture(file, state, error)


def _batches(pictures: Iterable[_Picture], count: int) -> Iterator[list[_Picture]]:
    group: list[_Picture] = []
    for picture in pictures:
        group.append(picture)
        pixels = sum(p.frame.shape[0] * p.frame.shape[1] for p in group if not isinstance(p.frame, Exception))
        if len(group) >= count or pixels > MAX_BATCH_PIXELS:
            yield group
            group = []
    if group:
        yield group


def _find_hands(estimator: HandMeshEstimator, group: Sequence[_Picture]) -> list[list[HandMesh] | Exception]:
    """The hands of each picture, or what is wrong with it."""
    frames = [picture.frame for picture in group if not isinstance(picture.frame, Exception)]
    found: Iterator[list[HandMesh] | Exception]
    try:
        found = iter(estimator.batch(frames))
    except Exception:  # of one picture, such as of other proportions than the camera: which one is found out alone
        found = (_find_alone(estimator, frame) for frame in frames)
    return [picture.frame if isinstance(picture.frame, Exception) else next(found) for picture in group]


def _find_alone(estimator: HandMeshEstimator, frame: Frame) -> list[HandMesh] | Exception:
    try:
        return estimator(frame)
    except Exception as error:
        return error
