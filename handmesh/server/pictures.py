"""Pictures that strangers send: measured before they are decoded, so that a small file cannot fill the memory."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from handmesh.video import decode_picture

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# Start-of-frame markers (ITU-T T.81, table B.1) without DHT, JPG and DAC, which share their range.
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # markers without a length


def read_picture_bytes(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """A JPEG or PNG as (H, W, 3) uint8 RGB, turned upright.

    Raises ``ValueError`` for another format, for more than ``max_pixels`` and for a damaged picture.
    """
    width, height = picture_size(data)
    if width * height > max_pixels:
        raise ValueError(f"the picture has {width} x {height} pixels; at most {max_pixels} are taken: send it smaller")
    return decode_picture(
        data, f"the {'PNG' if data.startswith(_PNG) else 'JPEG'} that was sent", "cut short or damaged"
    )


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG or PNG announces. Raises ``ValueError`` where it is neither or is cut short."""
    try:
        if data.startswith(_PNG):
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data.startswith(_JPEG):
            return _jpeg_size(data)
    except (struct.error, IndexError) as error:
        raise ValueError("the picture is cut short: it ends before its size is said") from error
    raise ValueError("the picture must be a JPEG or a PNG")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    place = 2
    while True:
        if data[place] != 0xFF:
            raise ValueError("the picture is a damaged JPEG: a marker is missing")
        marker = data[place + 1]
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _BARE_MARKERS:
            place += 2
        elif marker == 0:  # decoders take no length here and go on to the next marker: another size than read here
            raise ValueError("the picture is a damaged JPEG: a zero stands where a marker should")
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
