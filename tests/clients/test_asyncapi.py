"""docs/asyncapi.yaml is what the running server does, and what the clients read."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app.api.results import HEADER
from app.api.websocket import ENDINGS, FULL, Options
from app.config.schema import Settings
from app.core.session import Ending
from app.main import create_app
from tests.api.conftest import MakeServer, Server, make_server, picture, server
from tests.fakes import FakeRunner

__all__ = ["make_server", "server"]

TYPES = {"u8": "B", "u16": "H", "u32": "I", "f32": "f", "f64": "d"}
DOCUMENT: Any = yaml.safe_load((Path(__file__).parents[2] / "docs/asyncapi.yaml").read_text("utf-8"))
CHANNEL = DOCUMENT["channels"]["frames"]


def messages(operation: str) -> dict[str, dict[str, Any]]:
    """The schemas of an operation's messages, by name; every reference leads somewhere."""
    found = {}
    for reference in DOCUMENT["operations"][operation]["messages"]:
        name = reference["$ref"].removeprefix("#/channels/frames/messages/")
        component = CHANNEL["messages"][name]["$ref"].removeprefix("#/components/messages/")
        found[name] = DOCUMENT["components"]["messages"][component]["payload"]
        Draft7Validator.check_schema(found[name])
    return found


def name_of(text: str) -> str:
    """The one message of the server that a text is."""
    said = json.loads(text)
    fitting = [
        name for name, schema in messages("toldByServer").items() if Draft7Validator(schema).is_valid(said)
    ]
    assert len(fitting) == 1, text
    return fitting[0]


async def converse(address: str, frames: list[list[str | bytes]]) -> list[str]:
    """What the server says while a client sends frames, one upon each `send_frame`; until it closes."""
    heard = []
    async with connect(address, compression=None) as socket:
        try:
            async for message in socket:
                heard.append("result" if isinstance(message, bytes) else name_of(message))
                if heard[-1] == "sendFrame":
                    if not frames:
                        return heard
                    for part in frames.pop(0):
                        await socket.send(part)
        except ConnectionClosed:
            pass
    return heard


def frame(parameters: dict[str, Any], *pictures: bytes) -> list[str | bytes]:
    schemas = messages("sentByClient")
    Draft7Validator(schemas["nextFrame"]).validate({"status": "next_frame"})
    Draft7Validator(schemas["parameters"]).validate(parameters)
    return ['{"status": "next_frame"}', json.dumps(parameters), *pictures]


async def test_every_message_of_the_server_is_described(make_server: MakeServer) -> None:
    server = make_server(server={"max_queue_size": 1, "timeout": 0.4})
    good = frame({"prompt": "a cat", "frame_id": 3, "frame_time": 0.5, "guidance_scale": None}, picture())
    heard = await converse(server.address("ann", "?output=ws"), [good, good, ["nonsense"], good])
    assert heard[:2] == ["connected", "sendFrame"]
    assert {"result", "error"} <= set(heard)
    silent = await converse(server.address("bob"), [[]])
    assert silent == ["connected", "sendFrame", "timeout"]
    async with server.client("cid") as first:
        await first.begin()
        assert await converse(server.address("dan"), []) == ["error"]


async def test_waiting_is_described(make_server: MakeServer) -> None:
    def slow(report: Any) -> FakeRunner:
        time.sleep(0.5)
        return FakeRunner()

    server = make_server(create_runner=slow)
    heard = await converse(server.address("ann", "?mode=video"), [frame({"seed": 1})])
    assert heard[:3] == ["wait", "connected", "sendFrame"]


def test_the_header_is_the_one_that_is_packed() -> None:
    fields = messages("shownByServer")["result"]["x-header"]
    described = struct.Struct("<" + "".join(TYPES[field["type"]] for field in fields))
    assert described.format == HEADER.format
    offset = 0
    for field in fields:
        assert field["offset"] == offset, field["name"]
        offset += struct.calcsize("<" + TYPES[field["type"]])


def test_the_query_is_the_one_that_is_read() -> None:
    described = CHANNEL["bindings"]["ws"]["query"]["properties"]
    assert set(described) == set(Options.model_fields) - {"user"}
    schema = Options.model_json_schema()
    for name, entry in described.items():
        allowed = schema["properties"][name]
        for key in ("enum", "minimum", "maximum"):
            assert entry.get(key) == allowed.get(key), (name, key)


def test_the_close_codes_are_those_that_are_used() -> None:
    used = {FULL.code, *(farewell.code for farewell in ENDINGS.values())}
    assert used | {1008} == set(CHANNEL["x-close-codes"])
    assert set(ENDINGS) == set(Ending) - {Ending.LEFT}


@pytest.mark.parametrize("user", ["a" * 129, "a%20b", "a/b"])
async def test_a_wrong_user_is_refused_as_described(server: Server, user: str) -> None:
    async with connect(server.address(user), compression=None) as socket:
        assert name_of(str(await socket.recv())) == "error"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


def test_the_version_is_the_servers() -> None:
    assert create_app(Settings()).version == DOCUMENT["info"]["version"]
