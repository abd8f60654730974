"""While the libraries are imported there is no service yet, and everybody is answered all the same."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from app.api.opening import Opening
from app.api.service import Service
from app.config.schema import Settings
from app.core.messages import StartError
from tests.api.conftest import MakeServer, picture, until
from tests.fakes import FakePlanner, FakeRunner, create_engine

PATIENCE = 20


async def test_what_needs_no_service_is_answered_and_the_rest_waits(make_server: MakeServer) -> None:
    imported = threading.Event()
    server = make_server(importing=lambda: imported.wait(PATIENCE))
    assert (await server.get("/health/live")).json() == {"status": "live", "message": None}
    ready = await server.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "starting")
    status = (await server.get("/api/status")).json()
    assert (status["state"], status["progress"]) == ("starting", "importing libraries")
    assert status["sessions"]["connected"] == 0
    assert (await server.get("/api/queue")).json() == {"queue_size": 0}
    assert "frames_per_second" in status
    settings = asyncio.create_task(server.get("/api/settings"))
    metrics = asyncio.create_task(server.get("/metrics"))
    async with server.client(query="?output=ws") as client, server.client("impatient") as impatient:
        await client.expect("wait")
        await impatient.expect("wait")
        await impatient.socket.close()
        assert not settings.done()
        imported.set()
        await client.begin()
        await client.send(picture(100))
        assert (await client.result()).grey == 155
    assert "prompt" in (await settings).json()["input_params"]["properties"]
    assert "streamdiffusion_ready" in (await metrics).text


async def test_a_start_that_fails_is_told_to_who_waits(make_server: MakeServer) -> None:
    fail = threading.Event()

    def importing() -> None:
        assert fail.wait(PATIENCE)
        raise StartError("there is no such device")

    server = make_server(importing=importing)
    settings = asyncio.create_task(server.get("/api/settings"))
    async with server.client() as client:
        await client.expect("wait")
        fail.set()
        await client.expect("error", "there is no such device")
        await client.socket.wait_closed()
        assert client.socket.close_code == 1011
    response = await settings
    assert response.status_code == 503
    assert "there is no such device" in response.text
    await asyncio.to_thread(server.join)
    assert server.ended == [1]


async def test_a_fault_of_ours_is_logged_with_its_trace(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    fail = threading.Event()

    def importing() -> None:
        assert fail.wait(PATIENCE)
        raise ModuleNotFoundError("no such library")

    server = make_server(importing=importing)
    async with server.client() as client:
        await client.expect("wait")
        fail.set()
        await client.expect("error", "ModuleNotFoundError: no such library")
    await asyncio.to_thread(server.join)
    assert server.ended == [1]
    assert any(record.exc_info for record in caplog.records)


def test_a_failure_that_is_not_the_engines_counts_too() -> None:
    opening = Opening(Settings())
    engine = create_engine(lambda _report: FakeRunner())
    service = Service(
        opening.settings, engine, {"image": FakePlanner("image"), "video": FakePlanner("video")}
    )
    opening.arrive(service)
    assert (opening.state, opening.failure) == ("starting", None)
    opening.fail("no thread could be started")
    assert (opening.state, opening.failure) == ("failed", "no thread could be started")
    asyncio.run(service.codec.stop())


async def test_a_picture_that_takes_long_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(lambda _report: FakeRunner())
    service = Service(Settings(), engine, {"image": FakePlanner("image"), "video": FakePlanner("video")})
    begun, go_on = threading.Event(), threading.Event()

    def decode(_data: bytes) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    monkeypatch.setattr(service.codec, "_decode", decode)
    service.codec.decode(b"", None, lambda _: None)
    await asyncio.to_thread(begun.wait, PATIENCE)
    assert not await service.close(0.05)
    go_on.set()
    await service.codec.stop()


@pytest.mark.parametrize("asked", [True, False])
async def test_a_shutdown_meanwhile_waits_for_nothing(make_server: MakeServer, asked: bool) -> None:
    imported = threading.Event()
    server = make_server(importing=lambda: imported.wait(PATIENCE))
    async with server.client() as client:
        await client.expect("wait")
        began = time.monotonic()
        if asked:  # as a signal does
            server.loop.call_soon_threadsafe(server.app.state.opening.close)
            await client.expect("error", "shutting down")
        server.stop()
        await client.socket.wait_closed()
    await until(lambda: server.ended)
    assert time.monotonic() - began < PATIENCE / 2
    assert server.ended == [0 if asked else 1]
    imported.set()
