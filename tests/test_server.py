"""The server on stub networks: pictures over HTTP, streams over WebSocket, OSC, and who may use it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace

import cv2
import graphs
import numpy as np
import pytest
import trimesh
from pygltflib import GLTF2
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.sync.client import connect

import handmesh
from handmesh.cli import main
from handmesh.estimator import HandMeshEstimator
from handmesh.server.access import Access, Bucket, is_loopback
from handmesh.server.app import create_app
from handmesh.server.engine import Engine, Newest
from handmesh.server.osc import OscSender, parse_address
from handmesh.server.pictures import picture_size, read_picture_bytes
from handmesh.server.serve import bind, page_url
from handmesh.server.source import ServerSource
from handmesh.server.stream import Limits, StreamOptions
from handmesh.server.wire import HandFrame, decode
from handmesh.video import CameraLostError, FrameSource

TOKEN = "correct-horse-battery"


def hand_frame(x: float = 140) -> np.ndarray:
    return graphs.draw_hand(np.full((256, 320, 3), 20, np.uint8), (x, 120), 64)


def encoded(frame: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()


HAND, NO_HAND = encoded(hand_frame()), encoded(np.full((256, 320, 3), 20, np.uint8))


class Client(TestClient):
    """A client whose WebSockets go to the same address as its requests."""

    def websocket_connect(self, url: str, *arguments, **options):
        return super().websocket_connect(f"ws://{self.base_url.netloc.decode()}{url}", *arguments, **options)


@pytest.fixture
def serve(estimator):
    """Starts an application and gives a client of it; all end with the test."""
    clients = []

    def start(address: str = "127.0.0.1", source=None, **options) -> TestClient:
        engine = Engine(estimator)
        app = create_app(engine, source=source and source(engine), **options)
        client = Client(app, base_url=f"http://{address}:8765")
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("handmesh")]


def frame_message(time_s: float, picture: bytes = HAND) -> bytes:
    return struct.pack("<d", time_s) + picture


# --- pictures over HTTP


def test_a_picture_gives_json(serve, estimator):
    (expected,) = estimator(hand_frame())
    answer = serve().post("/v1/hands", content=HAND)
    assert answer.status_code == 200
    (hand,) = answer.json()["hands"]
    assert hand["side"] == "right"
    np.testing.assert_array_equal(np.float32(hand["vertices"]), expected.vertices)


def test_a_picture_gives_a_mesh_that_opens(serve, estimator, tmp_path):
    (expected,) = estimator(hand_frame())
    answer = serve().post("/v1/hands?format=glb", content=HAND)
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert "hands.glb" in answer.headers["content-disposition"]
    (tmp_path / "hands.glb").write_bytes(answer.content)
    (mesh,) = trimesh.load_scene(tmp_path / "hands.glb", process=False).geometry.values()
    assert len(mesh.vertices) == len(expected.vertices)


def test_given_intrinsics_are_used(serve):
    client = serve()
    (near,) = client.post("/v1/hands?fx=200&fy=200&cx=160&cy=128&mesh=false", content=HAND).json()["hands"]
    (far,) = client.post("/v1/hands?fx=400&fy=400&cx=160&cy=128&mesh=false", content=HAND).json()["hands"]
    assert not near["camera"]["assumed"]
    assert "vertices" not in near
    assert far["translation"][2] == pytest.approx(2 * near["translation"][2], rel=0.02)


def test_what_is_asked_in_another_way_is_told_the_right_one(serve):
    client = serve()
    for path, method, allowed in (("hands", "GET", "POST"), ("export", "GET", "POST"), ("info", "POST", "GET")):
        answer = client.request(method, f"/v1/{path}")
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    for path in ("hands", "export"):
        answer = client.post(f"/v1/{path}", files={"file": HAND})
        assert answer.status_code == 415
        assert "as the body itself, not as a form" in answer.json()["detail"]
    assert client.get("/").text.startswith("<!doctype html>")
    assert client.get("/main.js").status_code == 200
    assert client.get("/nowhere").status_code == 404


def test_no_hand_is_an_empty_list_in_json_and_not_found_as_a_mesh(serve):
    client = serve()
    assert client.post("/v1/hands", content=NO_HAND).json()["hands"] == []
    answer = client.post("/v1/hands?format=obj", content=NO_HAND)
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no hand in the picture")


@pytest.mark.parametrize(
    ("query", "content", "status", "complaint"),
    [
        ("", b"", 422, "JPEG or a PNG"),
        ("", b"GIF89a", 422, "JPEG or a PNG"),
        ("", HAND[:20], 422, "cut short"),
        ("", HAND[:60], 422, "cannot be read"),
        ("", encoded(np.zeros((300, 400, 3), np.uint8)), 422, "400 x 300 pixels"),
        ("", bytes(200_001), 413, "at most 200000 bytes"),
        ("?fx=500", HAND, 422, "all four"),
        ("?fx=-5&fy=5&cx=5&cy=5", HAND, 422, "positive"),
        ("?format=fbx", HAND, 422, "format"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else str(value),
)
def test_bad_pictures_and_options_are_named(serve, query, content, status, complaint):
    limits = Limits(picture_bytes=200_000, picture_pixels=100_000)
    answer = serve(limits=limits).post(f"/v1/hands{query}", content=content)
    assert answer.status_code == status
    assert complaint in answer.text


def test_a_crowded_engine_refuses_pictures(serve):
    client = serve(limits=Limits(waiting=0))
    answer = client.post("/v1/hands", content=HAND)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def status_of(app, path: str, receive) -> int:
    """The status of a POST request whose body comes by ``receive``."""
    sent = []
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")]}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"]


async def no_body():
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize("path", ["/v1/hands", "/v1/export"])
def test_no_body_is_read_before_its_turn_and_none_waited_for_for_ever(estimator, monkeypatch, path):
    engine = Engine(estimator)
    app = create_app(engine, limits=Limits(waiting=1, exports=1))

    async def converse():
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow():
            begun.set()
            await go_on.wait()
            return await no_body()

        async def unread():
            raise AssertionError("a body is read before its turn")

        async def broken_off():
            return {"type": "http.disconnect"}

        first = asyncio.create_task(status_of(app, path, slow))
        await begun.wait()
        assert await status_of(app, path, unread) == 503
        go_on.set()
        assert await first == 422  # nothing is no picture, and no recording
        assert await status_of(app, path, broken_off) == 400
        monkeypatch.setattr("handmesh.server.app.BODY_S", 0.05)
        go_on.clear()
        assert await status_of(app, path, slow) == 408
        assert await status_of(app, path, no_body) == 422  # all places are free again

    asyncio.run(converse())
    engine.close()


def test_the_api_describes_itself(serve):
    client = serve()
    paths = client.get("/openapi.json").json()["paths"]
    assert "image/jpeg" in paths["/v1/hands"]["post"]["requestBody"]["content"]
    assert client.get("/v1/info").json()["source"] is None


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sizes_are_read_before_pictures(suffix):
    frame = np.random.default_rng(0).integers(0, 255, (123, 45, 3), np.uint8)
    data = encoded(frame, suffix)
    assert picture_size(data) == (45, 123)
    assert read_picture_bytes(data, 45 * 123).shape == (123, 45, 3)
    for end in range(0, len(data) - 400 if suffix == ".jpg" else 24, 7):
        with pytest.raises(ValueError, match="picture"):
            read_picture_bytes(data[:end], 45 * 123)


def test_a_jpeg_cannot_hide_its_size():
    data = encoded(np.zeros((400, 600, 3), np.uint8), ".jpg")
    start = data.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    small = data[start : start + 5] + struct.pack(">HH", 8, 8) + data[start + 9 : end]
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(small))
    no_segment = b"\xff\x00" + struct.pack(">H", 2 + len(data[2:end]) + len(comment))
    crafted = data[:2] + no_segment + data[2:end] + comment + small + data[end:]
    decoded = cv2.imdecode(np.frombuffer(crafted, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (400, 600, 3)
    with pytest.raises(ValueError, match="damaged JPEG"):
        picture_size(crafted)


# --- streams


def test_a_stream_tracks(serve, estimator):
    with serve().websocket_connect("/v1/stream") as ws:
        hello = ws.receive_json()
        assert hello["faces"] == estimator(hand_frame())[0].faces.tolist()
        for number in range(3):
            ws.send_bytes(frame_message(number / 30, encoded(hand_frame(140 + number))))
            answer = ws.receive_json()
            assert (answer["type"], answer["time_s"]) == ("hands", number / 30)
            assert [hand["track_id"] for hand in answer["hands"]] == [0]
            assert answer["hands"][0]["faces"] == []
            assert answer["hands_ms"] > 0


def test_a_binary_stream_has_what_the_estimator_sees(serve, estimator):
    (found,) = estimator.detect(hand_frame())
    (expected,) = estimator(hand_frame(), boxes=[found.box])  # a stream's next frame is its second look
    with serve().websocket_connect("/v1/stream") as ws:
        faces = np.array(ws.receive_json()["faces"])
        ws.send_text('{"format": "binary"}')
        ws.send_bytes(frame_message(5.0))
        (hand,) = decode(ws.receive_bytes(), faces).hands
        np.testing.assert_allclose(hand.vertices, expected.vertices, atol=1e-5)
        np.testing.assert_allclose(hand.joints_2d, expected.joints_2d, atol=0.5)  # as the tracker projects them
        np.testing.assert_array_equal(hand.faces, expected.faces)
        ws.send_text('{"mesh": false}')
        ws.send_bytes(frame_message(5.1))
        assert len(decode(ws.receive_bytes(), faces).hands[0].vertices) == 0


def test_a_stream_takes_options_and_names_what_is_wrong(serve):
    camera = {"fx": 300, "fy": 300, "cx": 160, "cy": 128, "width": 320, "height": 256}
    with serve().websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        for text, complaint in [
            ("no json", "no JSON"),
            ("[]", "JSON object"),
            ('{"speed": 1}', "smoothing"),
            ('{"mesh": 1}', "true or false"),
            ('{"format": "xml"}', '"binary"'),
            ('{"fov_deg": 0}', "fov_deg"),
            ('{"camera": 5}', "camera"),
            ('{"camera": {"fx": "1"}}', "camera.fx"),
            (json.dumps({"camera": camera | {"distortion": ["a"]}}), "camera.distortion"),
            (json.dumps({"camera": camera | {"distortion": [0.1]}}), "k1, k2"),
            (json.dumps({"camera": camera | {"width": 3.5}}), "whole number"),
            (json.dumps({"camera": camera | {"fx": 10**400}}), "finite"),
            ("[" * 100_000, "no JSON"),
        ]:
            ws.send_text(text)
            assert complaint in ws.receive_json()["message"]
        for message, complaint in [(b"", "double"), (frame_message(float("nan")), "finite"), (b"x" * 30, "JPEG")]:
            ws.send_bytes(message)
            assert complaint in ws.receive_json()["message"]
        ws.send_text(json.dumps({"camera": camera}))
        ws.send_bytes(frame_message(0.0))
        assert ws.receive_json()["camera"]["fx"] == 300
        ws.send_text('{"camera": null, "fov_deg": 90}')
        ws.send_bytes(frame_message(0.1))
        assert ws.receive_json()["camera"]["fx"] == pytest.approx(160)


def test_time_that_goes_back_starts_another_video(serve):
    with serve().websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        for time_s in (100.0, 3.0, 3.1):
            ws.send_bytes(frame_message(time_s))
            assert [hand["track_id"] for hand in ws.receive_json()["hands"]] == [0]


def test_the_freshest_frame_wins(serve, estimator):
    client = serve()
    engine: Engine = client.app.state.service.engine
    with client.websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        go_on = threading.Event()
        engine.submit(go_on.wait)  # the engine is busy
        for number in range(10):
            ws.send_bytes(frame_message(float(number)))
        deadline = time.monotonic() + 5
        while engine.waiting == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        ws.send_text("{")  # answered when the frames before it have been read
        assert ws.receive_json()["type"] == "error"
        go_on.set()
        answers = [ws.receive_json()]
        while answers[-1]["time_s"] < 9.0:
            answers.append(ws.receive_json())
        assert len(answers) <= 2
        assert answers[-1]["dropped"] == 10 - len(answers)


def test_only_so_many_streams(serve):
    client = serve(limits=Limits(streams=1))
    with client.websocket_connect("/v1/stream") as first:
        first.receive_json()
        with client.websocket_connect("/v1/stream") as second, pytest.raises(WebSocketDisconnect) as refused:
            second.receive_json()
        assert refused.value.code == 1013
    with client.websocket_connect("/v1/stream") as again:
        assert again.receive_json()["type"] == "hello"


def test_a_flood_is_cut_off(serve):
    with serve(limits=Limits(messages_per_s=5)).websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        for _ in range(30):
            ws.send_text("{")
        answers = [ws.receive()]
        while answers[-1]["type"] != "websocket.close":
            answers.append(ws.receive())
        assert answers[-1]["code"] == 1008
        assert len(answers) < 30


def test_what_a_stream_sent_can_be_exported(serve, tmp_path):
    client = serve()
    with client.websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        ws.send_text('{"format": "binary"}')
        ws.send_bytes(frame_message(0.0))
        message = ws.receive_bytes()
    answer = client.post("/v1/export?format=ply", content=message)
    (tmp_path / "hands.ply").write_bytes(answer.content)
    assert len(trimesh.load_mesh(tmp_path / "hands.ply").faces) == len(graphs.FACES)
    assert client.post("/v1/export?format=json", content=message).json()["hands"][0]["side"] == "right"
    assert client.post("/v1/export", content=message[:-1]).status_code == 422


def recorded(client: Client, pictures: list[bytes]) -> bytes:
    """What a stream sent for these pictures."""
    with client.websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        ws.send_text('{"format": "binary", "mesh": false}')
        messages = []
        for number, picture in enumerate(pictures):
            ws.send_bytes(frame_message(number / 25, picture))
            messages.append(ws.receive_bytes())
    return b"".join(messages)


def test_a_recording_becomes_one_file_of_a_clip(serve, tmp_path):
    client = serve()
    recording = recorded(client, [HAND, HAND, NO_HAND, HAND])
    clip = client.post("/v1/export?format=json", content=recording).json()
    assert clip["fps"] == pytest.approx(25)
    assert [frame["time_s"] for frame in clip["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert clip["frames"][0]["hands"][0]["side"] == "right"
    answer = client.post("/v1/export?format=glb", content=recording)
    (tmp_path / "hands.glb").write_bytes(answer.content)
    (animation,) = GLTF2().load(tmp_path / "hands.glb").animations
    assert len(animation.channels) > 16
    assert client.post("/v1/export?format=bvh", content=recording).text.startswith("HIERARCHY")
    assert client.post("/v1/export?format=ply", content=recording).status_code == 422
    assert client.post("/v1/export", content=recorded(client, [NO_HAND, NO_HAND])).status_code == 404
    backwards = recording + recording
    assert "increase" in client.post("/v1/export", content=backwards).json()["detail"]


def test_a_recording_of_one_frame_has_meshes_of_its_parameters(serve, tmp_path):
    client = serve()
    recording = recorded(client, [HAND])
    (tmp_path / "hands.glb").write_bytes(client.post("/v1/export?format=glb", content=recording).content)
    (mesh,) = GLTF2().load(tmp_path / "hands.glb").meshes
    assert mesh.name == "right_0"
    answer = client.post("/v1/export?format=obj", content=recording)
    assert answer.status_code == 422
    assert "clip" in answer.json()["detail"]


def test_several_hands_skeletons_come_as_an_archive(serve):
    client = serve()
    frame = graphs.draw_hand(hand_frame(80), (240, 120), 64, "left")
    answer = client.post("/v1/export?format=bvh", content=recorded(client, [encoded(frame)] * 2))
    assert "hands.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == ["hands_left_1.bvh", "hands_right_0.bvh"]


def test_the_servers_intrinsics_are_used_for_frames_of_their_proportions(serve, estimator):
    estimator.camera = handmesh.Camera(640, 640, 319.5, 255.5, 640, 512)
    with serve().websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        ws.send_bytes(frame_message(0.0))  # 320 x 256
        camera = ws.receive_json()["camera"]
        assert (camera["fx"], camera["assumed"]) == (320, False)
        ws.send_bytes(frame_message(0.1, encoded(hand_frame()[:, :256])))
        assert ws.receive_json()["camera"]["assumed"]


def test_the_servers_intrinsics_are_used_for_small_frames_with_rounded_sides(serve, estimator):
    estimator.camera = handmesh.Camera(1600, 1600, 959.5, 539.5, 1920, 1080)
    picture = encoded(np.zeros((240, 426, 3), np.uint8))  # 426.67 x 240
    with serve().websocket_connect("/v1/stream") as ws:
        ws.receive_json()
        ws.send_bytes(frame_message(0.0, picture))
        assert not ws.receive_json()["camera"]["assumed"]


# --- the server's own source


class Camera(FrameSource):
    """A camera of which a test sees whether it was let go."""

    live = True
    open_now = 0

    def __init__(self) -> None:
        super().__init__("camera 0", 30.0, None)
        Camera.open_now += 1
        self._closed = threading.Event()

    def __iter__(self):
        while not self._closed.wait(0.01):
            yield hand_frame(), time.monotonic()

    def close(self) -> None:
        if not self._closed.is_set():
            Camera.open_now -= 1
        self._closed.set()


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_the_servers_camera_is_open_only_while_somebody_watches(serve):
    client = serve(source=lambda engine: ServerSource(engine, "camera 0", Camera))
    assert Camera.open_now == 0
    for _ in range(2):
        with client.websocket_connect("/v1/source") as ws, client.websocket_connect("/v1/source") as other:
            for viewer in (ws, other):
                assert viewer.receive_json()["source"] == "camera 0"
                assert [hand["side"] for hand in viewer.receive_json()["hands"]] == ["right"]
            assert Camera.open_now == 1
        assert wait_until(lambda: Camera.open_now == 0)


def test_the_servers_frames_come_along_as_pictures(serve):
    client = serve(source=lambda engine: ServerSource(engine, "camera 0", Camera))
    with client.websocket_connect("/v1/source") as ws:
        faces = np.array(ws.receive_json()["faces"])
        ws.send_text('{"format": "binary", "picture": true}')
        for _ in range(200):
            message = ws.receive()
            if message.get("bytes") and (frame := decode(message["bytes"], faces)).picture:
                break
        else:
            pytest.fail("no picture came")
        assert read_picture_bytes(frame.picture, 10**6).shape == (256, 320, 3)


def test_a_lost_camera_is_told_and_tried_again(serve, monkeypatch, caplog):
    monkeypatch.setattr("handmesh.server.source.RETRY_S", 0.05)
    tries = []

    def open_camera() -> FrameSource:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise CameraLostError("there is no camera 0")
        return Camera()

    client = serve(source=lambda engine: ServerSource(engine, "camera 0", open_camera))
    with client.websocket_connect("/v1/source") as ws:
        ws.receive_json()
        answers = [ws.receive_json() for _ in range(3)]
    kinds = [answer["type"] for answer in answers]
    assert kinds[0] == "error"
    assert kinds[-1] == "hands"
    assert "there is no camera 0" in caplog.text


def test_a_source_that_fails_is_told_and_opened_anew_for_who_watches(estimator, monkeypatch, caplog):
    monkeypatch.setattr("handmesh.server.source.FAILED_RETRY_S", 0.05)
    tries = []

    def open_camera() -> FrameSource:
        tries.append(time.monotonic())
        if len(tries) < 2:
            raise RuntimeError("a driver's own error")
        return Camera()

    engine, heard = Engine(estimator), []
    source = ServerSource(engine, "camera 0", open_camera)
    source.listen(heard.append)
    assert wait_until(lambda: heard)
    assert "RuntimeError: a driver's own error" in heard[0]
    assert wait_until(lambda: len(heard) > 1)
    source.close()
    engine.close()
    assert isinstance(heard[1], HandFrame)
    assert "the source camera 0 has failed" in caplog.text


def test_who_watches_is_told_what_is_wrong_and_may_not_flood(serve):
    client = serve(source=lambda engine: ServerSource(engine, "camera 0", Camera), limits=Limits(messages_per_s=5))
    with client.websocket_connect("/v1/source") as ws:
        ws.receive_json()
        ws.send_bytes(frame_message(0.0))
        while (answer := ws.receive_json())["type"] != "error":
            pass
        assert "options only" in answer["message"]
        for _ in range(30):
            ws.send_text("{}")
        while (answer := ws.receive())["type"] != "websocket.close":
            pass
        assert answer["code"] == 1008


def test_without_a_source_that_is_said(serve):
    with serve().websocket_connect("/v1/source") as ws:
        ws.receive_json()
        with pytest.raises(WebSocketDisconnect) as refused:
            ws.receive_json()
        assert "--source" in refused.value.reason


def test_a_clip_plays_at_its_own_pace_again_and_again(estimator, tmp_path):
    class Clip(FrameSource):
        def __init__(self):
            super().__init__("clip", 50.0, 5)

        def __iter__(self):
            yield from ((hand_frame(), number / 50) for number in range(5))

    engine, times = Engine(estimator), []
    source = ServerSource(engine, "clip", Clip)
    source.listen(lambda frame: times.append(frame.time_s))
    assert wait_until(lambda: len(times) > 8)
    source.close()
    engine.close()
    assert (np.diff(times) > 0.01).all()


def test_osc_packets_hold_the_hands(estimator):
    from pythonosc.osc_bundle import OscBundle

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        engine = Engine(estimator)
        sender = OscSender(*parse_address(f"127.0.0.1:{receiver.getsockname()[1]}"))
        source = ServerSource(engine, "camera 0", Camera, osc=sender)
        packet = receiver.recv(65536)
        source.close()
        engine.close()
    assert Camera.open_now == 0
    messages = {m.address: m.params for m in OscBundle(packet)}
    assert messages["/handmesh/frame"][0] == 1
    assert messages["/handmesh/0/side"] == ["right"]
    assert len(messages["/handmesh/0/joints"]) == 63
    assert len(messages["/handmesh/0/rotations"]) == 48
    assert len(packet) < 1500
    (expected,) = estimator(hand_frame())
    np.testing.assert_allclose(messages["/handmesh/0/wrist"], expected.translation, rtol=0.05)


def test_osc_without_a_way_to_the_receiver_complains_once(caplog):
    sender = OscSender("255.255.255.255", 9000)  # a broadcast, which sockets refuse unless told otherwise
    for _ in range(3):
        sender.send(HandFrame([], handmesh.Camera.from_fov(320, 256), 0.0))
    sender.close()
    assert len(caplog.records) == 1
    assert "OSC packets are lost" in caplog.text


def test_osc_receivers_hear_that_hands_are_gone_when_the_camera_is(estimator):
    from pythonosc.osc_bundle import OscBundle

    class Unplugged(Camera):
        def __iter__(self):
            yield hand_frame(), time.monotonic()
            raise CameraLostError("unplugged")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        engine = Engine(estimator)
        source = ServerSource(engine, "camera 0", Unplugged, osc=OscSender(*receiver.getsockname()))
        packets = [{m.address: m.params for m in OscBundle(receiver.recv(65536))} for _ in range(2)]
        source.close()
        engine.close()
    assert packets[0]["/handmesh/frame"][0] == 1
    assert packets[1]["/handmesh/frame"][0] == 0
    assert packets[1]["/handmesh/0/lost"] == []


def test_osc_says_that_no_hands_are_left_when_the_server_ends(estimator):
    from pythonosc.osc_bundle import OscBundle

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        sender = OscSender(*receiver.getsockname())
        hands = [replace(hand, track_id=number) for number, hand in enumerate(2 * estimator(hand_frame()))]
        sender.send(HandFrame(hands, hands[0].camera, 1.0))
        assert len(receiver.recv(65536)) == pytest.approx(1510, abs=30)
        sender.close()
        addresses = [m.address for m in OscBundle(receiver.recv(65536))]
    assert addresses == ["/handmesh/frame", "/handmesh/0/lost", "/handmesh/1/lost"]


@pytest.mark.parametrize("text", ["9000", "localhost", "localhost:0", "localhost:x", ":9000"])
def test_osc_receivers_must_be_addresses(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_address(text)


# --- access


def test_others_need_a_token():
    with pytest.raises(ValueError, match="--token"):
        Access("0.0.0.0")
    with pytest.raises(ValueError, match="16 characters"):
        Access("0.0.0.0", "short")
    assert TOKEN not in repr(Access("0.0.0.0", TOKEN))


@pytest.mark.parametrize("text", ["http://localhost:8000", "http://localhost:8000/", "HTTP://LocalHost:8000"])
def test_origins_may_be_given_as_address_bars_show_them(text):
    headers = Headers({"host": "127.0.0.1:8765", "origin": "http://localhost:8000"})
    assert Access(origins=[text]).refusal("/v1/info", headers) is None


@pytest.mark.parametrize("text", ["localhost:8000", "http://localhost:8000/app", "localhost", "http://", "*"])
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ValueError, match="such as http://localhost:8000"):
        Access(origins=[text])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "localhost.example.org", "127.0.0.1.example.org", ""])
def test_not_loopback(host):
    assert not is_loopback(host)


def test_the_token_opens_the_api_and_the_page_is_open(serve):
    client = serve("10.0.0.5", access=Access("0.0.0.0", TOKEN))
    missing, wrong = client.get("/v1/info"), client.get("/v1/info", headers={"Authorization": "Bearer wrong"})
    assert (missing.status_code, wrong.status_code) == (401, 401)
    assert "this server wants its token" in missing.json()["detail"]
    assert "the token is wrong" in wrong.json()["detail"]
    assert client.get("/v1/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 200


def test_the_token_opens_streams_by_header_or_protocol(serve):
    client = serve("10.0.0.5", access=Access("0.0.0.0", TOKEN))
    for protocols, said in (
        ([], "this server wants its token"),
        (["handmesh"], "this server wants its token"),
        (["handmesh", "token.wrong"], "the token is wrong"),
        (["token."], "the token is wrong"),
    ):
        with client.websocket_connect("/v1/stream", subprotocols=protocols) as ws:
            assert ws.accepted_subprotocol == ("handmesh" if "handmesh" in protocols else None)
            with pytest.raises(WebSocketDisconnect) as refused:
                ws.receive_json()
        assert refused.value.code == 4401
        assert refused.value.reason.startswith(said)
    with client.websocket_connect("/v1/stream", subprotocols=["handmesh", f"token.{TOKEN}"]) as ws:
        assert ws.accepted_subprotocol == "handmesh"
        assert ws.receive_json()["type"] == "hello"
    with client.websocket_connect("/v1/stream", headers={"Authorization": f"Bearer {TOKEN}"}) as ws:
        assert ws.receive_json()["type"] == "hello"


def test_other_sites_pages_are_refused_unless_allowed(serve):
    client = serve(access=Access(origins=["http://localhost:8000"]))
    assert client.get("/v1/info", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/info", headers={"Origin": "null"}).status_code == 403
    assert client.get("/v1/info", headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200
    answer = client.get("/v1/info", headers={"Origin": "http://localhost:8000"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:8000"
    for origin in ("http://x.y", f"http://{'ä' * 90}.example"):
        foreign = {"Origin": origin.encode("latin-1")}
        with (
            client.websocket_connect("/v1/stream", headers=foreign) as ws,
            pytest.raises(WebSocketDisconnect) as refused,
        ):
            ws.receive_json()
        assert refused.value.code == 4403
        assert refused.value.reason.startswith("pages of http://")
        assert len(refused.value.reason.encode()) <= 123


def test_allowed_sites_pages_may_post(serve):
    client = serve(access=Access(origins=["http://localhost:8000"]))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    assert client.options("/v1/hands", headers={"Origin": "http://localhost:8000", **asked}).status_code == 200
    assert client.options("/v1/hands", headers={"Origin": "http://evil.example", **asked}).status_code == 400


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}])
def test_malformed_headers_are_refused(serve, headers):
    assert serve().get("/v1/info", headers=headers).status_code == 400


def test_a_loopback_server_answers_to_no_foreign_name(serve):
    client = serve()
    assert client.get("/v1/info", headers={"Host": "evil.example:8765"}).status_code == 403
    assert client.get("/v1/info", headers={"Host": "localhost:8765"}).status_code == 200


def test_requests_have_a_rate(serve):
    client = serve(access=Access(requests_per_s=2))
    statuses = [client.get("/v1/info").status_code for _ in range(8)]
    assert statuses[:4] == [200] * 4
    assert 429 in statuses
    assert client.get("/").status_code == 200
    with client.websocket_connect("/v1/stream") as ws, pytest.raises(WebSocketDisconnect) as refused:
        ws.receive_json()
    assert (refused.value.code, refused.value.reason[:36]) == (4429, "more than 2 requests a second: wait ")


def test_guesses_at_the_token_have_a_rate_too(serve):
    client = serve("10.0.0.5", access=Access("0.0.0.0", TOKEN, requests_per_s=2))
    wrong = {"Authorization": "Bearer not-the-right-token"}
    statuses = [client.get("/v1/info", headers=wrong).status_code for _ in range(8)]
    assert statuses[:4] == [401] * 4
    assert 429 in statuses


def test_a_bucket_refills():
    bucket = Bucket(10.0)
    assert [bucket.take(100.0) > 0 for _ in range(21)] == [False] * 20 + [True]
    assert bucket.take(100.05) == pytest.approx(0.05)
    assert bucket.take(100.2) == 0.0


def test_a_slow_bucket_lets_one_through_at_a_time():
    bucket = Bucket(0.25)
    assert [bucket.take(now_s) for now_s in (100.0, 102.0, 104.0, 120.0, 120.0)] == [0.0, 2.0, 0.0, 0.0, 4.0]


def test_pages_may_load_nothing_from_elsewhere(serve):
    policy = serve().get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


# --- parts


def test_a_mailbox_keeps_the_newest():
    async def use() -> tuple[int, int, int]:
        box: Newest[int] = Newest()
        for number in range(5):
            box.put(number)
        first = await box.get()
        waiting = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.put(9)
        return first, await waiting, box.dropped

    assert asyncio.run(use()) == (4, 9, 4)


def test_the_engine_uses_one_thread(estimator):
    engine = Engine(estimator)

    async def names() -> set[str]:
        return set(await asyncio.gather(*(engine.run(lambda: threading.current_thread().name) for _ in range(8))))

    assert len(asyncio.run(names())) == 1
    engine.close()


def test_options_start_with_what_a_newcomer_wants():
    assert StreamOptions() == StreamOptions().updated("{}")
    assert StreamOptions().format == "json"


# --- the command


def start_command(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A running ``handmesh serve`` and its first line."""
    command = [sys.executable, "-W", "error", "-m", "handmesh", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_serves_and_ends_in_order_with_a_stream_open(how):
    process, line = start_command("--source", "sample", "--osc", "127.0.0.1:9")
    try:
        address = re.fullmatch(r"serving at http://(127\.0\.0\.1:\d+)/ .*\n", line)
        assert address, line + process.stderr.read()
        with connect(f"ws://{address[1]}/v1/source") as ws:
            assert json.loads(ws.recv())["source"] == "sample.mp4"
            assert json.loads(ws.recv())["type"] == "hands"
            process.send_signal(how)
            said, complaints = process.communicate(timeout=20)
        assert (process.returncode, said, complaints) == (0, "stopped\n", "")
    finally:
        process.kill()


def test_what_cannot_be_served_leaves_no_source_playing(tmp_path, capsys, monkeypatch, estimator):
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("none")
    secured = ["--certificate", str(tmp_path / "certificate.pem"), "--key", str(tmp_path / "key.pem")]
    assert main(["serve", "--port", "0", "--source", "sample", "--osc", "127.0.0.1:9", *secured]) == 1
    assert "SSL" in capsys.readouterr().err
    assert "handmesh-source" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--osc", "127.0.0.1:9000"], "--source"),
        (["--source", "nowhere.mp4"], "nowhere.mp4"),
        (["--key", "key.pem"], "--certificate"),
        (["--key", "key.pem", "--certificate", "cert.pem"], "cert.pem"),
        (["--host", "256.0.0.1", "--token", TOKEN], "256.0.0.1"),
        (["--port", "70000"], "70000"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, complaint, capsys, monkeypatch, estimator):
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["serve", "--port", "0", *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_the_address_for_others_is_one_that_answers(monkeypatch):
    access = Access("0.0.0.0", TOKEN)
    with bind("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setattr(socket, "gethostname", lambda: "unplugged")
        host = re.fullmatch(rf"http://(.+):{port}/#token={TOKEN}", page_url(listening, access, https=False))
        assert host is not None
        if host[1] != "unplugged":
            socket.create_connection((host[1], port), timeout=5).close()

        def no_way(*_):
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr(socket.socket, "connect", no_way)
        assert page_url(listening, access, https=True) == f"https://unplugged:{port}/#token={TOKEN}"


def test_a_taken_port_is_named(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"port {port}" in capsys.readouterr().err
