"""Three servers behind HAProxy as it is configured in deploy/haproxy, and twelve users.

Run on demand: `pytest -m cluster tests/deploy`. Needs HAProxy 2.6 or newer (`apt-get install haproxy`).
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import pytest

from tests.deploy.servers import Proxy, Server, free_port, get
from tests.deploy.users import User, another_stream, connected, home, slowest_frame, undisturbed, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAMES = ("gpu-0", "gpu-1", "gpu-2")
LATER = "gpu-3"


class Cluster:
    """Three servers, the place of a fourth, and the proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, Server] = {}
        self.ports = {name: free_port() for name in (*NAMES, LATER)}
        self.proxy = Proxy(self.ports, folder)

    def start(self, *names: str) -> None:
        """Start servers, again if need be, and wait until users are sent to them."""
        for name in names:
            self.servers[name] = Server(name, self.folder, self.ports[name])
        for name in names:
            self.servers[name].wait_until_ready()
            assert not self.proxy.command(f"set server servers/{name} state ready").strip()
        deadline = time.monotonic() + 10
        while any(self.proxy.state(name) != "UP" for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def drain(self, name: str) -> None:
        assert not self.proxy.command(f"set server servers/{name} state drain").strip()

    def users(self, what: str) -> list[User]:
        """Twelve users whose ids, and so their servers, are the same in every run."""
        return [User(self.proxy.url, name=str(uuid5(NAMESPACE_OID, f"{what} {n}"))) for n in range(12)]

    def end(self) -> None:
        for process in (self.proxy, *self.servers.values()):
            process.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start(*NAMES)
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def cluster(processes: Cluster) -> Iterator[Cluster]:
    """All three servers up before a test, and the fourth down after it."""
    dead = [name for name in NAMES if processes.servers[name].child.poll() is not None]
    processes.start(*dead)
    yield processes
    if LATER in processes.servers:
        processes.servers.pop(LATER).end(signal.SIGTERM)
    for name in NAMES:
        processes.proxy.command(f"set server servers/{name} state ready")


async def test_socket_and_stream_of_a_user_are_on_one_server(cluster: Cluster) -> None:
    users = cluster.users("affinity")
    async with connected(*users):
        await asyncio.sleep(2)
        homes = [home(user) for user in users]
        assert set(homes) == set(NAMES)
        for name, server in cluster.servers.items():
            assert server.metric("streamdiffusion_sessions") == homes.count(name)
    undisturbed(users)


async def test_only_the_users_of_a_killed_server_notice(cluster: Cluster) -> None:
    users = cluster.users("kill")
    async with connected(*users):
        await asyncio.sleep(1)
        killed = home(users[0])
        there = [user for user in users if home(user) == killed]
        elsewhere = [user for user in users if user not in there]
        moment = time.monotonic()
        cluster.servers[killed].end(signal.SIGKILL)
        await until(lambda: all(user.closed for user in there), "closed sockets")
        await until(
            lambda: all(user.results[-1][1] > user.closed[-1] for user in there),
            "results from another server",
        )
        await asyncio.sleep(2)
        limit = 1.0 + slowest_frame(elsewhere, moment)
        for user in there:
            again = next(at for at in user.connected if at > moment)
            assert home(user) != killed
            assert user.first_result_after(again) - again < limit
            assert user.first_part_after(again) - again < limit
            assert not user.errors
    undisturbed(elsewhere)
    assert all(user.longest_gap(moment - 0.5, moment + 2) < limit for user in elsewhere)
    gap = max(user.first_result_after(moment) - user.closed[0] for user in there)
    print(f"without a result for {gap:.2f} s")  # noqa: T201 - pytest -s shows it


async def test_a_server_that_joins_splits_nobody(cluster: Cluster) -> None:
    users = cluster.users("join")
    async with connected(*users):
        before = [home(user) for user in users]
        await asyncio.to_thread(cluster.start, LATER)
        # Another tab, or a player: one more viewer of a user who is long connected.
        for user, name in zip(users, before, strict=True):
            assert await another_stream(user) == name
        newcomers = cluster.users("newcomers at a join")
        async with connected(*newcomers):
            assert LATER in {home(user) for user in newcomers}
        undisturbed(newcomers)
        assert [home(user) for user in users] == before
    undisturbed(users)


async def test_a_proxy_that_reads_its_configuration_again_splits_nobody(cluster: Cluster) -> None:
    users = cluster.users("reload")
    async with connected(*users):
        before = [home(user) for user in users]
        # With one server more, the hash alone would send some elsewhere.
        await asyncio.to_thread(cluster.start, LATER)
        known = cluster.proxy.remembered()
        await asyncio.to_thread(cluster.proxy.reload)
        await until(lambda: cluster.proxy.remembered() == known, "table in the new worker")
        for user, name in zip(users, before, strict=True):
            assert await another_stream(user) == name
    undisturbed(users)


async def test_drain_disturbs_nobody(cluster: Cluster) -> None:
    users = cluster.users("drain")
    async with connected(*users):
        drained = home(users[0])
        cluster.drain(drained)
        await until(lambda: cluster.proxy.state(drained) == "DRAIN", "drain")
        newcomers = cluster.users("newcomers at a drain")
        async with connected(*newcomers):
            await asyncio.sleep(1)
            assert drained not in {home(user) for user in newcomers}
            assert await another_stream(users[0]) == drained  # its user is still there
        undisturbed(newcomers)
    undisturbed(users)


async def test_rolling_update_as_documented(cluster: Cluster) -> None:
    users = cluster.users("update")
    async with connected(*users):
        began = time.monotonic()
        for name in NAMES:
            cluster.drain(name)
            old = cluster.servers[name]
            # The time to wait for its users is over; who is still there moves.
            assert await asyncio.to_thread(old.end, signal.SIGTERM) < 10
            await asyncio.to_thread(cluster.start, name)
        moment = time.monotonic()
        await until(lambda: all(user.results[-1][1] > moment for user in users), "results for everybody")
        # More than after a kill: here another server starts at the same time, and takes whole cores from
        # those that serve.
        limit = 4.0 + slowest_frame(users, began)
        for user in users:
            home(user)
            for closed in user.closed:
                again = next(at for at in user.connected if at > closed)
                assert user.first_result_after(again) - closed < limit


def test_statistics_are_for_prometheus_and_replicas_metrics_not_for_the_public(cluster: Cluster) -> None:
    status, text = get(cluster.proxy.statistics, "/metrics")
    assert status == 200
    states = re.findall(r'haproxy_server_status\{proxy="servers",server="(gpu-\d)",state="UP"\} 1', text)
    assert sorted(states) == list(NAMES)
    assert {get(cluster.proxy.port, path)[0] for path in ("/metrics", "/metrics/", "/%6detrics")} == {404}
    assert all(get(server.port, "/metrics")[0] == 200 for server in cluster.servers.values())
