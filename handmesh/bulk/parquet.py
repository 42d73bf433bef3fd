"""Tables as Parquet files. An array in a row lies flat in a list of fixed length, the last axis fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

Rows = dict[str, NDArray[Any]]
"""A table: its columns by name, with a leading axis of rows."""

ColumnTypes = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
"""The type of each column, and the shape that it has in one row."""


def check_parquet() -> None:
    """Raise ModuleNotFoundError that says what to install, unless Parquet can be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Parquet needs the scale extra: pip install 'handmesh[scale]' ({error.name} is missing); "
            ".npz needs nothing more",
            name=error.name,
        ) from error


@contextmanager
def open_parquet(
    path: Path, columns: ColumnTypes
) -> Iterator[tuple[Callable[[Rows], None], Callable[[Mapping[str, str]], None]]]:
    """Write a file: the first function adds rows to it, the second some texts by name, which describe it."""
    from pyarrow import parquet

    schema = _schema(columns)
    with parquet.ParquetWriter(path, schema) as writer:
        yield lambda rows: writer.write_table(_to_arrow(rows, schema)), writer.add_key_value_metadata


def read_parquet(path: Path, columns: ColumnTypes) -> Rows:
    """The rows of a file that has some of these columns. A length of -1 in a row's shape is found out."""
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read()
    rows: Rows = {}
    for name in table.column_names:
        column, (dtype, shape) = table[name].combine_chunks(), columns[name]
        if shape:
            shape = np.empty(column.type.list_size, np.bool_).reshape(shape).shape
            column = column.flatten()
        rows[name] = column.to_numpy(zero_copy_only=False).astype(dtype).reshape(len(table), *shape)
    return rows


def read_description(path: Path) -> dict[str, str]:
    """The texts that describe a file."""
    from pyarrow import parquet

    return {key.decode(): text.decode() for key, text in parquet.read_metadata(path).metadata.items()}


def as_utf8(text: str) -> str:
    """A text that UTF-8 can hold: bytes of a file's name that are none are written as ``\\x..``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _schema(columns: ColumnTypes) -> pyarrow.Schema:
    import pyarrow

    fields = []
    for name, (dtype, shape) in columns.items():
        kind = pyarrow.string() if dtype is np.str_ else pyarrow.from_numpy_dtype(dtype)
        fields.append((name, pyarrow.list_(kind, math.prod(shape)) if shape else kind))
    return pyarrow.schema(fields)


def _to_arrow(rows: Rows, schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow

    arrays = []
    for field in schema:
        values = rows[field.name].reshape(-1)
        flat = pyarrow.array(list(map(as_utf8, values)) if values.dtype.kind == "U" else values)
        is_list = pyarrow.types.is_fixed_size_list(field.type)
        arrays.append(
            pyarrow.FixedSizeListArray.from_arrays(flat, type=field.type) if is_list else flat.cast(field.type)
        )
    return pyarrow.Table.from_arrays(arrays, schema=schema)
