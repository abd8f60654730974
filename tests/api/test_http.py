"""What is asked once."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import Rate
from tests.api.conftest import SIZE, MakeServer, Server, picture, until


async def test_settings_are_what_front_ends_read(server: Server) -> None:
    settings = (await server.get("/api/settings")).json()
    properties = settings["input_params"]["properties"]
    assert properties["prompt"] == {
        "default": "",
        "title": "Prompt",
        "type": "string",
        "field": "textarea",
        "id": "prompt",
    }
    assert properties["guidance_scale"] == {
        "default": 7.5,
        "title": "Guidance Scale",
        "type": "number",
        "min": 1.0,
        "max": 20.0,
        "step": 0.1,
        "field": "range",
        "id": "guidance_scale",
    }
    for name in ("width", "height"):
        assert properties[name]["default"] == SIZE
        assert properties[name]["hide"] is True
    assert all(entry["id"] == name for name, entry in properties.items())
    assert all(
        entry["field"] in {"textarea", "range", "seed", "checkbox", "select"} for entry in properties.values()
    )
    assert settings["info"]["properties"]["title"] == "StreamDiffusion Backend"
    assert settings["info"]["properties"]["input_mode"]["default"] == "image"
    assert settings["max_queue_size"] == 0
    assert isinstance(settings["page_content"], str)


async def test_settings_of_another_mode(server: Server) -> None:
    settings = (await server.get("/api/settings?mode=video")).json()
    assert settings["info"]["properties"]["input_mode"]["default"] == "video"
    assert (await server.get("/api/settings?mode=sound")).status_code == 422


async def test_what_settings_offer_is_accepted(server: Server) -> None:
    """A front end sends the defaults back, those of width and height included."""
    properties = (await server.get("/api/settings")).json()["input_params"]["properties"]
    values: dict[str, Any] = {entry["id"]: entry.get("default") for entry in properties.values()}
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(), **values)
        await client.expect("send_frame")
        await client.result()


async def test_the_queue_counts_users(server: Server) -> None:
    assert (await server.get("/api/queue")).json() == {"queue_size": 0}
    async with server.client("a") as a, server.client("b") as b:
        await a.begin()
        await b.begin()
        assert (await server.get("/api/queue")).json() == {"queue_size": 2}
    await until(lambda: len(server.service.registry) == 0)


async def test_health(server: Server) -> None:
    assert (await server.get("/health/live")).json()["status"] == "live"
    await until(lambda: server.service.ready)
    assert (await server.get("/health/ready")).json()["status"] == "ready"


async def test_status_tells_what_runs(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture())
        await client.result()
        status = (await server.get("/api/status")).json()
    assert status["state"] == "ready"
    assert status["engine"] == {"model": "fake", "device": "none", "acceleration": "none"}
    assert status["degraded"] is None
    assert status["max_rows"] == 16
    assert status["sessions"] == {
        "connected": 1,
        "limit": 0,
        "received": 1,
        "results": 1,
        "dropped": 0,
        "skipped": 0,
        "failed": 0,
        "errors": 0,
    }


async def results(server: Server, count: int) -> None:
    await until(lambda: server.service.registry.counters.results == count)


async def test_metrics_are_prometheus_and_true(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        for count in (1, 2, 3):
            await client.send(picture())
            await client.credit()
            await results(server, count)
        await client.send(b"nonsense")
        response = await server.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["streamdiffusion_frames_results_total"] == 3
    assert samples["streamdiffusion_frame_age_seconds_count"] == 3
    assert samples["streamdiffusion_tick_seconds_count"] == 3
    assert samples["streamdiffusion_batch_fill_ratio_sum"] == 3
    assert samples["streamdiffusion_sessions"] == 1
    assert samples["streamdiffusion_ready"] == 1
    assert samples["streamdiffusion_degraded"] == 0
    assert samples["streamdiffusion_resident_memory_bytes"] > 10**7
    await until(lambda: server.service.registry.counters.errors == 1)


async def test_what_status_calls_degraded_is_a_metric(server: Server) -> None:
    server.engine.degraded = "out of memory"
    assert (await server.get("/api/status")).json()["degraded"] == "out of memory"
    assert "\nstreamdiffusion_degraded 1.0\n" in (await server.get("/metrics")).text


async def test_counters_outlive_their_sessions(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        await client.send(picture())
        await until(lambda: server.service.registry.counters.results == 1)
    await until(lambda: len(server.service.registry) == 0)
    assert server.service.registry.counters.results == 1


async def test_cors_without_credentials(make_server: MakeServer) -> None:
    server = make_server(server={"allowed_origins": ["https://example.org"]})
    good = await server.get("/api/queue", headers={"Origin": "https://example.org"})
    assert good.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-credentials" not in good.headers
    bad = await server.get("/api/queue", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in bad.headers


async def test_openapi_describes_every_address(server: Server) -> None:
    description = (await server.get("/openapi.json")).json()
    assert {
        "/api/settings",
        "/api/queue",
        "/api/status",
        "/api/stream/{userId}",
        "/health/live",
        "/health/ready",
        "/metrics",
    } <= set(description["paths"])
    assert all(entry["get"]["summary"] for entry in description["paths"].values())


async def test_the_documentation_needs_no_foreign_host(server: Server) -> None:
    page = await server.get("/docs")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/")
        assert (await server.get(address)).status_code == 200


@pytest.mark.parametrize("path", ["/api/nothing", "/api/settings/x"])
async def test_elsewhere_is_nothing(server: Server, path: str) -> None:
    assert (await server.get(path)).status_code == 404


async def test_methods_that_are_not_there(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"{server.http}/api/queue")).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/health/live",
        "/health/ready",
        "/api/settings?mode=video",
        "/api/settings?mode=sound",
        "/api/queue",
        "/api/status",
        "/api/stream/nobody",
        "/api/nothing",
    ],
)
async def test_head_is_answered_as_get_without_the_body(server: Server, path: str) -> None:
    await until(lambda: server.service.ready)
    async with httpx.AsyncClient() as client:
        head, get = await client.head(server.http + path), await client.get(server.http + path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""


def test_the_rate_is_of_the_last_ten_seconds() -> None:
    rate = Rate()
    for tenth in range(300):
        rate.add(tenth / 10)
    assert rate.value(30.0) == 10.0
    assert rate.value(35.5) == 5.0
    assert rate.value(100.0) == 0.0
