"""The results of a job: parts with a row a hand, each of which says itself what is in it, and an index of all files.

A part is one ``.npz`` or ``.parquet`` file, written whole or not at all, and carries the entries of the files whose
hands it holds. So a job can be stopped at any moment, and the index can always be made again from the parts.

Columns: ``path`` of the file, ``frame`` (number from 0), ``time_s``, and the fields of `HandMesh` as a ``.npz`` of
`export` has them, without ``faces`` and, unless asked for, ``vertices``. In Parquet arrays lie flat, the last axis
fastest.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from handmesh.atomic import written_whole
from handmesh.bulk.parquet import ColumnTypes, Rows, as_utf8, open_parquet, read_description, read_parquet
from handmesh.export import to_arrays
from handmesh.records import HandMesh
from handmesh.video import pictures_in

Table = Literal["npz", "parquet"]
FileState = tuple[int, int]
"""Bytes and time of change in nanoseconds, by which a file that has changed is known."""

COLUMNS: ColumnTypes = {
    "path": (np.str_, ()),
    "frame": (np.int32, ()),
    "time_s": (np.float64, ()),
    "track_id": (np.int32, ()),
    "side": (np.str_, ()),
    "score": (np.float32, ()),
    "side_score": (np.float32, ()),
    "box": (np.float64, (4,)),
    "translation": (np.float32, (3,)),
    "joints": (np.float32, (21, 3)),
    "joints_2d": (np.float32, (21, 2)),
    "global_orient": (np.float32, (3,)),
    "hand_pose": (np.float32, (15, 3)),
    "betas": (np.float32, (10,)),
    "camera": (np.float64, (6,)),
    "camera_distortion": (np.float64, (8,)),
    "camera_assumed": (np.bool_, ()),
}
_ENTRIES = "entries"
"""Where a part keeps its entries: this array of an .npz, this metadata of a .parquet; JSON."""

_TABLES: dict[str, Table] = {".npz": "npz", ".parquet": "parquet"}
_PLACE = ("path", "frame", "time_s")
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Entry:
    """What became of one file.

    Attributes:
        path: of the file, absolute.
        error: why it could not be read, or not to its end; None where all went well.
        note: what else is to be said, such as frames that a video announces and does not have.
        frames: read.
        frames_with_hand: of these.
        hands: rows of the file in its part.
        bytes, modified_ns: of the file when it was read; 0 where it is not there. A file that has changed since is
            read again.
        part: name of the part in the job's folder.
    """

    path: str
    error: str | None
    note: str | None
    frames: int
    frames_with_hand: int
    hands: int
    bytes: int
    modified_ns: int
    part: str

    @property
    def is_current(self) -> bool:
        """Whether the file was read, and is still the same."""
        return self.error is None and (self.bytes, self.modified_ns) == file_state(self.path)


def file_state(path: str) -> FileState:
    """Bytes and time of change (ns) of a file, or of a folder's pictures together; zeros where there is nothing."""
    try:
        # A folder itself changes when a picture in it gets another name.
        files = [*pictures_in(Path(path)), path] if os.path.isdir(path) else [path]
        states = [os.stat(file) for file in files]
    except OSError:
        return 0, 0
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


@dataclass(eq=False)
class Part:
    """A part while it is written: the frames of one file after the other, and after each file its entry.

    Attributes:
        name: of the file in the folder of parts.
        columns: of its table.
        write_rows: is given rows when there are many; None leaves them all in memory.
        entries: of the files in it.
    """

    name: str
    columns: ColumnTypes
    write_rows: Callable[[Rows], None] | None = None
    entries: list[Entry] = field(default_factory=list)
    _blocks: list[Rows] = field(default_factory=list)
    _row_count: int = 0
    _counts: list[int] = field(default_factory=lambda: [0, 0, 0])

    def append(self, file: str, frame: int, time_s: float, hands: Sequence[HandMesh]) -> None:
        """Add a frame of a file, with a row for each hand in it."""
        self._counts = [count + more for count, more in zip(self._counts, (1, bool(hands), len(hands)), strict=True)]
        if not hands:
            return
        values = to_arrays(hands, mesh="vertices" in self.columns)
        values |= {name: np.full(len(hands), value) for name, value in zip(_PLACE, (file, frame, time_s), strict=True)}
        self._blocks.append({name: values[name].astype(dtype) for name, (dtype, _) in self.columns.items()})
        self._row_count += len(hands)
        if self.write_rows is not None and self._row_count >= _ROWS_AT_ONCE:
            self.write_rows(self.take_rows())

    def extend(self, rows: Rows) -> None:
        """Add rows as another part has them."""
        self._blocks.append(rows)

    def end_file(self, file: str, state: FileState, error: Exception | None = None, note: str | None = None) -> Entry:
        """Add the entry of the file whose frames have come since the last one: what it was like when it was opened,
        and why it was not read to its end."""
        frames, with_hand, hands = self._counts
        reason = None if error is None else describe_error(error)
        entry = Entry(file, reason, note, frames, with_hand, hands, *state, part=self.name)
        self.entries.append(entry)
        self._counts = [0, 0, 0]
        return entry

    def take_rows(self) -> Rows:
        """All rows that are in memory, which they leave."""
        blocks, self._blocks, self._row_count = self._blocks, [], 0
        if not blocks:
            return {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in self.columns.items()}
        return {name: np.concatenate([block[name] for block in blocks]) for name in self.columns}


@contextmanager
def new_part(folder: Path, name: str, table: Table, vertex_count: int | None = None) -> Iterator[Part]:
    """A part of that name (without suffix), which takes its place in the folder when the block ends without an error.

    ``vertex_count`` is that of the meshes, whose vertices are written too; None leaves them out. Parquet is written as
    rows come; an .npz needs them all in memory, about 1 kB a hand, 20 kB with vertices.

    Raises ModuleNotFoundError if Parquet is asked for and pyarrow is not installed.
    """
    columns = {**COLUMNS, **({} if vertex_count is None else {"vertices": (np.float32, (vertex_count, 3))})}
    path = folder / f"{name}.{table}"
    with written_whole(path) as temporary:
        if table == "npz":
            part = Part(path.name, columns)
            yield part
            arrays: dict[str, Any] = part.take_rows() | {_ENTRIES: np.array(_to_text(part.entries))}
            np.savez(temporary, **arrays)
            return
        with open_parquet(temporary, columns) as (write_rows, describe):
            part = Part(path.name, columns, write_rows)
            yield part
            write_rows(part.take_rows())
            describe({_ENTRIES: _to_text(part.entries)})


def read_part(path: str | os.PathLike[str]) -> tuple[Rows, list[Entry]]:
    """The rows of a part, and the entries of its files. Raises ValueError for a file that is no whole part."""
    path = Path(path)
    entries = read_entries(path)
    with _whole(path):
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if name != _ENTRIES}, entries
        return read_parquet(path, {**COLUMNS, "vertices": (np.float32, (-1, 3))}), entries


def read_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """The entries of a part alone, which is quick. Raises ValueError for a file that is no whole part."""
    path = Path(path)
    with _whole(path):
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                text = str(archive[_ENTRIES])
        else:
            text = read_description(path)[_ENTRIES]
        return [Entry(**entry) for entry in json.loads(text)]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raise ValueError where reading `path` shows that it is no whole part."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no whole part of a job: without it its files are read again ({error})") from error


def drop_files(path: Path, files: Collection[str]) -> None:
    """Take files out of a part, rows and entries; a part without entries goes."""
    kept = [entry for entry in read_entries(path) if entry.path not in files]
    if not kept:
        path.unlink()
        return
    rows, _ = read_part(path)
    stay = ~np.isin(rows["path"], [*files, *map(as_utf8, files)])
    vertex_count = rows["vertices"].shape[1] if "vertices" in rows else None
    with new_part(path.parent, path.stem, _TABLES[path.suffix], vertex_count) as part:
        part.extend({name: column[stay] for name, column in rows.items()})
        part.entries += kept


def parts_in(folder: Path) -> list[Path]:
    """The parts of a job's folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in _TABLES and not path.name.startswith("."))


def clear_unfinished(folder: Path) -> None:
    """Delete what workers that were killed have left of parts. Nobody may be at work in the folder."""
    for path in folder.iterdir():
        if path.suffix in _TABLES and path.name.startswith("."):
            path.unlink(missing_ok=True)


def describe_error(error: Exception) -> str:
    """An error in one line, with its kind where it is none that tells a user what to do."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def _to_text(entries: Sequence[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries])
