"""MediaPipe's hand models and its Hands pipeline as a contender of `handmesh bench`, in an environment of its own.

MediaPipe 0.10.21 wants numpy < 2, so the benchmark starts this file with another Python (``--mediapipe-python``)::

    python -m venv peer && peer/bin/pip install mediapipe==0.10.21 'numpy<2' ai-edge-litert

It reads one JSON object a line, {"what": NAME, "runs": N}, and answers each by one line: the milliseconds of N runs.
The networks are the .tflite files inside MediaPipe's wheel, run by LiteRT with its XNNPACK kernels, as MediaPipe does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = {
    "landmark_full": "hand_landmark/hand_landmark_full.tflite",
    "landmark_lite": "hand_landmark/hand_landmark_lite.tflite",
    "palm_full": "palm_detection/palm_detection_full.tflite",
    "palm_lite": "palm_detection/palm_detection_lite.tflite",
}


def network(path: Path, threads: int) -> Callable[[], None]:
    """One run of a network on noise."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter: Any = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    picture = np.random.default_rng(0).uniform(0, 1, entry["shape"]).astype(np.float32)

    def run() -> None:
        interpreter.set_tensor(entry["index"], picture)
        interpreter.invoke()
        for output in interpreter.get_output_details():
            interpreter.get_tensor(output["index"])

    return run


def pipeline(clip: Path, *, tracked: bool) -> Callable[[], None]:
    """The next frame of the clip, over and over, through MediaPipe Hands with two hands and its full model.

    Without `tracked` every frame is a picture of its own, for which the palm detector runs.
    """
    import cv2
    from mediapipe.python.solutions.hands import Hands  # pyright: ignore[reportMissingImports]

    capture = cv2.VideoCapture(str(clip))
    frames = []
    while True:
        done, frame = capture.read()
        if not done:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    hands: Any = Hands(static_image_mode=not tracked, max_num_hands=2, model_complexity=1)
    endless: Iterator[Any] = (frame for _ in iter(int, 1) for frame in frames)

    def run() -> None:
        hands.process(next(endless))

    return run


def main() -> None:
    """Answer requests on standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        import cv2
        import mediapipe  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(args.threads)
        if hasattr(os, "sched_setaffinity"):  # MediaPipe Hands does not take a number of threads
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        modules = Path(str(mediapipe.__file__)).parent / "modules"
        contenders = {name: network(modules / path, args.threads) for name, path in NETWORKS.items()}
        contenders["hands_tracked"] = pipeline(args.clip, tracked=True)
        contenders["hands_pictures"] = pipeline(args.clip, tracked=False)
        print(json.dumps({"version": mediapipe.__version__, "contenders": list(contenders)}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            times = []
            for _ in range(request["runs"]):
                before = time.perf_counter()
                contenders[request["what"]]()
                times.append(1e3 * (time.perf_counter() - before))
            print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    main()
