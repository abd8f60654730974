"""The examples against a running server."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from tests.api.conftest import MakeServer, picture
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
        yield f"http://127.0.0.1:{server.server_port}"
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
        expect(page).to_have_title("Camera")
        page.wait_for_function("/^[0-9]+ ms$/.test(document.title)", timeout=20_000)


def test_folder(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.jpg").write_bytes(picture(20))
    (source / "b.JPEG").write_bytes(picture(220))
    (source / "broken.png").write_bytes(b"no picture")
    (source / "notes.txt").write_text("not a picture")
    script = [sys.executable, str(EXAMPLES / "folder.py"), str(source), str(target)]
    command = [*script, "a cat", "--server", make_server().http]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "broken.png: picture:" in done.stdout
    assert sorted(path.name for path in target.iterdir()) == ["a.jpg", "b.jpg"]
    assert (
        decode((target / "a.jpg").read_bytes()).mean()
        > 200
        > 50
        > decode((target / "b.jpg").read_bytes()).mean()
    )
