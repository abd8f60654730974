"""The WebSocket as front ends use it, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from app.core.messages import StartError
from app.utils.image import encode
from benchmarks.front_end import client_frame
from tests.api.conftest import Client, MakeServer, Server, picture, until
from tests.fakes import FakeRunner


async def test_a_picture_goes_in_and_comes_back(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(100), prompt="a cat", guidance_scale=7.5, num_inference_steps=4)
        await client.expect("send_frame")
        assert (await client.result()).grey == 155


async def test_results_do_not_come_on_the_socket_unless_wanted(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        for _ in range(3):
            await client.send(picture())
            await client.expect("send_frame")
        await until(lambda: server.session().counters.results == 3)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.socket.recv(), 0.1)


async def test_video_mode_needs_no_picture(server: Server) -> None:
    async with server.client(query="?mode=video&output=ws") as client:
        await client.begin()
        for seed in (10, 200):
            await client.send(None, seed=seed)
            await client.expect("send_frame")
            assert abs((await client.result()).grey - seed) <= 1


async def test_the_mode_of_the_configuration_counts(make_server: MakeServer) -> None:
    server = make_server(pipeline={"mode": "video"})
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(None)
        await client.result()


async def test_the_header_of_a_result(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(), prompt="a", frame_id=7, frame_time=1234.5)
        first = await client.result()
        await client.send(picture(), prompt="b")
        second = await client.result()
    assert (first.version, first.format, first.size, first.flags) == (1, 1, 48, 0)
    assert (first.id, first.time, first.revision, first.number, first.dropped) == (7, 1234.5, 0, 1, 0)
    assert math.isnan(second.id)
    assert math.isnan(second.time)
    assert (second.revision, second.number) == (1, 2)
    assert 0 <= first.waited + first.made <= first.total < 5000


async def test_webp_and_quality(server: Server) -> None:
    async with server.client(query="?output=ws&format=webp&quality=50") as client:
        await client.begin()
        await client.send(picture(100))
        result = await client.result()
    assert result.format == 2
    assert result.picture[8:12] == b"WEBP"
    assert abs(result.grey - 155) <= 2


async def test_a_credit_comes_when_the_frame_is_taken_not_when_it_is_done(server: Server) -> None:
    server.runner.gate.clear()
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(1))
        await client.expect("send_frame")  # the first is being made
        await client.send(picture(2))  # waits
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.socket.recv(), 0.1)
        server.runner.gate.set()
        await client.credit()


async def test_the_newest_frame_wins(server: Server) -> None:
    """While the first is being made, fifty more come without a credit: the last of them is next."""
    server.runner.gate.clear()
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(0), frame_id=0)
        await client.expect("send_frame")
        for i in range(1, 51):
            await client.send(picture(i * 4), frame_id=i)
        await until(lambda: server.session().counters.received == 51)
        await asyncio.sleep(0.1)  # longer than a frame that waits may be kept from a newer one
        server.runner.gate.set()
        # The second may be done before the first is sent, and then it takes its place.
        result = await client.result()
        if result.id == 0:
            result = await client.result()
        assert (result.id, result.dropped) == (50, 49)
        assert abs(result.grey - (255 - 200)) <= 1


async def test_age_does_not_build_up_under_a_flood(make_server: MakeServer) -> None:
    """A client that sends 200 frames a second to a device that makes 25."""
    server = make_server(FakeRunner(tick=0.04))
    ages: list[float] = []
    async with server.client(query="?output=ws") as client:
        await client.begin()

        async def flood() -> None:
            while True:
                await client.send(picture(), frame_time=time.monotonic())
                await asyncio.sleep(0.005)

        flooding = asyncio.create_task(flood())
        for _ in range(50):
            result = await client.result()
            ages.append(time.monotonic() - result.time)
        flooding.cancel()
    # One tick under way and one wait for it, 0.08 s on an idle machine. With a queue the last would be two
    # seconds old.
    assert sorted(ages[-10:])[5] < 0.5


async def test_a_slow_reader_gets_the_newest_and_holds_up_nobody(make_server: MakeServer) -> None:
    server = make_server(FakeRunner(size=(512, 512)), pipeline={"width": 512, "height": 512})
    async with server.client("slow", "?output=ws&mode=video") as slow:
        await slow.begin()
        reading = slow.socket.transport
        for seed in range(300):
            await slow.send(None, frame_id=seed, seed=seed)
            await asyncio.sleep(0.002)
        reading.pause_reading()
        async with server.client("quick", "?output=ws&mode=video") as quick:
            await quick.begin()
            for seed in range(300, 600):
                await slow.send(None, frame_id=seed, seed=seed)
                await quick.send(None)
                await quick.result()
            await until(lambda: server.session("slow").counters.received == 600)
        await asyncio.sleep(0.1)
        reading.resume_reading()
        last = -1.0
        while last < 599:
            result = await slow.result()
            assert result.id > last, "results never go back in time"
            last = result.id


async def test_nobody_needs_to_watch(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        await client.send(picture())
        await until(lambda: server.session().counters.results == 1)
        assert not server.session().result.encodings  # type: ignore[union-attr]


async def test_the_same_user_takes_over(server: Server) -> None:
    async with server.client(query="?output=ws") as old:
        await old.begin()
        server.runner.gate.clear()
        await old.send(picture(10))
        await old.expect("send_frame")
        async with server.client(query="?output=ws") as new:
            await new.begin()
            await old.expect("error", "connected again")
            await old.socket.wait_closed()
            assert old.socket.close_code == 4001
            await new.send(picture(200))
            server.runner.gate.set()
            result = await new.result()
            assert abs(result.grey - 55) <= 1, "the result of the connection before is nobody's"
            assert len(server.service.registry) == 1
    await until(lambda: len(server.service.registry) == 0)


async def test_a_full_server(make_server: MakeServer) -> None:
    server = make_server(server={"max_queue_size": 1})
    async with server.client("ann") as ann:
        await ann.begin()
        async with server.client("bob") as bob:
            await bob.expect("error", "Server is full")
            await bob.socket.wait_closed()
            assert bob.socket.close_code == 1013
        assert (await server.get("/api/stream/bob")).status_code == 503
        async with server.client("ann") as again:
            await again.begin()  # who is here already may take over
    await until(lambda: len(server.service.registry) == 0)
    async with server.client("bob") as bob:
        await bob.begin()


async def test_an_idle_client_is_told_and_closed(make_server: MakeServer) -> None:
    server = make_server(server={"timeout": 0.4})
    async with server.client() as client:
        await client.begin()
        for _ in range(6):
            await asyncio.sleep(0.1)
            await client.send(b"")  # a page whose camera is not ready is not idle
            await client.expect("send_frame")
        began = time.monotonic()
        await client.expect("timeout", "too long")
        assert 0.2 < time.monotonic() - began < 2
        await client.socket.wait_closed()
        assert client.socket.close_code == 4002


async def test_a_client_that_waits_for_the_device_is_not_idle(make_server: MakeServer) -> None:
    server = make_server(server={"timeout": 0.5})
    server.runner.gate.clear()
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(1))
        await client.expect("send_frame")  # the first is being made
        await client.send(picture(2))  # waits, and so does the client
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.socket.recv(), 1.2)
        server.runner.gate.set()
        await client.credit()  # now it is the client's turn
        began = time.monotonic()
        while isinstance(message := await asyncio.wait_for(client.socket.recv(), 5), bytes):
            pass
        assert json.loads(message)["status"] == "timeout"
        assert 0.3 < time.monotonic() - began < 3
        await client.socket.wait_closed()
        assert client.socket.close_code == 4002


async def test_a_client_that_waits_for_its_picture_to_be_decoded_is_not_idle(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind the large pictures of others."""
    server = make_server(server={"timeout": 1})
    codec, go_on = server.service.codec, threading.Event()
    decode = codec._decode

    def late(data: bytes) -> Any:
        assert go_on.wait(10)
        return decode(data)

    monkeypatch.setattr(codec, "_decode", late)
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(1))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.socket.recv(), 2)
        go_on.set()
        await client.credit()


async def test_large_pictures_of_some_hold_up_nobody_else(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(performance={"codec_threads": 1})
    codec, begun, go_on = server.service.codec, threading.Event(), threading.Event()
    decode, large = codec._decode, encode(np.full((1500, 1500, 3), 100, np.uint8), "webp", 1)

    def held(data: bytes) -> Any:
        if data == large:
            begun.set()
            assert go_on.wait(10)
        return decode(data)

    monkeypatch.setattr(codec, "_decode", held)
    async with (
        server.client("bob", "?output=ws") as bob,
        server.client("cat", "?output=ws") as cat,
        server.client("ann", "?output=ws") as ann,
    ):
        for client in (bob, cat, ann):
            await client.begin()
        for client in (bob, cat):
            await client.send(large)
        await until(begun.is_set)
        await ann.send(picture(100))
        assert (await ann.result()).grey == 155
        go_on.set()
        for client in (bob, cat):
            assert (await client.result()).grey == 155


async def test_who_comes_while_the_model_loads_waits(make_server: MakeServer) -> None:
    loaded = threading.Event()

    def load(report: Callable[[str], None]) -> FakeRunner:
        report("loading")
        assert loaded.wait(10)
        return FakeRunner()

    server = make_server(create_runner=load)
    async with server.client() as client, server.client("bob") as impatient:
        await client.expect("wait", "loading")
        await impatient.expect("wait")
        await client.send(picture())  # before it was asked: passed over
        assert (await server.get("/health/ready")).status_code == 503
        await impatient.socket.close()
        loaded.set()
        await client.begin()
        assert (await server.get("/health/ready")).status_code == 200


async def test_who_waits_for_the_model_is_not_idle(make_server: MakeServer) -> None:
    loaded = threading.Event()

    def load(_report: Callable[[str], None]) -> FakeRunner:
        assert loaded.wait(10)
        return FakeRunner()

    server = make_server(create_runner=load, server={"timeout": 0.4})
    async with server.client() as client:
        await client.expect("wait")
        await asyncio.sleep(0.5)
        loaded.set()
        await client.begin()
        await client.expect("timeout", "too long")


async def test_of_who_waits_with_the_same_name_the_newest_connection_counts(make_server: MakeServer) -> None:
    loaded = threading.Event()

    def load(_report: Callable[[str], None]) -> FakeRunner:
        assert loaded.wait(10)
        return FakeRunner()

    server = make_server(create_runner=load)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(8)]
        for client in clients:
            await client.expect("wait")
        loaded.set()
        await clients[-1].begin()
        for older in clients[:-1]:
            await asyncio.wait_for(older.socket.wait_closed(), 5)
            assert older.socket.close_code == 4001


async def test_who_waits_for_a_model_that_cannot_be_loaded_is_told(make_server: MakeServer) -> None:
    fail = threading.Event()

    def load(_report: Callable[[str], None]) -> FakeRunner:
        assert fail.wait(10)
        raise StartError("the model is not there")

    server = make_server(create_runner=load)
    async with server.client() as client:
        await client.expect("wait")
        fail.set()
        await client.expect("error", "the model is not there")
        await client.socket.wait_closed()
        assert client.socket.close_code == 1011
    await asyncio.to_thread(server.join)
    assert server.ended == [1]


async def test_a_lost_device_is_told_to_everybody_and_ends_the_process(make_server: MakeServer) -> None:
    server = make_server()
    async with server.client("ann") as ann, server.client("bob") as bob:
        await ann.begin()
        await bob.begin()
        await ann.send(picture(), prompt="lost")
        for client in (ann, bob):
            message = await client.status()
            while message["status"] == "send_frame":
                message = await client.status()
            assert message["status"] == "error"
            assert "fell off the bus" in message["message"]
            await client.socket.wait_closed()
            assert client.socket.close_code == 1011
    await asyncio.to_thread(server.join)
    assert server.ended == [1]


async def test_a_mistake_of_the_server_is_told_and_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def encode(*_: object) -> bytes:
        raise LookupError("no such format")

    monkeypatch.setattr(server.service.codec, "encode", encode)
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture())
        await client.expect("send_frame")
        await client.expect("error", "The server made a mistake")
        await asyncio.wait_for(client.socket.wait_closed(), 5)
        assert client.socket.close_code == 1011
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]


async def test_like_frames_are_skipped_and_the_result_repeated(make_server: MakeServer) -> None:
    server = make_server(
        performance={"enable_similar_image_filter": True, "similar_image_filter_max_skip_frame": 2}
    )

    async def send(client: Client, **parameters: Any) -> Any:
        await client.send(picture(100), **parameters)
        result = await client.result()  # a repeat comes at once, the request for a frame after a pause
        await client.expect("send_frame")
        return result

    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(100), frame_id=0)
        await client.expect("send_frame")
        first = await client.result()
        repeats = [await send(client, frame_id=i) for i in (1, 2)]
        assert [result.id for result in repeats] == [1, 2]
        assert [result.flags for result in repeats] == [1, 1]
        assert all(result.picture == first.picture for result in repeats)
        assert server.runner.batches == [1]
        await client.send(picture(100), frame_id=3)  # no more than two in a row
        await client.credit()
        await client.send(picture(100), prompt="another", frame_id=4)  # a change is never skipped
        await until(lambda: len(server.runner.batches) == 3)
        assert server.session().counters.skipped == 2


async def test_pages_of_other_origins_are_refused(make_server: MakeServer) -> None:
    server = make_server(server={"allowed_origins": ["https://example.org"]})
    for origin, allowed in (
        ("https://example.org", True),
        (f"http://127.0.0.1:{server.port}", True),  # its own page
        ("https://evil.example", False),
    ):
        async with server.client("ann", origin=origin) as client:
            if allowed:
                await client.begin()
            else:
                await client.expect("error", "origin: pages of https://evil.example")
                await client.socket.wait_closed()
                assert client.socket.close_code == 1008


async def test_browsers_do_not_get_compression(server: Server) -> None:
    async with server.client(compression="deflate") as client:
        assert not client.socket.response.headers.get("Sec-WebSocket-Extensions")  # type: ignore[union-attr]
        await client.begin()


async def test_a_client_that_vanishes_is_forgotten(server: Server) -> None:
    server.runner.gate.clear()
    async with server.client() as client:
        await client.begin()
        await client.send(picture())
        await client.expect("send_frame")
        await client.send(picture())
        client.socket.transport.abort()
        await until(lambda: len(server.service.registry) == 0)
        with pytest.raises(ConnectionClosed):
            await client.socket.recv()
    server.runner.gate.set()
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(40))
        assert abs((await client.result()).grey - 215) <= 1


async def test_many_users_each_get_their_own(server: Server) -> None:
    async def user(number: int) -> None:
        async with server.client(f"user-{number}", "?output=ws") as client:
            await client.begin()
            for _ in range(10):
                await client.send(picture(number * 10))
                result = await client.result()
                assert abs(result.grey - (255 - number * 10)) <= 1

    await asyncio.gather(*(user(number) for number in range(20)))
    assert server.service.registry.counters.results == 200


async def test_a_flood_of_tiny_messages_holds_up_nobody(server: Server) -> None:
    async with server.client("bad") as bad, server.client("good", "?output=ws") as good:
        await bad.begin()
        await good.begin()
        writing = bad.socket.transport
        tiny = client_frame(1, b"x") * 20_000  # 140 kB, a second of work

        async def read() -> None:
            async for _ in bad.socket:
                pass

        reading = asyncio.create_task(read())
        writing.write(tiny)
        for _ in range(20):
            await good.send(picture(100))
            assert (await good.result()).grey == 155
        assert server.session("bad").counters.errors < 20_000, "it was not over before the others had a turn"
        await until(lambda: server.session("bad").counters.errors == 20_000, within=30)
        reading.cancel()


async def test_bytes_that_are_no_websocket_end_that_connection_only(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.client("bad", "?output=ws&mode=video") as bad, server.client("good") as good:
        await bad.begin()
        await good.begin()
        for _ in range(20):
            await bad.send(None)
        bad.socket.transport.write(b"\xff" * 100)
        await until(lambda: server.service.registry.find("bad") is None)
        await good.send(picture())
        await good.expect("send_frame")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_client_that_does_not_answer_pings_loses_its_place(make_server: MakeServer) -> None:
    """Its network is gone: it neither reads nor says goodbye."""
    server = make_server(
        FakeRunner(size=(512, 512)), ping=0.3, pipeline={"width": 512, "height": 512, "mode": "video"}
    )
    async with server.client(query="?output=ws&quality=100", ping_interval=None) as client:
        await client.begin()
        client.socket.transport.pause_reading()
        with suppress(ConnectionClosed):  # on a slow machine its time is over before it has sent all
            for seed in range(100):
                await client.send(None, seed=seed)
                await asyncio.sleep(0.002)
        await until(lambda: server.service.registry.find("ann") is None)
        client.socket.transport.abort()


class Flooder(asyncio.Protocol):
    """A connection by hand that says anything, and counts the bytes that come back."""

    def __init__(self, server: Server) -> None:
        self._request = (
            f"GET /api/ws/bad HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
            "dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)


@asynccontextmanager
async def flooding(server: Server) -> AsyncIterator[Flooder]:
    loop = asyncio.get_running_loop()
    _, flooder = await loop.create_connection(lambda: Flooder(server), "127.0.0.1", server.port)
    await until(lambda: server.service.registry.find("bad"))
    await asyncio.sleep(0.1)
    try:
        yield flooder
    finally:
        flooder.transport.abort()


async def test_a_flood_of_pings_holds_up_nobody(server: Server) -> None:
    pings = 100_000
    async with flooding(server) as bad, server.client("good", "?output=ws") as good:
        await good.begin()
        before = bad.received
        bad.transport.write(client_frame(9, b"") * pings)
        for _ in range(3):
            await good.send(picture(100))
            await good.result()
        assert bad.received - before < 2 * pings, "all were answered before anybody else had a turn"


async def test_pongs_are_not_kept_for_who_does_not_read(server: Server) -> None:
    payload = bytes(125)
    async with flooding(server) as bad:
        bad.transport.pause_reading()
        bad.transport.write(client_frame(9, payload) * 40_000 + client_frame(1, b"heard"))
        await until(lambda: server.session("bad").counters.errors == 1, within=30)
        assert server.protocol("bad").transport.get_write_buffer_size() < 10**6


async def test_a_message_in_tiny_parts_holds_up_nobody_and_takes_no_memory(server: Server) -> None:
    def part(opcode: int, data: bytes) -> bytes:
        frame = client_frame(opcode, data)
        return bytes([frame[0] & 0x7F]) + frame[1:]  # more is to come

    async with flooding(server) as bad, server.client("good", "?output=ws") as good:
        await good.begin()
        bad.transport.write(part(2, b"a") + part(0, b"b") * 100_000 + client_frame(0, b"c"))
        for _ in range(3):
            await good.send(picture(100))
            await good.result()
        counters = server.session("bad").counters
        assert counters.errors == 0, "it was parsed in one go"
        assert len(server.protocol("bad").frames) == 1
        await until(lambda: counters.errors == 1, within=30)


async def test_a_connection_that_uvicorn_would_close_first_still_hears_why(server: Server) -> None:
    async with server.client() as client:
        await client.begin()

        def shut_down() -> None:
            server.protocol("ann").shutdown()
            server.service.begin_shutdown()

        server.loop.call_soon_threadsafe(shut_down)
        await client.expect("error", "shutting down")
        await client.socket.wait_closed()
        assert client.socket.close_code == 1012
