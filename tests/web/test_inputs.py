"""Inputs that come, go and are chosen among, before a played device."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.api.conftest import MakeServer
from tests.web.conftest import OpenStudio
from tests.web.studio import difference
from tests.web.test_states import ASKED, HIDING, SCREEN, WITHOUT_CAMERA
from tests.web.test_words import closed_with

PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


def test_arrows_ask_for_nothing(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """With a choice at each step, the way to the drawing would lead through three dialogues."""
    script = """
        window.asked = [];
        navigator.mediaDevices.getUserMedia = async () => asked.push("camera");
        navigator.mediaDevices.getDisplayMedia = async () => asked.push("screen");
        HTMLInputElement.prototype.click = () => asked.push("file");
    """
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA + script)
    keyboard = studio.page.keyboard
    studio.page.focus("input[value=animation]")
    for _ in range(5):
        keyboard.press("ArrowRight")
    expect(studio.page.locator("input[value=drawing]")).to_be_focused()
    expect(studio.page.locator("input[value=animation]")).to_be_checked()
    keyboard.press("Space")
    expect(studio.page.locator("input[value=drawing]")).to_be_checked()
    expect(studio.page.locator("input[value=drawing]")).to_be_focused()
    for _ in range(2):
        keyboard.press("ArrowDown")
    expect(studio.page.locator("input[value=animation]")).to_be_focused()
    keyboard.press("ArrowUp")
    keyboard.press("Space")
    expect(studio.page.locator("input[value=prompt]")).to_be_checked()
    assert studio.page.evaluate("asked") == []


def test_a_tab_is_shared_and_shown(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """Chromium goes to the shared tab at once, so that the page is hidden before it has the picture."""
    shared = """
        const share = navigator.mediaDevices.getDisplayMedia;
        navigator.mediaDevices.getDisplayMedia = async () => {
            window.away = true;
            document.dispatchEvent(new Event("visibilitychange"));
            // Meanwhile the server asks for a frame.
            await new Promise((done) => setTimeout(done, 500));
            return share();
        };
    """
    studio = open_studio(make_server().http, script=HIDING + SCREEN + shared)
    studio.start()
    studio.choose("screen")
    expect(studio.page.locator("#stage[data-source=screen][data-open=true]")).to_have_count(1)
    studio.wait_for_results(5)


def test_a_camera_is_on_from_start_to_stop(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=ASKED + "window.hasty = true;")
    ready = studio.page.get_by_text("Your camera starts when you do")
    for _ in range(2):
        expect(ready).to_be_visible()
        assert not studio.page.evaluate("anyCameraOn()")
        studio.start()
        expect(ready).to_be_hidden()
        assert studio.page.evaluate("anyCameraOn()")
        studio.stop()


def test_a_camera_that_is_unplugged(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=ASKED + "window.hasty = true;")
    studio.start()
    end = "streams.at(-1).getTracks()[0].dispatchEvent(new Event('ended'))"
    studio.page.evaluate(end)
    studio.page.wait_for_function("streams.length === 2")
    studio.wait_for_results(2)
    expect(studio.page.locator("input[value=camera]")).to_be_checked()
    studio.page.evaluate(
        """() => {
            const missing = new DOMException("", "NotFoundError");
            navigator.mediaDevices.getUserMedia = async () => { throw missing; };
        }"""
    )
    studio.page.evaluate(end)
    expect(studio.page.locator("#input-notice")).to_contain_text("No camera was found")
    expect(studio.page.locator("input[value=camera]")).to_be_checked()


def test_a_camera_that_is_denied_while_the_result_is_alone(
    make_server: MakeServer, open_studio: OpenStudio
) -> None:
    studio = open_studio(make_server().http, camera=False)
    studio.page.click("#view")
    studio.page.click("#start")
    notice = studio.page.locator("#input-notice")
    expect(notice).to_be_visible()
    notice.get_by_role("button", name="Use the animation").click()
    studio.wait_for_results()
    expect(studio.page.locator("#input-pane")).to_be_hidden()


def test_one_finger_draws_and_a_tap_is_a_dot(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.choose("drawing")
    studio.page.wait_for_timeout(200)
    blank = studio.pixels("input")
    touch = """(primary) => {
        const canvas = document.getElementById("input");
        canvas.setPointerCapture = () => {};
        const { left, top } = canvas.getBoundingClientRect();
        const place = { clientX: left + 50, clientY: top + 50, isPrimary: primary };
        canvas.dispatchEvent(new PointerEvent("pointerdown", place));
    }"""
    studio.page.evaluate(touch, False)
    studio.page.wait_for_timeout(200)
    assert difference(blank, studio.pixels("input")) == 0
    studio.page.evaluate(touch, True)
    studio.page.wait_for_timeout(200)
    assert difference(blank, studio.pixels("input")) > 0


COVERED = """() => {
    const canvas = document.getElementById("input");
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const places = Array.from({ length: 400 }, (_, i) => [(i % 20) / 19, Math.floor(i / 20) / 19]);
    return places.filter(([x, y]) => {
        const [across, down] = [left + 1 + x * (width - 2), top + 1 + y * (height - 2)];
        return document.elementFromPoint(across, down) !== canvas;
    });
}"""
"""Where, of 20 × 20 places of the drawing, something else takes the finger; 0 to 1 from left and top."""


@pytest.mark.parametrize("height", [640, 800])
def test_nothing_lies_on_a_drawing_on_a_phone(
    make_server: MakeServer, open_studio: OpenStudio, height: int
) -> None:
    phone = {**PHONE, "viewport": {"width": 360, "height": height}}
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA, **phone)
    studio.choose("drawing")
    expect(studio.page.get_by_role("button", name="Undo")).to_be_in_viewport(ratio=1)
    expect(studio.page.locator("#idle-start")).to_be_in_viewport(ratio=1)
    assert studio.page.evaluate(COVERED) == []
    studio.start()
    assert studio.page.evaluate(COVERED) == []
    expect(studio.page.locator("#result")).to_be_in_viewport(ratio=1)
    expect(studio.page.locator("#start")).to_be_in_viewport(ratio=1)
    assert studio.page.evaluate("document.documentElement.scrollWidth") == 360
    assert not studio.violations()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_words_beside_a_drawing_on_a_phone(
    make_server: MakeServer, open_studio: OpenStudio, locale: str
) -> None:
    """The result is small there, and what does not fit into it must be read and pressed all the same."""
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA, locale=locale, **PHONE)
    studio.choose("drawing")
    studio.start()
    studio.page.fill("#prompt", "nan")
    studio.page.locator("#prompt").blur()
    toast = studio.page.locator("#toast")
    expect(toast).to_be_in_viewport(ratio=1)
    assert toast.evaluate("(line) => line.scrollHeight <= line.clientHeight")
    studio.stop()
    closed_with(studio, "Server is full", 1013)
    for part in ("h2", "p", "button"):
        expect(studio.page.locator(f"#notice {part}")).to_be_in_viewport(ratio=1)
    assert studio.page.evaluate(COVERED) == []


def test_a_drawing_fills_the_window_of_a_phone(make_server: MakeServer, open_studio: OpenStudio) -> None:
    script = WITHOUT_CAMERA + "; Element.prototype.requestFullscreen = undefined"
    studio = open_studio(make_server().http, script=script, **PHONE)
    for source in ("drawing", "prompt"):
        studio.choose(source)
        studio.page.click("#fullscreen")
        pane = studio.page.locator("#result-pane")
        assert pane.bounding_box() == {"x": 0, "y": 0, "width": 360, "height": 640}, source
        studio.page.keyboard.press("Escape")


def test_the_mode_is_that_of_what_was_chosen_last(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    held: list[Route] = []
    studio.page.route("**/api/settings?mode=video", lambda route: held.append(route))
    with studio.page.expect_request("**/api/settings?mode=video"):
        studio.choose("prompt")
    studio.choose("animation")
    with studio.page.expect_response("**/api/settings?mode=image"):
        held[0].continue_()
    expect(studio.page.locator("#prompt")).to_have_value("neon lights")


def test_start_waits_for_the_settings(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """Before them it is not known what goes in."""
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    held: list[Route] = []
    studio.page.route("**/api/settings", lambda route: held.append(route))
    with studio.page.expect_request("**/api/settings"):
        studio.page.reload()
    for button in ("#start", "#idle-start"):
        expect(studio.page.locator(button)).to_be_disabled()
    held[0].continue_()
    studio.page.click("#idle-start")
    studio.wait_for_results()


def test_a_video_that_cannot_be_played_is_let_go(
    make_server: MakeServer, open_studio: OpenStudio, tmp_path: Path
) -> None:
    script = """
        window.held = 0;
        const { createObjectURL, revokeObjectURL } = URL;
        URL.createObjectURL = (file) => { held++; return createObjectURL.call(URL, file); };
        URL.revokeObjectURL = (address) => { held--; revokeObjectURL.call(URL, address); };
    """
    broken = tmp_path / "broken.webm"
    broken.write_bytes(b"no video")
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA + ";" + script)
    studio.choose("video", broken)
    expect(studio.page.locator("#input-notice")).to_contain_text("This file cannot be shown")
    assert studio.page.evaluate("held") == 0


def test_words_can_be_dropped_into_a_field(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    drop = """(file) => {
        const dataTransfer = new DataTransfer();
        if (file) dataTransfer.items.add(new File(["x"], "x.txt", { type: "text/plain" }));
        else dataTransfer.setData("text/plain", "a cat");
        const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
        return document.getElementById("prompt").dispatchEvent(drop);
    }"""
    assert studio.page.evaluate(drop, False), "the browser does as it always does"
    assert not studio.page.evaluate(drop, True), "a file is not opened in place of the page"
