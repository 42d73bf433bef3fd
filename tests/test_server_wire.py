"""Binary messages of hands: what goes in comes out, and damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hands import CAMERA, sphere_hand

from handmesh.records import Camera
from handmesh.server.wire import HEADER, HandFrame, decode, decode_all, encode, frame_to_json, hand_dtype, without_mesh

RIGHT = sphere_hand("right", (-0.1, 0.02, 0.5), (0.03, 0.05, 0.02), track_id=7)
LEFT = sphere_hand("left", (0.1, -0.02, 0.7), (0.02, 0.04, 0.03))
FACES = RIGHT.faces
FRAME = HandFrame([RIGHT, LEFT], CAMERA, 1234567.891, dropped=5, decode_ms=1.5, hands_ms=12.25, picture=b"jpeg")
EXACT = ("translation", "global_orient", "hand_pose", "betas", "joints", "joints_2d")


def test_a_frame_comes_back():
    back = decode(encode(FRAME), FACES)
    assert (back.time_s, back.dropped, back.decode_ms, back.hands_ms) == (1234567.891, 5, 1.5, 12.25)
    assert (back.camera, back.picture) == (CAMERA, b"jpeg")
    assert [hand.side for hand in back.hands] == ["right", "left"]
    assert [hand.track_id for hand in back.hands] == [7, None]
    for hand, sent in zip(back.hands, FRAME.hands, strict=True):
        assert (hand.score, hand.side_score, hand.camera) == (sent.score, sent.side_score, sent.camera)
        for name in EXACT:
            np.testing.assert_array_equal(getattr(hand, name), getattr(sent, name), err_msg=name)
        half_step = 0.5 * np.abs(sent.vertices).max() / 32767
        np.testing.assert_allclose(hand.vertices, sent.vertices, rtol=0, atol=1.01 * half_step)
        np.testing.assert_allclose(hand.box, sent.box, atol=1e-3)


def test_left_hands_wind_the_same_faces_the_other_way():
    right, left = decode(encode(FRAME), FACES).hands
    np.testing.assert_array_equal(right.faces, FACES)
    np.testing.assert_array_equal(left.faces, FACES[:, ::-1])


def test_hands_without_a_mesh_are_short():
    bare = HandFrame([without_mesh(RIGHT)], CAMERA, 0.0)
    message = encode(bare)
    assert len(message) == HEADER.itemsize + hand_dtype(0).itemsize < 800
    (hand,) = decode(message, FACES).hands
    assert len(hand.vertices) == len(hand.faces) == 0
    np.testing.assert_array_equal(hand.joints, RIGHT.joints)


@pytest.mark.parametrize("vertices", [0, 1, 2, 1609, 778])
def test_records_are_aligned(vertices):
    assert hand_dtype(vertices).itemsize % 4 == HEADER.itemsize % 4 == 0
    fields = hand_dtype(vertices).fields
    assert fields is not None
    assert all(offset % 4 == 0 for name, (_, offset, *_) in fields.items() if name != "padding")


def test_an_empty_frame_keeps_its_assumed_camera():
    camera = Camera.from_fov(640, 480)
    back = decode(encode(HandFrame([], camera, 2.0)), FACES)
    assert back.hands == []
    assert back.camera.assumed
    assert back.camera.fx == pytest.approx(camera.fx)


def test_messages_after_one_another_come_back_in_order():
    messages = [encode(HandFrame([RIGHT], CAMERA, time)) for time in (0.0, 0.5)] + [encode(HandFrame([], CAMERA, 1.0))]
    assert [frame.time_s for frame in decode_all(b"".join(messages), FACES)] == [0.0, 0.5, 1.0]


def damaged(at: int, value: bytes) -> bytes:
    message = encode(FRAME)
    return message[:at] + value + message[at + len(value) :]


def offset(name: str) -> int:
    assert HEADER.fields is not None
    return HEADER.fields[name][1]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "no message"),
        (b"no message at all" * 20, "no message"),
        (encode(FRAME)[:-1], "cut short"),
        (encode(FRAME) + b"x", "no message"),
        (damaged(4, b"\x02"), "version 2"),
        (damaged(6, b"\x01"), "damaged"),
        (damaged(HEADER.itemsize + 4, b"\x02"), "side"),
        (damaged(HEADER.itemsize + 16, b"\x00\x00\xc0\x7f"), "NaN"),
        (damaged(offset("time_s"), np.float64(np.nan).tobytes()), "time_s must be a finite number"),
        (damaged(offset("hands_ms"), np.float32(np.inf).tobytes()), "hands_ms must be a finite number"),
    ],
)
def test_damage_is_named(message, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(decode_all(message, FACES))


def test_a_lens_comes_back():
    camera = Camera(500.0, 510.0, 320.0, 240.0, 640, 480, distortion=(-0.25, 0.125, 0.5, 0.0, 0.0625))
    back = decode(encode(HandFrame([], camera, 0.0)), FACES).camera
    assert back == Camera(500.0, 510.0, 320.0, 240.0, 640, 480, distortion=(*camera.distortion, 0.0, 0.0, 0.0))


def test_json_has_the_frame_beside_the_hands():
    document = json.loads(json.dumps(frame_to_json(FRAME)))
    assert document["format"] == "handmesh"
    assert document["time_s"] == FRAME.time_s
    assert document["camera"]["fx"] == CAMERA.fx
    np.testing.assert_array_equal(np.float32(document["hands"][0]["joints"]), RIGHT.joints)
