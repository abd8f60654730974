"""The server as a process, as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "STREAMDIFFUSION_MODEL__MODEL_ID": "models/mini",
    "STREAMDIFFUSION_MODEL__ACCELERATION": "none",
    "STREAMDIFFUSION_MODEL__DEVICE": "cpu",
    "STREAMDIFFUSION_MODEL__THREADS": "1",
    "STREAMDIFFUSION_PIPELINE__WIDTH": "256",
    "STREAMDIFFUSION_PIPELINE__HEIGHT": "256",
    "STREAMDIFFUSION_PIPELINE__WARMUP": "1",
    "STREAMDIFFUSION_SERVER__HOST": "127.0.0.1",
    "STREAMDIFFUSION_SERVER__PORT": "0",
}


class ServerProcess:
    """A server on a free port; another model by STREAMDIFFUSION_MODEL__MODEL_ID, as always."""

    def __init__(self, **environment: str) -> None:
        self._environment = {**ENVIRONMENT, **os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self.address = ""

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, on the port of the time before if there was one, and wait until frames can be made."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.main"],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(listening,), daemon=True)
        self._reader.start()
        try:
            assert listening.wait(60), self.log
            deadline = time.monotonic() + 60
            # Its socket takes connections before the server does, so the first answer may be late.
            while httpx.get(f"{self.address}/health/ready", timeout=60).status_code != 200:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.1)
        except (AssertionError, httpx.TransportError) as error:
            self.stop()
            raise AssertionError(self.log) from error

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(20)
        self._reader.join()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return "".join(self._lines)

    def _read(self, listening: threading.Event) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line)
                if found := re.search(r"listening on (http://127\.0\.0\.1:(\d+))", line):
                    self.address = found[1]
                    self._environment["STREAMDIFFUSION_SERVER__PORT"] = found[2]
                    listening.set()
        listening.set()
