"""`deploy/haproxy/docker-compose.yml` with three replicas of the embedded model, the proxy and Prometheus.

`pytest -m docker tests/deploy`. Needs what test_containers.py needs, and an engine with a bridge network,
whose containers find each other by name; haproxy:3.2 and prom/prometheus:v3.5.0, or images under those names.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.deploy.conftest import OneServer
from tests.deploy.containers import IMAGE, Project, run
from tests.deploy.servers import ENVIRONMENT, command, free_port, get, server_states
from tests.deploy.users import User, connected, home, undisturbed, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

NAMES = ("gpu-0", "gpu-1", "gpu-2")


class Replicas(Project):
    """Three replicas, with the published ports changed and GPUs left out."""

    def __init__(self, one_server: OneServer) -> None:
        self.port, self.statistics, self.admin, self.prometheus = (free_port() for _ in range(4))
        own = {"STREAMDIFFUSION_MODEL__MODEL_ID": "models/mini", "STREAMDIFFUSION_SERVER__HOST": "0.0.0.0"}
        server = {"image": IMAGE, "environment": {**ENVIRONMENT, **own}}
        replicas = "".join(f"  {name}: {json.dumps(server)[:-1]}, deploy: !reset null}}\n" for name in NAMES)
        super().__init__(
            one_server.folder,
            ["deploy/haproxy/docker-compose.yml"],
            f"""
services:
{replicas}
  proxy:
    ports: !override
      - "127.0.0.1:{self.port}:8000"
      - "127.0.0.1:{self.statistics}:8404"
      - "127.0.0.1:{self.admin}:9999"
  prometheus:
    ports: !override ["127.0.0.1:{self.prometheus}:9090"]
""",
            *("--project-name", "streamdiffusion-test", "--profile", "3"),
        )

    def users(self) -> list[User]:
        return [User(f"http://127.0.0.1:{self.port}") for _ in range(12)]

    def wait_until_up(self, *names: str) -> None:
        """Until the proxy sends users to these replicas."""
        deadline = time.monotonic() + 60
        while any(server_states(self.admin)[name] != "UP" for name in names):
            assert time.monotonic() < deadline, server_states(self.admin)
            time.sleep(0.1)

    def wait_until_restarted(self, name: str) -> None:
        """Until a replica whose server died makes frames again, by Docker's word: to the proxy, a server
        whose name is back is UP until its first check fails.
        """
        deadline = time.monotonic() + 120
        while self.inspect(name, ".RestartCount") == 0 or not self.healthy(name):
            assert time.monotonic() < deadline, self.compose("logs", name)
            time.sleep(0.1)

    def healthy(self, name: str) -> bool:
        """Whether a replica runs and its last check was good."""
        state = self.inspect(name, ".State")
        return bool(state["Status"] == "running" and state["Health"]["Status"] == "healthy")

    def set_state(self, name: str, state: str) -> None:
        assert not command(self.admin, f"set server servers/{name} state {state}").strip()

    def query(self, expression: str) -> dict[str, float]:
        """What Prometheus has, by instance."""
        status, text = get(self.prometheus, f"/api/v1/query?query={quote(expression)}")
        assert status == 200, text
        rows = json.loads(text)["data"]["result"]
        return {row["metric"]["instance"]: float(row["value"][1]) for row in rows}


@pytest.fixture(scope="module")
def replicas(one_server: OneServer) -> Iterator[Replicas]:
    project = Replicas(one_server)
    try:
        project.up()
        project.wait_until_up(*NAMES)
        yield project
    finally:
        seconds = project.down()
    assert seconds < 20


async def test_users_are_whole_and_metrics_of_all_replicas_are_scraped(replicas: Replicas) -> None:
    users = replicas.users()
    async with connected(*users):
        homes = [home(user) for user in users]
        assert set(homes) <= set(NAMES)
        expected = {name: float(homes.count(name)) for name in NAMES}
        await until(lambda: replicas.query("streamdiffusion_sessions") == expected, "scrape", 40)
        assert replicas.query('up{job="haproxy"}') == {"proxy:8404": 1.0}
    undisturbed(users)


async def test_a_crash_moves_its_users_and_the_replica_comes_back(replicas: Replicas) -> None:
    users = replicas.users()
    async with connected(*users):
        killed = home(users[0])
        there = [user for user in users if home(user) == killed]
        elsewhere = [user for user in users if user not in there]
        moment = time.monotonic()
        # Process 1 cannot be killed from inside, but the server is its only child.
        kill = "kill -9 $(cat /proc/1/task/1/children)"
        await asyncio.to_thread(
            run, "docker", "exec", "--user", "streamdiffusion", replicas.container(killed), "sh", "-c", kill
        )
        await until(
            lambda: all(user.closed and user.results[-1][1] > user.closed[-1] for user in there),
            "results from another replica",
        )
        for user in there:
            again = next(at for at in user.connected if at > moment)
            assert home(user) != killed
            assert user.first_result_after(again) - again < 1.0
            print(f"without a result for {user.first_result_after(again) - user.closed[0]:.2f} s")  # noqa: T201
        undisturbed(elsewhere)
        await asyncio.to_thread(replicas.wait_until_restarted, killed)
        await asyncio.to_thread(replicas.wait_until_up, killed)
        assert replicas.inspect(killed, ".RestartCount") == 1
        await asyncio.sleep(1)
        for user in users:
            home(user)


async def test_rolling_update_as_documented(replicas: Replicas) -> None:
    users = replicas.users()
    async with connected(*users):
        for name in NAMES:
            old = replicas.container(name)
            replicas.set_state(name, "drain")
            assert server_states(replicas.admin)[name] == "DRAIN"
            await asyncio.to_thread(replicas.up, "--no-deps", "--force-recreate", name)
            assert replicas.container(name) != old
            replicas.set_state(name, "ready")
            await asyncio.to_thread(replicas.wait_until_up, name)
        await until(lambda: all(user.results[-1][2] > time.monotonic() - 1 for user in users), "results")
        for user in users:
            home(user)
            assert user.closed, "everybody's server was replaced"
        assert set(map(home, users)) <= set(NAMES)
