"""Training curves: one CSV file a kind, one row a measurement."""

from __future__ import annotations

import csv
from pathlib import Path


def append_row(path: Path, row: dict[str, float], *, digits: int = 6) -> None:
    """Append a row to the CSV file at `path`, which starts with the row's names if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.{digits}g}" for name, value in row.items()})
