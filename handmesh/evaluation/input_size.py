"""Error against latency over the crop's size: the same trained hand network, exported anew for several sizes.

FastViT-T8 and the head are convolutional up to the keypoints, without positional parts, so weights trained at one size
run at every multiple of 32 px. Nothing is trained again: at other sizes than its own a network is a little worse than
one trained there would be.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handmesh.assets import weights_path
from handmesh.datasets.augment import NO_AUGMENT, ImagePool, make_target
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.sample import Batch, collate
from handmesh.evaluation.quantisation import answers, errors
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import in_turns, repeated, summary
from handmesh.model.deploy import export_hand_network, load_torch_network
from handmesh.model.quantise import quantise_graph
from handmesh.model.regressor import HandRegressor
from handmesh.runtime import INT8_SUFFIX, load_graph

SIZES = (96, 112, 128, 160, 192)

_log = logging.getLogger(__name__)


def at_size(network: HandRegressor, size: int) -> HandRegressor:
    """The same weights for crops of so many px; ValueError if maps of a half and a quarter of it would not meet."""
    changed = copy.deepcopy(network)
    changed.config = replace(network.config, input_size=size)
    return changed


def batches(dataset: FreiHandDataset, sizes: Sequence[int], rows: Sequence[int]) -> dict[int, Batch]:
    """Unaugmented crops of the same images in several sizes, with their targets."""
    rng, pool = np.random.default_rng(0), ImagePool([])
    targets: dict[int, list[Any]] = {size: [] for size in sizes}
    for row in rows:
        sample = dataset[row]
        for size in sizes:
            targets[size].append(make_target(sample, size, NO_AUGMENT, pool, rng))
    return {size: collate(parts) for size, parts in targets.items()}


def export_sizes(weights: Path, sizes: Sequence[int], folder: Path) -> tuple[dict[int, Path], dict[str, str]]:
    """Networks of these sizes in `folder`, made where they are missing; and why a size cannot run."""
    network = load_torch_network(weights)
    found, impossible = {}, {}
    for size in sizes:
        path = folder / f"hand_{size}.onnx"
        try:
            resized = at_size(network, size)
        except ValueError as error:
            impossible[str(size)] = str(error)
            continue
        if not path.is_file():
            export_hand_network(resized, path, name=path.stem)
            _log.info("exported %s", path)
        found[size] = path
    return found, impossible


def measure(
    weights: Path, data: Path, sizes: Sequence[int], folder: Path, *, limit: int, calibrate: int, turns: int
) -> dict[str, Any]:
    """Errors on a rendered evaluation split and times of one network at several sizes, in float32 and int8.

    `limit` hands are measured; `calibrate` other ones set the int8 ranges. Raises ValueError if the split is too small.
    """
    dataset = FreiHandDataset(data, "evaluation")
    if len(dataset) <= calibrate or dataset.rotations is None:
        raise ValueError(f"{data} must hold more than {calibrate} rendered hands with their rotations")
    paths, impossible = export_sizes(weights, sizes, folder)
    rows = np.linspace(calibrate, len(dataset) - 1, min(limit, len(dataset) - calibrate)).astype(int).tolist()
    fitting, measuring = (batches(dataset, list(paths), part) for part in (range(calibrate), rows))
    result: dict[str, Any] = {}
    runs = {}
    for size, path in paths.items():
        twin = path.with_stem(f"{path.stem}{INT8_SUFFIX}")
        if not twin.is_file():
            feeds = fitting[size].crops.numpy()
            quantise_graph(path, twin, [{"crop": feeds[i : i + 1]} for i in range(calibrate)])
        crops = measuring[size].crops.numpy()
        for precision, file in (("f32", path), ("int8", twin)):
            graph = load_graph(file, "hand", threads=1)
            name = f"{size}/{precision}"
            result[name] = {"crop_px": size, "precision": precision, **errors(answers(graph, crops), measuring[size])}
            runs[name] = repeated(partial(graph, crop=crops[:1]), time.process_time)
            _log.info("%s: %s", name, json.dumps(result[name]))
    for name, times in in_turns(runs, turns=turns, runs=10).items():
        result[name]["median_ms"] = summary(times)["median_ms"]
    return {
        "hands": len(rows),
        "calibrated_on": calibrate,
        "timed": "processor time of one run on one thread",
        "networks": result,
        "cannot_run": impossible,
    }


def table(result: dict[str, Any]) -> str:
    """Errors and times as Markdown, a row for each size and precision."""
    lines = ["| crop px | precision | ms | PA-MPVPE mm | PA-MPJPE mm | 2D |", "|---|---|---|---|---|---|"]
    for row in result["networks"].values():
        measured = f"{row['median_ms']:.2f} | {row['pa_mpvpe_mm']:.2f} | {row['pa_mpjpe_mm']:.2f} | {row['2d']:.3f}"
        lines.append(f"| {row['crop_px']} | {row['precision']} | {measured} |")
    lines += [f"| {size} | | {reason} | | | |" for size, reason in result["cannot_run"].items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one hand network on crops of several sizes: is a smaller, faster one worth having?"""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", default="fast", help="name of weights or an exported .onnx file (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="a rendered set with an evaluation split")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="px (%(default)s)")
    parser.add_argument("--limit", type=int, default=500, help="hands to measure on (%(default)s)")
    parser.add_argument("--calibrate", type=int, default=32, help="pictures to fit int8 ranges on (%(default)s)")
    parser.add_argument("--turns", type=int, default=20, help="turns that count (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep exported networks here, and take those that are there")
    parser.add_argument("--out", type=Path, help="result file, .json")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("handmesh").setLevel(logging.INFO)
    torch.set_grad_enabled(False)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(
            weights_path(options.weights),
            options.data,
            options.sizes,
            folder,
            limit=options.limit,
            calibrate=options.calibrate,
            turns=options.turns,
        )
    result = {"weights": options.weights, **found}
    print(table(result))  # noqa: T201 (a command)
    if options.out is not None:
        write_result(options.out, result)
