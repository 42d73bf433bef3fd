"""The page in a real browser, with the shipped weights and a camera that shows the bundled clip."""

from __future__ import annotations

import importlib.util
import json
import signal
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from pygltflib import GLTF2

from handmesh.estimator import HandMeshEstimator
from handmesh.evaluation import page as chromium
from handmesh.intrinsics import save_camera
from handmesh.records import Camera
from handmesh.render import Overlay
from handmesh.video import read_picture, write_picture

DEMOS = Path(__file__).parent.parent / "demos"
TOKEN = "correct-horse-battery"
WAIT_MS = 60_000  # loaded computers take their time

IS_DRAWN_ON = """() => {  // in the colours of right and left hands
    const canvas = document.querySelector('canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const colours = [[0x5c, 0xa8, 0xff], [0xff, 0x9e, 0x5c]];
    let drawn = 0;
    for (let i = 0; i < data.length; i += 4)
        drawn += colours.some(colour => colour.every((value, k) => Math.abs(value - data[i + k]) < 30));
    return drawn > 1000;
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find_chromium() is None, reason="there is no Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        not importlib.util.find_spec("playwright"), reason="playwright is missing: pip install '.[dev]'"
    ),
]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def play():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play


@pytest.fixture(scope="module")
def browser(play, tmp_path_factory):
    clip = chromium.write_camera_clip(tmp_path_factory.mktemp("camera") / "clip.mjpeg")
    browser = chromium.launch(play, clip)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def served():
    with chromium.Served("--source", "sample", "--token", TOKEN) as server:
        yield server


@pytest.fixture
def open_page():
    """Opens a server's page and waits until it is connected; a complaint on the browser's console fails the test."""
    contexts, complaints = [], []

    def note(text: str) -> None:
        if "ERR_CONNECTION_REFUSED" not in text and "WebGL" not in text:  # what tests take away is complained about
            complaints.append(text)

    def open_(browser, url: str):
        context = browser.new_context(viewport={"width": 1000, "height": 640}, permissions=["camera"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#status[data-state=open]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(open_page, browser, served):
    return open_page(browser, served.url)


def wait_for_hands(page) -> None:
    page.wait_for_selector("#hands li.right, #hands li.left")


def painted(page, of: str) -> float:
    """Share of an element's place where something coloured is drawn, the picture hidden."""
    page.evaluate("document.getElementById('picture').style.visibility = 'hidden'")
    data = page.locator(of).screenshot()
    page.evaluate("document.getElementById('picture').style.visibility = ''")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
    return float(((pixels.max(-1) - pixels.min(-1)) > 60).mean())


def download(page, action, path: Path) -> Path:
    with page.expect_download() as file:
        action()
    file.value.save_as(path)
    return path


def check_names_and_widths(page) -> None:
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, select, input:not([hidden]), canvas:not([aria-hidden])')]
        .filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.[0]?.textContent.trim())).map(e => e.id)"""
    )
    assert unnamed == []
    for width in (360, 1000):
        page.set_viewport_size({"width": width, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} px are too narrow"


def test_meshes_of_the_camera_appear_and_their_files_open(page, tmp_path):
    check_names_and_widths(page)
    page.click("#start-camera")
    wait_for_hands(page)
    page.wait_for_selector("#fps:text-matches('[0-9]')")
    assert painted(page, "#frame") > 0.01
    assert painted(page, "#space") > 0.005

    glb = download(page, lambda: page.keyboard.press("g"), tmp_path / "hands.glb")
    meshes = trimesh.load_scene(glb).geometry
    assert {name.split("_")[0] for name in meshes} <= {"left", "right"}
    assert all(len(mesh.vertices) > 1000 for mesh in meshes.values())
    document = json.loads(download(page, lambda: page.click("#save-json"), tmp_path / "hands.json").read_text())
    assert document["format"] == "handmesh"
    assert len(document["hands"][0]["joints"]) == 21

    files = []
    page.on("request", lambda request: files.append(request) if "/v1/export" in request.url else None)
    for _ in range(5):
        page.keyboard.down("g")  # held: the first alone counts
    page.keyboard.up("g")
    page.wait_for_timeout(500)
    assert len(files) == 1

    page.keyboard.press("r")
    page.wait_for_selector("#recording:text('s')")
    page.keyboard.press("r")
    save = page.locator("[aria-label='Save the recording as GLB']")
    (animation,) = GLTF2().load(download(page, save.click, tmp_path / "recording.glb")).animations
    assert len(animation.channels) > 16

    page.keyboard.press("m")
    page.wait_for_timeout(300)
    assert painted(page, "#frame") < 0.001
    page.keyboard.press("k")
    page.wait_for_timeout(300)
    assert painted(page, "#frame") > 0.001


def test_an_emptied_field_of_view_is_no_option_and_a_refusal_goes_with_the_next_hands(page):
    page.click("#use-server")
    wait_for_hands(page)
    page.fill("#fov", "")
    page.dispatch_event("#fov", "change")
    page.click("#stop")
    page.click("#use-server")
    wait_for_hands(page)
    assert not page.is_visible("#trouble")


def test_a_token_that_no_header_can_hold_is_asked_for_again(browser, served):
    page = browser.new_context().new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(served.url.split("#")[0])
    for token in ("wrong-token-wrong-token", TOKEN.replace("-", "\N{EN DASH}")):
        page.wait_for_selector("#status[data-state=token]")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status[data-state=connecting]", state="detached")
    page.wait_for_selector("#status[data-state=token]")
    assert page.inner_text("#status") == "The token is wrong"
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#status[data-state=open]")
    page.context.close()


def test_meshes_lie_on_the_picture_through_a_lens(open_page, browser, tmp_path):
    picture = np.full((480, 640, 3), 110, np.uint8)
    picture[:, 200:] = read_picture(DEMOS / "sample_1.jpg")[:480, :440]
    write_picture(tmp_path / "edge.png", picture)
    camera = Camera(320.0, 320.0, 319.5, 239.5, 640, 480, distortion=(-0.25, 0.06, 0.0, 0.0))
    save_camera(tmp_path / "camera.yaml", camera)
    drawn = Overlay().draw(np.zeros_like(picture), HandMeshEstimator.from_pretrained()(picture, camera=camera))
    wanted = np.nonzero(drawn.max((0, 2)) > 40)[0]
    with chromium.Served("--camera", str(tmp_path / "camera.yaml")) as server:
        page = open_page(browser, server.url)
        page.set_input_files("#file", str(tmp_path / "edge.png"))
        wait_for_hands(page)
        page.wait_for_timeout(500)
        page.evaluate("document.getElementById('picture').style.visibility = 'hidden'")
        seen = cv2.imdecode(np.frombuffer(page.locator("#overlay").screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(
            int
        )
    coloured = np.nonzero((np.ptp(seen, axis=-1) > 60).any(0))[0] * (640 / seen.shape[1])
    np.testing.assert_allclose(coloured[[0, -1]], wanted[[0, -1]], atol=6)


def test_a_recording_ends_with_its_source(page, tmp_path):
    page.click("#use-server")
    wait_for_hands(page)
    page.click("#record")
    page.wait_for_selector("#recording:text('s')")
    page.click("#use-camera")
    save = page.locator("[aria-label='Save the recording as JSON']")
    times = [
        frame["time_s"] for frame in json.loads(download(page, save.click, tmp_path / "r.json").read_text())["frames"]
    ]
    assert times == sorted(times)
    assert page.get_attribute("#record", "aria-pressed") == "false"
    page.click("#stop")
    assert page.text_content("#fps") == "\N{EN DASH}"
    assert page.is_disabled("#record")
    assert page.get_attribute("#picture", "aria-label") == "No picture yet"


def test_the_token_is_asked_for(browser, served):
    page = browser.new_context().new_page()
    page.goto(served.url.split("#")[0])
    page.wait_for_selector("#status[data-state=token]", timeout=WAIT_MS)
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#status[data-state=open]", timeout=WAIT_MS)
    assert page.is_hidden("#token-form")
    page.context.close()


def test_the_printed_address_is_understood_while_the_page_is_open(browser, served):
    page = browser.new_context().new_page()
    page.goto(served.url.split("#")[0])
    page.wait_for_selector("#status[data-state=token]", timeout=WAIT_MS)
    page.goto(served.url)
    page.wait_for_selector("#status[data-state=open]", timeout=WAIT_MS)
    assert "#" not in page.url
    page.context.close()


def test_hands_of_a_server_that_has_gone_quiet_go(page, served):
    page.click("#start-camera")
    wait_for_hands(page)
    served.process.send_signal(signal.SIGSTOP)
    try:
        page.wait_for_selector("#hands li.none")
        page.wait_for_timeout(500)
        assert page.is_visible("#hands li.none")
    finally:
        served.process.send_signal(signal.SIGCONT)
    wait_for_hands(page)


def test_a_picture_a_video_and_the_servers_own_clip_show_hands(page, tmp_path):
    page.set_input_files("#file", DEMOS / "sample_1.jpg")
    wait_for_hands(page)
    assert "hand" in page.get_attribute("#picture", "aria-label")
    page.click("#stop")
    page.wait_for_selector("#hands li.none")

    video = cv2.VideoWriter(str(tmp_path / "clip.webm"), cv2.VideoWriter.fourcc(*"VP80"), 10, (640, 480))
    for _ in range(10):
        video.write(cv2.imread(str(DEMOS / "sample_2.jpg")))
    video.release()
    page.set_input_files("#file", tmp_path / "clip.webm")
    wait_for_hands(page)

    page.click("#use-server")
    page.wait_for_selector("#use-server[aria-pressed=true]")
    wait_for_hands(page)

    (tmp_path / "notes.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "notes.jpg")
    page.wait_for_selector("#trouble:text('notes.jpg')")
    assert page.is_visible("#start-camera")


def test_without_webgl_skeletons_are_drawn_and_it_is_said(play, open_page, served):
    browser = chromium.launch(play, flags=["--disable-3d-apis"])
    page = open_page(browser, served.url)
    assert "WebGL" in page.inner_text("#no-webgl")
    page.set_input_files("#file", DEMOS / "sample_1.jpg")
    wait_for_hands(page)
    assert painted(page, "#frame") > 0.001
    browser.close()


def test_a_page_of_another_site_draws_hands(browser, tmp_path):
    handler = partial(QuietHandler, directory=str(DEMOS))
    with ThreadingHTTPServer(("localhost", 0), handler) as site:
        threading.Thread(target=site.serve_forever).start()
        origin = f"http://localhost:{site.server_port}"
        with chromium.Served("--allow-origin", origin) as server:
            page = browser.new_context(permissions=["camera"]).new_page()
            page.goto(f"{origin}/stream.html?server=ws://127.0.0.1:{server.port}")
            page.wait_for_selector("p:text('cm away')", timeout=WAIT_MS)
            page.wait_for_function(IS_DRAWN_ON, timeout=WAIT_MS)
            page.context.close()
        site.shutdown()


def test_a_refusal_that_comes_late_does_not_end_a_newer_connection(page):
    asked, sockets = [], []

    def hold_the_first(route):
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    page.on("websocket", lambda socket: sockets.append(socket))
    page.route("**/v1/info", hold_the_first)
    page.click("#start-camera")
    page.click("#stop")
    page.wait_for_selector("#status[data-state=open]")
    asked[0].abort("connectionrefused")
    page.wait_for_timeout(1000)  # in half of it a lost server is tried again
    assert (page.get_attribute("#status", "data-state"), len(sockets)) == ("open", 1)


def test_a_lost_server_is_told_and_found_again(page, served):
    page.click("#start-camera")
    wait_for_hands(page)
    served.stop()  # this test comes last
    page.wait_for_selector("#trouble:text('Lost the server')")
    assert page.get_attribute("#status", "data-state") in ("lost", "connecting")
    with chromium.Served("--token", TOKEN, port=served.port):
        page.wait_for_selector("#status[data-state=open]")
        wait_for_hands(page)
        assert page.is_hidden("#trouble")
