"""Nothing is out of sight, however small the window is and whatever is typed."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.api.conftest import MakeServer
from tests.web.conftest import OpenStudio
from tests.web.test_states import WITHOUT_CAMERA, Described, EveryField


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_window(
    make_server: MakeServer, open_studio: OpenStudio, width: int
) -> None:
    """Neither the bar nor a prompt without spaces. 320 is also a window of 1280, enlarged four times."""
    page = open_studio(
        make_server().http, script=WITHOUT_CAMERA, viewport={"width": width, "height": 600}
    ).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.fill("#prompt", "masterpiece,best_quality," * 9)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#language").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("place", ["start", "end"])
def test_help_is_in_sight_wherever_its_button_is(
    make_server: MakeServer, open_studio: OpenStudio, place: str
) -> None:
    server = make_server()
    server.image.Params = Described
    page = open_studio(server.http, script=WITHOUT_CAMERA, viewport={"width": 390, "height": 600}).page
    for name in ("Strength", "Note"):
        button = page.get_by_role("button", name=f"What is “{name}”?")
        button.evaluate(f"(button) => button.scrollIntoView({{ block: '{place}' }})")
        button.evaluate("(button) => button.click()")  # by itself, `click()` would scroll
        box = page.locator(":popover-open").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 600
        page.keyboard.press("Escape")


def test_on_a_phone_the_input_covers_no_words(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(
        make_server().http, script=WITHOUT_CAMERA, viewport={"width": 375, "height": 667}, is_mobile=True
    )
    studio.start()
    studio.page.fill("#prompt", "nan")
    words = studio.page.locator("#toast")
    expect(words).to_be_visible()
    begin = """(words) => {
        const { left, top, bottom } = words.getBoundingClientRect();
        return document.elementFromPoint(left + 5, (top + bottom) / 2) === words;
    }"""
    assert words.evaluate(begin)


def test_no_field_makes_an_iphone_zoom_in(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """As it does where the type of a field that is touched has less than 16 pixels."""
    server = make_server()
    server.image.Params = EveryField
    studio = open_studio(
        server.http,
        script=WITHOUT_CAMERA,
        viewport={"width": 390, "height": 844},
        is_mobile=True,
        has_touch=True,
    )
    studio.choose("drawing")
    expect(studio.page.locator("#source-tools select")).to_have_count(2)
    sizes = studio.page.evaluate(
        """Array.from(
            document.querySelectorAll("textarea, select, input:is([type=text], [type=number])"),
            (field) => parseFloat(getComputedStyle(field).fontSize),
        )"""
    )
    assert len(sizes) > 8
    assert min(sizes) >= 16


def test_words_over_a_small_picture_begin_in_sight(make_server: MakeServer, open_studio: OpenStudio) -> None:
    """A phone on its side, which came by plain HTTP."""
    studio = open_studio(
        make_server().http.replace("127.0.0.1", "insecure.test"),
        camera=False,
        viewport={"width": 667, "height": 375},
        is_mobile=True,
    )
    studio.choose("camera")
    notice = studio.page.locator("#input-notice")
    pane, title = notice.bounding_box(), notice.locator("h2").bounding_box()
    assert pane is not None
    assert title is not None
    assert title["y"] >= pane["y"]
    notice.get_by_role("button", name="Use the animation").click()
    expect(notice).to_be_hidden()
