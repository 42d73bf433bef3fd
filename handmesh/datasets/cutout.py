"""Cut a labelled hand and its forearm out of a photo, to put it before other backgrounds."""

from __future__ import annotations

import cv2
import numpy as np

from handmesh.skeleton import FINGER_KNUCKLES, FINGERS, KEYPOINTS

_LONGEST_PX = 160
_ROUNDS = 4
_PALM = tuple(KEYPOINTS.index(name) for name in ("wrist", "thumb1", "thumb2", *(f"{f}1" for f in FINGERS[1:])))
_FINGERS = tuple(tuple(KEYPOINTS.index(f"{f}{k}") for k in (1, 2, 3, "_tip")) for f in FINGERS)
_MIDDLE = KEYPOINTS.index("middle1")


def hand_opacity(image: np.ndarray, joints_2d: np.ndarray) -> np.ndarray | None:
    """(H, W) uint8, 255 where the hand or its forearm is; None where they do not stand out from what is behind.

    GrabCut (Rother et al., SIGGRAPH 2004) with the bones as sure foreground and what is near them, or where the arm
    goes, as possible foreground.

    Args:
        image: (H, W, 3) uint8 RGB, mostly hand.
        joints_2d: (21, 2) px.
    """
    scale = min(1.0, _LONGEST_PX / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    joints = (joints_2d + 0.5) * scale - 0.5
    palm = float(np.linalg.norm(joints[_MIDDLE] - joints[0]))  # px; short where the hand points at the camera
    palm = max(palm, 0.3 * float(np.ptp(joints, axis=0).max()))
    bones = _drawn(small.shape[:2], joints, 0.06 * palm + 1, around=False)
    near = _drawn(small.shape[:2], joints, 0.42 * palm, around=True)
    arm = _arm(small.shape[:2], joints, palm)
    likely = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    likely[(_drawn(small.shape[:2], joints, 0.9 * palm, around=True) | arm) > 0] = cv2.GC_PR_BGD
    likely[near > 0] = cv2.GC_PR_FGD
    likely[bones > 0] = cv2.GC_FGD
    if not (likely == cv2.GC_BGD).any():
        return None
    cv2.setRNGSeed(0)  # GrabCut draws from OpenCV's own generator: the same photo always gives the same cut-out
    cv2.grabCut(small, likely, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), _ROUNDS, cv2.GC_INIT_WITH_MASK)
    cut = np.isin(likely, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts = cv2.connectedComponents(cut)
    cut = np.where(np.isin(parts, np.unique(parts[bones > 0])), cut, 0).astype(np.uint8)
    area = int(cut.sum())
    far = int(cut[(near == 0) & (arm == 0)].sum())
    if not 0.5 <= area / max(1, int((near > 0).sum())) <= 1.6 or far > 0.12 * area:
        return None
    soft = cv2.GaussianBlur(cut * np.float32(255), (0, 0), 0.8)
    soft = ((soft - 64) * (255 / 160)).clip(0, 255).astype(np.uint8)  # a little inside the border, which is mixed
    return cv2.resize(soft, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)


def _drawn(shape: tuple[int, ...], joints: np.ndarray, width: float, *, around: bool) -> np.ndarray:
    """Fingers `width` px wide and the palm, grown by half of that if `around`."""
    canvas, thickness = np.zeros(shape[:2], np.uint8), max(1, round(width))
    for finger in _FINGERS:
        cv2.polylines(canvas, [joints[list(finger)].round().astype(np.int32)], False, 255, thickness)
    palm = cv2.convexHull(joints[list(_PALM)].astype(np.float32)).round().astype(np.int32)
    cv2.fillConvexPoly(canvas, palm, 255)
    if around:
        cv2.polylines(canvas, [palm], True, 255, thickness)
    return canvas


def _arm(shape: tuple[int, ...], joints: np.ndarray, palm: float) -> np.ndarray:
    """Where the forearm may be: from the wrist away from the knuckles, three palms long."""
    knuckles = joints[list(FINGER_KNUCKLES)]
    along = joints[0] - knuckles.mean(0)
    along /= max(float(np.linalg.norm(along)), 1e-6)
    across = np.array([-along[1], along[0]]) * max(float(np.linalg.norm(knuckles[0] - knuckles[-1])), 0.45 * palm)
    start, end = joints[0] - 0.1 * palm * along, joints[0] + 3 * palm * along
    corners = np.array([start - 0.5 * across, start + 0.5 * across, end + 0.9 * across, end - 0.9 * across])
    canvas = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(canvas, corners.round().astype(np.int32), 255)
    return canvas
