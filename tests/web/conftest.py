"""A real Chromium before a real server; see `studio.py` for what a test can do with a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.api.conftest import make_server
from tests.web.server import ServerProcess
from tests.web.studio import Studio

__all__ = ["make_server"]

# A browser that draws without a GPU, and a model, may have to share two busy cores.
expect.set_options(timeout=30_000)

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))


def chromium() -> str:
    """Where the browser is."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "these tests need Chromium: apt-get install chromium, or CHROMIUM=/path/to/it"
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def embedded() -> Iterator[ServerProcess]:
    """The server as users start it, on the embedded model."""
    with ServerProcess() as server:
        yield server


OpenStudio = Callable[..., Studio]


@pytest.fixture
def open_studio(browser: Browser) -> Iterator[OpenStudio]:
    """Opens pages, each with a memory of its own; keyword arguments are those of `Browser.new_context`."""
    with ExitStack() as stack:

        def open_page(address: str, *, camera: bool = True, script: str = "", **options: Any) -> Studio:
            options = {"viewport": {"width": 900, "height": 700}, "locale": "en-US", **options}
            context = browser.new_context(permissions=["camera"] if camera else [], **options)
            context.set_default_timeout(90_000)
            stack.callback(context.close)
            if script:
                context.add_init_script(script)
            studio = Studio(context.new_page(), address)
            stack.callback(studio.check_console)
            return studio

        yield open_page


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A still picture: with it, results change only when parameters do."""
    across = np.tile(np.linspace(0, 255, 256), (256, 1))
    picture = np.stack([across, across.T, np.full((256, 256), 120)], axis=2).astype(np.uint8)
    cv2.circle(picture, (128, 110), 60, (40, 90, 200), -1)
    cv2.rectangle(picture, (30, 180), (220, 240), (60, 140, 60), -1)
    path = tmp_path / "picture.png"
    assert cv2.imwrite(str(path), picture)
    return path
