"""The image stream, read as it comes from the socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from app.api.stream import REPEAT_AFTER, Pace
from app.utils.image import decode, encode
from tests.api.conftest import SIZE, Client, MakeServer, Server, picture, until

HEAD = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


class Viewer:
    """What an ``<img>`` does: reads parts."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.buffer = b""

    async def part(self, within: float = 5) -> bytes:
        """The next picture. It is complete only when the head of the next part is there as well."""
        while self.buffer.count(HEAD) < 2:
            self.buffer += await asyncio.wait_for(anext(self._chunks), within)
        _, data, rest = self.buffer.split(HEAD, 2)
        self.buffer = HEAD + rest
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def end(self, within: float = 5) -> None:
        async def drain() -> None:
            async for _ in self._chunks:
                pass

        await asyncio.wait_for(drain(), within)


@asynccontextmanager
async def watching(server: Server, user: str = "ann", query: str = "") -> AsyncIterator[Viewer]:
    address = f"{server.http}/api/stream/{user}{query}"
    async with httpx.AsyncClient() as http, http.stream("GET", address, timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        assert "no-store" in response.headers["cache-control"]
        yield Viewer(response.aiter_raw())


async def frame(client: Client, grey: int) -> None:
    await client.send(picture(grey))
    await client.expect("send_frame")


def grey(data: bytes) -> int:
    return int(decode(data, width=SIZE, height=SIZE, max_pixels=10**6).mean().round())


async def test_results_are_streamed(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        async with watching(server) as viewer:
            for level in (10, 100, 200):
                await frame(client, level)
                assert abs(grey(await viewer.part()) - (255 - level)) <= 1


async def test_each_part_is_complete_at_once_and_repeated_once(server: Server) -> None:
    """A picture that nothing follows is painted: the next part's head comes with it, and it comes twice."""
    async with server.client() as client:
        await client.begin()
        async with watching(server) as viewer:
            began = time.monotonic()
            await frame(client, 10)
            first = await viewer.part()
            assert time.monotonic() - began < REPEAT_AFTER, "the first does not wait for the second"
            assert await viewer.part() == first
            with pytest.raises(asyncio.TimeoutError):
                await viewer.part(within=0.5)


async def test_the_newest_result_is_shown_at_once_to_who_comes_late(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        await frame(client, 10)
        await until(lambda: server.session().result)
        async with watching(server) as viewer:
            assert abs(grey(await viewer.part()) - 245) <= 1


async def test_the_stream_may_be_opened_before_the_socket(server: Server) -> None:
    async def see() -> bytes:
        async with watching(server) as viewer:
            return await viewer.part()

    seeing = asyncio.create_task(see())
    await asyncio.sleep(0.1)
    async with server.client() as client:
        await client.begin()
        await frame(client, 10)
        assert abs(grey(await seeing) - 245) <= 1


async def test_several_viewers_share_one_encoding(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        async with (
            watching(server) as one,
            watching(server) as two,
            watching(server, query="?quality=10") as low,
        ):
            await frame(client, 10)
            parts = [await one.part(), await two.part(), await low.part()]
            assert parts[0] == parts[1] != parts[2]
            assert set(server.session().result.encodings) == {("jpeg", 85), ("jpeg", 10)}  # type: ignore[union-attr]


async def test_head_tells_of_a_stream_and_ends(server: Server) -> None:
    async with server.client() as client, httpx.AsyncClient() as http:
        await client.begin()
        head = await http.head(f"{server.http}/api/stream/ann", timeout=5)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        await until(lambda: not server.session()._news._waiters)  # nobody watches


async def test_video_mode(server: Server) -> None:
    async with server.client(query="?mode=video") as client:
        await client.begin()
        async with watching(server) as viewer:
            for seed in (10, 100):
                await client.send(None, seed=seed)
                await client.expect("send_frame")
                assert abs(grey(await viewer.part()) - seed) <= 1


async def test_max_fps(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        async with watching(server, query="?max_fps=10") as viewer:

            async def play() -> None:
                while True:
                    await frame(client, 10)
                    await asyncio.sleep(0.005)

            playing = asyncio.create_task(play())
            await viewer.part()
            began = time.monotonic()
            for _ in range(5):
                await viewer.part()
            assert 0.3 < time.monotonic() - began < 4  # unlimited, five take no time
            playing.cancel()


async def test_a_slow_viewer_skips_frames(make_server: MakeServer) -> None:
    """It neither holds up the others nor is shown what is long past."""
    server = make_server(pipeline={"width": 512, "height": 512})
    async with server.client() as client:
        await client.begin()
        async with watching(server, query="?max_fps=1000") as slow, watching(server) as quick:
            await frame(client, 1)
            await slow.part()
            for level in range(2, 240):
                await frame(client, level)
            await until(lambda: server.session().counters.results == 239)
            while grey(await quick.part()) != 255 - 239:
                pass
            shown = 0
            while grey(await slow.part()) != 255 - 239:
                shown += 1
            assert shown < 230


@pytest.mark.parametrize("query", ["?quality=0", "?quality=101", "?quality=x", "?max_fps=0", "?max_fps=-1"])
async def test_bad_queries(server: Server, query: str) -> None:
    response = await server.get(f"/api/stream/ann{query}")
    assert response.status_code == 422
    assert query[1:].split("=")[0] in response.text


async def test_an_unknown_user_is_404_after_a_short_grace(server: Server) -> None:
    async with httpx.AsyncClient() as http:
        began = time.monotonic()
        addresses = [f"{server.http}/api/stream/nobody-{i}" for i in range(50)]
        responses = await asyncio.gather(*(http.get(address) for address in addresses))
    assert {response.status_code for response in responses} == {404}
    # One after the other they would take fifteen seconds.
    assert 0.25 < time.monotonic() - began < 7


@pytest.mark.parametrize("user", ["null", "undefined"])
async def test_what_pages_ask_for_without_a_user_is_404_at_once(make_server: MakeServer, user: str) -> None:
    server = make_server(server={"stream_grace": 30})
    began = time.monotonic()
    assert (await server.get(f"/api/stream/{user}")).status_code == 404
    assert time.monotonic() - began < 2


async def test_the_stream_ends_with_the_session(server: Server) -> None:
    """Chromium does not close it on Stop; a seventh stream of a tab would get no connection."""
    async with server.client() as client:
        await client.begin()
        async with watching(server) as viewer:
            await frame(client, 1)
            await viewer.part()
            await client.socket.close()
            await viewer.end(within=1)


async def test_a_viewer_who_does_not_read_is_let_go_at_the_end(make_server: MakeServer) -> None:
    server = make_server(pipeline={"width": 512, "height": 512})
    async with server.client() as client:
        await client.begin()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**10)
        writer.write(b"GET /api/stream/ann?max_fps=1000&quality=100 HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        data = encode(noise, "jpeg", 100)
        tasks = len(asyncio.all_tasks(server.loop))
        for _ in range(40):
            await client.send(data)
            await client.expect("send_frame")
    await until(lambda: len(asyncio.all_tasks(server.loop)) <= tasks - 4)
    writer.close()


async def test_the_stream_ends_when_the_user_is_taken_over(server: Server) -> None:
    async with server.client() as old:
        await old.begin()
        async with watching(server) as viewer, server.client() as new:
            await new.begin()
            await viewer.end(within=1)
            async with watching(server) as again:
                await frame(new, 10)
                assert await again.part()


async def test_a_viewer_who_leaves_costs_nothing_more(server: Server) -> None:
    async with server.client() as client:
        await client.begin()
        async with watching(server) as viewer:
            await frame(client, 1)
            await viewer.part()
        await until(lambda: not server.session()._news._waiters)
        await frame(client, 2)
        await until(lambda: server.session().counters.results == 2)
        await asyncio.sleep(0.05)
        assert not server.session().result.encodings  # type: ignore[union-attr]


def test_a_camera_of_30_fps_passes_a_limit_of_30() -> None:
    """Its frames never come evenly."""
    pace, sent = Pace(30), 0
    for number in range(300):
        now = 100 + number / 30 + (0.004 if number % 2 else -0.004)
        pause = pace.wait(now)
        if pause < 0.012:
            sent += 1
            pace.sent(now + pause)
    assert sent > 290


def test_a_pause_does_not_buy_a_burst() -> None:
    pace = Pace(10)
    pace.sent(0.0)
    pace.sent(100.0)
    pace.sent(100.0)
    assert pace.wait(100.0) == pytest.approx(0.1)
