"""`/openapi.json` is what the routes answer."""

from __future__ import annotations

import threading
from typing import Any

from jsonschema import Draft202012Validator

from tests.api.conftest import MakeServer, Server, make_server, server

__all__ = ["make_server", "server"]


async def check(server: Server, path: str, **query: str) -> Any:
    """The body of an answer, which must be as described for its status."""
    document = (await server.get("/openapi.json")).json()
    answer = await server.get(path, params=query)
    described = document["paths"][path]["get"]["responses"][str(answer.status_code)]
    media_type = answer.headers["content-type"].split(";")[0]
    if media_type != "application/json":
        assert media_type in described.get("content", {media_type: None})
        return answer.text
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    return answer.json()


PLAIN = ("/api/settings", "/api/queue", "/api/status", "/health/live", "/health/ready", "/metrics")


async def test_every_route_answers_as_described(server: Server) -> None:
    document = (await server.get("/openapi.json")).json()
    assert set(document["paths"]) == {*PLAIN, "/api/stream/{userId}"}
    async with server.client() as client:
        await client.begin()
        for path in PLAIN:
            await check(server, path)
    await check(server, "/api/settings", mode="video")
    assert (await check(server, "/api/settings", mode="none"))["detail"]


async def test_routes_answer_as_described_while_loading(make_server: MakeServer) -> None:
    loaded = threading.Event()

    def load(report: Any) -> Any:
        report("loading")
        loaded.wait(30)
        raise RuntimeError("no model")

    server = make_server(create_runner=load)
    try:
        for path in PLAIN:
            await check(server, path)
    finally:
        loaded.set()


async def test_browsers_ask_whether_a_file_has_changed(server: Server) -> None:
    first = await server.get("/js/main.js")
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = await server.get("/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")
    assert (await server.get("/")).headers["content-type"].startswith("text/html")
    assert (await server.get("/none.js")).status_code == 404
