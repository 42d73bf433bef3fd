"""The z-buffer: equal to a plain one, watertight, right about which surface is in front."""

from __future__ import annotations

import numpy as np
import pytest

from handmesh.raster import EMPTY, TONES, rasterise

WIDTH, HEIGHT = 48, 40


def draw(points, depth, triangles, tones=None, layers=None, width=WIDTH, height=HEIGHT):
    """Layers (height, width) and tones (height, width) of `rasterise`, EMPTY where nothing is."""
    points, triangles = np.asarray(points, np.float32), np.asarray(triangles)
    tones = np.zeros(len(points)) if tones is None else np.asarray(tones)
    layers = np.arange(len(triangles)) if layers is None else layers
    image = rasterise(points, np.asarray(depth, np.float64), tones, triangles, layers, width, height)
    return np.where(image == EMPTY, EMPTY, image // TONES), np.where(image == EMPTY, EMPTY, image % TONES)


def plain_rasterise(points, depth, triangles):
    """One triangle and one pixel after the other; also how far every pixel is from being decided otherwise."""
    points = np.asarray(points, np.float32).astype(float)  # the same input as the fast one's
    layers = np.full((HEIGHT, WIDTH), EMPTY)
    best = np.zeros((HEIGHT, WIDTH))
    margin = np.full((HEIGHT, WIDTH), np.inf)
    for number, triangle in enumerate(triangles):
        p, w = points[triangle], 1 / np.asarray(depth)[triangle]
        area = np.cross(p[1] - p[0], p[2] - p[0])
        for y in range(HEIGHT):
            for x in range(WIDTH):
                parts = [np.cross(p[(k + 2) % 3] - p[(k + 1) % 3], (x, y) - p[(k + 1) % 3]) / area for k in range(3)]
                lengths = [np.linalg.norm(p[(k + 2) % 3] - p[(k + 1) % 3]) for k in range(3)]
                edge = min(abs(part * area / length) for part, length in zip(parts, lengths, strict=True))
                near = float(np.dot(parts, w))
                if min(parts) >= 0:
                    margin[y, x] = min(margin[y, x], abs(near - best[y, x]) * 1e3)
                    if near > best[y, x]:
                        layers[y, x], best[y, x] = number, near
                if min(parts) > -0.1:
                    margin[y, x] = min(margin[y, x], edge)
    return layers, margin


@pytest.mark.filterwarnings("ignore:Arrays of 2-dimensional vectors:DeprecationWarning")
def test_equals_the_plain_rasteriser_on_random_triangles():
    rng = np.random.default_rng(0)
    points = rng.uniform(-15, 60, (36, 2))  # some reach out of the image
    depth = rng.uniform(0.2, 3, 36)
    triangles = np.arange(36).reshape(12, 3)
    wanted, margin = plain_rasterise(points, depth, triangles)
    layers, _ = draw(points, depth, triangles)
    decided = margin > 1e-3  # not within rounding of an edge or of another depth
    assert decided.mean() > 0.99
    assert len(np.unique(wanted)) > 8
    np.testing.assert_array_equal(layers[decided], wanted[decided])


def jittered_grid(rng, columns=12, rows=10):
    """Points (V, 2) and triangles of a sheet that covers pixels 2..42 x 2..32, its inner points moved about."""
    x, y = np.meshgrid(np.linspace(2, 43, columns), np.linspace(2, 33, rows))
    points = np.stack([x, y], axis=-1)
    points[1:-1, 1:-1] += rng.uniform(-1.2, 1.2, (rows - 2, columns - 2, 2))
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    upper = np.stack([corner, corner + 1, corner + columns], axis=1)
    lower = np.stack([corner + 1, corner + columns + 1, corner + columns], axis=1)
    return points.reshape(-1, 2), np.concatenate([upper, lower])


@pytest.mark.parametrize("snap", [False, True], ids=["anywhere", "on pixel centres"])
def test_neighbours_share_their_pixels_without_gap_or_overlap(snap):
    points, triangles = jittered_grid(np.random.default_rng(1))
    points = np.round(points) if snap else points
    covered = np.zeros((HEIGHT, WIDTH), int)
    for triangle in triangles:
        covered += draw(points, np.ones(len(points)), triangle[None])[0] != EMPTY
    wanted = np.zeros((HEIGHT, WIDTH), int)
    wanted[2:33, 2:43] = 1
    np.testing.assert_array_equal(covered, wanted)


def test_surfaces_are_cut_where_they_meet_in_space_not_where_depths_would_meet_on_the_image():
    # Two walls seen by a camera of focal length 20 px centred at x = 20: z = 1 + X and z = 2 - X meet at X = 1/2,
    # z = 3/2, that is at column 20 + 20 / 3. Depth interpolated linearly on the image would cut them elsewhere.
    def wall(slope, offset):
        x_m = np.array([-0.5, 0.9, 0.9, -0.5])
        z_m = offset + slope * x_m
        y_m = np.array([-0.8, -0.8, 0.8, 0.8])
        return np.stack([20 + 20 * x_m / z_m, 20 + 20 * y_m / z_m], axis=1), z_m

    (points_a, depth_a), (points_b, depth_b) = wall(1.0, 1.0), wall(-1.0, 2.0)
    quad = np.array([[0, 1, 2], [0, 2, 3]])
    layers, _ = draw(
        np.concatenate([points_a, points_b]),
        np.concatenate([depth_a, depth_b]),
        np.concatenate([quad, quad + 4]),
        layers=np.array([0, 0, 1, 1]),
    )
    middle = layers[20]
    seen = np.flatnonzero(middle != EMPTY)
    assert seen.min() < 10
    assert seen.max() > 33
    np.testing.assert_array_equal(middle[seen], np.where(seen < 20 + 20 / 3, 0, 1))


def test_the_order_of_triangles_does_not_matter():
    rng = np.random.default_rng(2)
    points, depth = rng.uniform(0, 45, (60, 2)), rng.uniform(0.3, 2, 60)
    triangles, layers = np.arange(60).reshape(20, 3), np.arange(20)
    shuffled = rng.permutation(20)
    one, _ = draw(points, depth, triangles, layers=layers)
    other, _ = draw(points, depth, triangles[shuffled], layers=layers[shuffled])
    np.testing.assert_array_equal(one, other)


def test_winding_does_not_matter():
    points, triangles = jittered_grid(np.random.default_rng(3))
    depth = 1 + 0.01 * points[:, 0]
    np.testing.assert_array_equal(draw(points, depth, triangles)[0], draw(points, depth, triangles[:, ::-1])[0])


def test_tones_follow_the_plane_through_the_corners():
    points = np.array([[1.5, 2.25], [45.0, 5.5], [10.25, 37.75]])
    tones = 0.1 + points @ [0.012, 0.006]
    layers, drawn = draw(points, [0.5, 0.6, 0.9], [[0, 1, 2]], tones)
    y, x = np.nonzero(layers == 0)
    assert len(y) > 500
    expected = (TONES - 1) * (0.1 + 0.012 * x + 0.006 * y)
    assert np.abs(drawn[y, x] - expected).max() <= 0.5 + 1e-3  # rounding to whole tones


def test_many_more_pixels_than_one_block_holds():
    points = [[-0.5, -0.5], [4000, -0.5], [-0.5, 4000]]
    layers, _ = draw(points, [1, 1, 1], [[0, 1, 2]], width=300, height=250)
    assert (layers == 0).all()


@pytest.mark.parametrize(
    "points",
    [
        [[5, 5], [5, 5], [5, 5]],
        [[5, 5], [20, 20], [35, 35]],
        [[5.2, 7.3], [30.1, 7.3], [12, 7.3]],
        [[-90, 5], [-80, 9], [-70, 30]],
        [[5, -90], [9, -80], [30, -70]],
        [[90, 5], [95, 9], [97, 30]],
        [[5, 90], [9, 95], [30, 97]],
        [[5.1, 5.1], [5.4, 5.1], [5.1, 5.4]],
    ],
    ids=["point", "diagonal", "level", "left", "above", "right", "below", "between pixels"],
)
def test_triangles_that_cover_no_pixel_centre_draw_nothing(points):
    layers, _ = draw(points, [1, 1, 1], [[0, 1, 2]])
    assert (layers == EMPTY).all()


def test_a_triangle_far_larger_than_the_image_fills_it():
    layers, _ = draw([[-1e7, -1e7], [3e7, -1e7], [-1e7, 3e7]], [1, 1, 1], [[0, 1, 2]])
    assert (layers == 0).all()


def test_no_triangle_draws_nothing():
    layers, _ = draw(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3), int))
    assert (layers == EMPTY).all()


def test_an_image_of_one_pixel():
    layers, _ = draw([[-1, -1], [3, -1], [-1, 3]], [1, 1, 1], [[0, 1, 2]], width=1, height=1)
    np.testing.assert_array_equal(layers, [[0]])
