"""Hands live in Blender: 21 small spheres a hand, moved by the OSC packets of a running server.

    handmesh serve --source 0 --osc 127.0.0.1:9000           # in a terminal
    blender --python demos/blender_live.py                   # or open it in Blender's text editor and run it

Needs nothing but Blender. For hands as they were recorded no script is needed: import the .glb of `handmesh video` or
of the served page (File, Import, glTF 2.0), a skinned mesh with its movement.
"""

from __future__ import annotations

import socket
import struct

PORT = 9000
RADIUS_M = 0.006
PERIOD_S = 1 / 60

Hands = dict[str, dict[str, list]]
"""Track number -> last part of an OSC address -> its values."""


def parse_packet(packet: bytes) -> Hands:
    """The hands of one OSC bundle of handmesh (OSC 1.0: addresses, types and values padded to four bytes)."""
    hands: Hands = {}
    at = 16  # "#bundle" and a time
    while at + 4 <= len(packet):
        (size,) = struct.unpack_from(">i", packet, at)
        address, values = parse_message(packet[at + 4 : at + 4 + size])
        at += 4 + size
        _, name, *rest = address.strip("/").split("/")
        if rest:
            hands.setdefault(name, {})[rest[0]] = values
    return hands


def parse_message(message: bytes) -> tuple[str, list]:
    """Address and values of one OSC message."""
    address, at = _text(message, 0)
    kinds, at = _text(message, at)
    values = []
    for kind in kinds[1:]:
        if kind == "s":
            value, at = _text(message, at)
        else:
            size = 8 if kind == "d" else 4
            (value,) = struct.unpack_from(f">{kind}", message, at)
            at += size
        values.append(value)
    return address, values


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 4 - end % 4


def places(hand: dict[str, list]) -> list[tuple[float, float, float]]:
    """The 21 joints in Blender's axes (x right, y away from the camera, z up), metres from the camera."""
    x, y, z = hand["wrist"]
    joints = hand["joints"]
    return [(x + joints[i], z + joints[i + 2], -(y + joints[i + 1])) for i in range(0, 63, 3)]


def main() -> None:
    """Listen, and move spheres on Blender's timer."""
    import bpy  # pyright: ignore[reportMissingImports]

    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    receiver.bind(("127.0.0.1", PORT))
    receiver.setblocking(False)
    spheres: dict[str, list] = {}
    spare: list[list] = []  # hidden, of hands that are gone, for the next that come

    def add_hand() -> list:
        bpy.ops.mesh.primitive_uv_sphere_add(radius=RADIUS_M, segments=12, ring_count=8)
        first = bpy.context.view_layer.objects.active  # a timer's context has no `object`
        first.name = "hand"
        copies = [first.copy() for _ in range(20)]
        for copy in copies:
            bpy.context.collection.objects.link(copy)
        return [first, *copies]

    def show(hands: Hands) -> None:
        for name in spheres.keys() - hands.keys():
            spare.append(spheres.pop(name))
            for sphere in spare[-1]:
                sphere.hide_viewport = True
        for name, hand in hands.items():
            if name not in spheres:
                spheres[name] = spare.pop() if spare else add_hand()
            for sphere, place in zip(spheres[name], places(hand), strict=True):
                sphere.hide_viewport = False
                sphere.location = place

    def step() -> float:
        newest: bytes | None = None
        while True:
            try:
                newest = receiver.recv(65536)
            except BlockingIOError:
                break
        if newest is not None:  # it holds all hands in sight
            show({name: hand for name, hand in parse_packet(newest).items() if "lost" not in hand})
        return PERIOD_S

    bpy.app.timers.register(step)


if __name__ == "__main__":
    main()
