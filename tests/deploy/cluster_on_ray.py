"""A Ray cluster of this machine alone, with three replicas: `python -m tests.deploy.cluster_on_ray PORT`.

A process of its own, because Ray warns, starts threads and stays in whatever imports it.
"""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from deploy.ray.service import streamdiffusion

REPLICAS = 3
READY = "all replicas run"


def main(port: int) -> None:
    # With an address of its own on the loopback, nothing of Ray listens anywhere else.
    ray.init(
        _node_ip_address="127.0.0.2",
        num_cpus=REPLICAS + 1,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    three = streamdiffusion.options(
        num_replicas=REPLICAS,
        autoscaling_config=None,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=2,
    )
    serve.run(three.bind(), route_prefix="/")
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(int(sys.argv[1]))
