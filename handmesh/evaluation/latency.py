"""`handmesh bench`: how long everything takes on this machine, stage by stage and as a whole, beside its peers.

Every number of threads is measured in a process of its own that may use so many cores. All contenders of a process
take turns, so that their ratios hold even where the machine is busy. Peers take part if they are there: MediaPipe in
its own environment (`eval/mediapipe_peer.py` says how), OpenVINO, and timm's backbones where torch is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.atomic import written_whole
from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import ClockOutside, Runs, in_turns, repeated, summary
from handmesh.records import Side
from handmesh.render import Overlay
from handmesh.runtime import Graph, load_graph
from handmesh.tracker import HandTracker
from handmesh.video import SAMPLE_CLIP, open_source

PEER_SCRIPT = Path("eval/mediapipe_peer.py")
BATCHES = (1, 2, 8)
FRAME = 10  # of the sample clip; one hand is in sight
COLD_STARTS = 5

#: (name, ours, theirs): ratios of medians that the README and the issue speak of; below 1 we are faster.
RATIOS = (
    ("crop to mesh / MediaPipe landmark full", "crop_to_mesh", "mediapipe/landmark_full"),
    ("crop to mesh / MediaPipe landmark lite", "crop_to_mesh", "mediapipe/landmark_lite"),
    ("detector frame / MediaPipe palm full", "detect", "mediapipe/palm_full"),
    ("detector frame / MediaPipe palm lite", "detect", "mediapipe/palm_lite"),
    ("tracked clip / MediaPipe Hands", "tracked_clip", "mediapipe/hands_tracked"),
    ("single pictures / MediaPipe Hands on pictures", "pictures", "mediapipe/hands_pictures"),
    ("int8 network / f32 network", "network/int8/batch1", "network/f32/batch1"),
)


class Stages:
    """The parts of a live view as contenders, all on one clip. Raises ValueError if FRAME of it shows no hand.

    Names that end in ``around`` leave out the time that the hand network takes within the same call.
    """

    def __init__(self, estimator: HandMeshEstimator, frames: Sequence[NDArray[np.uint8]]) -> None:
        self.outside = ClockOutside(estimator.network)
        estimator.network = self.outside.graph
        self.estimator, self.frames = estimator, frames
        self.frame = frames[FRAME % len(frames)]
        hands = estimator(self.frame)
        if not hands:
            raise ValueError(f"no hand found in frame {FRAME} of the clip: the weights are unusable")
        self.hand = hands[0]

    def contenders(self) -> dict[str, Runs]:
        """One contender a stage."""
        estimator, frame, hand = self.estimator, self.frame, self.hand
        boxes = hand.box[None]
        sides: list[Side | None] = [hand.side]
        rotations = np.tile(np.eye(3), (1, 16, 1, 1))
        overlay = Overlay()
        held, apart = HandTracker(estimator, max_hands=1), HandTracker(estimator, max_hands=1)
        clip, pictures = HandTracker(estimator), itertools.cycle(self.frames)
        times = itertools.count(1)
        following = _frames_forever(self.frames)
        return {
            "crop_to_mesh": repeated(lambda: estimator(frame, boxes=boxes, sides=sides)),
            "crop_to_mesh/around": repeated(lambda: estimator(frame, boxes=boxes, sides=sides), self.outside),
            "pose": repeated(lambda: estimator.pose(rotations, hand.betas[None], ["right"])),
            "detect": repeated(lambda: estimator.detect(frame)),
            "overlay_one_hand": repeated(lambda: overlay.draw(frame, [hand])),
            "tracked_one_hand": repeated(lambda: held(frame, next(times) / 30)),
            "tracked_one_hand/around": repeated(lambda: apart(frame, next(times) / 30), self.outside),
            "tracked_clip": repeated(lambda: clip(*next(following))),
            "pictures": repeated(lambda: estimator(next(pictures))),
        }


def _frames_forever(frames: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[NDArray[np.uint8], float]]:
    for number in itertools.count(1):
        yield frames[number % len(frames)], number / 30


def network_contenders(weights: str, threads: int, size: int) -> dict[str, Runs]:
    """The hand network alone, by precision and batch, in onnxruntime and, where it is installed, OpenVINO."""
    rng = np.random.default_rng(0)
    opened: dict[str, Graph] = {}
    settings: dict[str, dict[str, Any]] = {
        "f32": {"precision": "f32"},
        "int8": {"precision": "int8"},
        "openvino_f32": {"runtime": "openvino", "precision": "f32"},
        "openvino_bf16": {"runtime": "openvino", "precision": "bf16"},
        "openvino_int8": {"runtime": "openvino", "precision": "int8"},
    }
    for name, setting in settings.items():
        with contextlib.suppress(ImportError, ValueError):  # no OpenVINO; no int8 twin
            opened[name] = load_graph(weights, "hand", threads=threads, **setting)
    contenders = {}
    for name, graph in opened.items():
        for batch in BATCHES if name in ("f32", "int8") else (1,):
            crops = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
            contenders[f"network/{name}/batch{batch}"] = repeated(partial(graph, crop=crops))
    return contenders


@contextlib.contextmanager
def mediapipe_contenders(python: Path | None, threads: int) -> Iterator[dict[str, Runs]]:
    """MediaPipe's networks and pipeline in a process of its own; none without its Python."""
    if python is None:
        yield {}
        return
    command = [str(python), str(PEER_SCRIPT), "--clip", str(SAMPLE_CLIP), "--threads", str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        asked, answers = peer.stdin, peer.stdout

        def ask(what: str, count: int) -> list[float]:
            print(json.dumps({"what": what, "runs": count}), file=asked, flush=True)
            return json.loads(answers.readline())

        greeting = answers.readline()
        if not greeting:
            raise ValueError(f"{python} cannot run {PEER_SCRIPT}: its first lines say what must be installed there")
        try:
            yield {f"mediapipe/{name}": partial(ask, name) for name in json.loads(greeting)["contenders"]}
        finally:
            asked.close()


def measure_with_threads(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """All contenders on so many cores of this process."""
    import cv2

    cv2.setNumThreads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with open_source("sample") as source:
        frames = [frame for frame, _ in source]
    contenders = Stages(HandMeshEstimator.from_pretrained(options.weights, threads=threads), frames).contenders()
    size = int(load_graph(options.weights, "hand", threads=1).number("input_size"))
    contenders |= network_contenders(options.weights, threads, size)
    if options.backbones is not None:
        for path in sorted(options.backbones.glob("*.onnx")):
            contenders[f"backbone/{path.stem}"] = backbone_contender(path, threads)
    with mediapipe_contenders(options.mediapipe_python, threads) as peers:
        times = in_turns(contenders | peers, turns=options.turns, runs=options.runs)
    rows = {name: summary(values) for name, values in times.items()}
    ratios = {
        name: rows[ours]["median_ms"] / rows[theirs]["median_ms"]
        for name, ours, theirs in RATIOS
        if ours in rows and theirs in rows
    }
    return {"ratios": ratios, "times": rows}


def backbone_contender(path: Path, threads: int) -> Runs:
    """An exported backbone on one picture of noise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    picture = np.random.default_rng(0).normal(size=[1, *entry.shape[1:]]).astype(np.float32)
    return repeated(lambda: session.run(None, {entry.name: picture}))


def start_up(weights: str, runs: int = COLD_STARTS) -> dict[str, dict[str, float]]:
    """Medians over new processes: an empty one, `import handmesh`, and from nothing to the first mesh.

    `wall_s` is what a user waits, `cpu_s` what the processor works, which does not depend on other programs.
    """
    codes = {
        "empty": "pass",
        "import": "import handmesh",
        "first_mesh": (
            "from handmesh import HandMeshEstimator; from handmesh.video import open_source;"
            f"estimator = HandMeshEstimator.from_pretrained({weights!r});"
            f"frames = iter(open_source('sample')); frame = [next(frames)[0] for _ in range({FRAME})][-1];"
            "assert estimator(frame)"
        ),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for _ in range(runs):
        for name, code in codes.items():
            wall, cpu = time.perf_counter(), _cpu_of_children()
            subprocess.run([sys.executable, "-c", code], check=True)
            taken[name].append((time.perf_counter() - wall, _cpu_of_children() - cpu))
    return {
        name: dict(zip(("wall_s", "cpu_s"), np.median(values, axis=0).tolist(), strict=True))
        for name, values in taken.items()
    }


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def live_memory_mb(weights: str, frames: int = 240) -> dict[str, float]:
    """Resident memory in MB of a live view without a window, in a process of its own: at its end and at most."""
    code = (
        "import json, tempfile; from pathlib import Path;"
        "from handmesh import HandMeshEstimator, HandTracker;"
        "from handmesh.live import LiveSession; from handmesh.video import open_source;"
        f"tracker = HandTracker(HandMeshEstimator.from_pretrained({weights!r}));"
        f"session = LiveSession(tracker, Path(tempfile.gettempdir()), max_frames={frames}, say=print);"
        "session.play(open_source('sample'));"
        # Not getrusage, whose peak is that of the process which started this one if that was larger.
        "facts = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines());"
        "kilobytes = {name: int(facts[key].split()[0]) for name, key in (('resident', 'VmRSS'), ('peak', 'VmHWM'))};"
        "print(json.dumps({name: value * 1024 / 1e6 for name, value in kilobytes.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_of_threads(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """`measure_with_threads` in a new process."""
    command = [sys.executable, "-m", "handmesh.evaluation.latency", "--only-threads", str(threads)]
    command += ["--weights", options.weights, "--turns", str(options.turns), "--runs", str(options.runs)]
    if options.mediapipe_python is not None:
        command += ["--mediapipe-python", str(options.mediapipe_python)]
    if options.backbones is not None:
        command += ["--backbones", str(options.backbones)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def weights_mb(weights: str) -> dict[str, float]:
    """Sizes of the files that a user of these weights needs."""
    from handmesh.assets import weights_path, weights_registry

    names = [weights, f"{weights}_int8", "detector", "detector_int8", "hand_model"]
    return {name: weights_path(name).stat().st_size / 1e6 for name in names if name in weights_registry()}


def table(result: dict[str, Any]) -> str:
    """The medians as a Markdown table, a column for each number of threads, and the ratios below."""
    by_threads = result["threads"]
    header = "| median ms (90 % below) | " + " | ".join(f"{n} thread{'s' * (n != '1')}" for n in by_threads) + " |"
    lines = [header, "|---" * (1 + len(by_threads)) + "|"]
    for name in next(iter(by_threads.values()))["times"]:
        cells = [
            f"{rows['times'][name]['median_ms']:.2f} ({rows['times'][name]['p90_ms']:.2f})"
            for rows in by_threads.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", header.replace("median ms (90 % below)", "ratio of medians"), "|---" * (1 + len(by_threads)) + "|"]
    for name in next(iter(by_threads.values()))["ratios"]:
        lines.append(f"| {name} | " + " | ".join(f"{rows['ratios'][name]:.2f}" for rows in by_threads.values()) + " |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of the medians, longest at the bottom, for each number of threads; needs matplotlib."""
    from matplotlib.figure import Figure

    by_threads = result["threads"]
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (threads, rows) in zip(
        np.atleast_1d(figure.subplots(1, len(by_threads))), by_threads.items(), strict=True
    ):
        names = sorted((n for n in rows["times"] if "batch8" not in n), key=lambda n: rows["times"][n]["median_ms"])
        colors = ["tab:orange" if "mediapipe" in n else "tab:gray" if "backbone" in n else "tab:blue" for n in names]
        medians = [rows["times"][name]["median_ms"] for name in names]
        axes.barh(names, medians, color=colors)
        for place, value in enumerate(medians):
            axes.text(value, place, f" {value:.1f}", va="center", fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(f"threads: {threads}")
        axes.set_xlabel("median ms")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure latency, memory and cold start; write a result file with a table and a picture beside it."""
    parser = argparse.ArgumentParser(prog="handmesh bench", description=main.__doc__)
    parser.add_argument("--weights", default="fast", help="name of weights (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="%(default)s")
    parser.add_argument("--turns", type=int, default=20, help="turns that count (%(default)s)")
    parser.add_argument("--runs", type=int, default=10, help="runs of each contender in a turn (%(default)s)")
    parser.add_argument("--mediapipe-python", type=Path, help="a Python with MediaPipe, see eval/mediapipe_peer.py")
    parser.add_argument("--backbones", type=Path, help="folder with backbones exported before, or made now if missing")
    parser.add_argument("--out", type=Path, help="result file, .json")
    parser.add_argument("--only-threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if min(options.turns, options.runs, *options.threads) < 1:
        parser.error("--turns, --runs and --threads must be at least 1")
    if options.only_threads is not None:
        print(json.dumps(measure_with_threads(options, options.only_threads)))  # noqa: T201 (the parent reads it)
        return
    if options.mediapipe_python is not None and not PEER_SCRIPT.is_file():
        raise FileNotFoundError(f"{PEER_SCRIPT} is not here: run the benchmark in the repository's folder")
    if options.backbones is not None and not any(options.backbones.glob("*.onnx")):
        from handmesh.evaluation.backbones import export_peers

        export_peers(options.backbones)
    result: dict[str, Any] = {"weights": options.weights, "clip": "sample, 640 x 480", "turns": options.turns}
    result["threads"] = {str(n): run_of_threads(options, n) for n in options.threads}
    result["megabytes"] = weights_mb(options.weights)
    result["start_up"] = start_up(options.weights)
    if Path("/proc/self/statm").is_file():
        result["live_memory_mb"] = live_memory_mb(options.weights)
    print(table(result))  # noqa: T201 (a command)
    if options.out is not None:
        write_result(options.out, result)
        with written_whole(options.out.with_suffix(".md")) as temporary:
            temporary.write_text(table(result) + "\n")
        with contextlib.suppress(ModuleNotFoundError):  # without matplotlib there is no picture
            draw(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
