"""What the page says when something is not as it should be, with a played device under the real server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from pydantic import BaseModel, Field

from tests.api.conftest import MakeServer
from tests.fakes import FakeRunner
from tests.web.conftest import OpenStudio
from tests.web.studio import Studio, difference

WITHOUT_CAMERA = "navigator.mediaDevices.enumerateDevices = async () => []"


def test_server_full_and_then_not(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server(server={"max_queue_size": 1})
    first = open_studio(server.http, script=WITHOUT_CAMERA)
    first.start()
    expect(first.page.locator("#figure-queue")).to_have_text("1 of 1", timeout=10_000)
    second = open_studio(server.http, script=WITHOUT_CAMERA, locale="zh-CN")
    users = users_of(second)
    second.page.click("#start")
    notice = second.page.locator("#notice")
    expect(notice).to_contain_text("服务器已满")
    assert not second.violations()
    first.stop()
    notice.get_by_role("button", name="重试").click()
    second.wait_for_results()
    expect(notice).to_be_hidden()
    second.stop()
    second.start()
    refused, served, served_again = users
    assert refused != served, "behind a proxy, another user may find room on another server"
    assert served == served_again, "whoever watches the stream has its address"


def test_a_user_of_ones_choice_stays_the_same(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server(server={"max_queue_size": 1})
    first = open_studio(server.http, script=WITHOUT_CAMERA)
    first.start()
    second = open_studio(f"{server.http}/?user=ann", script=WITHOUT_CAMERA)
    users = users_of(second)
    second.page.click("#start")
    again = second.page.get_by_role("button", name="Try again")
    again.click()
    expect(again).to_be_visible()
    assert users == ["ann", "ann"]


def users_of(studio: Studio) -> list[str]:
    """By whose name a page connects, from now on."""
    users: list[str] = []
    studio.page.on("websocket", lambda socket: users.append(urlsplit(socket.url).path.rpartition("/")[2]))
    return users


def test_model_loading_with_progress(make_server: MakeServer, open_studio: OpenStudio) -> None:
    loaded = threading.Event()

    def load(report: Callable[[str], None]) -> FakeRunner:
        report("loading a model")
        assert loaded.wait(60)
        return FakeRunner()

    server = make_server(create_runner=load)
    studio = open_studio(server.http, script=WITHOUT_CAMERA)
    try:
        studio.page.click("#start")
        notice = studio.page.locator("#notice")
        expect(notice).to_contain_text("The model is loading")
        expect(notice).to_contain_text("loading a model")
        expect(notice.locator("progress")).to_be_visible()
        # It is asked for every second; drawn anew, the same words would be read aloud again.
        kept = "document.querySelector('#notice progress') === bar"
        studio.page.evaluate("window.bar = document.querySelector('#notice progress')")
        studio.page.wait_for_timeout(1500)
        assert studio.page.evaluate(kept)
        studio.page.click("#language")
        expect(notice).to_contain_text("正在加载 a model")
        assert not studio.violations()
    finally:
        loaded.set()
    studio.wait_for_results()
    expect(notice).to_be_hidden()


def test_timeout(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server(server={"timeout": 0.5})
    studio = open_studio(server.http, script=WITHOUT_CAMERA)
    studio.start()
    # A camera that stops giving pictures: nothing is sent any more.
    studio.page.evaluate("HTMLCanvasElement.prototype.toBlob = () => {}")
    notice = studio.page.locator("#notice")
    expect(notice).to_contain_text("Stopped after a long silence", timeout=10_000)
    expect(studio.page.locator("#start")).to_have_text("Start")


def test_the_same_user_in_two_pages(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server()
    first = open_studio(f"{server.http}/?user=ann", script=WITHOUT_CAMERA)
    first.start()
    second = open_studio(f"{server.http}/?user=ann", script=WITHOUT_CAMERA)
    second.start()
    expect(first.page.locator("#notice")).to_contain_text("Continued somewhere else")
    second.wait_for_results(3)


@pytest.mark.parametrize("user", ["a%20b", "a%2Fb", "a%23b", "..%2Fb"])
def test_a_user_id_that_the_server_refuses(
    make_server: MakeServer, open_studio: OpenStudio, user: str
) -> None:
    server = make_server()
    studio = open_studio(f"{server.http}/?user={user}", script=WITHOUT_CAMERA)
    studio.page.click("#start")
    expect(studio.page.locator("#notice")).to_contain_text("must be 1 to 128 letters")


def test_a_frame_that_fails_is_told_and_the_stream_goes_on(
    make_server: MakeServer, open_studio: OpenStudio
) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.page.fill("#prompt", "nan")
    studio.page.press("#prompt", "Enter")
    expect(studio.page.locator("#toast")).to_contain_text("could not be made")
    studio.prompt("all is well")


def test_words_that_come_again_and_again_are_written_once(
    make_server: MakeServer, open_studio: OpenStudio
) -> None:
    """A screen reader would read them aloud each time."""
    studio = open_studio(make_server(server={"max_prompt_length": 30}).http, script=WITHOUT_CAMERA)
    page = studio.page
    heard: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: heard.append(str(data))))
    studio.start()
    page.fill("#prompt", 31 * "x")
    expect(page.locator("#toast")).to_contain_text("at most 30 are allowed")
    page.evaluate(
        """() => {
            window.written = 0;
            const toast = document.getElementById("toast");
            new MutationObserver(() => written++).observe(toast, { childList: true });
        }"""
    )
    heard.clear()
    while sum("error" in text for text in heard) < 3:
        page.wait_for_timeout(50)
    assert page.evaluate("written") == 0


SCREEN = (
    WITHOUT_CAMERA
    + """
    navigator.mediaDevices.getDisplayMedia = async () => {
        const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d");
        setInterval(() => context.fillRect(99 * Math.random(), 0, 9, 99), 30);
        window.shared = canvas.captureStream();
        return window.shared;
    };
"""
)


def test_screen_until_the_user_ends_it(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=SCREEN)
    studio.choose("screen")
    studio.start()
    studio.page.evaluate("shared.getTracks()[0].dispatchEvent(new Event('ended'))")
    expect(studio.page.locator("input[value=animation]")).to_be_checked()
    studio.wait_for_results(2)


ASKED = """
    const devices = navigator.mediaDevices;
    const ask = devices.getUserMedia.bind(devices);
    window.streams = [];
    window.answers = [];
    devices.getUserMedia = async (wishes) => {
        const stream = await ask(wishes);
        streams.push(stream);
        if (window.hasty) return stream;
        await new Promise((done) => answers.push(done));
        return stream;
    };
    window.anyCameraOn = () => streams.some((stream) => stream.active);
"""
"""A camera question that stays open until one of `answers` is called."""


def test_a_camera_that_is_allowed_too_late(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA + ";" + ASKED)
    studio.choose("prompt")
    studio.start()
    studio.choose("camera")
    studio.page.wait_for_function("answers.length === 1")
    studio.choose("prompt")
    studio.wait_for_results()
    studio.page.evaluate("document.getElementById('stage').dataset.state = 'untouched'; answers[0]()")
    studio.page.wait_for_function("!anyCameraOn()")
    studio.wait_for_results(3)
    expect(studio.page.locator("#stage")).to_have_attribute("data-state", "untouched")
    expect(studio.page.locator("input[name=strength]")).to_have_count(0)
    expect(studio.page.locator("input[value=prompt]")).to_be_checked()


def test_a_camera_that_is_asked_for_twice(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """By choosing it and by Start, while the browser still asks: the first answer takes nothing back."""
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA + ";" + ASKED)
    studio.choose("camera")
    studio.page.wait_for_function("answers.length === 1")
    studio.page.click("#start")
    studio.page.wait_for_function("answers.length === 2")
    studio.page.evaluate("answers[0]()")
    studio.page.wait_for_function("streams[0].getTracks()[0].readyState === 'ended'")
    studio.page.evaluate("answers[1]()")
    studio.wait_for_results()
    expect(studio.page.locator("input[value=camera]")).to_be_checked()
    assert studio.page.evaluate("anyCameraOn()")


def test_a_camera_that_cannot_be_played(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=ASKED + "window.hasty = true;")
    studio.page.evaluate(
        """() => {
            HTMLMediaElement.prototype.play = async () => {
                throw new DOMException("no decoder", "NotSupportedError");
            };
        }"""
    )
    studio.page.click("#start")
    notice = studio.page.locator("#input-notice")
    expect(notice).to_contain_text("The camera or screen shows no picture")
    assert not studio.page.evaluate("anyCameraOn()"), "its light goes out"
    studio.page.click("#language")
    expect(notice).to_contain_text("摄像头或屏幕没有画面")


def test_cameras_that_are_not_listed(make_server: MakeServer, open_studio: OpenStudio) -> None:
    script = "navigator.mediaDevices.enumerateDevices = async () => { throw new DOMException() }"
    studio = open_studio(make_server().http, script=script)
    expect(studio.page.locator("input[value=animation]")).to_be_checked()
    studio.choose("camera")
    studio.start()
    expect(studio.page.locator("input[value=camera]")).to_be_checked()
    expect(studio.page.locator("#input-notice")).to_be_hidden()


def test_a_picture_that_is_not_taken(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """More often than there are frames on the way, so that none is left if each of them were the last."""
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.page.evaluate(
        """() => {
            const taken = HTMLCanvasElement.prototype.toBlob;
            window.failures = 0;
            HTMLCanvasElement.prototype.toBlob = () => {
                if (++failures === 10) HTMLCanvasElement.prototype.toBlob = taken;
                throw new DOMException("out of memory", "UnknownError");
            };
        }"""
    )
    studio.page.wait_for_function("failures === 10")
    studio.wait_for_results(3)


def test_a_result_that_is_not_decoded(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.page.evaluate(
        """() => {
            const decode = createImageBitmap;
            window.createImageBitmap = async () => {
                window.createImageBitmap = decode;
                throw new DOMException("not decoded", "InvalidStateError");
            };
        }"""
    )
    studio.wait_for_results(3)
    assert len(studio.complaints) == 1
    assert "not decoded" in studio.complaints.pop()


def test_a_file_that_is_no_picture(make_server: MakeServer, open_studio: OpenStudio, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.choose("picture", broken)
    expect(studio.page.locator("#input-notice")).to_contain_text("This file cannot be shown")
    studio.choose("video", broken)
    expect(studio.page.locator("#input-notice")).to_contain_text("This file cannot be shown")


def test_prompts_are_remembered_and_forgotten(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.prompt("a lighthouse")
    studio.page.reload()
    chip = studio.page.locator("#chips").get_by_role("button", name="a lighthouse")
    chip.click()
    expect(studio.page.locator("#prompt")).to_have_value("a lighthouse")
    expect(chip).to_have_attribute("aria-pressed", "true")
    studio.page.get_by_role("button", name="Clear history").click()
    expect(chip).to_have_count(0)


def test_an_example_is_chosen_while_something_else_is_typed(
    make_server: MakeServer, open_studio: OpenStudio
) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.page.fill("#prompt", "a lighthouse")
    box = studio.page.locator("#chips").get_by_role("button", name="Comic").bounding_box()
    assert box is not None
    # No `click()`: that one waits for a chip that stands still between press and release.
    studio.page.mouse.move(box["x"] + 20, box["y"] + 10)
    studio.page.mouse.down()
    studio.page.mouse.up()
    expect(studio.page.locator("#prompt")).to_have_value("comic book")
    expect(studio.page.locator("#chips").get_by_role("button", name="a lighthouse")).to_be_visible()


def test_an_input_method_has_the_last_word(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """What is typed for Chinese words, and seen in the box meanwhile, is sent to nobody."""
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    page = studio.page
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda data: sent.append(str(data))))
    studio.start()
    page.fill("#prompt", "")
    keys = page.context.new_cdp_session(page)
    keys.send("Input.imeSetComposition", {"text": "xue shan", "selectionStart": 8, "selectionEnd": 8})
    expect(page.locator("#prompt")).to_have_value("xue shan")
    page.wait_for_timeout(500)  # a prompt is used after half of it
    keys.send("Input.insertText", {"text": "雪山"})
    while not any("雪山" in text for text in sent):
        studio.wait_for_results()
    assert not any("xue" in text for text in sent)


def test_the_address_can_be_copied_after_a_stop(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(f"{make_server().http}/?user=obs", script=WITHOUT_CAMERA)
    studio.start()
    studio.stop()
    studio.page.click("#link")
    expect(studio.page.locator("#toast")).to_contain_text("/api/stream/obs")


def test_result_alone_and_full_screen(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.page.click("#view")
    expect(studio.page.locator("#input-pane")).to_be_hidden()
    studio.page.reload()
    expect(studio.page.locator("#input-pane")).to_be_hidden()
    studio.page.click("#view")
    expect(studio.page.locator("#input-pane")).to_be_visible()
    studio.page.click("#fullscreen")
    studio.page.wait_for_function("document.fullscreenElement?.id === 'result-pane'")


def test_full_screen_where_there_is_none(make_server: MakeServer, open_studio: OpenStudio) -> None:
    script = WITHOUT_CAMERA + "; Element.prototype.requestFullscreen = undefined"
    studio = open_studio(make_server().http, script=script)
    studio.page.click("#fullscreen")
    box = studio.page.locator("#result-pane").bounding_box()
    assert box == {"x": 0, "y": 0, "width": 900, "height": 700}
    studio.page.keyboard.press("Escape")
    assert studio.page.locator("#result-pane").bounding_box() != box


class EveryField(BaseModel):
    prompt: str = Field("a cat", title="Prompt", json_schema_extra={"field": "textarea"})
    amount: float = Field(0.5, title="Amount", ge=0, le=2, json_schema_extra={"field": "range", "step": 0.25})
    count: int = Field(3, title="Count", ge=1, le=9, json_schema_extra={"field": "range"})
    seed: int = Field(7, title="Seed", ge=0, le=2**53 - 1, json_schema_extra={"field": "seed"})
    smooth: bool = Field(True, title="Smooth", json_schema_extra={"field": "checkbox"})
    look: Literal["plain", "rich"] = Field("plain", title="Look", json_schema_extra={"field": "select"})
    note: str = Field("", title="Note", description="Anything.", json_schema_extra={"field": "input"})
    times: int = Field(2, title="Times", ge=1)
    weight: float = Field(1.0, title="Weight")
    bright: bool = Field(False, title="Bright")
    num_inference_steps: int = Field(1, title="Hidden", json_schema_extra={"hide": True})
    guidance_scale: float = Field(1.0, title="Hidden", json_schema_extra={"hide": True})


def test_controls_are_what_the_server_describes(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """A pipeline's own parameters appear by themselves, and are sent by their names, with their types."""
    server = make_server()
    server.image.Params = EveryField
    studio = open_studio(server.http, script=WITHOUT_CAMERA)
    page = studio.page
    assert page.input_value("#prompt") == "a cat"
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda data: sent.append(str(data))))
    page.get_by_label("Amount").first.fill("1.25")
    page.get_by_label("Count").last.fill("4")
    page.get_by_label("Seed").fill("9007199254740991")
    page.get_by_label("Smooth").uncheck()
    page.get_by_label("Look").select_option("rich")
    page.get_by_label("Note", exact=True).fill("x")
    page.get_by_label("Times").fill("5")
    page.get_by_label("Weight").fill("-0.125")
    page.get_by_label("Bright").check()
    expect(page.get_by_label("Hidden")).to_have_count(0)
    page.get_by_role("button", name="What is “Note”?").click()
    expect(page.get_by_text("Anything.")).to_be_visible()
    assert not studio.violations()
    page.keyboard.press("Escape")
    studio.start()
    parameters = next(text for text in sent if "amount" in text)
    for part in ('"amount":1.25', '"count":4', '"smooth":false', '"look":"rich"', '"note":"x"'):
        assert part in parameters, parameters
    for part in ('"seed":9007199254740991', '"times":5', '"weight":-0.125', '"bright":true'):
        assert part in parameters, parameters
    assert "num_inference_steps" not in parameters


class Described(BaseModel):
    prompt: str = Field("", title="Prompt", description="Has a box of its own.")
    strength: float = Field(0.5, title="Strength", description="How far from the input.", ge=0, le=1)
    note: str = Field("", title="Note", description="Anything.")


def test_each_help_button_has_a_name_of_its_own(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server()
    server.image.Params = Described
    page = open_studio(server.http, script=WITHOUT_CAMERA).page
    buttons = page.locator("#controls").get_by_role("button")
    for names, help_of_strength in (
        (["What is “Strength”?", "What is “Note”?", "Reset"], "How far from the input."),
        (["“重绘强度”是什么？", "“Note”是什么？", "恢复默认"], "画面可以偏离输入的程度"),
    ):
        for button, name in zip(buttons.all(), names, strict=True):
            expect(button).to_have_accessible_name(name)
        page.get_by_role("button", name=names[0]).click()
        expect(page.get_by_text(help_of_strength)).to_be_visible()
        page.keyboard.press("Escape")
        page.click("#language")


def test_what_is_shown_is_what_is_sent(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """Numbers that a parameter cannot have become those that are in force."""
    server = make_server()
    server.image.Params = EveryField
    studio = open_studio(server.http, script=WITHOUT_CAMERA)
    amount, slider = studio.page.get_by_label("Amount").all()
    seed = studio.page.get_by_label("Seed")
    for typed, taken in (("0.3", "0.25"), ("9", "2"), ("-1", "0")):
        amount.fill(typed)
        expect(slider).to_have_value(taken)
        amount.blur()
        expect(amount).to_have_value(taken)
    seed.fill("-5")
    seed.blur()
    expect(seed).to_have_value("7")


def test_a_lost_device_is_told(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, script=WITHOUT_CAMERA)
    studio.start()
    studio.page.fill("#prompt", "lost")
    studio.page.press("#prompt", "Enter")
    toast = studio.page.locator("#toast")
    expect(toast).to_contain_text("The connection was lost")
    expect(toast).to_contain_text("the device fell off the bus")


HIDING = (
    WITHOUT_CAMERA
    + """
    Object.defineProperty(Document.prototype, "hidden", { get: () => window.away === true });
    const request = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = (act) => request((now) => window.away || act(now));
"""
)


def test_a_hidden_page_goes_on(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """Its stream may be watched elsewhere, although browsers draw nothing in a hidden page."""
    studio = open_studio(make_server().http, script=HIDING)
    studio.start()
    studio.page.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    before = studio.pixels()
    studio.wait_for_results(10)
    assert difference(before, studio.pixels()) > 0
