"""What a run looks like: its curves, and its hands drawn over the crops that they were read from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from handmesh.atomic import written_whole
from handmesh.datasets.sample import Batch
from handmesh.evaluation.validation import predict
from handmesh.model.regressor import HandRegressor
from handmesh.model.rotations import rotmat_to_rotvec
from handmesh.records import Camera, HandMesh, box_of_points
from handmesh.render import Overlay
from handmesh.skeleton import KEYPOINT_BONES

_TILE_PX = 192
_COLUMNS = 4  # of pairs: the truth's skeleton, the predicted mesh
_TRUTH_COLOUR = (90, 230, 90)
_FAR = 50.0  # focal length of the drawing camera in crop sizes: weak perspective, nearly


def draw_curves(folder: Path) -> None:
    """Draw every column of every CSV file of a run's folder against the samples seen, into `curves.png`."""
    from matplotlib.figure import Figure

    panels = [panel for path in sorted(folder.glob("*.csv")) for panel in _panels(path)]
    if not panels:
        return
    columns = min(5, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows))
    figure.subplots_adjust(0.12 / columns, 0.16 / rows, 1 - 0.05 / columns, 1 - 0.1 / rows, wspace=0.25, hspace=0.45)
    for number, (title, seen, values) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.plot(seen, values, linewidth=1, marker="." if len(seen) < 20 else None)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.set_xlabel("samples", fontsize=6)
    with written_whole(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110)


def _panels(path: Path) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in rows[0] if rows else ():
        if name != "seen":
            values = np.array([[float(row["seen"]), float(row[name])] for row in rows])
            yield f"{path.stem}: {name}", values[:, 0], values[:, 1]


def draw_overlays(network: HandRegressor, batch: Batch, path: Path, *, count: int = 12) -> None:
    """Draw the first hands of a batch side by side: the labelled keypoints, and the mesh that the network sees."""
    crops = batch.crops[:count]
    hands = _weak_perspective_hands(network, crops)
    tiles = []
    for crop, hand, truth in zip(crops.numpy(), hands, batch.joints_2d[:count].numpy(), strict=True):
        picture = cv2.resize(crop, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_LINEAR)
        labelled = picture.copy()
        _draw_bones(labelled, _to_pixels(truth))
        tiles.append(np.concatenate([labelled, Overlay(skeleton=True, opacity=0.6).draw(picture, [hand])], 1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[start : start + _COLUMNS], 1) for start in range(0, len(tiles), _COLUMNS)]
    with written_whole(path) as temporary:
        cv2.imwrite(str(temporary), np.concatenate(rows)[..., ::-1])


def _weak_perspective_hands(network: HandRegressor, crops: torch.Tensor) -> list[HandMesh]:
    """The network's hands where its own weak-perspective camera puts them, seen by a far pinhole camera."""
    head, vertices, joints = predict(network, crops)
    focal, middle = _FAR * _TILE_PX, (_TILE_PX - 1) / 2
    camera = Camera(focal, focal, middle, middle, _TILE_PX, _TILE_PX)
    rotvecs = rotmat_to_rotvec(head.rotations)
    faces = network.hand_model.faces.cpu().numpy()
    hands = []
    for row in range(len(crops)):
        scale, x, y = head.camera[row].tolist()
        depth = 2 * _FAR / scale  # metres at which a metre covers `scale` half crops
        keypoints = _to_pixels(head.joints_2d[row].numpy())
        hands.append(
            HandMesh(
                side="right",
                score=float(head.presence[row].sigmoid()),
                box=box_of_points(keypoints),
                vertices=vertices[row].numpy(),
                joints=joints[row].numpy(),
                translation=np.array([x / scale, y / scale, depth], np.float32),
                joints_2d=keypoints,
                global_orient=rotvecs[row, 0].numpy(),
                hand_pose=rotvecs[row, 1:].numpy(),
                betas=head.betas[row].numpy(),
                faces=faces,
                camera=camera,
            )
        )
    return hands


def _to_pixels(normalised: NDArray[np.floating]) -> NDArray[np.float32]:
    return ((normalised + 1) * (_TILE_PX / 2) - 0.5).astype(np.float32)


def _draw_bones(picture: NDArray[np.uint8], keypoints: NDArray[np.floating]) -> None:
    for parent, child in KEYPOINT_BONES:
        ends = [(round(float(keypoints[end, 0])), round(float(keypoints[end, 1]))) for end in (parent, child)]
        cv2.line(picture, ends[0], ends[1], _TRUTH_COLOUR, 2, cv2.LINE_AA)
