"""The FreiHAND benchmark: predict the evaluation split into the official pred.json, score such a file.

python eval/freihand.py predict --root DIR --out runs/pred.json --result eval/results/freihand.json
python eval/freihand.py score --pred pred.json --root DIR --out scores.json    # anyone's file; DIR holds the labels
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from handmesh.assets import HAND_MODEL, load_hand_model
from handmesh.datasets.freihand_files import FreiHandSplit, table_path
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.freihand_predict import (
    ONE_VIEW,
    TEST_TIME_VIEWS,
    Boxes,
    Hands,
    NetworkHands,
    constant_hand,
    predict,
)
from handmesh.evaluation.freihand_score import TABLE_HEAD, Scores, read_truth, score, score_files, summary, table_row
from handmesh.evaluation.report import network_facts, write_result
from handmesh.mistakes import in_one_line
from handmesh.runtime import Precision, Runtime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands.add_parser("predict", help="write the official pred.json, and score it where labels are"))
    _add_score(commands.add_parser("score", help="measure a prediction file by the official definitions"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="FreiHAND, or a set in its layout")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the official pred.json")
    parser.add_argument("--result", type=Path, metavar="FILE", help="what was run and its scores, .json")
    parser.add_argument("--name", help="of the method, for the table (its weights' file)")
    parser.add_argument("--weights", default="fast", metavar="NAME|FILE", help="hand network (%(default)s)")
    parser.add_argument("--hand-model", type=Path, metavar="MANO", help="that the network was trained on, if not ours")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="onnxruntime")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="to compute in (the weights' int8 twin if any)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (the runtime's choice)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="frames a run of the network (%(default)s)")
    parser.add_argument("--boxes", choices=get_args(Boxes), default="labels", help="where crops are (%(default)s)")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: the mean of five views")
    parser.add_argument("--known-scale", action="store_true", help="resize hands to FreiHAND's evaluation_scale.json")
    parser.add_argument("--constant", action="store_true", help="no network: the mean hand for every picture")
    parser.set_defaults(run=_predict)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pred", type=Path, required=True, metavar="FILE", help="[xyz, verts] in metres, .json")
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="holds evaluation_xyz.json and, for meshes, _verts.json"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores here, .json")
    parser.set_defaults(run=_score)


def _predict(options: argparse.Namespace) -> None:
    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {options.batch}")
    files = FreiHandSplit.open(options.root, "evaluation")
    hands, run = _method(options, files)
    model = HAND_MODEL if options.hand_model is None else options.hand_model
    run |= {"hand_model": model.name, "hand_model_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    kept_for = {**run, "root": str(options.root.resolve())}
    before = time.perf_counter()
    watch = partial(tqdm, desc="predicting", unit="batch", mininterval=1.0)
    frames = predict(hands, len(files), options.out, kept_for, batch=options.batch, watch=watch)
    rate = len(files) / (time.perf_counter() - before)
    print(f"wrote {len(files)} frames to {options.out} ({rate:.1f} frames a second, reading and writing included)")
    if run.get("boxes") == "detector":
        run["without_detection"] = frames.without_detection
    if not table_path(options.root, "evaluation", "xyz").is_file():
        print(f"{options.root} has no labels of joints: score {options.out} where they are")
        if options.result:
            write_result(options.result, {**run, "data": options.root.name}, digits=9)
        return
    scores = score(frames, read_truth(options.root), partial(tqdm, desc="scoring", unit="frame", mininterval=1.0))
    _report(run["method"], scores)
    if options.result:
        row = table_row(run["method"], scores)
        write_result(options.result, {**run, "data": options.root.name, **scores, "row": row}, digits=9)


def _method(options: argparse.Namespace, files: FreiHandSplit) -> tuple[Hands, dict[str, Any]]:
    """What predicts, and its description."""
    if options.constant:
        return constant_hand(load_hand_model(options.hand_model)), {"method": options.name or "constant mean hand"}
    estimator = HandMeshEstimator.from_pretrained(
        options.weights,
        runtime=options.runtime,
        threads=options.threads,
        precision=options.precision,
        device=options.device,
        detector="detector" if options.boxes == "detector" else None,
        hand_model=options.hand_model,
    )
    views = TEST_TIME_VIEWS if options.tta else ONE_VIEW
    modes = [
        text for text, on in ((f"TTA of {len(views)} views", options.tta), ("known scale", options.known_scale)) if on
    ]
    name = options.name or estimator.network.path.stem
    run = {
        "method": ", ".join([name, *modes]),
        **network_facts(estimator.network),
        "runtime": options.runtime,
        "precision": options.precision or "as exported",
        "boxes": options.boxes,
        "views": [asdict(view) for view in views],
        "known_scale": options.known_scale,
    }
    return NetworkHands(estimator, files, options.boxes, views, options.known_scale), run


def _score(options: argparse.Namespace) -> None:
    scores = score_files(options.pred, options.root, partial(tqdm, desc="scoring", unit="frame", mininterval=1.0))
    _report(options.pred.stem, scores)
    if options.out:
        write_result(options.out, {**scores, "pred": options.pred.name}, digits=12)


def _report(name: str, scores: Scores) -> None:
    print("\n".join(summary(scores)))
    print(f"\n{TABLE_HEAD}\n{table_row(name, scores)}")


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
