"""Three replicas on a local Ray Serve with the router of deploy/ray, and twelve users.

Run on demand: `pytest -m cluster tests/deploy`. Needs `pip install -r deploy/ray/requirements.txt`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.deploy.servers import ENVIRONMENT, Process, free_port
from tests.deploy.users import User, connected, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install -r deploy/ray/requirements.txt"),
]


class Cluster(Process):
    """`tests.deploy.cluster_on_ray`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.deploy.cluster_on_ray", str(self.port)]
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        super().__init__(command, folder / "ray.log", {**ENVIRONMENT, **quiet})

    def wait_until_ready(self) -> None:
        """Wait for all replicas; the first one alone would answer already, and get all users."""
        deadline = time.monotonic() + 180
        while "all replicas run\n" not in self.log.read_text():
            assert self.child.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        ours = psutil.Process(self.child.pid).children(recursive=True)
        return [process for process in ours if process.name().startswith("ray::ServeReplica")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        cluster.end(signal.SIGTERM)


async def test_only_the_users_of_a_killed_replica_notice(cluster: Cluster) -> None:
    users = [User(f"http://127.0.0.1:{cluster.port}") for _ in range(12)]
    # Everybody gets pictures in the stream, so everybody's stream is where the socket is: no other replica
    # knows the user.
    async with connected(*users):
        await asyncio.sleep(2)
        assert not any(user.errors or user.closed for user in users)
        replicas = cluster.replicas()
        assert len(replicas) == 3
        # The busiest of them surely has users.
        killed = max(replicas, key=lambda replica: sum(replica.cpu_times()[:2]))
        moment = time.monotonic()
        killed.send_signal(signal.SIGKILL)
        await until(lambda: any(user.closed for user in users), "closed sockets")
        await asyncio.sleep(3)
        there = [user for user in users if user.closed]
        elsewhere = [user for user in users if not user.closed]
        assert there
        assert elsewhere
        for user in there:
            again = next(at for at in user.connected if at > moment)
            assert user.first_result_after(again) - again < 1.0
            assert user.first_part_after(again) - again < 1.0
            assert again - moment < 2.0
        for user in elsewhere:
            assert not user.errors
            assert not user.lost()
            assert user.longest_gap(moment - 0.5, moment + 2) < 1.0
