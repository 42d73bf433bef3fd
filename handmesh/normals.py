"""Normals of triangle meshes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Unit normals (V, 3), area-weighted over the faces (F, 3) around each vertex; 0 where no face is."""
    a, b, c = (vertices[faces[:, k]].astype(np.float32) for k in range(3))
    u, v = (b - a).T, (c - a).T
    corners = faces.reshape(-1)
    normals = np.empty((len(vertices), 3))
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        cross = u[i] * v[j] - u[j] * v[i]  # of all faces, as long as twice the area
        normals[:, axis] = np.bincount(corners, np.repeat(cross, 3), len(vertices))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
