"""The page on the embedded model: everything that its users do."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import httpx
import pytest
from playwright.sync_api import expect

from tests.web.conftest import OpenStudio
from tests.web.server import ServerProcess
from tests.web.studio import Studio, decode, difference

SAME = 2.0
"""Grey levels: two JPEGs of one picture may differ so much."""

OTHER = 10.0
"""Grey levels: what another prompt changes at least."""


def test_camera_frames_flow_and_change(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address)
    assert studio.page.locator("input[value=camera]").is_checked(), (
        "a camera is the default where there is one"
    )
    studio.start()
    before = studio.pixels()
    studio.wait_for_results(10)
    assert difference(before, studio.pixels()) > 0.5
    assert studio.figure("out") > 1
    assert studio.figure("in") >= studio.figure("out") - 3
    assert 5 < studio.figure("age") < 1000
    assert studio.figure("queue") == 1


def test_without_a_camera_something_moves(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address, script="navigator.mediaDevices.enumerateDevices = async () => []")
    assert studio.page.locator("input[value=animation]").is_checked()
    before = studio.pixels("input")
    studio.page.wait_for_timeout(500)
    assert difference(before, studio.pixels("input")) > 0.1
    studio.start()


def test_prompt_changes_the_picture_shown(
    embedded: ServerProcess, open_studio: OpenStudio, photograph: Path
) -> None:
    studio = open_studio(embedded.address)
    studio.choose("picture", photograph)
    studio.start()
    studio.prompt("pencil sketch")
    sketch = studio.pixels()
    studio.wait_for_results(5)
    assert difference(sketch, studio.pixels()) < SAME, "the same prompt gives the same picture"
    studio.prompt("neon lights")
    assert difference(sketch, studio.pixels()) > OTHER
    studio.prompt("pencil sketch")
    assert difference(sketch, studio.pixels()) < SAME


def test_parameters_are_hot(embedded: ServerProcess, open_studio: OpenStudio, photograph: Path) -> None:
    studio = open_studio(embedded.address)
    studio.choose("picture", photograph)
    studio.page.fill("input[name=strength] >> xpath=../input[@type='number']", "0")
    studio.start()
    studio.wait_for_results(3)
    gentle = studio.pixels()
    studio.page.fill("input[name=strength] >> xpath=../input[@type='number']", "0.8")
    studio.wait_for_results(4)
    assert difference(gentle, studio.pixels()) > SAME
    studio.page.click("#controls >> text=Reset")
    expect(studio.page.locator("input[name=strength]")).to_have_value("0.5")


def test_snapshot_and_recording_are_valid_files(
    embedded: ServerProcess, open_studio: OpenStudio, tmp_path: Path
) -> None:
    studio = open_studio(embedded.address)
    assert studio.page.is_disabled("#snapshot"), "there is nothing to save yet"
    studio.start()
    snapshot = studio.download("#snapshot")
    assert re.fullmatch(r"streamdiffusion-[\dT-]+\.png", snapshot.suggested_filename)
    assert decode(Path(snapshot.path()).read_bytes()).shape == (256, 256, 3)

    studio.page.click("#record")
    expect(studio.page.locator("#recording")).to_be_visible()
    studio.wait_for_results(15)
    recording = studio.download("#record")
    path = tmp_path / recording.suggested_filename
    assert path.suffix == ".webm"
    recording.save_as(path)
    video = cv2.VideoCapture(str(path))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames >= 8
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (256, 256)
    expect(studio.page.locator("#recording")).to_be_hidden()

    # What was recorded can be put in again.
    studio.choose("video", path)
    studio.wait_for_results(3)
    before = studio.pixels("input")
    studio.wait_for_results(10)
    assert difference(before, studio.pixels("input")) > 0.1


def test_stop_and_start_again(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address)
    for _ in range(3):
        studio.start()
        studio.stop()
    queue = httpx.get(f"{embedded.address}/api/queue").json()
    assert queue == {"queue_size": 0}


def test_two_tabs_with_different_prompts_stay_apart(
    embedded: ServerProcess, open_studio: OpenStudio, photograph: Path
) -> None:
    alone = {}
    for prompt in ("pencil sketch", "neon lights"):
        studio = open_studio(embedded.address)
        studio.choose("picture", photograph)
        studio.start()
        studio.prompt(prompt)
        alone[prompt] = studio.pixels()
        studio.stop()
    together: dict[str, Studio] = {}
    for prompt in alone:
        together[prompt] = open_studio(embedded.address)
        together[prompt].choose("picture", photograph)
        together[prompt].start()
    for prompt, studio in together.items():
        studio.prompt(prompt)
    for prompt, studio in together.items():
        studio.wait_for_results(3)
        assert difference(studio.pixels(), alone[prompt]) < SAME


def test_server_restarted_under_the_page(open_studio: OpenStudio, photograph: Path) -> None:
    with ServerProcess() as server:
        studio = open_studio(server.address)
        studio.choose("picture", photograph)
        studio.start()
        studio.prompt("blueprint")
        before = studio.pixels()
        server.stop()
        expect(studio.page.locator("#toast")).to_contain_text("The connection was lost. Connecting again…")
        server.start()
        expect(studio.page.locator("#stage")).to_have_attribute("data-state", "live", timeout=20_000)
        studio.wait_for_results(3)
        expect(studio.page.locator("#toast")).to_be_hidden()
        assert difference(before, studio.pixels()) < SAME, "the parameters were sent again"


def test_camera_denied(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address, camera=False)
    studio.page.click("#start")
    notice = studio.page.locator("#input-notice")
    expect(notice).to_contain_text("The camera or screen was not allowed")
    studio.page.click("#language")
    expect(notice).to_contain_text("未获准使用摄像头或屏幕")
    studio.page.click("#language")
    assert not studio.violations()
    notice.get_by_role("button", name="Use the animation").click()
    studio.wait_for_results()  # Start was pressed already
    expect(notice).to_be_hidden()


def test_camera_needs_https(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address.replace("127.0.0.1", "insecure.test"), camera=False)
    assert studio.page.locator("input[value=animation]").is_checked()
    studio.choose("camera")
    expect(studio.page.locator("#input-notice")).to_contain_text("The camera needs HTTPS")
    studio.choose("animation")
    studio.start()


def test_video_mode(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address)
    studio.choose("prompt")
    expect(studio.page.locator("#input-pane")).to_be_hidden()
    expect(studio.page.locator("input[name=strength]")).to_have_count(0)
    studio.start()
    studio.prompt("a red circle on a blue background")
    before = studio.pixels()
    studio.wait_for_results(3)
    assert difference(before, studio.pixels()) < SAME, "one seed, one picture"
    studio.prompt("the sea at sunset, clouds")
    assert difference(before, studio.pixels()) > OTHER
    studio.choose("animation")
    expect(studio.page.locator("input[name=strength]")).to_have_count(1)
    studio.wait_for_results(2)


def test_drawing_is_repainted(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address)
    studio.choose("drawing")
    studio.start()
    blank, result = studio.pixels("input"), studio.pixels()
    box = studio.page.locator("#input").bounding_box()
    assert box is not None
    mouse = studio.page.mouse
    mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    mouse.up()
    studio.wait_for_results(4)
    assert difference(blank, studio.pixels("input")) > 0.5
    assert difference(result, studio.pixels()) > 0.5
    studio.page.get_by_role("button", name="Undo").click()
    studio.page.wait_for_timeout(200)
    assert difference(blank, studio.pixels("input")) == 0


def test_phone(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(
        embedded.address, viewport={"width": 375, "height": 667}, is_mobile=True, has_touch=True
    )
    studio.page.tap("#idle-start")
    studio.wait_for_results(3)
    width, start = studio.page.evaluate(
        """[
            document.documentElement.scrollWidth,
            document.getElementById("start").getBoundingClientRect().bottom,
        ]"""
    )
    assert width <= 375, "nothing is wider than the window"
    assert start <= 667, "the prompt is in the first screen"
    assert not studio.violations()


def test_stream_address_is_a_picture_of_the_same_results(
    embedded: ServerProcess, open_studio: OpenStudio
) -> None:
    studio = open_studio(f"{embedded.address}/?user=obs")
    studio.start()
    with httpx.stream("GET", f"{embedded.address}/api/stream/obs") as response:
        assert response.headers["content-type"].startswith("multipart/x-mixed-replace")
        start = next(response.iter_bytes())
    assert b"image/jpeg" in start


def test_nothing_comes_from_foreign_hosts(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address)
    studio.start()
    assert studio.hosts == {embedded.address.removeprefix("http://")}


def test_nothing_jumps(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    watch = """
        window.shift = 0;
        new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) window.shift += entry.value;
        }).observe({ type: "layout-shift", buffered: true });
    """
    studio = open_studio(embedded.address, script=watch)
    studio.start()
    studio.wait_for_results(5)
    assert studio.page.evaluate("window.shift") < 0.02


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "start"), [("en-US", "Start"), ("zh-CN", "开始")])
def test_accessible_in_both_languages_and_colours(
    embedded: ServerProcess, open_studio: OpenStudio, locale: str, start: str, scheme: str
) -> None:
    studio = open_studio(embedded.address, locale=locale, color_scheme=scheme)
    expect(studio.page.locator("#start")).to_have_text(start)
    assert studio.page.locator("html").get_attribute("lang") == ("en" if start == "Start" else "zh-Hans")
    assert not studio.violations()
    studio.start()
    assert not studio.violations()
    expect(studio.page.locator("#language")).to_have_text("中文" if start == "Start" else "English")
    studio.page.click("#language")
    expect(studio.page.locator("#start")).to_have_text("停止" if start == "Start" else "Stop")
    studio.page.reload()
    expect(studio.page.locator("#start")).to_have_text("开始" if start == "Start" else "Start")


def test_keyboard_alone(embedded: ServerProcess, open_studio: OpenStudio) -> None:
    studio = open_studio(embedded.address, script="navigator.mediaDevices.enumerateDevices = async () => []")
    reached = []
    for _ in range(12):
        studio.page.keyboard.press("Tab")
        reached.append(studio.page.evaluate("document.activeElement.id || document.activeElement.name"))
        if reached[-1] == "prompt":
            break
    assert reached[:3] == ["language", "theme", "idle-start"]
    assert reached[-1] == "prompt", reached
    studio.page.keyboard.press("Control+A")
    studio.page.keyboard.type("mosaic")
    studio.page.keyboard.press("Enter")
    studio.page.keyboard.press("Tab")
    studio.page.keyboard.press("Enter")
    studio.wait_for_results(2)
    assert studio.page.input_value("#prompt") == "mosaic"


def test_the_keyboard_goes_on_where_the_large_start_was(
    embedded: ServerProcess, open_studio: OpenStudio
) -> None:
    studio = open_studio(embedded.address)
    studio.page.focus("#idle-start")
    studio.page.keyboard.press("Enter")
    studio.wait_for_results()
    expect(studio.page.locator("#start")).to_be_focused()
    studio.page.keyboard.press("Enter")
    expect(studio.page.locator("#stage")).to_have_attribute("data-state", "stopped")
