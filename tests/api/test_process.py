"""The process: how it starts, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from app.main import addresses
from tests.api.conftest import Client, picture

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@asynccontextmanager
async def serving(
    how: str, path: str = "/health/ready"
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = free_port()
    process = await start("-m", "tests.api.serve", str(port), how)
    try:
        async with httpx.AsyncClient() as http:
            for _ in range(300):
                try:
                    if (await http.get(f"http://127.0.0.1:{port}{path}")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("how", ["tuned", "plain"])
async def test_a_signal_tells_the_sockets_ends_the_streams_and_the_process(how: str) -> None:
    async with serving(how) as (process, port), httpx.AsyncClient() as http:
        address = f"127.0.0.1:{port}"
        async with connect(f"ws://{address}/api/ws/ann") as socket:
            client = Client(socket)
            await client.begin()
            async with http.stream("GET", f"http://{address}/api/stream/ann") as stream:
                await client.send(picture())
                await client.expect("send_frame")
                chunks = stream.aiter_raw()
                assert await anext(chunks)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                await client.expect("error", "shutting down")
                async for _ in chunks:
                    pass
            await socket.wait_closed()
            assert socket.close_code == 1012
        output, _ = await process.communicate()
        assert time.monotonic() - began < 3
        assert process.returncode == -signal.SIGTERM, "as whoever asked for it expects"
        assert b"Traceback" not in output, output.decode()


async def test_a_signal_while_the_model_loads_tells_who_waits_and_ends_the_process_at_once() -> None:
    async with serving("loading", "/health/live") as (process, port):
        async with connect(f"ws://127.0.0.1:{port}/api/ws/ann") as socket:
            client = Client(socket)
            await client.expect("wait")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await client.expect("error", "shutting down")
            await socket.wait_closed()
        output, _ = await process.communicate()
        assert time.monotonic() - began < 3
        assert process.returncode == 0, output.decode()
        assert b"Traceback" not in output, output.decode()


async def test_the_keyboard_ends_the_server_without_a_trace() -> None:
    async with serving("tuned") as (process, _):
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        assert process.returncode == -signal.SIGINT, "as whoever pressed Ctrl-C expects"
        assert b"Traceback" not in output, output.decode()


@pytest.mark.parametrize("command", [["-m", "app.main"], ["-m", "uvicorn", "app.main:app", "--port", "0"]])
async def test_a_mistake_in_the_configuration_is_one_sentence_and_status_2(command: list[str]) -> None:
    process = await start(*command, STREAMDIFFUSION_PIPELINE__WIDTH="511")
    output, _ = await process.communicate()
    assert process.returncode == 2
    assert output.decode().strip().splitlines()[-1].startswith("pipeline.width: 511 is no multiple of 8")
    assert b"Traceback" not in output


async def test_an_option_is_refused_instead_of_overlooked() -> None:
    process = await start("-m", "app.main", "--port", "0")
    output, _ = await process.communicate()
    assert process.returncode == 2
    assert output.decode().splitlines()[-1].endswith("unrecognized arguments: --port 0")


async def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await start("-m", "tests.api.serve", str(port), "tuned")
        output, _ = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in output.decode()


async def test_a_message_of_100_megabytes_does_not_close_the_connection() -> None:
    async with serving("tuned") as (_, port), connect(f"ws://127.0.0.1:{port}/api/ws/ann") as socket:
        client = await Client(socket).begin()
        await socket.send(bytes(10**8))
        await client.expect("error", "a message of 100000000 bytes")
        await client.expect("send_frame")
        await client.send(picture())
        await client.expect("send_frame")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://localhost:8000 and every other address of this machine"),
        ("::", "http://localhost:8000 and every other address of this machine"),
    ],
)
def test_the_log_names_an_address_that_a_browser_gives_its_camera_to(host: str, words: str) -> None:
    assert addresses(host, 8000) == words


def test_importing_does_nothing() -> None:
    """Neither reads the configuration nor imports what is heavy."""
    import subprocess

    code = "import sys, app.main; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "STREAMDIFFUSION_PIPELINE__WIDTH": "511"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"


async def test_a_start_can_be_stopped_while_libraries_are_imported() -> None:
    port = free_port()
    process = await start(
        "-m",
        "app.main",
        STREAMDIFFUSION_MODEL__ACCELERATION="none",
        STREAMDIFFUSION_MODEL__MODEL_ID="models/mini",
        STREAMDIFFUSION_SERVER__HOST="127.0.0.1",
        STREAMDIFFUSION_SERVER__PORT=str(port),
    )
    async with httpx.AsyncClient() as http:
        while True:
            try:
                status = (await http.get(f"http://127.0.0.1:{port}/api/status", timeout=20)).json()
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    assert status["progress"] == "importing libraries"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = await process.communicate()
    assert time.monotonic() - began < 5
    assert process.returncode == 0
    assert b"Traceback" not in output, output.decode()


async def test_a_device_that_is_not_there_is_one_sentence() -> None:
    process = await start(
        "-m",
        "app.main",
        STREAMDIFFUSION_MODEL__DEVICE="cuda:99",
        STREAMDIFFUSION_SERVER__HOST="127.0.0.1",
        STREAMDIFFUSION_SERVER__PORT=str(free_port()),
    )
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"model.device is cuda:99" in output
    assert b"Traceback" not in output
