"""The Python client against a real server with a played device."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from streamdiffusion_client import (
    Client,
    FrameError,
    RefusedError,
    Result,
    ServerFullError,
    UnreachableError,
    decode_result,
)
from streamdiffusion_client.pictures import Pictures
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from app.core.session import Ending
from app.utils.image import decode
from tests.api.conftest import SIZE, MakeServer, Server, make_server, picture, server, until

__all__ = ["make_server", "server"]

ROOT = Path(__file__).resolve().parents[2]


def grey(data: bytes) -> int:
    return round(float(decode(data, width=SIZE, height=SIZE, max_pixels=SIZE * SIZE).mean()))


async def pictures(*greys: int) -> AsyncIterator[bytes]:
    for level in greys:
        yield picture(level)


async def drained(results: AsyncIterator[Result]) -> None:
    async for _ in results:
        pass


async def test_render_gives_the_result_of_that_picture(server: Server) -> None:
    async with Client(server.http) as client:
        for level in (20, 200, 20):
            result = await asyncio.wait_for(client.render(picture(level)), 5)
            assert grey(result.picture) == pytest.approx(255 - level, abs=2)
            assert result.format == "jpeg"
            assert result.total >= result.made >= 0


async def test_parameters_are_hot_and_counted(server: Server) -> None:
    async with Client(server.http, mode="video", parameters={"seed": 10}, format="webp") as client:
        first = await client.render()
        client.parameters["seed"] = 200
        second = await client.render()
    assert (first.revision, second.revision) == (0, 1)
    assert grey(first.picture) == pytest.approx(10, abs=2)
    assert grey(second.picture) == pytest.approx(200, abs=2)
    assert second.format == "webp"


async def test_stream_ends_with_the_result_of_the_last_picture(server: Server) -> None:
    async with Client(server.http) as client:
        results = [result async for result in client.stream(pictures(*range(0, 200, 10)))]
        assert grey(results[-1].picture) == pytest.approx(255 - 190, abs=2)
        numbers = [result.number for result in results]
        assert numbers == sorted(set(numbers))
        assert [result async for result in client.stream(pictures())] == []


async def test_a_stream_that_is_left_early_can_be_followed_by_another(server: Server) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield picture(50)

    async with Client(server.http) as client:
        for _ in range(5):
            async with contextlib.aclosing(client.stream(endless())) as results:
                await asyncio.wait_for(anext(results), 5)
        result = await asyncio.wait_for(client.render(picture(90)), 5)
    assert grey(result.picture) == pytest.approx(165, abs=2)


async def test_a_bad_frame_is_told_and_the_connection_lives_on(server: Server) -> None:
    async with Client(server.http, parameters={"guidance_scale": "much"}) as client:
        with pytest.raises(FrameError, match="guidance_scale"):
            await asyncio.wait_for(client.render(picture()), 5)
        client.parameters = {"prompt": "nan"}
        with pytest.raises(FrameError, match="could not be made"):
            await asyncio.wait_for(client.render(picture()), 5)
        with pytest.raises(FrameError, match="picture"):
            await asyncio.wait_for(client.render(b"no picture"), 5)
        for nothing in (b"", None):
            with pytest.raises(FrameError, match="picture"):
                await asyncio.wait_for(client.render(nothing), 5)

        async def empty() -> AsyncIterator[bytes]:
            yield b""

        with pytest.raises(FrameError, match="picture"):
            await asyncio.wait_for(anext(client.stream(empty())), 5)
        client.parameters = {}
        await asyncio.wait_for(client.render(picture()), 5)


async def test_a_parameter_that_json_does_not_know_leaves_no_half_frame(server: Server) -> None:
    async with Client(server.http, parameters={"seed": {1}}) as client:
        with pytest.raises(TypeError, match="set is not JSON"):
            await asyncio.wait_for(client.render(picture()), 5)
        client.parameters = {}
        await asyncio.wait_for(client.render(picture()), 5)


async def test_full_and_taken_over(make_server: MakeServer) -> None:
    server = make_server(server={"max_queue_size": 1})
    async with Client(server.http, user="ann") as ann:
        await ann.render(picture())
        async with Client(server.http, user="bob") as bob:
            with pytest.raises(ServerFullError, match="Server is full"):
                await asyncio.wait_for(bob.render(picture()), 5)
        async with Client(server.http, user="ann") as again:
            await again.render(picture())
            with pytest.raises(RefusedError, match="connected again") as refused:
                await asyncio.wait_for(ann.render(picture()), 5)
            assert refused.value.code == 4001


async def test_a_user_id_is_one_part_of_the_address(server: Server) -> None:
    async with Client(server.http, user="a/b#c") as client:
        assert client.stream_address.endswith("/api/stream/a%2Fb%23c")
        with pytest.raises(RefusedError, match="not 'a/b#c'"):
            await asyncio.wait_for(client.render(picture()), 5)


def test_an_address_without_a_scheme_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match="http://localhost:8000 is needed, not 'localhost:9'"):
        Client("localhost:9")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients connect again without waiting long."""
    monkeypatch.setattr("streamdiffusion_client.client.FIRST_DELAY", 0.01)


def send_away(server: Server, user: str, ending: Ending) -> None:
    """End a user's session as the server does by itself: with words, then with a close."""
    session = server.session(user)
    server.loop.call_soon_threadsafe(server.service.registry.end, session, ending)


@pytest.mark.usefixtures("at_once")
async def test_a_stream_survives_a_shutdown_and_so_does_its_camera(server: Server) -> None:
    asked, seen = asyncio.Event(), asyncio.Event()

    async def camera() -> AsyncIterator[bytes]:
        yield picture(10)
        asked.set()
        await seen.wait()
        yield picture(20)

    async with Client(server.http, user="ann") as client:
        results = client.stream(camera())
        first = await asyncio.wait_for(anext(results), 5)
        following = asyncio.ensure_future(anext(results))
        await asked.wait()
        old = server.session("ann")
        send_away(server, "ann", Ending.SHUTDOWN)
        await until(lambda: server.service.registry.find("ann") not in {None, old})
        seen.set()
        second = await asyncio.wait_for(following, 5)
        assert [item async for item in results] == []
    assert [grey(item.picture) for item in (first, second)] == pytest.approx([245, 235], abs=2)


@pytest.mark.usefixtures("at_once")
async def test_the_last_result_of_a_stream_is_not_lost_with_the_connection(server: Server) -> None:
    server.runner.gate.clear()
    async with Client(server.http, user="ann") as client:
        streaming = asyncio.ensure_future(anext(client.stream(pictures(30))))
        await until(lambda: server.runner.batches)
        send_away(server, "ann", Ending.SHUTDOWN)
        await until(lambda: server.service.registry.find("ann") is None)
        server.runner.gate.set()
        assert grey((await asyncio.wait_for(streaming, 5)).picture) == pytest.approx(225, abs=2)


@pytest.mark.usefixtures("at_once")
async def test_a_frame_is_rendered_in_spite_of_a_shutdown(server: Server) -> None:
    server.runner.gate.clear()
    async with Client(server.http, user="ann") as client:
        rendering = asyncio.create_task(client.render(picture(30)))
        await until(lambda: server.runner.batches)
        send_away(server, "ann", Ending.SHUTDOWN)
        server.runner.gate.set()
        assert grey((await asyncio.wait_for(rendering, 5)).picture) == pytest.approx(225, abs=2)


@pytest.mark.usefixtures("at_once")
async def test_a_server_that_sends_everybody_away_is_asked_less_and_less_often() -> None:
    delays: list[float] = []

    async def engine_failed(socket: ServerConnection) -> None:
        delays.append(client._delay)
        if len(delays) > 3:
            await socket.send('{"status": "connected"}')
        await socket.close(1011 if len(delays) < 5 else 4001)

    async with serve(engine_failed, "127.0.0.1", 0) as played:
        port = next(iter(played.sockets)).getsockname()[1]
        client = Client(f"http://127.0.0.1:{port}")
        async with client:
            with pytest.raises(RefusedError):
                await asyncio.wait_for(client.render(picture()), 5)
    assert delays == [0.01, 0.02, 0.04, 0.08, 0.02]


@pytest.mark.usefixtures("at_once")
async def test_an_attempt_to_connect_that_takes_too_long_is_not_the_last(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [asyncio.TimeoutError("timed out during opening handshake")]  # no OSError on Python 3.10

    async def connect_late(*arguments: Any, **options: Any) -> ClientConnection:
        if attempts:
            raise attempts.pop()
        return await connect(*arguments, **options)

    async with Client(server.http, user="ann") as client:
        await asyncio.wait_for(client.render(picture()), 5)
        monkeypatch.setattr("streamdiffusion_client.client.connect", connect_late)
        send_away(server, "ann", Ending.SHUTDOWN)
        await asyncio.wait_for(client.render(picture()), 5)
    assert not attempts


async def test_what_is_no_server_is_named() -> None:
    async def answers_by_http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    played = await asyncio.start_server(answers_by_http, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{played.sockets[0].getsockname()[1]}"
    async with played:
        with pytest.raises(UnreachableError, match=f"^cannot connect to {address}: .* 404"):
            await Client(address).__aenter__()
    with pytest.raises(ConnectionError, match=f"^cannot connect to {address}: "):
        await Client(address).__aenter__()


@pytest.mark.parametrize(("ending", "code"), [(Ending.TAKEN_OVER, 4001), (Ending.IDLE, 4002)])
async def test_a_stream_tells_why_it_is_over(server: Server, ending: Ending, code: int) -> None:
    async with Client(server.http, user="ann") as client:
        results = client.stream(pictures(*range(200)))
        await asyncio.wait_for(anext(results), 5)
        send_away(server, "ann", ending)
        with pytest.raises(RefusedError) as refused:
            await asyncio.wait_for(drained(results), 5)
    assert refused.value.code == code


async def test_the_last_picture_is_given_again_until_its_result_came() -> None:
    source = Pictures(pictures(1, 2))
    assert await source.next() == picture(1)
    source.lose()
    assert await source.next() == picture(2)
    source.lose()
    source.lose()
    assert not source.done
    assert await source.next() == picture(2)
    with pytest.raises(StopAsyncIteration):
        await source.next()
    assert source.ended
    assert not source.done
    source.seen()
    source.lose()
    assert source.done


async def test_a_lost_connection_is_opened_again_and_the_frame_sent_again(server: Server) -> None:
    server.runner.gate.clear()
    async with Client(server.http, parameters={"prompt": "a cat"}) as client:
        rendering = asyncio.create_task(client.render(picture(30)))
        while not server.runner.batches:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        assert client._socket is not None
        client._socket.transport.abort()
        await asyncio.sleep(0.1)
        server.runner.gate.set()
        result = await asyncio.wait_for(rendering, 10)
    assert grey(result.picture) == pytest.approx(225, abs=2)


def test_the_readme_can_be_run_as_it_stands() -> None:
    text = (ROOT / "clients/python/README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_a_result_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 9"):
        decode_result(bytes([9, 1]) + bytes(60))
