"""Hands as OSC (Open Sound Control 1.0) over UDP, for Unity, TouchDesigner, Max and others.

One bundle a frame, so that what belongs together arrives together::

    /handmesh/frame          int number of hands, double seconds
    /handmesh/ID/side        string left or right
    /handmesh/ID/score       float 0 to 1
    /handmesh/ID/wrist       3 floats, metres in camera axes (x right, y down, z forward)
    /handmesh/ID/joints      63 floats, metres from the wrist, FreiHAND's order
    /handmesh/ID/rotations   48 floats, rotation vectors in MANO's order, the wrist's first
    /handmesh/ID/lost        once, when the hand is gone

``ID`` is the hand's track number. A bundle of one hand has about 780 bytes and fits into a packet of an Ethernet's
usual size; one of two, about 1,510, travels as two that arrive together or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from handmesh.records import HandMesh
from handmesh.server.wire import HandFrame

_log = logging.getLogger(__name__)

PREFIX = "/handmesh"


def parse_address(text: str) -> tuple[str, int]:
    """``host:port``, or ``ValueError``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"an OSC receiver must be given as host:port, such as 127.0.0.1:9000, not {text!r}")
    return host.strip("[]"), int(port)


class OscSender:
    """Sends hands to one receiver. Nobody need listen there, nor need there be a way: packets then get lost."""

    def __init__(self, host: str, port: int) -> None:
        from pythonosc.udp_client import UDPClient

        self._client = UDPClient(host, port)
        self._last: HandFrame | None = None
        self._complained = False

    def send(self, frame: HandFrame) -> None:
        """Send one frame's hands, and which are gone since the last."""
        from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
        from pythonosc.osc_message_builder import OscMessageBuilder

        bundle = OscBundleBuilder(IMMEDIATELY)

        def add(address: str, *values: tuple[object, str]) -> None:
            message = OscMessageBuilder(f"{PREFIX}/{address}")
            for value, kind in values:
                message.add_arg(value, kind)  # pyright: ignore[reportArgumentType]
            bundle.add_content(message.build())  # pyright: ignore[reportArgumentType]

        add("frame", (len(frame.hands), "i"), (frame.time_s, "d"))
        for number, hand in enumerate(frame.hands):
            name = str(number if hand.track_id is None else hand.track_id)
            add(f"{name}/side", (hand.side, "s"))
            add(f"{name}/score", (hand.score, "f"))
            add(f"{name}/wrist", *_floats(hand.translation))
            add(f"{name}/joints", *_floats(hand.joints))
            add(f"{name}/rotations", *_floats(np.vstack([hand.global_orient, hand.hand_pose])))
        before = [] if self._last is None else self._last.hands
        for gone in sorted(_track_ids(before) - _track_ids(frame.hands)):
            add(f"{gone}/lost")
        self._last = frame
        try:
            self._client.send(bundle.build())
        except OSError as error:  # such as a network that is down: no reason to stop what others watch
            if not self._complained:
                _log.warning("OSC packets are lost: %s", error)
            self._complained = True

    def lose(self) -> None:
        """Say that the hands that were sent last are gone: nothing comes from their source for now."""
        if self._last is not None and _track_ids(self._last.hands):
            self.send(replace(self._last, hands=[]))

    def close(self) -> None:
        """Say that no hands are left, and let the socket go."""
        self.lose()
        self._client.close()


def _floats(values: np.ndarray) -> list[tuple[object, str]]:
    return [(value, "f") for value in values.reshape(-1).tolist()]


def _track_ids(hands: Sequence[HandMesh]) -> set[int]:
    return {hand.track_id for hand in hands if hand.track_id is not None}
