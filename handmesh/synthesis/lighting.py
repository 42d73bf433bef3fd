"""Lights: random rooms and skies as spherical harmonics, one to three lamps, and environment maps from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handmesh.synthesis.rasterizer import Lights

Array = np.ndarray


def _unit(v: Array) -> Array:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def irradiance_harmonics(direction: Array, colour: Array) -> Array:
    """(9, 3) cosine-convolved harmonics of distant lights: direction (N, 3) unit, colour (N, 3) flux.

    Ramamoorthi and Hanrahan, "An Efficient Representation for Irradiance Environment Maps" (SIGGRAPH 2001), with
    the basis constants folded in, in the order that the rasteriser evaluates:
    1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2; divided by pi, so an even white sky of radiance 1 gives 1.
    """
    x, y, z = direction.T
    one = np.ones_like(x)
    basis = np.stack([one, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y])
    norm = np.array([0.282095**2] + [0.488603**2] * 3 + [1.092548**2] * 2 + [0.315392**2, 1.092548**2, 0.546274**2])
    band = np.array([1.0] + [2 / 3] * 3 + [1 / 4] * 5)
    return (norm * band)[:, None] * (basis @ colour)


def tint(rng: np.random.Generator, strength: float) -> Array:
    """(3,) colour of a light of unit brightness, from candle to blue sky, with a little green or magenta."""
    warm, green = rng.normal(0, strength), rng.normal(0, 0.3 * strength)
    colour = np.exp(np.array([warm, green, -1.2 * warm]))
    return colour / colour.mean()


@dataclass(frozen=True)
class Environment:
    """A surround as distant lights: direction (N, 3) unit, camera axes; flux (N, 3), of mean irradiance 1."""

    direction: Array
    flux: Array

    @classmethod
    def read(cls, path: Path) -> Environment:
        """Read an equirectangular Radiance .hdr map. Raises ValueError if it is not one."""
        import cv2

        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype != np.float32:
            raise ValueError(f"{path} is not a readable .hdr environment map")
        rows, columns = 16, 32
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)[..., ::-1].astype(np.float64)
        theta = (np.arange(rows) + 0.5)[:, None] / rows * np.pi
        phi = (np.arange(columns) + 0.5)[None] / columns * 2 * np.pi
        direction = np.stack(
            [np.sin(theta) * np.cos(phi), -np.cos(theta) * np.ones_like(phi), np.sin(theta) * np.sin(phi)], -1
        ).reshape(-1, 3)
        flux = (image * np.sin(theta)[..., None]).reshape(-1, 3)
        return cls(direction, flux / max(float(irradiance_harmonics(direction, flux)[0].mean()), 1e-9))

    def harmonics(self, yaw: float) -> Array:
        """(9, 3) of :func:`irradiance_harmonics` after a turn about the vertical by ``yaw`` rad."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        return irradiance_harmonics(self.direction @ turn.T, self.flux)


def _random_room(rng: np.random.Generator) -> Array:
    """Harmonics of a handful of coloured patches round a grey surround, brighter above."""
    count = rng.integers(3, 8)
    direction = _unit(rng.normal(size=(count, 3)) + np.array([0.0, -0.5, 0.0]))
    flux = rng.gamma(0.8, 1.0, count)[:, None] * np.stack([tint(rng, 0.18) for _ in range(count)])
    patches = irradiance_harmonics(direction, flux)
    even = np.zeros((9, 3))
    even[0] = tint(rng, 0.12)
    even[1] = -rng.uniform(0.0, 0.4)
    patches = patches / max(float(patches[0].mean()), 1e-6)
    share = rng.uniform(0.2, 0.8)
    return share * patches + (1 - share) * even


def random_lights(
    rng: np.random.Generator, environments: list[Environment] | None = None, around: Array | None = None
) -> Lights:
    """Lights of one image. environments: surrounds to choose from; around (3,): mean linear
    colour of the background, which tints the ambient light."""
    if environments and rng.uniform() < 0.4:
        ambient = environments[rng.integers(len(environments))].harmonics(rng.uniform(0, 2 * np.pi))
    else:
        ambient = _random_room(rng)
    # Cameras balance their white: keep only part of the room's colour.
    cast = ambient[0] / max(float(ambient[0].mean()), 1e-6)
    ambient = ambient / np.clip(cast, 0.3, 3.0) ** rng.uniform(0.3, 1.0) * rng.uniform(0.25, 0.9)
    if around is not None and rng.uniform() < 0.5:
        hue = around / max(float(around.mean()), 1e-3)
        ambient = ambient * np.clip(hue, 0.4, 2.0) ** rng.uniform(0.05, 0.35)
    count = rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15])
    direction = _unit(rng.normal(size=(count, 3)) * [1.0, 0.9, 0.8] + [0.0, -0.35, -0.25])
    if rng.uniform() < 0.88:
        direction[0, 2] = -abs(direction[0, 2])  # the main lamp is seldom behind the hand
    power = rng.uniform(0.1, 1.3) * np.array([1.0, rng.uniform(0.1, 0.6), rng.uniform(0.05, 0.4)])[:count]
    colour = power[:, None] * np.stack([tint(rng, 0.11 if i == 0 else 0.25) for i in range(count)])
    return Lights(
        direction=direction,
        colour=colour,
        harmonics=ambient,
        shadow=float(rng.uniform(0.3, 1.0)),
        wrap=float(rng.uniform(0.05, 0.3)),
        specular=float(rng.uniform(0.0, 0.7) ** 1.4),
        occlusion=float(rng.uniform(25, 60)),
    )
