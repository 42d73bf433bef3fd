"""MediaPipe Hands on a video, for `eval/jitter.py`, in an environment of its own (its wheel wants numpy < 2).

python -m venv peer && peer/bin/pip install mediapipe==0.10.21 'numpy<2'
peer/bin/python eval/mediapipe_tracks.py VIDEO OUT.npz [--frames-alone]

OUT.npz holds a row for each hand of each frame: frame (N,), world (N, 21, 3) m, pixels (N, 21, 2), score (N,); and
frames, how many there were.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames-alone", action="store_true", help="each frame is a picture of its own")
    parser.add_argument("--max-hands", type=int, default=1)
    args = parser.parse_args()

    import cv2
    from mediapipe.python.solutions.hands import Hands  # pyright: ignore[reportMissingImports]

    rows = []
    number = 0
    with Hands(static_image_mode=args.frames_alone, max_num_hands=args.max_hands, model_complexity=1) as hands:
        capture = cv2.VideoCapture(str(args.video))
        while True:
            done, frame = capture.read()
            if not done:
                break
            height, width = frame.shape[:2]
            found = hands.process(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            for points, world, side in zip(
                found.multi_hand_landmarks or [],
                found.multi_hand_world_landmarks or [],
                found.multi_handedness or [],
                strict=True,
            ):
                # MediaPipe's pixels run over the frame from edge to edge, ours from centre to centre.
                pixels = [[p.x * width - 0.5, p.y * height - 0.5] for p in points.landmark]
                metres = [[p.x, p.y, p.z] for p in world.landmark]
                rows.append((number, metres, pixels, side.classification[0].score))
            number += 1
    np.savez_compressed(
        args.out,
        frames=np.array(number),
        frame=np.array([row[0] for row in rows], int),
        world=np.array([row[1] for row in rows], float).reshape(-1, 21, 3),
        pixels=np.array([row[2] for row in rows], float).reshape(-1, 21, 2),
        score=np.array([row[3] for row in rows], float),
    )


if __name__ == "__main__":
    main()
