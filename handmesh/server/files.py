"""Files of what was seen: the hands of one frame, or of a clip as a stream sent it."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from handmesh.assets import HandModelArrays
from handmesh.clip import Clip
from handmesh.clip_export import export_clip
from handmesh.export import WRITERS, export_hands
from handmesh.server.wire import HandFrame, frame_to_json

ExportFormat = Literal["json", "glb", "bvh", "npz", "obj", "ply"]
HandsFormat = Literal["json", "glb", "obj", "ply", "npz", "binary"]

MEDIA_TYPES = {
    "json": "application/json",
    "glb": "model/gltf-binary",
    "obj": "model/obj",
    "ply": "application/octet-stream",
    "npz": "application/octet-stream",
    "bvh": "text/plain",
    "zip": "application/zip",
    "binary": "application/octet-stream",
}


def write_file(
    frames: Sequence[HandFrame], kind: str, *, model: HandModelArrays | None = None, mesh: bool = True
) -> tuple[bytes, str]:
    """The bytes of a file of one frame's or a clip's hands, and its suffix: that of ``kind``, or zip for several files.

    A frame without meshes counts as a clip, whose files make them of the parameters again: ``model`` is the hand model
    of a clip. ``mesh`` False leaves surfaces out of a frame's json. Raises ``LookupError`` where there is no hand (but
    in a frame's json) and ``ValueError`` where the format does not fit.
    """
    if len(frames) == 1 and kind == "json":
        return json.dumps(frame_to_json(frames[0], mesh=mesh), separators=(",", ":")).encode(), kind
    if not any(frame.hands for frame in frames):
        raise LookupError(f"there is no hand in the {'picture' if len(frames) == 1 else 'recording'}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"hands.{kind}"
        with_mesh = all(len(hand.vertices) for hand in frames[0].hands)
        if len(frames) == 1 and path.suffix in WRITERS and with_mesh:
            export_hands(frames[0].hands, path)
            written = [path]
        else:
            written = export_clip(_clip(frames), path, model)
        if len(written) == 1:
            return written[0].read_bytes(), kind
        archive = path.with_suffix(".zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in written:
                packed.write(file, file.name)
        return archive.read_bytes(), "zip"


def _clip(frames: Sequence[HandFrame]) -> Clip:
    times_s = np.array([frame.time_s for frame in frames])
    if (np.diff(times_s) <= 0).any():
        raise ValueError("the times of a recording's frames must increase")
    clip = Clip(fps=1.0 if len(times_s) == 1 else float(1 / np.median(np.diff(times_s))))
    for frame in frames:
        clip.add(frame.time_s - times_s[0], frame.hands)
    return clip
