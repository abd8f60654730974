"""Nothing is out of sight, however small the window is and whatever is typed."""

from __future__ import annotations

import pytest

from tests.api.conftest import MakeServer
from tests.web.conftest import OpenStudio
from tests.web.test_states import WITHOUT_CAMERA


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
