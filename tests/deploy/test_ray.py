"""Three replicas on a local Ray Serve with the router of deploy/ray, and twelve users.

Run on demand: `pytest -m cluster tests/deploy`. Needs `pip install -r deploy/ray/requirements.txt`.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.deploy.servers import ENVIRONMENT, Process, free_port
from tests.deploy.users import User, another_stream, connected, slowest_frame, undisturbed, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
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
        """Wait for three replicas; the first one alone would answer already, and get all users."""
        deadline = time.monotonic() + 180
        while self.running != 3:
            assert self.child.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    @property
    def running(self) -> int:
        """Replicas that have loaded their model and are not about to go."""
        said = re.findall(r"^(\d) replicas run$", self.log.read_text(), re.MULTILINE)
        return int(said[-1]) if said else 0

    def users(self, count: int) -> list[User]:
        return [User(f"http://127.0.0.1:{self.port}") for _ in range(count)]

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        ours = psutil.Process(self.child.pid).children(recursive=True)
        return [process for process in ours if process.name().startswith("ray::ServeReplica")]


def busy(process: psutil.Process) -> float:
    """CPU seconds so far."""
    times = process.cpu_times()
    return times.user + times.system


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        cluster.end(signal.SIGTERM)


@pytest.fixture
def cluster(processes: Cluster) -> Cluster:
    processes.wait_until_ready()
    return processes


# In Ray nothing says which replica answered. But only the replica that has a user's socket has pictures for
# the user's stream, so whoever gets pictures is whole.


async def test_replica_that_autoscaling_adds_or_takes_disturbs_nobody(cluster: Cluster) -> None:
    users, newcomers = cluster.users(12), cluster.users(8)
    async with connected(*users):
        async with connected(*newcomers):
            await until(lambda: cluster.running == 4, "fourth replica", 120)
            for user in users:
                await another_stream(user)
        undisturbed(newcomers)
        await until(lambda: cluster.running == 3, "replica that goes", 60)
        await asyncio.sleep(2)
    undisturbed(users)


async def test_only_the_users_of_a_killed_replica_notice(cluster: Cluster) -> None:
    users = cluster.users(12)
    async with connected(*users):
        replicas = cluster.replicas()
        assert len(replicas) == 3
        before = {replica: busy(replica) for replica in replicas}
        await asyncio.sleep(2)
        undisturbed(users)
        killed = max(replicas, key=lambda replica: busy(replica) - before[replica])
        moment = time.monotonic()
        killed.send_signal(signal.SIGKILL)
        await until(lambda: any(user.closed for user in users), "closed sockets")
        await asyncio.sleep(3)
        there = [user for user in users if user.closed]
        elsewhere = [user for user in users if not user.closed]
        assert there
        assert elsewhere
        limit = 1.0 + slowest_frame(elsewhere, moment)
        for user in there:
            again = next(at for at in user.connected if at > moment)
            assert user.first_result_after(again) - again < limit
            assert user.first_part_after(again) - again < limit
            assert again - moment < 1.0 + limit
        undisturbed(elsewhere)
        assert all(user.longest_gap(moment - 0.5, moment + 2) < limit for user in elsewhere)
        gap = max(user.first_result_after(moment) - user.closed[0] for user in there)
        print(f"without a result for {gap:.2f} s")  # noqa: T201 - pytest -s shows it
