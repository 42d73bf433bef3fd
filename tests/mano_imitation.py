"""A hand model with MANO's vertex count and file layout, made of the open one: MANO itself must not be in here."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path

import numpy as np

from handmesh.assets import load_hand_model
from handmesh.skeleton import MANO_FINGERTIPS, MANO_VERTEX_COUNT


@cache
def _picked() -> np.ndarray:
    """Vertices of the open hand, in an order that puts its fingertips where FreiHAND looks for MANO's."""
    model = load_hand_model()
    order = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(model.v_template)), model.fingertips))
    picked = order[:MANO_VERTEX_COUNT].copy()
    picked[list(MANO_FINGERTIPS["freihand"])] = model.fingertips
    return picked


def mano_arrays(size: float = 1.0, breadth: float = 1.0) -> dict[str, np.ndarray]:
    """MANO's keys; `size` scales the hand along its fingers, `breadth` across. Keypoints follow the open hand's."""
    model = load_hand_model()
    picked, stretch = _picked(), np.array([size, 1.0, breadth])
    # The regressor of fewer vertices that gives the open hand's joints for every shape: the smallest one.
    known = np.concatenate([model.v_template[..., None], model.shapedirs], -1).reshape(len(model.v_template), -1)
    known = np.concatenate([known, np.ones((len(known), 1))], 1).astype(np.float64)  # (V, 34): weights sum to 1
    regressor = np.linalg.lstsq(known[picked].T, (model.J_regressor @ known).T, rcond=None)[0].T
    place = np.full(len(model.v_template), -1)
    place[picked] = np.arange(len(picked))
    faces = place[model.faces]
    return {
        "v_template": model.v_template[picked] * stretch,
        "shapedirs": model.shapedirs[picked] * stretch[:, None],
        "posedirs": np.zeros((len(picked), 3, 135)),
        "J_regressor": regressor,
        "weights": model.weights[picked].astype(np.float64),
        "kintree_table": np.stack([np.array([2**32 - 1, *model.parents[1:]]), np.arange(16)]),
        "f": faces[(faces >= 0).all(1)].astype(np.uint32),
        "hands_components": model.hands_components.astype(np.float64),
        "hands_mean": model.hands_mean.astype(np.float64),
    }


def write_mano_pickle(path: Path, size: float = 1.0, breadth: float = 1.0) -> Path:
    path.write_bytes(pickle.dumps(mano_arrays(size, breadth), protocol=2))
    return path
