"""The label tables of a rendered set: its own arrays and FreiHAND's JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.atomic import written_whole

VERTICES_PER_CHUNK = 512

Array = np.ndarray


def write_json(path: Path, value: object) -> None:
    """Write the file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz whole or not at all."""
    with written_whole(path) as temporary:
        np.savez(temporary, **arrays)


def write_tables(root: Path, split: str, shards: Sequence[Path], write_vertices: bool) -> None:
    """Join the shards' label files: ``{split}_labels.npz``, ``{split}_meta.npz`` and FreiHAND's own JSON files."""
    parts = []
    for shard in shards:
        with np.load(shard) as file:
            parts.append({name: file[name] for name in file.files})
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    labels = {"K": columns.pop("K"), "xyz": columns.pop("xyz")}
    stem = str(root / split)
    bone = np.linalg.norm(labels["xyz"][:, 9] - labels["xyz"][:, 10], axis=1)  # FreiHAND's scale: a phalanx
    chunks = {
        "K": labels["K"],
        "xyz": labels["xyz"],
        "scale": bone,
        "mano": _mano_rows(columns, labels),
    }
    if write_vertices:
        chunks["verts"] = _vertices(columns)
        labels["verts"] = chunks["verts"]
    for suffix, arrays in (("labels", labels), ("meta", columns)):
        write_arrays(Path(f"{stem}_{suffix}.npz"), arrays)
    for name, values in chunks.items():
        write_json(Path(f"{stem}_{name}.json"), np.round(values.astype(np.float64), 6).tolist())


def _mano_rows(columns: dict[str, Array], labels: dict[str, Array]) -> Array:
    """(N, 1, 61): 48 pose angles less the model's mean pose, 10 betas, the root keypoint's pixel, and the focal length
    over its depth (lmb-freiburg/freihand, utils/model.py)."""
    import torch

    from handmesh.assets import load_hand_model
    from handmesh.model.rotations import rotmat_to_rotvec

    pose = rotmat_to_rotvec(torch.from_numpy(columns["rotations"])).numpy().reshape(-1, 48)
    pose[:, 3:] -= load_hand_model().hands_mean
    root = np.einsum("nij,nj->ni", labels["K"], labels["xyz"][:, 9])
    focal = labels["K"][:, (0, 1), (0, 1)].mean(1)
    scale = focal / labels["xyz"][:, 9, 2]
    rows = np.concatenate([pose, columns["betas"], root[:, :2] / root[:, 2:], scale[:, None]], 1)
    return rows[:, None]


def _vertices(columns: dict[str, Array]) -> Array:
    """(N, V, 3) float32 m in camera axes, posed again from the labels."""
    import torch

    from handmesh.assets import load_hand_model
    from handmesh.model.hand_model import HandModel

    model = HandModel(load_hand_model())
    out = []
    for start in range(0, len(columns["betas"]), VERTICES_PER_CHUNK):
        part = slice(start, start + VERTICES_PER_CHUNK)
        with torch.no_grad():
            mesh = model(torch.from_numpy(columns["rotations"][part]), torch.from_numpy(columns["betas"][part]))
        centred = (mesh.vertices - mesh.keypoints[:, :1]).numpy()
        out.append(centred + columns["translation"][part, None])
    return np.concatenate(out).astype(np.float32)
