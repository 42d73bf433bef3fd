"""Hands from a running server, a line a hand: side, place in the camera, and how wide the hand is open.

    handmesh serve --source sample                           # in another terminal
    python demos/stream.py                                   # the hands of the server's own camera or clip
    python demos/stream.py --send 0                          # or of frames sent from here: a camera, a video, sample
    python demos/stream.py --url wss://localhost:8765 --token TOKEN --certificate certificate.pem  # by HTTPS

Needs the web extra. What is sent and answered is described at the server's /api.html and in demos/README.md.
"""

import argparse
import contextlib
import itertools
import json
import ssl
import struct
import time
from pathlib import Path

import cv2
import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from handmesh.server.access import CLOSE_CODE
from handmesh.server.wire import HandFrame, decode
from handmesh.skeleton import FINGERTIPS, KEYPOINTS
from handmesh.video import open_source

TIPS = [KEYPOINTS.index(name) for name in FINGERTIPS]


def main() -> None:
    """Connect, and print until either side ends."""
    options = parse()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            talk(options)
    except ConnectionRefusedError:
        raise SystemExit(f"error: nobody answers at {options.url}: start `handmesh serve`, or name its --url") from None
    except ssl.SSLCertVerificationError as error:
        raise SystemExit(
            f"error: {error.verify_message}: give a self-made --certificate, and in --url a name that it is for"
        ) from None
    except ConnectionClosed as error:
        what = "give the right --token: " if error.rcvd and error.rcvd.code == CLOSE_CODE + 401 else ""
        raise SystemExit(f"error: {what}{(error.rcvd and error.rcvd.reason) or error}") from None
    except (OSError, ValueError, WebSocketException) as error:
        raise SystemExit(f"error: {error}") from None


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="ws://127.0.0.1:8765", help="of the server (%(default)s)")
    parser.add_argument("--token", help="where the server wants one")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="the server's, where it is self-made")
    parser.add_argument("--send", metavar="FILE|FOLDER|INDEX|URL|sample", help="send these frames")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    return parser.parse_args()


def talk(options: argparse.Namespace) -> None:
    """Print the hands of the server's frames, or of those that are sent there."""
    headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
    route = "source" if options.send is None else "stream"
    trusted = None if options.certificate is None else trust(options.certificate)
    with connect(f"{options.url.rstrip('/')}/v1/{route}", additional_headers=headers, ssl=trusted) as socket:
        faces = np.array(json.loads(socket.recv())["faces"])
        socket.send(json.dumps({"format": "binary"}))
        frames = watch(socket, faces) if options.send is None else send_frames(socket, faces, options.send)
        for frame in itertools.islice(frames, options.max_frames):
            report(frame)


def trust(certificate: Path) -> ssl.SSLContext:
    """TLS that believes this certificate, as well as those that the system believes."""
    if not certificate.is_file():
        raise FileNotFoundError(f"there is no file {certificate}: --certificate is that of `handmesh serve`")
    context = ssl.create_default_context()
    context.load_verify_locations(certificate)
    return context


def watch(socket: ClientConnection, faces: np.ndarray):
    """The hands of the server's own source, as they come."""
    for message in socket:
        if isinstance(message, bytes):
            yield decode(message, faces)
        else:
            print_complaint(message)


def send_frames(socket: ClientConnection, faces: np.ndarray, spec: str):
    """Send each frame as its time and a JPEG, and wait for its hands. Videos run at their own pace, as cameras do."""
    started_s = time.monotonic()
    with open_source(spec) as source:
        for frame, time_s in source:
            if not source.live:
                time.sleep(max(started_s + time_s - time.monotonic(), 0.0))
            _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            socket.send(struct.pack("<d", time_s) + jpeg.tobytes())
            answer = socket.recv()
            if isinstance(answer, bytes):
                yield decode(answer, faces)
            else:
                print_complaint(answer)


def print_complaint(text: str) -> None:
    """What a message of the server says is wrong, if it does: others are hands in the format that was not asked for."""
    message = json.loads(text)
    if message["type"] == "error":
        print(message["message"])


def report(frame: HandFrame) -> None:
    """One line a hand."""
    for hand in frame.hands:
        x, y, z = 100 * hand.translation
        spread = 1000 * np.linalg.norm(hand.joints[TIPS] - hand.joints[0], axis=1).mean()
        print(
            f"{frame.time_s:9.2f} s  hand {hand.track_id} {hand.side:5}  wrist at {x:6.1f} {y:6.1f} {z:6.1f} cm  "
            f"fingertips {spread:4.0f} mm from it  ({frame.hands_ms:.0f} ms)"
        )


if __name__ == "__main__":
    main()
