"""Normals: right on shapes whose normals are known."""

import numpy as np
import trimesh

from handmesh.normals import vertex_normals


def test_normals_of_a_sphere_point_outwards():
    sphere = trimesh.creation.icosphere(subdivisions=4)
    np.testing.assert_allclose(vertex_normals(sphere.vertices, sphere.faces), sphere.vertices, atol=0.01)


def test_larger_faces_weigh_more_and_lonely_vertices_have_none():
    # Two triangles share vertex 0: one of area 2 in the plane z = 0, one of area 1/2 in the plane x = 0.
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]], float)
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 3, 4]]))
    np.testing.assert_allclose(normals[0], np.array([1, 0, 4]) / np.sqrt(17), atol=1e-6)
    np.testing.assert_allclose(normals[[1, 4]], [[0, 0, 1], [1, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(normals[5], 0)
