"""The software renderer, lights, props, skin and backgrounds on shapes with known answers."""

import numpy as np
import pytest
import torch

from handmesh.assets import load_hand_model
from handmesh.synthesis.backgrounds import drawn_background, load_photos, view_of_photo
from handmesh.synthesis.kernels import expose, vertex_normals
from handmesh.synthesis.lighting import Environment, irradiance_harmonics, random_lights
from handmesh.synthesis.poses import MAX_PENETRATION_M, SphereModel
from handmesh.synthesis.props import ball, box, cylinder, occluder, random_shape
from handmesh.synthesis.rasterizer import (
    TO_LINEAR,
    Frame,
    Lights,
    Mesh,
    ambient_occlusion,
    draw_depth,
    join,
    render,
)
from handmesh.synthesis.scene import ENCODE, PosedHand, Studio

SIZE, FOCAL = 64, 100.0
K = np.array([[FOCAL, 0, 31.5], [0, FOCAL, 31.5], [0, 0, 1.0]])


def mesh_of(vertices, faces, material=0, normals=None):
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    normals = vertex_normals(vertices, faces) if normals is None else np.asarray(normals, np.float32)
    uv = np.full((len(vertices), 2), 2.0, np.float32)
    return Mesh(vertices, normals, uv, faces, np.full(len(faces), material, np.int32))


def ball_at(centre, radius, material=0):
    shape = ball(radius, rows=60, sides=80)
    return mesh_of(shape.vertices + centre, shape.faces, material, shape.vertices / radius)


def square_at(z, half, material=0, x=0.0):
    corners = [[x - half, -half, z], [x + half, -half, z], [x + half, half, z], [x - half, half, z]]
    return mesh_of(corners, [[0, 1, 2], [0, 2, 3]], material, [[0, 0, -1.0]] * 4)


def lights(ambient=0.0, direct=0.0, direction=(0.0, 0.0, -1.0), shadow=0.0):
    harmonics = np.zeros((9, 3))
    harmonics[0] = ambient
    return Lights(np.array([direction], float), np.full((1, 3), direct), harmonics, shadow, 0.0, 0.0, 0.0)


GREY = np.full((8, 8, 4), 188, np.uint8)
GREY[..., 3] = 0
GREY_LINEAR = float(TO_LINEAR[188])


def test_depth_of_a_ball():
    frame = Frame.allocate(SIZE, 2)
    draw_depth(ball_at([0, 0, 1.0], 0.2), K, frame)
    assert frame.depth[63:65, 63:65].min() == pytest.approx(0.8, abs=1e-3)
    area = (frame.face >= 0).sum() / 4
    radius = FOCAL * 0.2 / np.sqrt(1.0 - 0.2**2)  # outline of a sphere at distance 1
    assert area == pytest.approx(np.pi * radius**2, rel=0.01)


def test_depth_is_perspective_correct():
    """On a slanted plane 1/z is linear in the picture."""
    frame = Frame.allocate(SIZE, 1)
    draw_depth(mesh_of([[-1, -1, 0.6], [1, -1, 2.0], [1, 1, 2.0], [-1, 1, 0.6]], [[0, 1, 2], [0, 2, 3]]), K, frame)
    x = np.arange(SIZE)
    ray = (x - 31.5) / FOCAL
    expected = 1.3 / (1 - 0.7 * ray)  # z = 1.3 + 0.7 X, X = ray z
    np.testing.assert_allclose(frame.depth[32, 10:54], expected[10:54], rtol=1e-4)


def test_pixels_have_integer_centres():
    """A square whose sides run through pixel centres half covers them."""
    half = 10.0 / FOCAL
    drawn = render(
        square_at(1.0, half),
        GREY,
        np.array([[FOCAL, 0, 32], [0, FOCAL, 32], [0, 0, 1.0]]),
        lights(1.0),
        Frame.allocate(SIZE, 2),
    )
    assert drawn.alpha[32, 22] == pytest.approx(0.5)
    assert drawn.alpha[32, 42] == pytest.approx(0.5)
    assert drawn.alpha[32, 21] == 0
    assert drawn.alpha[32, 23] == 1
    assert drawn.alpha.sum() == pytest.approx(400)


def test_the_nearer_surface_wins_whatever_the_order():
    near, far = square_at(0.8, 0.1, material=4), square_at(1.0, 0.2, material=0)
    for meshes in ([near, far], [far, near]):
        drawn = render(join(meshes), GREY, K, lights(1.0), Frame.allocate(SIZE))
        assert drawn.mask[32, 32] == 0
        assert drawn.alpha[32, 32] == 1
        assert drawn.mask[32, 48] == 1
        assert (drawn.mask <= drawn.alpha).all()


def test_even_light_gives_the_albedo_everywhere():
    drawn = render(ball_at([0, 0, 1.0], 0.2), GREY, K, lights(1.0), Frame.allocate(SIZE))
    inside = drawn.alpha == 1
    np.testing.assert_allclose(drawn.radiance[inside], GREY_LINEAR, rtol=1e-4)


def test_a_lamp_obeys_the_cosine():
    drawn = render(ball_at([0, 0, 1.0], 0.2, material=4), GREY, K, lights(direct=1.0), Frame.allocate(SIZE))
    centre, side = drawn.radiance[32, 32, 0], drawn.radiance[32, 32 + 14, 0]
    assert centre == pytest.approx(GREY_LINEAR, rel=0.06)
    assert side < 0.85 * centre


def test_cast_shadow_darkens_what_is_behind():
    light = np.array([0.6, 0.0, -0.8])
    scene = join([square_at(1.2, 0.4), square_at(1.0, 0.05)])
    dark = render(scene, GREY, K, lights(direct=1.0, direction=light, shadow=1.0), Frame.allocate(SIZE)).radiance
    bright = render(scene, GREY, K, lights(direct=1.0, direction=light), Frame.allocate(SIZE)).radiance
    # Along the light a point of the near square falls 0.15 m to the left on the far one.
    shadow_x = round(31.5 - FOCAL * 0.15 / 1.2)
    assert dark[32, shadow_x, 0] < 0.3 * bright[32, shadow_x, 0]
    assert dark[32, 60, 0] == pytest.approx(bright[32, 60, 0])


def test_faces_behind_the_camera_are_left_out():
    drawn = render(square_at(-1.0, 0.2), GREY, K, lights(1.0), Frame.allocate(SIZE))
    assert drawn.alpha.max() == 0
    drawn = render(
        mesh_of([[0, 0, -1], [0.1, 0, 1], [0, 0.1, 1]], [[0, 1, 2]]), GREY, K, lights(1.0), Frame.allocate(SIZE)
    )
    assert np.isfinite(drawn.radiance).all()


def test_occlusion_is_one_on_a_plane_and_less_in_a_groove():
    frame = Frame.allocate(SIZE, 1)
    draw_depth(square_at(1.0, 2.0), K, frame)
    np.testing.assert_allclose(ambient_occlusion(frame, 40.0, 5.0), 1.0)
    groove = join([square_at(1.02, 2.0), square_at(1.0, 0.1, x=-0.112), square_at(1.0, 0.1, x=0.112)])
    draw_depth(groove, K, frame)
    occlusion = ambient_occlusion(frame, 40.0, 5.0)
    assert occlusion[32, 32] < 0.9
    assert occlusion[32, 20] > 0.95


def test_harmonics_of_an_even_sky_and_of_one_lamp():
    rng = np.random.default_rng(0)
    sky = rng.normal(size=(60_000, 3))
    sky /= np.linalg.norm(sky, axis=1, keepdims=True)
    even = irradiance_harmonics(sky, np.full((60_000, 3), 4 * np.pi / 60_000))
    np.testing.assert_allclose(even[0], 1.0, atol=1e-3)
    np.testing.assert_allclose(even[1:], 0.0, atol=0.03)
    lamp = irradiance_harmonics(np.array([[0.0, 0.0, 1.0]]), np.full((1, 3), np.pi))[:, 0]
    facing = lamp[0] + lamp[2] + 2 * lamp[6]
    sideways, away = lamp[0] - lamp[6], lamp[0] - lamp[2] + 2 * lamp[6]
    # Second-order approximation of max(0, cos): Ramamoorthi and Hanrahan's error bound is 9 % at worst.
    np.testing.assert_allclose([facing, sideways, away], [1.0, 0.0, 0.0], atol=0.1)


def test_environment_maps_are_read_and_turned(tmp_path):
    """One bright texel: at the zenith it lights what faces up (-y); on the horizon, the side that it is turned to."""
    import cv2

    up, side = np.zeros((64, 128, 3), np.float32), np.zeros((64, 128, 3), np.float32)
    up[:4] = 1.0
    side[30:34, :4] = 1.0  # phi = 0: +x
    for name, image in (("up", up), ("side", side)):
        cv2.imwrite(str(tmp_path / f"{name}.hdr"), image)
    above = Environment.read(tmp_path / "up.hdr").harmonics(1.0)[:, 0]
    assert above[0] == pytest.approx(1.0)
    assert above[1] < -1.5
    np.testing.assert_allclose(above[2:4], 0.0, atol=0.05)
    beside = Environment.read(tmp_path / "side.hdr")
    assert beside.harmonics(0.0)[3, 0] > 1.5
    assert beside.harmonics(-np.pi / 2)[2, 0] > 1.5
    (tmp_path / "bad.hdr").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.hdr"):
        Environment.read(tmp_path / "bad.hdr")


def test_random_lights_are_finite_and_unit():
    rng = np.random.default_rng(1)
    for _ in range(50):
        light = random_lights(rng, around=rng.uniform(0, 1, 3))
        np.testing.assert_allclose(np.linalg.norm(light.direction, axis=1), 1.0)
        assert np.isfinite(light.harmonics).all()
        assert (light.colour >= 0).all()


def test_exposure_is_srgb_over_the_background():
    background = np.full((2, 2, 3), 200, np.uint8)
    radiance, alpha = np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32)
    radiance[0, 0], alpha[0, 0] = 0.2140, 1.0  # linear 0.214 is sRGB 0.5
    radiance[0, 1], alpha[0, 1] = 0.1070, 0.5
    radiance[1, 0], alpha[1, 0] = 1e6, 1.0
    out = expose(radiance, alpha, background, np.float32(1), np.float32(1), ENCODE)
    np.testing.assert_array_equal(out[1, 1], 200)
    assert abs(int(out[0, 0, 0]) - 128) <= 1
    assert abs(int(out[0, 1, 0]) - 164) <= 1
    assert out[1, 0, 0] == 255


@pytest.mark.parametrize("shape", [cylinder(0.02, 0.1, 0.5), box(0.05, 0.1, 0.02), ball(0.03, 1.4)])
def test_shapes_are_closed_about_the_origin(shape):
    """The divergence theorem gives a closed surface the same volume wherever the origin is."""

    def volume(vertices):
        a, b, c = (vertices[shape.faces[:, k]] for k in range(3))
        return abs(float((a * np.cross(b, c)).sum()) / 6)

    assert volume(shape.vertices) == pytest.approx(volume(shape.vertices + np.array([0.3, -0.2, 0.5])), rel=1e-6)
    assert volume(shape.vertices) > 1e-6
    assert shape.uv.min() >= 0
    assert shape.uv.max() <= 1
    np.testing.assert_allclose(shape.vertices.min(0) + shape.vertices.max(0), 0, atol=1e-9)


def test_volumes_of_known_shapes():
    for shape, expected in ((box(0.1, 0.2, 0.3), 0.006), (cylinder(0.1, 0.5, sides=200), np.pi * 0.005)):
        a, b, c = (shape.vertices[shape.faces[:, k]] for k in range(3))
        assert abs((a * np.cross(b, c)).sum()) / 6 == pytest.approx(expected, rel=2e-3)


def test_random_props_stand_in_front_of_the_hand():
    rng = np.random.default_rng(2)
    keypoints = rng.normal(0, 0.03, (21, 3)) + np.array([0, 0, 0.6])
    for _ in range(20):
        assert len(random_shape(rng, 0.03).faces) > 10
        thing = occluder(keypoints, rng)
        assert thing.vertices.mean(0)[2] < 0.72
        np.testing.assert_allclose(np.linalg.norm(thing.normals, axis=1), 1.0, atol=1e-4)


def test_backgrounds(tmp_path):
    import cv2

    rng = np.random.default_rng(3)
    assert drawn_background(50, rng).shape == (50, 50, 3)
    photo = np.zeros((700, 500, 3), np.uint8)
    photo[:, 250:] = (0, 0, 255)  # blue in RGB
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "deep" / "a.png"), photo[..., ::-1])
    photos = load_photos([tmp_path], also_held_out=True)
    assert [max(p.shape) for p in photos] == [480]
    assert photos[0][5, -5, 2] == 255
    assert view_of_photo(photos[0], 64, rng).shape == (64, 64, 3)


def test_an_arm_that_hides_its_hand_is_seen_from_elsewhere():
    """Forearms straight at the camera: each picture still shows some of the hand, and the arm ends before the lens."""
    arrays = load_hand_model()
    studio = Studio(arrays, [])
    vertices = np.asarray(arrays.v_template) - (arrays.J_regressor @ arrays.v_template)[0]
    points = studio.anatomy.keypoints(torch.eye(3).expand(16, 3, 3)).numpy()
    towards = (np.array([[1.0, 0, 0], [0, 0.3, -0.954], [0, 0.954, 0.3]]) @ np.diag([1.0, -1, -1])).T
    towards = (towards @ studio.anatomy.frame).astype(np.float32)
    if (towards @ studio.anatomy.frame[1])[2] < 0:
        towards = np.diag([1.0, -1.0, -1.0]).astype(np.float32) @ towards
    hand = PosedHand(vertices @ towards.T, points.astype(np.float32) @ towards.T, towards, "open")
    rng = np.random.default_rng(5)
    shown = [studio.photograph(hand, rng) for _ in range(8)]
    assert min((photo.mask > 128).sum() for photo in shown) > 100
    assert min(photo.translation[2] for photo in shown) > 0.4


def test_a_second_hand_is_labelled_where_it_is_seen():
    arrays = load_hand_model()
    studio = Studio(arrays, [], second_hand=1.0)
    vertices = np.asarray(arrays.v_template) - (arrays.J_regressor @ arrays.v_template)[0]
    points = studio.anatomy.keypoints(torch.eye(3).expand(16, 3, 3)).numpy().astype(np.float32)
    towards = np.diag([-1.0, -1.0, 1.0]).astype(np.float32)
    hand = PosedHand(vertices @ towards.T, points @ towards.T, towards, "open")
    rng = np.random.default_rng(2)
    photos = [studio.photograph(hand, rng, hand) for _ in range(16)]
    both = [photo for photo in photos if np.isfinite(photo.second).all()]
    assert len(both) > 8
    spheres = SphereModel(studio.anatomy)
    deepest = max(spheres.collision(hand.keypoints + photo.translation, photo.second) for photo in both)
    assert deepest < MAX_PENETRATION_M + 1e-5
    seen = []
    for photo in both:
        first = hand.keypoints + photo.translation
        lengths = [np.linalg.norm(np.diff(k[[0, 9, 10, 11]], axis=0), axis=1) for k in (first, photo.second)]
        np.testing.assert_allclose(*lengths, atol=1e-5)
        inner = np.delete(photo.second, [4, 8, 12, 16, 20], axis=0)  # fingertips lie on the outline
        pixels = inner @ photo.intrinsics.T
        pixels = np.round(pixels[:, :2] / pixels[:, 2:]).astype(int)
        inside = ((pixels >= 0) & (pixels < len(photo.alpha))).all(1)
        seen += (photo.alpha[pixels[inside, 1], pixels[inside, 0]] > 128).tolist()
    assert np.mean(seen) > 0.95
    assert not np.isfinite(Studio(arrays, []).photograph(hand, rng, hand).second).any()
