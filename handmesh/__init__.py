"""handmesh: an RGB frame in, 3D hand meshes out, in real time on an ordinary CPU."""
