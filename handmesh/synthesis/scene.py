"""One synthetic photograph: the camera, the hand with its arm, what it holds, the light and the background."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from handmesh.assets import HandModelArrays
from handmesh.synthesis import arm, props
from handmesh.synthesis.anatomy import HandAnatomy
from handmesh.synthesis.backgrounds import random_background
from handmesh.synthesis.gestures import GRASPS
from handmesh.synthesis.kernels import expose, vertex_normals
from handmesh.synthesis.lighting import Environment, random_lights
from handmesh.synthesis.poses import MAX_PENETRATION_M, SphereModel
from handmesh.synthesis.rasterizer import Frame, Mesh, draw_depth, join, render
from handmesh.synthesis.skin import TEXTURE_WIDTH, Skin
from handmesh.synthesis.texels import HAND_TEXELS, TexelMap, bake_texels, open_faces, texel_coordinates

IMAGE_SIZE = 224
MATERIAL_HAND, MATERIAL_FOREARM, MATERIAL_SLEEVE = 0, 1, 2
# A hand of which less can be seen is photographed from elsewhere, then without the things in front of it.
MIN_VISIBLE = 0.35
CAMERA_TRIES = 4
OVEREXPOSED = 0.1  # share of the pictures whose highlights may burn out
BRIGHTEST = 0.75  # linear light of the brightest twelfth of the hand in the others
NO_HAND = np.full((21, 3), np.nan, np.float32)

Array = np.ndarray


@dataclass(frozen=True)
class PosedHand:
    """A hand turned as the camera sees it, wrist at the origin.

    vertices (V, 3), keypoints (21, 3) m in camera axes; orientation (3, 3): the model's global rotation;
    pose_class: the gesture's name.
    """

    vertices: Array
    keypoints: Array
    orientation: Array
    pose_class: str


@dataclass(frozen=True)
class Photo:
    """rgb (S, S, 3), mask (S, S) main hand, alpha (S, S) everything rendered, uint8; intrinsics (3, 3) px;
    translation (3,) m wrist in the camera; occluded: an object stands in front; held: an object is in the hand;
    second (21, 3) m: the keypoints of the other, left hand in the camera, NaN without one."""

    rgb: Array
    mask: Array
    alpha: Array
    intrinsics: Array
    translation: Array
    held: bool
    occluded: bool
    second: Array


@dataclass(frozen=True)
class Camera:
    """intrinsics (3, 3) px of the crop, integer pixel centres; translation (3,) m of the wrist."""

    intrinsics: Array
    translation: Array


class Studio:
    """Everything that images have in common: the hand's topology, texture atlas, buffers, photos, environments."""

    def __init__(
        self,
        arrays: HandModelArrays,
        photos: list[Array],
        environments: list[Environment] | None = None,
        size: int = IMAGE_SIZE,
        second_hand: float = 0.0,
    ) -> None:
        self.second_hand = second_hand
        self.anatomy = HandAnatomy.from_arrays(arrays)
        self._spheres = SphereModel(self.anatomy)
        self._arrays = arrays
        self.photos = photos
        self.environments = environments or []
        self.frame = Frame.allocate(size)
        self._probe = Frame.allocate(size // 4, 1)
        self.size = size
        keep = open_faces(arrays)
        assert arrays.uv_faces is not None
        assert arrays.wrist_loop is not None
        self.faces = np.ascontiguousarray(np.asarray(arrays.faces, np.int32)[keep])
        self.loop = _from_the_back(np.asarray(arrays.wrist_loop, int), arrays, self.anatomy)
        self._loop_size = float(np.linalg.norm(np.asarray(arrays.v_template)[self.loop].std(0)))
        corners = np.stack([self.faces, np.asarray(arrays.uv_faces)[keep]], -1).reshape(-1, 2)
        pairs, inverse = np.unique(corners, axis=0, return_inverse=True)
        self._vertex_of_corner = pairs[:, 0]
        self._uv = texel_coordinates(arrays)[pairs[:, 1]]
        self._uv_faces = inverse.reshape(-1, 3).astype(np.int32)
        self.atlas = np.zeros((HAND_TEXELS, TEXTURE_WIDTH + props.PROP_TEXELS, 4), np.uint8)

    @cached_property
    def texels(self) -> TexelMap:
        """The hand's texture space, for painting skins (seconds to bake, so only when asked for)."""
        return bake_texels(self._arrays, self.anatomy)

    def wear(self, skin: Skin) -> None:
        """Use this person's skin and sleeve from now on."""
        self.atlas[:, :TEXTURE_WIDTH] = skin.texture

    def _paint_prop(self, slot: int, rng: np.random.Generator) -> None:
        rows = slice(slot * props.PROP_TEXELS, (slot + 1) * props.PROP_TEXELS)
        self.atlas[rows, TEXTURE_WIDTH:] = props.prop_texture(self.photos, rng)

    def hand_with_arm(
        self,
        vertices: Array,
        orientation: Array,
        material: int,
        rng: np.random.Generator,
        mirrored: bool = False,
        sleeve: bool | None = None,
    ) -> list[Mesh]:
        """Meshes of a hand (V, 3) and its forearm, with a sleeve (by default: perhaps)."""
        frame = self.anatomy.frame @ orientation.T
        if mirrored:  # grow the arm on the right hand's side of the mirror, then reflect everything
            vertices = vertices * np.array([-1, 1, 1], np.float32)
            frame = self.anatomy.frame @ (np.diag([-1.0, 1, 1]) @ orientation).T
        loop = vertices[self.loop]
        scale = float(np.linalg.norm(loop.std(0)) / self._loop_size)
        tube, rings = arm.grow_forearm(loop, frame, min(max(scale, 0.7), 1.4), rng)
        count, n = len(vertices), len(self.loop)
        # One vertex set for hand and forearm, so that normals run smoothly over the wrist.
        ring, place = np.divmod(np.arange(len(tube.vertices)), n + 1)
        owner = np.where(ring == 0, self.loop[place % n], count + (ring - 1) * n + place % n)
        joined = np.concatenate([vertices, rings[1:].reshape(-1, 3)]).astype(np.float32)
        arm_faces = owner[tube.faces].astype(np.int32)
        outward = _winding(joined, arm_faces, rings)
        normals = vertex_normals(joined, np.concatenate([self.faces, arm_faces[:, ::outward]]))
        meshes = [
            Mesh(
                joined[self._vertex_of_corner],
                normals[self._vertex_of_corner],
                self._uv,
                self._uv_faces,
                np.full(len(self._uv_faces), material, np.int32),
            ),
            Mesh(
                joined[owner], normals[owner], tube.uv, tube.faces, np.full(len(tube.faces), MATERIAL_FOREARM, np.int32)
            ),
        ]
        if rng.uniform() < 0.45 if sleeve is None else sleeve:
            cloth = arm.sew_sleeve(rings, rng)
            cloth_normals = vertex_normals(cloth.vertices, np.ascontiguousarray(cloth.faces[:, ::outward]))
            kind = np.full(len(cloth.faces), MATERIAL_SLEEVE, np.int32)
            meshes.append(Mesh(cloth.vertices, cloth_normals, cloth.uv, cloth.faces, kind))
        if mirrored:
            flip = np.array([-1, 1, 1], np.float32)
            meshes = [Mesh(m.vertices * flip, m.normals * flip, m.uv, m.faces, m.material) for m in meshes]
        return meshes

    def photograph(self, hand: PosedHand, rng: np.random.Generator, other: PosedHand | None = None) -> Photo:
        """Render one image; ``other`` may appear as the same person's left hand."""
        camera, subject = self._view(hand, rng)
        keypoints = hand.keypoints + camera.translation.astype(np.float32)
        extras, held, occluded, second = self._surroundings(hand, keypoints, rng, other)
        if extras and self._visible_share(subject + extras, camera.intrinsics) < MIN_VISIBLE:
            extras, held, occluded, second = [], False, False, NO_HAND
        background = random_background(self.photos, self.size, rng)
        around = np.square(background[::8, ::8].reshape(-1, 3).mean(0) / 255.0)
        lights = random_lights(rng, self.environments, around)
        drawn = render(join(subject + extras), self.atlas, camera.intrinsics, lights, self.frame)
        rgb = develop(drawn.radiance, drawn.alpha, drawn.mask, background, rng)
        mask, alpha = (np.clip(255 * a + 0.5, 0, 255).astype(np.uint8) for a in (drawn.mask, drawn.alpha))
        return Photo(rgb, mask, alpha, camera.intrinsics, camera.translation, held, occluded, second)

    def _view(self, hand: PosedHand, rng: np.random.Generator, tries: int = CAMERA_TRIES) -> tuple[Camera, list[Mesh]]:
        """A camera and the hand with its arm before it; another one if the arm hides the hand."""
        arm_z = -float(hand.orientation[2] @ self.anatomy.frame[1])
        camera = random_camera(hand.keypoints, arm_z, self.size, rng)
        vertices = hand.vertices + camera.translation.astype(np.float32)
        meshes = self.hand_with_arm(vertices, hand.orientation, MATERIAL_HAND, rng)
        if tries > 1 and self._visible_share(meshes, camera.intrinsics) < MIN_VISIBLE:
            return self._view(hand, rng, tries - 1)
        return camera, meshes

    def _surroundings(
        self, hand: PosedHand, keypoints: Array, rng: np.random.Generator, other: PosedHand | None
    ) -> tuple[list[Mesh], bool, bool, Array]:
        """What else is in the picture; whether something is held or stands in front; the other hand's keypoints."""
        extras: list[Mesh] = []
        second = NO_HAND
        held = occluded = False
        if rng.uniform() < (0.6 if hand.pose_class in GRASPS else 0.1):
            frame = self.anatomy.frame @ hand.orientation.T
            thing = props.held_object(keypoints, frame, _hand_scale(keypoints, self.anatomy), rng)
            if thing is not None:
                self._paint_prop(0, rng)
                extras.append(thing)
                held = True
        if rng.uniform() < 0.1:
            self._paint_prop(1, rng)
            extras.append(props.occluder(keypoints, rng))
            occluded = True
        if other is not None and rng.uniform() < self.second_hand:
            meshes, second = self._second_hand(other, keypoints, rng)
            extras += meshes
        return extras, held, occluded, second

    def _visible_share(self, meshes: list[Mesh], intrinsics: Array) -> float:
        """How much of the first mesh is not hidden by the others, counted in a small depth image."""
        probe, scale = self._probe, self._probe.size / self.size
        shrink = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]])
        draw_depth(meshes[0], shrink @ intrinsics, probe)
        alone = int((probe.face >= 0).sum())
        draw_depth(join(meshes), shrink @ intrinsics, probe)
        seen = int(((probe.face >= 0) & (probe.face < len(meshes[0].faces))).sum())
        return seen / max(alone, 1)

    def _second_hand(self, other: PosedHand, keypoints: Array, rng: np.random.Generator) -> tuple[list[Mesh], Array]:
        """The other hand beside the first one and its keypoints in the camera; none if it came too near."""
        direction = rng.uniform(0, 2 * np.pi)
        away = rng.uniform(0.07, 0.2)
        depth = rng.normal(0.02, 0.05)
        step = np.array([np.cos(direction), np.sin(direction), 0.0])
        middle = keypoints.mean(0) + away * step + np.array([0.0, 0.0, depth])
        flip = np.array([-1, 1, 1], np.float32)
        vertices, seen = other.vertices * flip, other.keypoints * flip
        shift = (middle - vertices.mean(0)).astype(np.float32)
        while self._spheres.collision(keypoints, seen + shift) > MAX_PENETRATION_M:
            shift = (shift + 0.01 * step).astype(np.float32)
        vertices, seen = vertices + shift, seen + shift
        if vertices[:, 2].min() < 0.1:
            return [], NO_HAND
        orientation = np.diag([-1.0, 1.0, 1.0]) @ other.orientation
        return self.hand_with_arm(vertices, orientation, MATERIAL_FOREARM, rng, mirrored=True), seen


def _from_the_back(loop: Array, arrays: HandModelArrays, anatomy: HandAnatomy) -> Array:
    """Turn the wrist's ring of vertices so that it starts at the middle of the back: the forearm's texture does."""
    ring = np.asarray(arrays.v_template, np.float64)[loop] @ anatomy.frame.T
    ring = ring - ring.mean(0)
    start = int(np.argmin(ring[:, 2] + 0.3 * np.abs(ring[:, 0])))
    return np.roll(loop, -start)


def _winding(vertices: Array, faces: Array, rings: Array) -> int:
    """1 or -1: how to read the tube's faces so that their normals point outwards."""
    a, b, c = (vertices[faces[:40, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    return 1 if float((normal * (a - rings[0].mean(0))).sum()) > 0 else -1


def _hand_scale(keypoints: Array, anatomy: HandAnatomy) -> float:
    return float(np.linalg.norm(keypoints[9] - keypoints[0]) / np.linalg.norm(anatomy.joints[4]))


def random_camera(keypoints: Array, arm_z: float, size: int, rng: np.random.Generator) -> Camera:
    """A camera of 30 to 90 degrees that sees the hand (21, 3; wrist at 0) somewhere in its frame, and the crop.

    ``arm_z`` is the forearm's direction along z: one that comes towards the camera must end before it. The crop is
    what a tracker or a dataset would cut out: off the optical axis as often as the hand is.
    """
    extent = float(np.linalg.norm(np.ptp(keypoints, axis=0)[:2]))
    half_tan = np.tan(np.radians(rng.uniform(30, 90)) / 2)
    share = np.exp(rng.uniform(np.log(0.14), np.log(0.75)))
    nearest = max(rng.uniform(0.18, 0.4), 0.12 - float(keypoints[:, 2].min()), 0.1 - arm_z * arm.RINGS_M[-1])
    depth = float(np.clip(max(extent, 0.12) / (2 * half_tan * share), nearest, 2.5))
    off_axis = np.clip(rng.normal(0, 0.35, 2), -0.8, 0.8) * half_tan * [1.0, 0.7]
    translation = np.array([off_axis[0] * depth, off_axis[1] * depth, depth])
    translation[:2] -= keypoints.mean(0)[:2]
    seen = keypoints + translation
    rays = seen[:, :2] / seen[:, 2:]
    low, high = rays.min(0), rays.max(0)
    side = max(float((high - low).max()), 0.45 * 0.18 / depth)
    fill = rng.uniform(0.45, 0.75) if rng.uniform() < 0.85 else rng.uniform(0.75, 1.1)
    focal = fill * size / side
    jitter = rng.normal(0, 0.05, 2) * size
    if rng.uniform() < 0.08:
        jitter = rng.normal(0, 0.16, 2) * size
    centre = (size - 1) / 2 + jitter - focal * (low + high) / 2
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    return Camera(intrinsics, translation)


_STEPS = np.square(np.arange(1024) / 1023.0)
ENCODE = np.where(_STEPS < 0.0031308, 12.92 * _STEPS, 1.055 * _STEPS ** (1 / 2.4) - 0.055)
ENCODE = (255 * ENCODE).astype(np.float32)


def develop(radiance: Array, alpha: Array, mask: Array, background: Array, rng: np.random.Generator) -> Array:
    """Expose the rendered light, put it over the background; (S, S, 3) uint8."""
    few = radiance[::3, ::3]
    lit = mask[::3, ::3] > 0.9 if (mask[::3, ::3] > 0.9).any() else alpha[::3, ::3] > 0.5
    middle, high = np.percentile(few[lit].sum(-1), (50, 92)) / 3 if lit.any() else (0.3, 0.3)
    brightness = max(float(middle), 0.4 * float(high))  # spare the highlights of dark, glossy things
    # Half automatic exposure: dark skin stays darker than light skin, dark rooms stay darker than bright ones.
    target = brightness**0.45 * 0.3**0.55 * np.exp(rng.normal(0.05, 0.36))
    if rng.uniform() < 0.08:
        target *= rng.uniform(0.15, 0.5)
    gain = target / max(brightness, 1e-3)
    if rng.uniform() > OVEREXPOSED:
        gain = min(gain, BRIGHTEST / max(float(high), 1e-3))
    light_gain = np.float32(gain)
    background_gain = np.float32(rng.uniform(0.5, 1.1) * min(1.0, (target / 0.15) ** 0.5))
    return expose(radiance, alpha, background, light_gain, background_gain, ENCODE)
