"""Sampling hand poses: gestures, blends and random ones, held to anatomical limits and freed of self-penetration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from handmesh.synthesis.anatomy import ABDUCT, FIRST_JOINT, FLEX, TWIST, HandAnatomy
from handmesh.synthesis.gestures import FINGER_SHAPES, GESTURES, THUMB_SHAPES, Gesture

# Anatomical limits in degrees, (low, high); after Kapandji's and Lin et al.'s ("Modeling the constraints of human
# hand motion", 2000) ranges, passive stretch included.
FINGER_LIMITS = {"mcp": (-28.0, 92.0), "pip": (-6.0, 112.0), "dip": (-12.0, 78.0), "abduction": (-24.0, 24.0)}
THUMB_LIMITS = {"cmc": (-32.0, 45.0), "abduction": (-25.0, 32.0), "mcp": (-18.0, 62.0), "ip": (-28.0, 80.0)}
OPEN_SPREAD_DEG = (-12.0, -1.0, 9.0, 18.0)
DIP_FOLLOWS_PIP = 0.62
MAX_PENETRATION_M = 0.0035
AT_EASE_M = 0.3 * MAX_PENETRATION_M  # poses that penetrate less are left as they are
HALVINGS = 5  # of what is added to a recorded pose
RELAX_STEPS = 18
RECORDED_SHARE = 0.25

Array = np.ndarray


@dataclass(frozen=True)
class Poses:
    """rotations (N, 16, 3, 3) float32 local rotations in the model's axes, identity at the root; names (N,) str."""

    rotations: Array
    names: Array

    def __post_init__(self) -> None:
        if self.rotations.shape != (len(self.names), 16, 3, 3):
            raise ValueError(f"rotations must be (N, 16, 3, 3) with N names, got {self.rotations.shape}")

    def __len__(self) -> int:
        return len(self.names)


def gesture_angles(gesture: Gesture, rng: np.random.Generator, noise: float = 1.0) -> Array:
    """(16, 3) anatomical angles in degrees of one gesture with natural variation."""
    angles = np.zeros((16, 3))
    loose = noise * gesture.looseness
    common, spread = rng.normal(0, 4 * loose), gesture.spread + rng.normal(0, 0.18 * loose)
    for k, letter in enumerate(gesture.fingers):
        mcp, pip = FINGER_SHAPES[letter]
        trade = rng.normal(0, 5 * loose)
        mcp += common + trade + rng.normal(0, 5 * loose)
        pip += common - trade + rng.normal(0, 6 * loose)
        _set_finger(angles, FIRST_JOINT[k + 1], k, mcp, pip, spread, rng, noise)
    _set_thumb(angles, THUMB_SHAPES[gesture.thumb], rng, 7.0 * loose)
    return angles


def random_angles(rng: np.random.Generator) -> Array:
    """(16, 3) angles in degrees: correlated but otherwise free fingers, for poses that have no name."""
    angles = np.zeros((16, 3))
    common, spread = rng.uniform(0, 0.8), rng.uniform(0, 1.2)
    curl = np.clip(common + rng.normal(0, 0.25, 4) + np.linspace(-1, 1, 4) * rng.normal(0, 0.12), -0.08, 1.05)
    for k in range(4):
        bias = rng.normal(0, 0.18)
        mcp, pip = -8 + 90 * (curl[k] + bias), 4 + 100 * (curl[k] - 0.7 * bias)
        _set_finger(angles, FIRST_JOINT[k + 1], k, mcp, pip, spread, rng, 1.3)
    shapes = list(THUMB_SHAPES.values())
    first, second = rng.choice(len(shapes), 2)
    t = rng.uniform()
    mixed = tuple((1 - t) * a + t * b for a, b in zip(shapes[first], shapes[second], strict=True))
    _set_thumb(angles, mixed, rng, 9.0)
    return angles


def _set_finger(angles, first, finger, mcp, pip, spread, rng, noise) -> None:
    mcp = np.clip(mcp, *FINGER_LIMITS["mcp"])
    pip = np.clip(pip, *FINGER_LIMITS["pip"])
    dip = np.clip(DIP_FOLLOWS_PIP * pip + rng.normal(0, 6 * noise), *FINGER_LIMITS["dip"])
    closed = np.clip(mcp / 90.0, 0.0, 1.0)
    sideways = OPEN_SPREAD_DEG[finger] * spread * (1 - 0.85 * closed) + rng.normal(0, 2.2 * noise)
    angles[first, FLEX], angles[first + 1, FLEX], angles[first + 2, FLEX] = mcp, pip, dip
    angles[first, ABDUCT] = np.clip(sideways, *FINGER_LIMITS["abduction"])
    # Curling fingers converge towards the scaphoid: the outer ones twist inwards a little.
    angles[first, TWIST] = closed * (-3.0, 0.0, 3.0, 7.0)[finger] + rng.normal(0, 2.0 * noise)


def _set_thumb(angles, shape, rng, sigma) -> None:
    cmc, abduction, twist, mcp, ip = shape
    first = FIRST_JOINT[0]
    angles[first] = (
        np.clip(cmc + rng.normal(0, sigma), *THUMB_LIMITS["cmc"]),
        np.clip(abduction + rng.normal(0, 0.8 * sigma), *THUMB_LIMITS["abduction"]),
        twist + rng.normal(0, 0.6 * sigma),
    )
    angles[first + 1, FLEX] = np.clip(mcp + rng.normal(0, sigma), *THUMB_LIMITS["mcp"])
    angles[first + 2, FLEX] = np.clip(ip + rng.normal(0, 1.3 * sigma), *THUMB_LIMITS["ip"])


def angle_limits() -> tuple[Array, Array]:
    """(16, 3) lowest and highest angles in rad."""
    low, high = np.full((16, 3), -6.0), np.full((16, 3), 6.0)
    for first in FIRST_JOINT[1:]:
        for joint, name in ((first, "mcp"), (first + 1, "pip"), (first + 2, "dip")):
            low[joint, FLEX], high[joint, FLEX] = FINGER_LIMITS[name]
        low[first, ABDUCT], high[first, ABDUCT] = FINGER_LIMITS["abduction"]
        low[first, TWIST], high[first, TWIST] = -14.0, 16.0
    thumb = FIRST_JOINT[0]
    low[thumb, FLEX], high[thumb, FLEX] = THUMB_LIMITS["cmc"]
    low[thumb, ABDUCT], high[thumb, ABDUCT] = THUMB_LIMITS["abduction"]
    low[thumb, TWIST], high[thumb, TWIST] = -25.0, 38.0
    low[thumb + 1, FLEX], high[thumb + 1, FLEX] = THUMB_LIMITS["mcp"]
    low[thumb + 2, FLEX], high[thumb + 2, FLEX] = THUMB_LIMITS["ip"]
    low[thumb + 1, ABDUCT], high[thumb + 1, ABDUCT] = -10.0, 10.0
    return np.radians(low), np.radians(high)


class SphereModel:
    """The hand as spheres along its bones: a cheap, differentiable measure of self-penetration."""

    def __init__(self, anatomy: HandAnatomy) -> None:
        start, end, share, radius, part = [], [], [], [], []
        for finger, first in enumerate(FIRST_JOINT):
            for k in range(3):
                if finger == 0 and k == 0:
                    continue
                shares = (0.25, 0.75) if k < 2 else (0.15, 0.62)
                for t in shares:
                    start.append(1 + 4 * finger + k)
                    end.append(2 + 4 * finger + k)
                    share.append(t)
                    radius.append(0.86 * anatomy.radii[first + k])
                    part.append(10 * finger + k)
            if finger:
                for t in (0.55, 0.8):
                    start.append(0)
                    end.append(1 + 4 * finger)
                    share.append(t)
                    radius.append(0.0105)
                    part.append(100)
        self.start, self.end = torch.tensor(start), torch.tensor(end)
        self.share = torch.tensor(share, dtype=torch.float32)[:, None]
        radii, parts = np.array(radius), np.array(part)
        self.radii = torch.tensor(radii, dtype=torch.float32)
        first, second = np.triu_indices(len(parts), 1)
        keep = [_may_collide(parts[a], parts[b]) for a, b in zip(first, second, strict=True)]
        self.first, self.second = torch.tensor(first[keep]), torch.tensor(second[keep])
        clearance = radii[first[keep]] + radii[second[keep]]
        self.clearance = torch.tensor(clearance, dtype=torch.float32)

    def penetration(self, keypoints: torch.Tensor) -> torch.Tensor:
        """(N, 21, 3) -> (N, P) m: how deep each pair of spheres overlaps, 0 if it does not."""
        centres = self._centres(keypoints)
        apart = (centres[:, self.first] - centres[:, self.second]).square().sum(-1).clamp_min(1e-10).sqrt()
        return (self.clearance - apart).clamp_min(0.0)

    def collision(self, keypoints: Array, others: Array) -> float:
        """How deep one hand's spheres reach into another's, m, 0 if they do not; keypoints (21, 3) m each."""
        mine, theirs = self._centres(torch.from_numpy(np.stack([keypoints, others]).astype(np.float32)))
        apart = torch.cdist(mine, theirs)
        return float((self.radii[:, None] + self.radii - apart).amax().clamp_min(0.0))

    def _centres(self, keypoints: torch.Tensor) -> torch.Tensor:
        return keypoints[:, self.start] * (1 - self.share) + keypoints[:, self.end] * self.share


def _may_collide(a: int, b: int) -> bool:
    """Pairs that touch at rest by construction (one finger, palm and its own neighbours) are left out."""
    if a == b or (a < 100 and b < 100 and a // 10 == b // 10):
        return False
    if 100 in (a, b):
        other = min(a, b)
        return other >= 10 and other % 10 >= 1 if other >= 10 else other == 2
    if a // 10 and b // 10 and a % 10 == 0 and b % 10 == 0:
        return False  # neighbouring proximal phalanges share the web
    return not ({a // 10, b // 10} == {0, 1} and min(a, b) == 1 and max(a, b) == 10)


def relax(
    anatomy: HandAnatomy,
    spheres: SphereModel,
    angles: Array,
    contacts: tuple[Array, Array],
    steps: int = RELAX_STEPS,
) -> tuple[Array, Array]:
    """Pull poses apart where they penetrate and together where they should touch.

    angles (N, 16, 3) rad; contacts: pairs (C, 3) int (pose, keypoint, keypoint) and distances (C,) m. Returns the
    new angles and (N,) the deepest penetration left, in metres.
    """
    low, high = (torch.tensor(a, dtype=torch.float32) for a in angle_limits())
    everything = torch.minimum(torch.maximum(torch.tensor(angles, dtype=torch.float32), low), high)
    with torch.no_grad():
        clash = spheres.penetration(anatomy.keypoints(anatomy.rotations(everything))).amax(-1) > AT_EASE_M
    clash[torch.tensor(np.unique(contacts[0][:, 0]), dtype=torch.long)] = True
    place = clash.cumsum(0) - 1  # row of each pose among those that need work
    target = everything[clash]
    variable = target.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([variable], lr=0.05, betas=(0.8, 0.95))
    pairs = torch.tensor(contacts[0], dtype=torch.long)
    pairs[:, 0] = place[pairs[:, 0]]
    distance = torch.tensor(contacts[1], dtype=torch.float32)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.06 * (1 - step / steps) + 0.004
        points = anatomy.keypoints(anatomy.rotations(variable))
        loss = 3e4 * spheres.penetration(points).square().sum() + 0.05 * (variable - target).square().sum()
        if len(pairs):
            apart = points[pairs[:, 0], pairs[:, 1]] - points[pairs[:, 0], pairs[:, 2]]
            length = apart.square().sum(-1).clamp_min(1e-10).sqrt()
            loss = loss + 6e3 * (length - distance).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            variable.clamp_(low, high)
    with torch.no_grad():
        everything[clash] = variable
        depth = spheres.penetration(anatomy.keypoints(anatomy.rotations(everything))).amax(-1)
    return everything.numpy(), depth.numpy()


def sample_poses(
    anatomy: HandAnatomy,
    count: int,
    rng: np.random.Generator,
    *,
    bank: Array | None = None,
    names: tuple[str, ...] | None = None,
) -> Poses:
    """``count`` poses: named gestures, blends of two, random ones and (if given) recorded ones.

    bank (M, 15, 3) axis-angle of recorded poses; names restricts the draw to these gestures (noise stays).
    """
    spheres = SphereModel(anatomy)
    rotations, labels = [], []
    recorded = 0 if bank is None or names else int(rng.binomial(count, RECORDED_SHARE))
    if bank is not None and recorded:
        rotations.append(_recorded(anatomy, spheres, bank, recorded, rng))
        labels.append(np.full(recorded, "recorded"))
    missing = count - recorded
    while missing > 0:
        drawn = _propose(int(missing * 1.25) + 8, rng, names)
        angles, depth = relax(anatomy, spheres, drawn[0], drawn[1])
        good = np.flatnonzero(depth < MAX_PENETRATION_M)[:missing]
        with torch.no_grad():
            rotations.append(anatomy.rotations(torch.tensor(angles[good], dtype=torch.float32)).numpy())
        labels.append(np.array(drawn[2])[good])
        missing -= len(good)
    order = rng.permutation(count)
    return Poses(np.concatenate(rotations)[order], np.concatenate(labels)[order])


def _propose(
    count: int, rng: np.random.Generator, names: tuple[str, ...] | None
) -> tuple[Array, tuple[Array, Array], list[str]]:
    pool = [g for g in GESTURES if names is None or g.name in names]
    if not pool:
        raise ValueError(f"no gesture is called {names}")
    chance = np.array([g.weight for g in pool])
    chance = chance / chance.sum()
    angles, pairs, distances, labels = np.zeros((count, 16, 3)), [], [], []
    for i in range(count):
        kind = rng.uniform() if names is None else 0.0
        gesture = pool[rng.choice(len(pool), p=chance)]
        if kind < 0.62:
            angles[i] = gesture_angles(gesture, rng)
            labels.append(gesture.name)
            for contact in gesture.contacts:
                pairs.append((i, contact.first, contact.second))
                distances.append(1e-3 * (contact.distance_mm + rng.normal(0, 1.0)))
        elif kind < 0.84:
            other = pool[rng.choice(len(pool), p=chance)]
            t = rng.uniform(0.15, 0.85)
            angles[i] = (1 - t) * gesture_angles(gesture, rng) + t * gesture_angles(other, rng)
            labels.append("blend")
        else:
            angles[i] = random_angles(rng)
            labels.append("random")
    contacts = (np.array(pairs, int).reshape(-1, 3), np.array(distances, float))
    return np.radians(angles), contacts, labels


def _recorded(anatomy: HandAnatomy, spheres: SphereModel, bank: Array, count: int, rng: np.random.Generator) -> Array:
    """(count, 16, 3, 3) recorded poses with a little noise, or blends of two of them.

    Where that makes fingers pass through each other, less of it is added: the recorded poses themselves are free of it.
    """
    from handmesh.model.rotations import rotvec_to_rotmat

    chosen = bank[rng.integers(0, len(bank), count)]
    other = bank[rng.integers(0, len(bank), count)]
    t = np.where(rng.uniform(size=count) < 0.2, rng.uniform(0, 0.5, count), 0.0)[:, None, None]
    change = t * (other - chosen) + rng.normal(0, np.radians(2.0), chosen.shape)
    rotations = torch.eye(3).repeat(count, 16, 1, 1)
    clash = torch.arange(count)
    for _ in range(HALVINGS):
        rotvecs = torch.tensor(chosen[clash] + change[clash], dtype=torch.float32)
        rotations[clash, 1:] = rotvec_to_rotmat(rotvecs)
        depth = spheres.penetration(anatomy.keypoints(rotations[clash])).amax(-1)
        clash = clash[depth > AT_EASE_M]
        change[clash] *= 0.5
    return rotations.numpy()


def sample_orientations(anatomy: HandAnatomy, count: int, rng: np.random.Generator) -> Array:
    """(N, 3, 3) global rotations of the model in camera axes.

    Half of them show an upright palm or back as before a webcam, the rest point anywhere; a forearm that comes
    towards the camera and hides the hand stays rare.
    """
    out = np.empty((0, 3, 3))
    while len(out) < count:
        n = count + 16
        upright = np.diag([1.0, -1.0, -1.0])  # canonical x, y, z -> right, up, towards the camera
        back = np.where(rng.uniform(size=n) < 0.45, np.pi, 0.0)
        yaw = _turn(1, back + rng.normal(0, 0.6, n))
        pitch, roll = _turn(0, rng.normal(0, 0.45, n)), _turn(2, rng.normal(0, 0.75, n))
        webcam = roll @ pitch @ upright @ yaw
        q = rng.normal(size=(n, 4))
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        rotation = np.where((rng.uniform(size=n) < 0.5)[:, None, None], webcam, _from_quaternion(q))
        forearm_depth = -rotation[:, 2, 1]
        keep = (forearm_depth > -0.72) | (rng.uniform(size=n) < 0.08)
        out = np.concatenate([out, rotation[keep]])
    return (out[:count] @ anatomy.frame).astype(np.float32)


def _turn(axis: int, angle: Array) -> Array:
    out = np.zeros((len(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[:, axis, axis] = 1.0
    out[:, i, i] = out[:, j, j] = np.cos(angle)
    out[:, i, j], out[:, j, i] = -np.sin(angle), np.sin(angle)
    return out


def _from_quaternion(q: Array) -> Array:
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
