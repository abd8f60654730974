"""Takes the pictures of the README from the running page: `python -m tests.web.capture`.

Writes docs/images/page.png, phone.png and live.webp. The frames of the last one have the times at which
they were taken.
"""

from __future__ import annotations

import io
import itertools
import os
import time

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.web.conftest import FLAGS, chromium
from tests.web.server import ROOT, ServerProcess
from tests.web.studio import Studio

IMAGES = ROOT / "docs/images"
PROMPTS = ("neon lights", "at sunset", "blueprint", "made of gold", "comic book", "winter, snow")
SECONDS = 2.0
AS_RUN_DOES = {
    "STREAMDIFFUSION_MODEL__ACCELERATION": "auto",
    "STREAMDIFFUSION_MODEL__THREADS": str(os.cpu_count()),
}
WITHOUT_CAMERA = "navigator.mediaDevices.enumerateDevices = async () => []"


def opened(
    browser: Browser, server: ServerProcess, width: int, height: int, scheme: str, mobile: bool
) -> Studio:
    """A page that shows results."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        locale="en-US",
        is_mobile=mobile,
    )
    context.add_init_script(WITHOUT_CAMERA)
    studio = Studio(context.new_page(), server.address)
    studio.start()
    studio.prompt(PROMPTS[0])
    studio.page.locator("#prompt").blur()
    studio.page.wait_for_timeout(2500)
    return studio


def film(page: Page) -> list[tuple[Image.Image, float]]:
    """Pictures of the page, and when they were taken, while one prompt follows the other."""
    pictures = []
    for prompt in PROMPTS:
        page.fill("#prompt", prompt)
        page.press("#prompt", "Enter")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            shot = page.locator(".work").screenshot(type="png")
            pictures.append((Image.open(io.BytesIO(shot)).convert("RGB"), time.monotonic()))
    return pictures


def main() -> None:
    """Take all three."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with ServerProcess(**AS_RUN_DOES) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        desktop = opened(browser, server, 1280, 720, "light", mobile=False)
        desktop.page.screenshot(path=IMAGES / "page.png")
        desktop.page.context.close()
        phone = opened(browser, server, 390, 780, "dark", mobile=True)
        phone.page.screenshot(path=IMAGES / "phone.png")
        phone.page.context.close()
        small = opened(browser, server, 760, 560, "light", mobile=False)
        pictures = film(small.page)
        browser.close()
    times = [taken for _, taken in pictures]
    durations = [round(1000 * (after - before)) for before, after in itertools.pairwise(times)]
    first, *rest = (picture for picture, _ in pictures)
    first.save(
        IMAGES / "live.webp",
        save_all=True,
        append_images=rest,
        duration=[*durations, durations[-1]],
        loop=0,
        quality=70,
        method=4,
    )


if __name__ == "__main__":
    main()
