"""A hand's joints in the orders of other tools: FreiHAND's (our own), MediaPipe's and OpenXR's twenty-six."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from handmesh.records import HandMesh
from handmesh.skeleton import KEYPOINTS, MEDIAPIPE, OPENXR, conversion, permutation

KeypointOrder = Literal["freihand", "mediapipe", "openxr"]

KEYPOINT_NAMES: dict[KeypointOrder, tuple[str, ...]] = {
    "freihand": KEYPOINTS,
    "mediapipe": MEDIAPIPE,
    "openxr": OPENXR,
}

_TO_OPENXR = np.array(conversion("freihand", "openxr"))


def openxr_joints(joints: NDArray[np.floating]) -> NDArray[np.float64]:
    """FreiHAND's joints (..., 21, 3) as OpenXR's (..., 26, 3) in the same axes (XR_EXT_hand_tracking).

    Twenty-one are the same points. The model has no joint inside the palm, so palm and metacarpals are estimated
    (`handmesh.skeleton.ESTIMATED`).
    """
    return _TO_OPENXR @ np.asarray(joints, np.float64)


def reorder(hand: HandMesh, order: KeypointOrder) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """A hand's joints (K, 3) m from the wrist and joints_2d (K, 2) px in an order of `KEYPOINT_NAMES`.

    The order changes, not the spots: MediaPipe's wrist, knuckles and tips are others (`handmesh.model.conventions`).
    Raises ``ValueError`` for another order.
    """
    if order not in KEYPOINT_NAMES:
        raise ValueError(f"keypoints must be one of {', '.join(KEYPOINT_NAMES)}, not {order!r}")
    if order != "openxr":
        rows = list(permutation(KEYPOINTS, KEYPOINT_NAMES[order]))
        return hand.joints[rows], hand.joints_2d[rows]
    joints = openxr_joints(hand.joints)
    joints_2d = hand.camera.project(np.maximum(joints + hand.translation, [-np.inf, -np.inf, 1e-3]))
    for row, name in enumerate(OPENXR):
        if name in KEYPOINTS:  # as it was seen, not as the mesh projects
            joints_2d[row] = hand.joints_2d[KEYPOINTS.index(name)]
    return joints, joints_2d
