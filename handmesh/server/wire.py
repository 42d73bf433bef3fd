"""The hands of one frame as JSON or as bytes: what streams send, pages and programs read, and exports take back.

A binary message is a header, a record a hand, and a JPEG picture of the frame where one was asked for. All numbers are
little endian and aligned to four bytes, so that each part can be viewed as an array in place (`HEADER` and
`hand_dtype` are the layout; ``demos/README.md`` has it as a table). Lengths are metres in camera axes (x right, y down,
z forward), angles radians, image points pixels with integer centres. Vertices are whole numbers of ``vertex_step``, a
32767th of the hand's largest coordinate: some three thousandths of a millimetre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.export import to_json
from handmesh.records import Camera, HandMesh, Side, box_of_keypoints

MAGIC = b"HMSH"
VERSION = 1
_STEPS = 32767
_SIDES: tuple[Side, Side] = ("left", "right")
_ASSUMED = 1  # bit of `flags`: nobody gave the camera

HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u2"),
        ("hands", "<u2"),
        ("vertices", "<u4"),  # of each hand; 0 where meshes are left out
        ("size", "<u4"),  # bytes of the whole message
        ("time_s", "<f8"),  # as the frame's sender gave it
        ("camera", "<f4", (4,)),  # fx, fy, cx, cy px
        ("distortion", "<f4", (8,)),  # OpenCV's k1, k2, p1, p2, k3 .. k6; zeros for a pinhole
        ("width", "<u4"),
        ("height", "<u4"),
        ("flags", "<u4"),
        ("dropped", "<u4"),  # frames of this stream so far that newer ones overtook
        ("decode_ms", "<f4"),
        ("hands_ms", "<f4"),
        ("picture", "<u4"),  # bytes of the JPEG that ends the message; 0 for none
        ("reserved", "<u4"),
    ]
)

_FLOATS: dict[str, tuple[int, ...]] = {
    "translation": (3,),
    "global_orient": (3,),
    "hand_pose": (15, 3),
    "betas": (10,),
    "joints": (21, 3),
    "joints_2d": (21, 2),
}


def hand_dtype(vertices: int) -> np.dtype[Any]:
    """The record of one hand of so many vertices; its length is a multiple of four bytes."""
    return np.dtype(
        [
            ("track_id", "<i4"),  # -1 for none
            ("side", "<u4"),  # 0 left, 1 right
            ("score", "<f4"),
            ("side_score", "<f4"),
            *((name, "<f4", shape) for name, shape in _FLOATS.items()),
            ("vertex_step", "<f4"),
            ("vertices", "<i2", (vertices, 3)),
            ("padding", "V2" if vertices % 2 else "V0"),
        ]
    )


@dataclass(frozen=True, eq=False)
class HandFrame:
    """The hands of one frame with where they came from: what a stream sends for each frame.

    Hands of a frame share its camera. Hands without a mesh have no vertices and no faces (`without_mesh`).
    """

    hands: Sequence[HandMesh]
    camera: Camera
    time_s: float
    """As the frame's sender gave it."""
    dropped: int = 0
    """Frames of the stream so far that newer ones overtook."""
    decode_ms: float = 0.0
    hands_ms: float = 0.0
    picture: bytes = field(default=b"", repr=False)
    """The frame as JPEG, or nothing."""

    def __post_init__(self) -> None:
        for name in ("time_s", "decode_ms", "hands_ms"):
            if not math.isfinite(getattr(self, name)):  # JSON has no such number
                raise ValueError(f"HandFrame.{name} must be a finite number but is {getattr(self, name)}")


def without_mesh(hand: HandMesh) -> HandMesh:
    """The hand with its joints and parameters only."""
    return replace(hand, vertices=np.zeros((0, 3)), faces=np.zeros((0, 3), np.int32))


def encode(frame: HandFrame) -> bytes:
    """A frame's hands as one binary message."""
    count = len(frame.hands[0].vertices) if frame.hands else 0
    records = np.zeros(len(frame.hands), hand_dtype(count))
    for record, hand in zip(records, frame.hands, strict=True):
        record["track_id"] = -1 if hand.track_id is None else hand.track_id
        record["side"] = _SIDES.index(hand.side)
        record["score"], record["side_score"] = hand.score, hand.side_score
        for name in _FLOATS:
            record[name] = getattr(hand, name)
        step = np.float32(np.abs(hand.vertices).max(initial=1e-9) / _STEPS)
        record["vertex_step"] = step
        record["vertices"] = np.rint(hand.vertices / step)
    camera = frame.camera
    header = np.zeros((), HEADER)
    header["magic"], header["version"] = MAGIC, VERSION
    header["hands"], header["vertices"] = len(records), count
    header["size"] = HEADER.itemsize + records.nbytes + len(frame.picture)
    header["time_s"] = frame.time_s
    header["camera"] = camera.fx, camera.fy, camera.cx, camera.cy
    header["distortion"][: len(camera.distortion)] = camera.distortion
    header["width"], header["height"] = camera.width, camera.height
    header["flags"] = _ASSUMED if camera.assumed else 0
    header["dropped"] = frame.dropped
    header["decode_ms"], header["hands_ms"] = frame.decode_ms, frame.hands_ms
    header["picture"] = len(frame.picture)
    return header.tobytes() + records.tobytes() + frame.picture


def decode(message: bytes, faces: NDArray[np.integer]) -> HandFrame:
    """One binary message back; ``faces`` (F, 3) are the right hand's, as the stream's greeting has them.

    Raises ``ValueError`` for what is no such message, is cut short, or does not fit the faces.
    """
    (frame,) = decode_all(message, faces)
    return frame


def decode_all(messages: bytes, faces: NDArray[np.integer]) -> Iterator[HandFrame]:
    """Messages one after another, as a recording holds them; see `decode`. None in no bytes is an error too."""
    start = 0
    while start < len(messages) or start == 0:
        size = _message_size(messages, start)
        yield _decode(messages[start : start + size], faces)
        start += size


def _message_size(messages: bytes, start: int) -> int:
    if len(messages) - start < HEADER.itemsize or messages[start : start + 4] != MAGIC:
        raise ValueError(f"no message of handmesh's binary format at byte {start} of {len(messages)}")
    header = np.frombuffer(messages, HEADER, 1, start)[0]
    if header["version"] != VERSION:
        raise ValueError(f"the message has version {header['version']}, but this program reads version {VERSION}")
    size = int(header["size"])
    records = int(header["hands"]) * hand_dtype(int(header["vertices"])).itemsize
    if size != HEADER.itemsize + records + int(header["picture"]) or start + size > len(messages):
        raise ValueError(f"the message at byte {start} is cut short or damaged: {len(messages) - start} bytes are left")
    return size


def _decode(message: bytes, faces: NDArray[np.integer]) -> HandFrame:
    header = np.frombuffer(message, HEADER, 1)[0]
    count = int(header["vertices"])
    records = np.frombuffer(message, hand_dtype(count), int(header["hands"]), HEADER.itemsize)
    assumed = bool(header["flags"] & _ASSUMED)
    fx, fy, cx, cy = header["camera"].tolist()
    distortion = header["distortion"].tolist()
    camera = Camera(fx, fy, cx, cy, int(header["width"]), int(header["height"]), assumed, distortion)
    return HandFrame(
        hands=[_hand(record, camera, faces if count else np.zeros((0, 3), np.int32)) for record in records],
        camera=camera,
        time_s=float(header["time_s"]),
        dropped=int(header["dropped"]),
        decode_ms=float(header["decode_ms"]),
        hands_ms=float(header["hands_ms"]),
        picture=message[len(message) - int(header["picture"]) :],
    )


def _hand(record: np.void, camera: Camera, faces: NDArray[np.integer]) -> HandMesh:
    if record["side"] not in (0, 1):
        raise ValueError(f"a hand's side must be 0 (left) or 1 (right), not {record['side']}")
    side = _SIDES[record["side"]]
    return HandMesh(
        side=side,
        score=float(record["score"]),
        box=box_of_keypoints(record["joints_2d"]),
        vertices=record["vertices"] * record["vertex_step"],
        faces=np.asarray(faces if side == "right" else faces[:, ::-1], np.int32),
        camera=camera,
        side_score=float(record["side_score"]),
        track_id=None if record["track_id"] < 0 else int(record["track_id"]),
        **{name: record[name] for name in _FLOATS},
    )


def frame_to_json(frame: HandFrame, *, mesh: bool = True) -> dict[str, Any]:
    """The same as an object: `handmesh.export.to_json`, with the frame's ``time_s``, ``camera`` and times beside it."""
    return {
        **to_json(frame.hands, mesh=mesh),
        "time_s": frame.time_s,
        "camera": asdict(frame.camera),
        "dropped": frame.dropped,
        "decode_ms": round(frame.decode_ms, 3),
        "hands_ms": round(frame.hands_ms, 3),
    }
