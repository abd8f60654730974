"""Users come and go, well and badly behaved; afterwards the server is as it was."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import threading
import time
from dataclasses import dataclass

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.api.conftest import MakeServer, Server, picture, until


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    threads: int
    files: int
    tasks: int
    memory: int

    @classmethod
    def of(cls, server: Server) -> Footprint:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, but glibc keeps for the next one, is not held
        process = psutil.Process()
        return cls(
            threading.active_count(),
            process.num_fds(),
            len(asyncio.all_tasks(server.loop)),
            process.memory_info().rss,
        )


async def visit(server: Server, random: random.Random) -> None:
    """One user: some frames, some watching, some mistakes, and one of several ways to leave."""
    user = f"user-{random.randrange(12)}"
    query = random.choice(["", "?output=ws", "?mode=video", "?output=ws&mode=video", "?mode=wrong"])
    try:
        async with server.client(user, query) as client:
            watching = [asyncio.create_task(watch(server, user)) for _ in range(random.randrange(3))]
            for _ in range(random.randrange(30)):
                data = random.choice([picture(random.randrange(256)), b"", b"nonsense", picture()[:300]])
                await client.send(None if "video" in query else data, prompt=str(random.randrange(5)))
                if random.random() < 0.7:
                    await asyncio.wait_for(client.socket.recv(), 5)
            if random.random() < 0.3:
                client.socket.transport.abort()
        await asyncio.gather(*watching)
    except ConnectionClosed:
        return  # taken over, or the address was wrong


async def watch(server: Server, user: str) -> None:
    seconds = random.random()
    try:
        async with (
            httpx.AsyncClient() as http,
            http.stream("GET", f"{server.http}/api/stream/{user}?max_fps=100") as stream,
        ):
            began = time.monotonic()
            async for _ in stream.aiter_raw():
                if time.monotonic() - began > seconds:
                    return
    except httpx.TransportError:
        return


async def soak(server: Server, seconds: float) -> None:
    chance = random.Random(1)
    await until(lambda: server.service.ready)

    async def visitors(count: int, until_time: float) -> None:
        async def keep_coming(seed: int) -> None:
            own = random.Random(seed)
            while time.monotonic() < until_time:
                await visit(server, own)

        await asyncio.gather(*(keep_coming(chance.random().__hash__()) for _ in range(count)))
        await until(lambda: len(server.service.registry) == 0)

    await visitors(8, time.monotonic() + min(10, seconds / 2))  # caches fill, pools start their threads
    await asyncio.sleep(1)
    before = Footprint.of(server)
    await visitors(8, time.monotonic() + seconds)
    await until(lambda: len(asyncio.all_tasks(server.loop)) <= before.tasks, within=15)
    await until(lambda: psutil.Process().num_fds() <= before.files + 2, within=15)
    after = Footprint.of(server)
    assert after.threads <= before.threads
    # The noise of allocators stays below this.
    assert after.memory - before.memory < 64 * 2**20
    counters = server.service.registry.counters
    assert counters.results > 100
    assert counters.errors > 10
    async with server.client("last", "?output=ws") as client:
        await client.begin()
        await client.send(picture(100))
        assert (await client.result()).grey == 155


@pytest.mark.timeout(120)
async def test_a_short_soak(make_server: MakeServer) -> None:
    await soak(make_server(), seconds=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_soak_of_minutes(make_server: MakeServer) -> None:
    await soak(make_server(), seconds=300)
