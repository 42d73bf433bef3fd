"""Error against samples seen over all runs of a network, each going on from the one before it.

python eval/learning_curve.py runs/fast_f --before 541184 --table eval/results/fast_curve.csv

adds the measurements of a run's folder to the table and draws it beside the table, as .png.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from handmesh.atomic import written_whole
from handmesh.mistakes import in_one_line

SHOWN = {
    "synthetic_pa_mpjpe_mm": ("synthetic", "pa_mpjpe_mm"),
    "synthetic_pa_mpvpe_mm": ("synthetic", "pa_mpvpe_mm"),
    "synthetic_2d": ("synthetic", "2d"),
    "photos_2d": ("photos", "2d"),
    "photos_pa_mpjpe_labels_mm": ("photos", "pa_mpjpe_pseudo_mm"),
    "photos_side": ("photos", "side"),
}
"""Column of the table -> file and column of a run's folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="a folder of `handmesh train`; without it only the drawing is made"
    )
    parser.add_argument("--before", type=int, default=0, help="samples seen before this run")
    parser.add_argument("--table", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    rows = _read(args.table) if args.table.is_file() else []
    if args.run is not None:
        rows = [row for row in rows if row["run"] != args.run.name] + _measured(args.run, args.before)
        with written_whole(args.table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["run", "samples", *SHOWN], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with written_whole(args.table.with_suffix(".png")) as temporary:
        _draw(rows).savefig(temporary, dpi=110)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _measured(run: Path, before: int) -> list[dict[str, str]]:
    """A run's measurements as rows of the table; numbers stay as they were written, and what was not measured is
    empty."""
    files = {name: {row["seen"]: row for row in _read(run / f"{name}.csv")} for name, _ in SHOWN.values()}
    moments = sorted(set.intersection(*(set(rows) for rows in files.values())), key=float)
    return [
        {
            "run": run.name,
            "samples": str(before + round(float(seen))),
            **{column: files[name][seen].get(key, "") for column, (name, key) in SHOWN.items()},
        }
        for seen in moments
    ]


def _draw(rows: list[dict[str, str]]) -> Figure:
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, column in zip(figure.subplots(2, 3).flat, SHOWN, strict=True):
        for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
            points = [(float(row["samples"]), float(row[column])) for row in rows if row["run"] == run and row[column]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", color=f"C{number}", label=run)
        axes.set_title(column.replace("_", " "), fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("samples seen", fontsize=8)
        axes.tick_params(labelsize=7)
    runs = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].legend(*runs, loc="lower right", ncols=3, fontsize=7)  # beneath curves that end near 1
    return figure


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
