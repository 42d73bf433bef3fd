"""The demos that talk to a server: Python, Blender and Unity clients, and what demos/README.md says of the format."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from hands import CAMERA, sphere_hand
from test_demos import hand_frame

from handmesh.estimator import HandMeshEstimator
from handmesh.server.access import Access
from handmesh.server.app import create_app
from handmesh.server.engine import Engine
from handmesh.server.osc import OscSender
from handmesh.server.serve import bind
from handmesh.server.source import ServerSource
from handmesh.server.wire import HEADER, HandFrame, encode, hand_dtype
from handmesh.video import VideoWriter, open_source

DEMOS = Path(__file__).parent.parent / "demos"
RIGHT = sphere_hand("right", (-0.1, 0.02, 0.5), (0.03, 0.05, 0.02), track_id=7)
LEFT = sphere_hand("left", (0.1, -0.02, 0.7), (0.02, 0.04, 0.03), track_id=8)


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 25.0) as writer:
        for _ in range(8):
            writer.write(hand_frame())
    return tmp_path / "clip.mp4"


@contextmanager
def served(estimator: HandMeshEstimator, clip: Path, access: Access | None = None, **settings) -> Iterator[str]:
    """The address of a server on stub networks that plays a clip."""
    engine = Engine(estimator)
    app = create_app(engine, access=access, source=ServerSource(engine, clip.name, lambda: open_source(clip)))
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **settings))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def address(estimator, clip):
    with served(estimator, clip) as address:
        yield address


def failure(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the Python client says as it ends for it."""
    monkeypatch.setattr(sys, "argv", ["stream.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(DEMOS / "stream.py"), run_name="__main__")
    return str(stopped.value.code)


@pytest.mark.parametrize("what", [[], ["--send"]], ids=["the server's", "own"])
def test_the_python_client_prints_hands(address, clip, what, monkeypatch, capsys):
    arguments = [*what, str(clip)] if what else []
    monkeypatch.setattr(sys, "argv", ["stream.py", "--url", f"ws://{address}", "--max-frames", "5", *arguments])
    runpy.run_path(str(DEMOS / "stream.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert re.match(r" +[\d.]+ s  hand 0 right  wrist at .* cm  fingertips +\d+ mm", line)


def test_the_python_client_says_what_is_wrong_in_a_line(address, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"ws://127.0.0.1:{unused.getsockname()[1]}"
    assert f"nobody answers at {nowhere}: start `handmesh serve`" in failure(monkeypatch, "--url", nowhere)
    url = f"ws://{address}/"  # as `handmesh serve` prints it
    assert "no file or folder missing.mp4" in failure(monkeypatch, "--url", url, "--send", "missing.mp4")
    assert "there is no file no.pem: --certificate" in failure(monkeypatch, "--url", url, "--certificate", "no.pem")
    runpy.run_path(str(DEMOS / "stream.py"), run_name="imported")["print_complaint"](
        '{"type": "error", "message": "no"}'
    )
    assert capsys.readouterr().out == "no\n"


def test_the_python_client_is_told_of_its_token(estimator, clip, monkeypatch):
    with served(estimator, clip, Access(token="correct-horse-battery")) as address:
        url = ["--url", f"ws://{address}"]
        assert failure(monkeypatch, *url).startswith("error: give the right --token: this server wants its token")
        wrong = failure(monkeypatch, *url, "--token", "wrong-horse-battery")
        assert wrong.startswith("error: give the right --token: the token is wrong")


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl: apt-get install openssl")
def test_the_python_client_takes_the_certificate_that_the_page_makes(estimator, clip, tmp_path, monkeypatch, capsys):
    (make,) = re.findall(r"^openssl .*$", (DEMOS / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    subprocess.run(shlex.split(make), cwd=tmp_path, check=True, capture_output=True)
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    with served(estimator, clip, ssl_certfile=certificate, ssl_keyfile=key) as address:
        url = ["--url", f"wss://{address}", "--max-frames", "2"]
        assert "give a self-made --certificate" in failure(monkeypatch, *url)
        monkeypatch.setattr(sys, "argv", ["stream.py", *url, "--certificate", certificate])
        runpy.run_path(str(DEMOS / "stream.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_blender_reads_what_osc_sends():
    demo = runpy.run_path(str(DEMOS / "blender_live.py"), run_name="imported")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        sender = OscSender("127.0.0.1", receiver.getsockname()[1])
        sender.send(HandFrame([RIGHT, LEFT], CAMERA, 1.0))
        both = demo["parse_packet"](receiver.recv(65536))
        sender.send(HandFrame([LEFT], CAMERA, 1.1))
        one = demo["parse_packet"](receiver.recv(65536))
        sender.close()
    assert (both["7"]["side"], both["8"]["side"]) == (["right"], ["left"])
    for name, hand in (("7", RIGHT), ("8", LEFT)):
        x, y, z = (hand.joints + hand.translation).T
        np.testing.assert_allclose(demo["places"](both[name]), np.stack([x, z, -y], axis=1), atol=1e-6)
    assert one["7"] == {"lost": []}
    assert one["8"]["score"] == [LEFT.score]


def test_blender_uses_the_spheres_of_hands_that_are_gone_again(monkeypatch):
    spheres, packets, timers = [], [], []

    class Sphere(SimpleNamespace):
        def copy(self):
            return Sphere()

    class Receiver(SimpleNamespace):
        def recv(self, size):
            if not packets:
                raise BlockingIOError
            return packets.pop(0)

    bpy = SimpleNamespace(
        app=SimpleNamespace(timers=SimpleNamespace(register=timers.append)),
        context=SimpleNamespace(  # what it has within a timer
            collection=SimpleNamespace(objects=SimpleNamespace(link=spheres.append)),
            view_layer=SimpleNamespace(objects=SimpleNamespace(active=None)),
        ),
    )

    def add_sphere(**_):
        bpy.context.view_layer.objects.active = Sphere()
        spheres.append(bpy.context.view_layer.objects.active)

    bpy.ops = SimpleNamespace(mesh=SimpleNamespace(primitive_uv_sphere_add=add_sphere))
    nothing = dict.fromkeys(("setsockopt", "bind", "setblocking"), lambda *_: None)
    monkeypatch.setitem(sys.modules, "bpy", bpy)
    main = runpy.run_path(str(DEMOS / "blender_live.py"), run_name="imported")["main"]
    monkeypatch.setattr(socket, "socket", lambda *_: Receiver(**nothing))
    main()
    (step,) = timers
    monkeypatch.undo()

    sender = OscSender("127.0.0.1", 9)
    sender._client.close()
    sender._client = SimpleNamespace(send=lambda bundle: packets.append(bundle.dgram))
    for number in range(5):
        both = [replace(RIGHT, track_id=2 * number), replace(LEFT, track_id=2 * number + 1)]
        for hands in (both, [], both[:1]):  # a step may take several packets, and the packet that says lost may be lost
            sender.send(HandFrame(hands, CAMERA, float(number)))
        step()
        x, y, z = (RIGHT.joints + RIGHT.translation).T
        shown = np.array([sphere.location for sphere in spheres if not sphere.hide_viewport])
        np.testing.assert_allclose(shown, np.stack([x, z, -y], axis=1), atol=1e-6)
        sender.send(HandFrame(both, CAMERA, number + 0.5))
        step()
        assert [sphere.hide_viewport for sphere in spheres] == [False] * 42


def test_blenders_axes_keep_hands_as_they_are():
    """No mirror: three axes that turn right-handed in the camera do so in Blender."""
    demo = runpy.run_path(str(DEMOS / "blender_live.py"), run_name="imported")
    joints = np.zeros((21, 3))
    joints[:3] = np.eye(3)
    axes = np.array(demo["places"]({"wrist": [0, 0, 0], "joints": joints.reshape(-1).tolist()}))[:3]
    assert np.linalg.det(axes) == pytest.approx(1.0)
    np.testing.assert_array_equal(axes[2], [0, 1, 0])  # forward from the camera is Blender's y


@pytest.mark.skipif(not shutil.which("mcs"), reason="there is no C# compiler: apt-get install mono-mcs")
def test_unity_reads_a_message(tmp_path):
    (tmp_path / "message").write_bytes(encode(HandFrame([RIGHT, LEFT], CAMERA, 1234.5)))
    (tmp_path / "Show.cs").write_text(
        """
        using System; using System.Globalization; using System.IO;
        class Show {
            static void Main(string[] arguments) {
                CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
                var message = HandmeshMessage.Parse(File.ReadAllBytes(arguments[0]));
                Console.WriteLine(message.TimeS);
                foreach (var hand in message.Hands) {
                    Console.WriteLine(hand.TrackId + " " + hand.IsRight);
                    foreach (var list in new[] { hand.Translation, hand.Joints, hand.Vertices })
                        Console.WriteLine(string.Join(" ", Array.ConvertAll(list, value => value.ToString("R"))));
                }
            }
        }"""
    )
    program = tmp_path / "show.exe"
    sources = [tmp_path / "Show.cs", DEMOS / "unity" / "HandmeshMessage.cs"]
    subprocess.run(["mcs", f"-out:{program}", *sources], check=True)
    said = subprocess.run(["mono", program, tmp_path / "message"], check=True, capture_output=True, text=True).stdout
    time_s, *lines = said.splitlines()
    assert float(time_s) == 1234.5
    for hand, (head, *lists) in zip((RIGHT, LEFT), (lines[:4], lines[4:]), strict=True):
        assert head == f"{hand.track_id} {hand.side == 'right'}"
        for text, array in zip(lists, (hand.translation, hand.joints, hand.vertices), strict=True):
            np.testing.assert_allclose(np.array(text.split(), float), array.reshape(-1), atol=2e-6)


def table(title: str) -> list[tuple[int, str]]:
    """Byte and type of each row of a table of demos/README.md."""
    text = (DEMOS / "README.md").read_text(encoding="utf-8")
    rows = text[text.index(f"| {title} at byte") :].split("\n\n")[0].splitlines()[2:]
    return [(int(row.split("|")[1]), row.split("|")[2].strip()) for row in rows]


def test_the_documented_layout_is_the_one_in_use():
    sizes = {"u16": 2, "i16": 2, "u32": 4, "i32": 4, "f32": 4, "f64": 8, "bytes": 1}
    vertices = 5
    for title, layout in (("header", HEADER), ("hand", hand_dtype(vertices))):
        end = 0
        for start, kind in table(title):
            assert start == end, f"{title}, byte {start}"
            *count, unit = kind.replace("3 V", str(3 * vertices)).split()
            end += int(count[0] if count else 1) * sizes[unit]
        assert layout.itemsize == end + (2 if title == "hand" else 0)
    starts = {start for start, _ in table("hand")}
    fields = hand_dtype(vertices).fields
    assert fields is not None
    together = {"side_score": 12, "hand_pose": 40, "padding": 684 + 6 * vertices}  # named in the row before
    assert {offset for name, (_, offset, *_) in fields.items() if name not in together} == starts
