"""Training curves: one CSV file a kind, one row a measurement."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from handmesh.atomic import written_whole


def drop_rows_after(path: Path, seen: int) -> None:
    """Take rows out of a file that were measured later than after `seen` samples: a resumed run measures them anew."""
    names, rows = _parse(path.read_bytes())
    kept = [row for row in rows if float(row["seen"]) <= seen]
    if len(kept) < len(rows):
        _write(path, names, kept)


def append_row(path: Path, row: dict[str, float], *, digits: int = 6) -> None:
    """Append a row to the CSV file at `path`, which starts with the rows' names; names that it lacks are added.

    Whole numbers (int), such as samples seen, are written exactly, others with so many `digits`.
    """
    values = {name: str(value) if isinstance(value, int) else f"{value:.{digits}g}" for name, value in row.items()}
    content = path.read_bytes() if path.exists() else b""
    names, before = _parse(content)
    if names and set(row) <= set(names) and content.endswith(b"\n"):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, names, restval="nan").writerow(values)
        return
    _write(path, list(dict.fromkeys([*names, *row])), [*before, values])


def _parse(content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """Names and whole rows; the last one may lack its end after a full disk or a power cut."""
    whole, newline, _ = content.decode().rpartition("\n")
    reader = csv.DictReader(io.StringIO(whole + newline))
    return list(reader.fieldnames or ()), list(reader)


def _write(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="nan")
        writer.writeheader()
        writer.writerows(rows)
