"""handmesh: an RGB frame in, 3D hand meshes out, in real time on an ordinary CPU.

Names are loaded when they are first used, so that ``import handmesh`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handmesh.assets import HandModelArrays, load_hand_model
    from handmesh.detector import HandDetector
    from handmesh.estimator import HandMeshEstimator
    from handmesh.records import Camera, Detection, HandMesh, Side
    from handmesh.smoothing import Smoothing
    from handmesh.tracker import HandTracker

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "Detection",
    "HandDetector",
    "HandMesh",
    "HandMeshEstimator",
    "HandModelArrays",
    "HandTracker",
    "Side",
    "Smoothing",
    "load_hand_model",
]

_HOMES = {
    "Camera": "records",
    "Detection": "records",
    "HandDetector": "detector",
    "HandMesh": "records",
    "HandMeshEstimator": "estimator",
    "HandModelArrays": "assets",
    "HandTracker": "tracker",
    "Side": "records",
    "Smoothing": "smoothing",
    "load_hand_model": "assets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
