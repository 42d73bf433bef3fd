"""Leaves the served page running in a headless Chromium and notes memory, nodes and frame rate.

    pip install '.[web,dev]' && apt-get install chromium
    python eval/page_soak.py --out eval/results/page_soak.json

A camera that shows the bundled clip, both views, mesh, wires and skeleton on, drawn by a software renderer on the
processor: the frame rate is far below that of a computer with a graphics card.
"""

import argparse
import tempfile
from pathlib import Path

from handmesh.evaluation.page import soak
from handmesh.evaluation.report import write_result
from handmesh.mistakes import in_one_line


def main() -> None:
    """Measure, write and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=130.0, help="with 10 to warm up (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = soak(Path(folder), options.seconds)
    write_result(options.out, facts)
    growth = ", ".join(f"{name} {value:+.2f}" for name, value in facts["growth_a_minute"].items())
    print(f"{facts['fps_median']:.0f} frames a second; growth a minute: {growth}")


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
