"""The router of deploy/ray by itself: who is sent where."""

from __future__ import annotations

import pickle
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install -r deploy/ray/requirements.txt"),
]


class Replica:
    """As much of a replica as the router looks at."""

    class Id(str):
        @property
        def unique_id(self) -> str:
            return str(self)

    def __init__(self, name: str) -> None:
        self.replica_id = self.Id(name)


@pytest.fixture(scope="module", autouse=True)
def ray() -> None:
    """Ray takes seconds to import, and its models warn while it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deploy.ray.router  # noqa: F401


def request(path: str) -> Any:
    from ray.serve._private.common import RequestMetadata, RequestProtocol, StreamingHTTPRequest
    from ray.serve.request_router import PendingRequest

    metadata = RequestMetadata("1", "1", _request_protocol=RequestProtocol.HTTP)
    message = pickle.dumps(StreamingHTTPRequest({"type": "http", "path": path}, proxy_actor_name="proxy"))
    # Its future belongs to a loop, and is of no interest here.
    return PendingRequest([message], {}, metadata, future=None)  # type: ignore[arg-type, unused-ignore]


def new_router() -> Any:
    from deploy.ray.router import StickyRouter

    made = StickyRouter.__new__(StickyRouter)  # without the loops and gauges of a cluster
    made.initialize_state()
    return made


@pytest.fixture
def sticky() -> Any:
    return new_router()


ONE, TWO, THREE = (Replica(name) for name in ("one", "two", "three"))


async def choice(sticky: Any, path: str, *replicas: Replica) -> list[str]:
    """The replicas to try, in order; the first one takes the request."""
    ranks = await sticky.choose_replicas(list(replicas), request(path))
    sticky.on_request_routed(request(path), ranks[0][0].replica_id, None)
    return [replica.replica_id for (replica,) in ranks]


async def test_stream_goes_where_the_socket_is_whatever_joins(sticky: Any) -> None:
    for number in range(50):
        (home, *_) = await choice(sticky, f"/api/ws/user-{number}", ONE, TWO)
        assert await choice(sticky, f"/api/stream/user-{number}", THREE, TWO, ONE) == [home]


async def test_user_of_a_replica_that_is_gone_moves_whole(sticky: Any) -> None:
    for number in range(50):
        (home, *_) = await choice(sticky, f"/api/ws/user-{number}", ONE, TWO, THREE)
        left = [replica for replica in (ONE, TWO, THREE) if replica.replica_id != home]
        (new, *_) = await choice(sticky, f"/api/ws/user-{number}", *left)
        assert await choice(sticky, f"/api/stream/user-{number}", ONE, TWO, THREE) == [new]


async def test_every_proxy_orders_replicas_alike_and_spreads_users(sticky: Any) -> None:
    other = new_router()
    firsts = []
    for number in range(300):
        path = f"/api/ws/user-{number}"
        order = await choice(sticky, path, ONE, TWO, THREE)
        assert order == await choice(other, path, THREE, ONE, TWO)
        assert sorted(order) == ["one", "three", "two"]
        firsts.append(order[0])
    assert all(firsts.count(name) > 60 for name in ("one", "two", "three"))


@pytest.mark.parametrize("path", ["/", "/api/settings", "/metrics", "/js/a/b.js", "/api/ws"])
async def test_what_has_no_user_goes_to_the_least_busy(sticky: Any, path: str) -> None:
    assert await sticky.choose_replicas([ONE, TWO], request(path)) == [[ONE, TWO]]


async def test_only_so_many_users_are_remembered(sticky: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.ray.router.REMEMBERED", 2)
    for name in ("a", "b", "a", "c"):
        await choice(sticky, f"/api/ws/{name}", ONE)
    assert set(sticky._homes) == {"a", "c"}


def test_configuration_for_a_cluster_is_one_that_ray_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    path = Path(__file__).resolve().parents[2] / "deploy/ray/serve.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    deployment = getattr(import_module(module), name)._bound_deployment
    assert [deployment.name] == application.deployment_names
    assert deployment.ray_actor_options["num_gpus"] == 1
    # What the file leaves out of it would be Ray's own value, not the code's.
    (configured,) = application.deployments
    assert configured.autoscaling_config == deployment._deployment_config.autoscaling_config.model_dump(
        exclude_unset=True
    )
