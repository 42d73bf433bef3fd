"""Pose correctives: what linear blend skinning loses at bent joints, as MANO's `posedirs`.

Blending matrices shrinks flesh towards a bent joint: knuckles flatten, the thumb's base caves in. Rotating every vertex
about its own centre of rotation keeps its distance from the bone instead (Le and Hodgins, "Real-time skeletal skinning
with optimized centers of rotation", SIGGRAPH 2016). `fit_posedirs` poses the hand both ways all over its joints' range
and fits the difference, brought back to the zero pose, by blend shapes that are linear in R - I, as MANO's are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from handmesh.skeleton import FINGERS, MANO_JOINTS, MANO_PARENTS

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

SIMILARITY_WIDTH = 0.1  # sigma of Le and Hodgins's similarity of two skinning weights
STRENGTH = 0.8  # share of the difference that is corrected: all of it makes knuckles pointed
RIDGE = 1e-3  # added to the mean squares of the features, which are of the order of 0.1
LOCAL = 0.02  # skinning weight from which on a joint moves a vertex
RESOLUTION_M = 1e-7  # a tenth of a micrometre hides the last bits of linear algebra

#: Degrees (low, high) about the flexion and the spreading axis, from an open hand: a little more than fingers reach.
FINGER_RANGE = {1: ((-30.0, 95.0), (-22.0, 22.0)), 2: ((-10.0, 112.0), (0.0, 0.0)), 3: ((-15.0, 80.0), (0.0, 0.0))}
THUMB_RANGE = {1: ((-30.0, 45.0), (-30.0, 40.0)), 2: ((-20.0, 65.0), (0.0, 0.0)), 3: ((-25.0, 80.0), (0.0, 0.0))}
TWIST_DEG = 12.0  # about the bone, first joints only
MAX_FEATURES = 4  # of the nine numbers of R - I, directions that a joint's corrective depends on


@dataclass(frozen=True)
class Skin:
    """A hand in its zero pose, metres: vertices (V, 3), faces (F, 3), weights (V, 16), joints (16, 3)."""

    vertices: Array
    faces: Ids
    weights: Array
    joints: Array


def fit_posedirs(
    skin: Skin, flexion: Array, spreading: Array, fixed: Ids, samples: int, rng: np.random.Generator
) -> Array:
    """Corrective blend shapes (V, 3, 135), metres per unit of R - I.

    flexion, spreading: (16, 3) unit axes. fixed: vertices that must not move: fingertips are keypoints. A joint changes
    only vertices that it moves together with another. Each joint's shapes span at most MAX_FEATURES dimensions, so that
    they take little space and time.
    """
    rotations = sample_rotations(samples, flexion, spreading, rng)
    offsets = STRENGTH * zero_pose_offsets(skin, rotations)  # (N, V, 3)
    relative = (rotations[:, 1:] - np.eye(3)).reshape(samples, -1, 9)  # (N, 15, 9)
    bases = [principal_features(relative[:, j]) for j in range(relative.shape[1])]  # (9, k) each
    posedirs = np.zeros((len(skin.vertices), 3, len(bases), 9))
    for joints, members in neighbourhoods(skin.weights).items():
        used = np.setdiff1d(members, fixed)
        if not joints or not len(used):
            continue
        features = np.concatenate([relative[:, j - 1] @ bases[j - 1] for j in joints], axis=1)
        gram = features.T @ features / samples + RIDGE * np.eye(features.shape[1])
        shapes = np.linalg.solve(gram, features.T @ offsets[:, used].reshape(samples, -1) / samples)
        ends = np.cumsum([bases[j - 1].shape[1] for j in joints])
        for joint, part in zip(joints, np.split(shapes, ends[:-1]), strict=True):
            posedirs[used, :, joint - 1] = (bases[joint - 1] @ part).reshape(9, len(used), 3).transpose(1, 2, 0)
    return (posedirs.reshape(len(posedirs), 3, -1) / RESOLUTION_M).round() * RESOLUTION_M


def principal_features(relative: Array) -> Array:
    """(9, k): orthonormal directions that matter among samples (N, 9) of R - I; a hinge has two, sine and cosine."""
    power, directions = np.linalg.eigh(relative.T @ relative / len(relative))
    order = np.argsort(power)[::-1][:MAX_FEATURES]
    return directions[:, order[power[order] > 1e-6]]


def flesh_kept(skin: Skin, posedirs: Array, flexion: Array, spreading: Array) -> dict[str, dict[str, float]]:
    """How far from a bent joint's axis the flesh over it lies, as a share of how far it lay before bending.

    One joint at a time is bent to 90 % of its range. Means over joints and over the vertices that no joint moves by
    more than 0.7, by linear blend skinning alone and with the correctives (V, 3, 135).
    """
    over = skin.weights.max(1) < 0.7
    shares: dict[str, list[list[float]]] = {"fingers": [], "thumb": []}
    for joint, name in enumerate(MANO_JOINTS[1:], start=1):
        finger, place = name[:-1], int(name[-1])
        flexed = (THUMB_RANGE if finger == "thumb" else FINGER_RANGE)[place][0][1]
        angles = np.zeros((1, len(MANO_JOINTS), 3))
        angles[:, joint, 0] = np.radians(0.9 * flexed)
        rotations = turned(angles, flexion, spreading)
        offsets = posedirs @ (rotations[0, 1:] - np.eye(3)).ravel()
        own = np.flatnonzero(over & (skin.weights[:, joint] > 0.2))
        lengths = [
            np.linalg.norm(np.cross(vertices[own] - skin.joints[joint], flexion[joint]), axis=1)
            for vertices in (
                skin.vertices,
                linear_blend(skin, rotations)[0],
                linear_blend(replace(skin, vertices=skin.vertices + offsets), rotations)[0],
            )
        ]
        shares["thumb" if finger == "thumb" else "fingers"].append([(n / lengths[0]).mean() for n in lengths[1:]])
    return {
        group: dict(zip(("linear_blend", "corrected"), np.mean(rows, axis=0).round(3).tolist(), strict=True))
        for group, rows in shares.items()
    }


def sample_rotations(count: int, flexion: Array, spreading: Array, rng: np.random.Generator) -> Array:
    """Local rotations (N, 16, 3, 3) all over each joint's range, every joint by itself."""
    angles = np.zeros((count, len(MANO_JOINTS), 3))  # flexion, spreading, twist
    for finger in FINGERS:
        for place, ranges in (THUMB_RANGE if finger == "thumb" else FINGER_RANGE).items():
            joint = MANO_JOINTS.index(f"{finger}{place}")
            for axis, (low, high) in enumerate(ranges):
                angles[:, joint, axis] = rng.uniform(low, high, count)
            if place == 1:
                angles[:, joint, 2] = rng.uniform(-TWIST_DEG, TWIST_DEG, count)
    return turned(np.radians(angles), flexion, spreading)


def turned(angles: Array, flexion: Array, spreading: Array) -> Array:
    """Local rotations (N, 16, 3, 3) from angles (N, 16, 3) rad of flexion, spreading and twist; the root's is 1."""
    axes = (flexion, spreading, np.cross(flexion, spreading))
    bend, spread, twist = (_turn(axis, angles[..., k]) for k, axis in enumerate(axes))
    rotations = spread @ bend @ twist
    rotations[:, 0] = np.eye(3)
    return rotations


def zero_pose_offsets(skin: Skin, rotations: Array) -> Array:
    """(N, V, 3): what to add in the zero pose so that blended matrices put each vertex where it belongs."""
    blended, shift = blended_matrices(skin, rotations)
    wanted = about_centres(skin, rotations, centres_of_rotation(skin))
    return np.linalg.solve(blended, (wanted - shift)[..., None])[..., 0] - skin.vertices


def linear_blend(skin: Skin, rotations: Array) -> Array:
    """Vertices (N, V, 3) under rotations (N, 16, 3, 3) by linear blend skinning."""
    blended, shift = blended_matrices(skin, rotations)
    return (blended @ skin.vertices[..., None])[..., 0] + shift


def blended_matrices(skin: Skin, rotations: Array) -> tuple[Array, Array]:
    """Each vertex's blended matrix (N, V, 3, 3) and shift (N, V, 3)."""
    turns, shifts = joint_transforms(skin.joints, rotations)
    return np.einsum("vj,njab->nvab", skin.weights, turns), skin.weights @ shifts


def joint_transforms(joints: Array, rotations: Array) -> tuple[Array, Array]:
    """Rotations (N, 16, 3, 3) and shifts (N, 16, 3) of points of the zero pose that move with a joint."""
    turns, shifts = np.empty_like(rotations), np.zeros((*rotations.shape[:2], 3))
    for joint, parent in enumerate(MANO_PARENTS):
        above = np.broadcast_to(np.eye(3), rotations[:, 0].shape) if parent < 0 else turns[:, parent]
        turns[:, joint] = above @ rotations[:, joint]
        start = joints[joint] if parent < 0 else above @ joints[joint] + shifts[:, parent]
        shifts[:, joint] = start - turns[:, joint] @ joints[joint]
    return turns, shifts


def about_centres(skin: Skin, rotations: Array, centres: Array) -> Array:
    """Vertices (N, V, 3), each turned by its mean rotation about its own centre (V, 3)."""
    turns, shifts = joint_transforms(skin.joints, rotations)
    mean = mean_rotations(skin.weights, turns)  # (N, V, 3, 3)
    blended = np.einsum("vj,njab->nvab", skin.weights, turns)
    moved = (blended @ centres[..., None])[..., 0] + skin.weights @ shifts
    return (mean @ (skin.vertices - centres)[..., None])[..., 0] + moved


def mean_rotations(weights: Array, turns: Array) -> Array:
    """(N, V, 3, 3): weighted means of rotations (N, 16, 3, 3) as quaternions, all on the side of the heaviest."""
    from scipy.spatial.transform import Rotation

    quaternions = Rotation.from_matrix(turns.reshape(-1, 3, 3)).as_quat().reshape(*turns.shape[:2], 4)
    heaviest = quaternions[:, weights.argmax(1)]  # (N, V, 4)
    sides = np.sign(np.einsum("nvq,njq->nvj", heaviest, quaternions))
    sums = np.einsum("nvj,njq->nvq", sides * weights, quaternions)
    return Rotation.from_quat(sums.reshape(-1, 4)).as_matrix().reshape(*sums.shape[:2], 3, 3)


def centres_of_rotation(skin: Skin) -> Array:
    """(V, 3): the mean of the surface, weighted by how alike its blending is (eq. 1 and 4 of Le and Hodgins).

    A vertex that one joint moves alone has no centre of its own; any does, so it is itself.
    """
    corners = skin.vertices[skin.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    middles, shares = corners.mean(1), skin.weights[skin.faces].mean(1)
    centres = skin.vertices.copy()
    for vertex in np.flatnonzero(skin.weights.max(1) < 1 - LOCAL):
        own = skin.weights[vertex]
        similarity = np.zeros(len(shares))
        for j, k in np.argwhere(np.triu(np.outer(own, own) > 0, 1)):
            product = own[j] * own[k] * shares[:, j] * shares[:, k]
            apart = own[j] * shares[:, k] - own[k] * shares[:, j]
            similarity += 2 * product * np.exp(-((apart / SIMILARITY_WIDTH) ** 2))
        centres[vertex] = (similarity * areas) @ middles / (similarity @ areas)
    return centres


def neighbourhoods(weights: Array) -> dict[tuple[int, ...], Ids]:
    """Vertices by the joints whose rotation changes how they blend; what moves all their joints moves them rigidly."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for vertex, own in enumerate(weights > LOCAL):
        chains = [_ancestry(int(joint)) for joint in np.flatnonzero(own)]
        shared = set.intersection(*map(set, chains))
        changing = sorted({joint for chain in chains for joint in chain} - shared)
        groups.setdefault(tuple(changing), []).append(vertex)
    return {joints: np.array(members) for joints, members in groups.items()}


def _ancestry(joint: int) -> list[int]:
    """The joint and all above it."""
    chain = [joint]
    while MANO_PARENTS[chain[-1]] >= 0:
        chain.append(MANO_PARENTS[chain[-1]])
    return chain


def _turn(axes: Array, angles: Array) -> Array:
    """Rotations (N, 16, 3, 3) about axes (16, 3) by angles (N, 16)."""
    from scipy.spatial.transform import Rotation

    vectors = axes * angles[..., None]
    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*angles.shape, 3, 3)
