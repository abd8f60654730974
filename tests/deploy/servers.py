"""Real servers of the embedded model and a real HAProxy with the configuration that is shipped."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "deploy/haproxy/haproxy.cfg"

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
    "HF_HUB_OFFLINE": "1",
    "STREAMDIFFUSION_MODEL__MODEL_ID": str(ROOT / "models/mini"),
    "STREAMDIFFUSION_MODEL__ACCELERATION": "none",
    "STREAMDIFFUSION_MODEL__THREADS": "1",
    "STREAMDIFFUSION_PIPELINE__WIDTH": "64",
    "STREAMDIFFUSION_PIPELINE__HEIGHT": "64",
    "STREAMDIFFUSION_PIPELINE__WARMUP": "1",
    "STREAMDIFFUSION_PERFORMANCE__CODEC_THREADS": "1",
    "STREAMDIFFUSION_SERVER__HOST": "127.0.0.1",
    "STREAMDIFFUSION_SERVER__LOG_LEVEL": "warning",
}
"""Of a server that costs little."""


def free_port() -> int:
    """A port that nobody listens on now, below those that the kernel gives to outgoing connections: a server
    that starts again would find its own taken by one.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET; status 0 while nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


class Process:
    """A child process; its output goes to a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def end(self, number: signal.Signals) -> float:
        """Send a signal and wait. Returns how many seconds the end took."""
        began = time.monotonic()
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        return time.monotonic() - began

    def wait_for(self, port: int, path: str, within: float = 60.0) -> None:
        """Wait until a GET answers 200.

        ``within`` counts the process' own CPU seconds: a start takes as many of them on a busy machine as on
        an idle one, and only the clock runs on. One that hangs runs into the test's own limit.

        Raises:
            RuntimeError: if the process ends before, or takes too long.
        """
        while get(port, path)[0] != 200:
            if (status := self.child.poll()) is not None:
                raise RuntimeError(f"ended with status {status}; its log:\n{self.log.read_text()}")
            if (spent := self.cpu_seconds()) > within:
                raise RuntimeError(
                    f"not ready after {spent:.0f} CPU seconds; its log:\n{self.log.read_text()}"
                )
            time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(self.child.pid).cpu_times()
            return times.user + times.system
        return 0.0


class Server(Process):
    """One server of the embedded model."""

    def __init__(self, name: str, folder: Path, port: int | None = None) -> None:
        self.name = name
        self.port = port or free_port()
        command = [sys.executable, "-m", "app.main"]
        environment = {**ENVIRONMENT, "STREAMDIFFUSION_SERVER__PORT": str(self.port)}
        super().__init__(command, folder / f"{name}.log", environment)

    def wait_until_ready(self) -> None:
        """Wait for the warm-up."""
        self.wait_for(self.port, "/health/ready")

    def metric(self, name: str) -> float:
        """A metric without labels."""
        found = re.search(rf"^{name} (\S+)$", get(self.port, "/metrics")[1], re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])


class Proxy(Process):
    """HAProxy as it is shipped, in front of other servers and on other ports; with a certificate, it also has
    https at ``secure_port``.
    """

    def __init__(self, servers: dict[str, int], folder: Path, certificate: Path | None = None) -> None:
        executable = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
        assert executable, "install haproxy"
        self.port, self.admin, self.statistics = free_port(), free_port(), free_port()
        text = CONFIGURATION.read_text()
        for shipped, port in (("8000", self.port), ("8404", self.statistics)):
            text = _replaced(text, f"    bind :{shipped}\n", f"    bind 127.0.0.1:{port}\n")
        if certificate is not None:
            self.secure_port = free_port()
            secure = f"    bind 127.0.0.1:{self.secure_port} ssl crt {certificate} alpn http/1.1\n"
            text = text.replace(f":{self.port}\n", f":{self.port}\n{secure}")
        text = _replaced(text, "ipv4@:9999", f"ipv4@127.0.0.1:{self.admin}")
        text = _replaced(text, "127.0.0.1:10000", f"127.0.0.1:{free_port()}")
        listed = "".join(f"    server {name} 127.0.0.1:{port}\n" for name, port in servers.items())
        text, count = re.subn(r"(?:^    server gpu-\d .*\n)+", listed, text, flags=re.MULTILINE)
        assert count == 1
        path = folder / "haproxy.cfg"
        path.write_text(text)
        # -dW: a warning is an error.
        super().__init__([executable, "-W", "-db", "-dW", "-f", str(path)], folder / "haproxy.log")

    @property
    def url(self) -> str:
        """Where users go."""
        return f"http://127.0.0.1:{self.port}"

    def command(self, line: str) -> str:
        """Run a command of HAProxy's runtime API."""
        return command(self.admin, line)

    def reload(self) -> None:
        """Read the configuration again, and wait until a new worker has taken over."""
        old = self._worker()
        self.child.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while self._worker() == old:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def _worker(self) -> str:
        found = re.search(r"^Pid: (\d+)$", self.command("show info"), re.MULTILINE)
        assert found
        return found[1]

    def remembered(self) -> int:
        """How many users the table has."""
        found = re.search(r"used:(\d+)", self.command("show table servers"))
        assert found
        return int(found[1])

    def state(self, server: str) -> str:
        """UP, DOWN, DRAIN, …, as HAProxy sees a server."""
        return server_states(self.admin)[server]


def command(port: int, line: str) -> str:
    """Run a command of HAProxy's runtime API."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"{line}\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.decode()


def server_states(port: int) -> dict[str, str]:
    """UP, DOWN, DRAIN, …, of every server behind the HAProxy that takes commands at a port."""
    header, *rows = [line.split(",") for line in command(port, "show stat").splitlines() if line]
    status = header.index("status")
    return {row[1]: row[status].split()[0] for row in rows if row[0] == "servers"}


def _replaced(text: str, shipped: str, ours: str) -> str:
    assert text.count(shipped) == 1, shipped
    return text.replace(shipped, ours)
