"""The examples against a running server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.server
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Browser

from tests.api.conftest import MakeServer, picture
from tests.deploy.servers import free_port
from tests.web.server import ROOT
from tests.web.studio import decode

EXAMPLES = ROOT / "examples"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name in the base
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on an origin of its own."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_on_another_origin(make_server: MakeServer, browser: Browser, tmp_path: Path) -> None:
    server = make_server()
    text = (EXAMPLES / "camera.html").read_text("utf-8")
    assert "http://localhost:8000/" in text
    (tmp_path / "camera.html").write_text(text.replace("http://localhost:8000/", f"{server.http}/"), "utf-8")
    with served(tmp_path) as origin, browser.new_context(permissions=["camera"]) as context:
        page = context.new_page()
        page.goto(f"{origin}/camera.html")
        page.wait_for_function("/^[0-9]+ ms$/.test(document.title)", timeout=20_000)


def test_folder(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.jpg").write_bytes(picture(20))
    (source / "b.JPEG").write_bytes(picture(220))
    Image.new("RGB", (64, 64), (220, 220, 220)).save(source / "a.png")
    Image.new("RGB", (4, 4)).save(source / "small.png")
    (source / "broken.png").write_bytes(b"no picture")
    sideways = Image.new("RGB", (64, 64), (240, 240, 240))
    sideways.paste((10, 10, 10), (0, 0, 32, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # what is left is above
    sideways.save(source / "photo.jpg", exif=exif)
    (source / "notes.txt").write_text("not a picture")
    script = [sys.executable, str(EXAMPLES / "folder.py"), str(source), str(target)]
    command = [*script, "a cat", "--server", make_server().http]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, timeout=60)
    done = run(command, check=True)
    assert "broken.png: cannot identify" in done.stdout
    assert "small.png: picture:" in done.stdout
    results = {path.name: decode(path.read_bytes()) for path in target.iterdir()}
    assert sorted(results) == ["a.jpg", "a.png.jpg", "b.JPEG", "photo.jpg"]
    assert results["a.jpg"].mean() > 200
    assert results["a.png.jpg"].mean() < 50
    assert results["b.JPEG"].mean() < 50
    above, below = np.split(results["photo.jpg"], 2)
    assert above.mean() > 200 > 50 > below.mean()
    command[3] = f"{source}/../in"
    assert "name another folder" in run(command).stderr
    assert (source / "a.jpg").read_bytes() == picture(20)
    command[2:4] = [str(tmp_path / "nowhere"), str(tmp_path / "nothing")]
    assert run(command).stderr == f"there is no JPEG, PNG or WebP in {tmp_path / 'nowhere'}\n"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("words", [["folder.py", ".", "painted", "a cat"], ["webcam.py", "a cat"]], ids=str)
def test_without_a_server_they_end_with_a_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(sys, "argv", [*words, "--server", address])
    with pytest.raises(SystemExit, match=f"^cannot connect to {re.escape(address)}: .*Connect call failed"):
        runpy.run_path(str(EXAMPLES / words[0]), run_name="__main__")


class Camera:
    def __init__(self, number: int) -> None:
        assert number == 0

    def isOpened(self) -> bool:  # noqa: N802 - its name in OpenCV
        return True

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.02)
        return True, np.full((48, 96, 3), 30, np.uint8)


async def test_webcam(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[float] = []
    titles: list[str] = []

    def set_title(_window: str, title: str) -> None:
        if not shown:
            raise cv2.error("there is no window yet")
        titles.append(title)

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(cv2, "setWindowTitle", set_title)
    monkeypatch.setattr(cv2, "imshow", lambda _window, picture: shown.append(picture.mean()))
    monkeypatch.setattr(cv2, "waitKey", lambda _wait: 27 if len(shown) == 5 else -1)
    webcam = runpy.run_path(str(EXAMPLES / "webcam.py"))
    arguments = {"prompt": "a cat", "user": "obs", "strength": 0.5, "camera": 0, "size": 64}
    arguments["server"] = make_server().http
    await asyncio.wait_for(webcam["main"](argparse.Namespace(**arguments)), 20)
    assert [round(mean) for mean in shown] == [pytest.approx(225, abs=2)] * 5
    assert all(title.endswith(" ms") for title in titles)
    assert f"{arguments['server']}/api/stream/obs" in capsys.readouterr().out
