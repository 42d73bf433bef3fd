"""The FreiHAND benchmark: predict the evaluation split into the official pred.json, score such a file.

python eval/freihand.py score --pred pred.json --root DIR --out scores.json    # anyone's file; DIR holds the labels
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from handmesh.evaluation.freihand_score import TABLE_HEAD, score_files, summary, table_row
from handmesh.evaluation.report import write_result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands.add_parser("score", help="measure a prediction file by the official definitions"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pred", type=Path, required=True, metavar="FILE", help="[xyz, verts] in metres, .json")
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="holds evaluation_xyz.json, _verts.json"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores here, .json")
    parser.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    scores = score_files(options.pred, options.root, partial(tqdm, desc="scoring", unit="frame"))
    print("\n".join(summary(scores)))
    print(f"\n{TABLE_HEAD}\n{table_row(options.pred.stem, scores)}")
    if options.out:
        write_result(options.out, {**scores, "pred": options.pred.name}, digits=12)


if __name__ == "__main__":
    sys.exit(main())
