"""The page, as its user sees and works it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import ConsoleMessage, Download, Page, expect

Pixels = NDArray[np.uint8]

EXPECTED_NOISE = ("WebSocket connection to", "Failed to load resource", "net::ERR_CONNECTION_REFUSED")
"""What Chromium writes by itself when the server is away."""


class Studio:
    """One page, at ``address``."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        page.goto(address)
        self.page.wait_for_selector("#sources input:checked", state="attached")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(noise in message.text for noise in EXPECTED_NOISE):
            self.complaints.append(message.text)

    def check_console(self) -> None:
        """The page has thrown nothing."""
        assert not self.complaints

    def choose(self, source: str, file: Path | None = None) -> None:
        """Choose an input, and a file where it asks for one."""
        choice = self.page.locator(f"#sources label:has(input[value={source}])")
        if file is None:
            choice.click()
            return
        with self.page.expect_file_chooser() as chooser:
            choice.click()
        chooser.value.set_files(file)

    def start(self) -> None:
        """Press Start, and wait for the first result."""
        self.page.click("#start")
        self.wait_for_results()

    def stop(self) -> None:
        """Press Stop."""
        self.page.click("#start")
        expect(self.page.locator("#stage")).to_have_attribute("data-state", "stopped")

    def wait_for_results(self, count: int = 1) -> None:
        """Wait until so many results more have been painted."""
        self.page.evaluate(
            """(count) => new Promise((done) => {
                const context = document.getElementById("result").getContext("2d");
                const draw = context.drawImage;
                context.drawImage = function (image, ...rest) {
                    draw.call(this, image, ...rest);
                    if (image instanceof ImageBitmap && --count <= 0) { delete context.drawImage; done(); }
                };
            })""",
            count,
        )

    def prompt(self, words: str) -> None:
        """Type a prompt and use it."""
        self.page.fill("#prompt", words)
        self.page.press("#prompt", "Enter")
        self.wait_for_results(4)

    def pixels(self, canvas: str = "result") -> Pixels:
        """What a canvas shows, BGR."""
        data: str = self.page.evaluate(f"document.getElementById('{canvas}').toDataURL('image/png')")
        return decode(base64.b64decode(data.split(",")[1]))

    def figure(self, name: str) -> float:
        """A live figure, once it is there."""
        cell = self.page.locator(f"#figure-{name}")
        expect(cell).not_to_have_text("–", timeout=10_000)
        return float(cell.inner_text().split()[0])

    def download(self, button: str) -> Download:
        """What pressing a button gives."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return download.value

    def violations(self) -> str:
        """What axe-core finds; empty if nothing."""
        results: Any = Axe().run(self.page)
        report: str = results.generate_report() if results.violations_count else ""
        return report


def decode(data: bytes) -> Pixels:
    """The pixels of a PNG or JPEG, BGR."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "this is no picture"
    return pixels.astype(np.uint8)


def difference(one: Pixels, other: Pixels) -> float:
    """The mean difference of two pictures in grey levels."""
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())
