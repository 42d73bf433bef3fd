"""Draw the hand without and with its pose correctives: fist, pinch and thumb across the palm.

    python data/draw_correctives.py data/pose_correctives.jpg

Each pair shows linear blend skinning alone on the left and with `posedirs` on the right.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.mistakes import in_one_line
from handmesh.model.hand_model import HandModel
from handmesh.normals import vertex_normals
from handmesh.raster import EMPTY, TONES, rasterise
from handmesh.skeleton import FINGERS, MANO_JOINTS
from handmesh.synthesis.anatomy import FIRST_JOINT, FLEX, HandAnatomy
from handmesh.synthesis.gestures import THUMB_SHAPES

SIDE_PX, OVERSAMPLING = 340, 3
DISTANCE_M, FOCAL = 0.6, 3.9  # focal length in picture sides
SKIN = np.array([236, 178, 142])
#: Name, fingers' flexion in degrees (knuckle, middle, tip), thumb, turn of the view in degrees about x, y and z.
POSES = (
    ("fist", (84, 104, 62), "across", (25, 115, 0)),
    ("pinch", (46, 52, 34), "oppose", (10, 75, 0)),
    ("thumb across", (4, 6, 4), "palm", (-15, 35, 0)),
)


def pose(anatomy: HandAnatomy, fingers: tuple[int, int, int], thumb: str) -> torch.Tensor:
    """Local rotations (16, 3, 3) of a hand."""
    angles = np.zeros((len(MANO_JOINTS), 3))
    for finger in range(1, len(FINGERS)):
        first = FIRST_JOINT[finger]
        angles[first : first + 3, FLEX] = fingers
    first = FIRST_JOINT[0]
    angles[first], angles[first + 1, FLEX], angles[first + 2, FLEX] = (
        THUMB_SHAPES[thumb][:3],
        *THUMB_SHAPES[thumb][3:],
    )
    return anatomy.rotations(torch.tensor(np.radians(angles), dtype=torch.float32))


def draw(vertices: NDArray[np.floating], faces: NDArray[np.integer], view: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A shaded picture (SIDE_PX, SIDE_PX, 3) RGB of a mesh seen from a direction: rows of `view` are x, y, z axes."""
    size = SIDE_PX * OVERSAMPLING
    turned = (vertices - vertices.mean(0)) @ view.T
    tones = 0.25 + 0.75 * np.clip(vertex_normals(turned, faces) @ np.array([-0.36, -0.5, -0.79]), 0, 1)
    turned[:, 2] += DISTANCE_M
    points = turned[:, :2] / turned[:, 2:] * FOCAL * size + (size - 1) / 2
    u, v = points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]]
    seen = faces[u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0]
    tone = rasterise(points, turned[:, 2], tones, seen, np.zeros(len(seen), np.intp), size, size)
    picture = np.where((tone == EMPTY)[..., None], 255.0, tone[..., None] / (TONES - 1) * SKIN)
    return cv2.resize(picture.astype(np.uint8), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.uint8)


def picture(arrays: HandModelArrays) -> NDArray[np.uint8]:
    """All poses in a row, each without and with correctives."""
    from scipy.spatial.transform import Rotation

    anatomy = HandAnatomy.from_arrays(arrays)
    models = HandModel(replace(arrays, posedirs=np.zeros_like(arrays.posedirs))), HandModel(arrays)
    towards_camera = np.diag([1.0, -1.0, -1.0]) @ anatomy.frame  # the palm faces the camera, fingers up
    tiles = []
    for name, fingers, thumb, turn in POSES:
        view = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ towards_camera
        for model, caption in zip(models, (name, f"{name}, corrected"), strict=True):
            vertices = model(pose(anatomy, fingers, thumb), torch.zeros(10)).vertices.numpy()
            tile = draw(vertices, arrays.faces, view)
            cv2.putText(tile, caption, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (60, 60, 60), 1, cv2.LINE_AA)
            tiles.append(tile)
    return np.concatenate(tiles, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="picture file")
    parser.add_argument("--model", type=Path, help="hand model, .npz or MANO's .pkl (default: the embedded one)")
    arguments = parser.parse_args()
    image = picture(load_hand_model(arguments.model))
    if not cv2.imwrite(str(arguments.output), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise OSError(f"could not write {arguments.output}")


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
