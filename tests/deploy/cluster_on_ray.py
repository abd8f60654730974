"""A Ray cluster of this machine alone, with three or four replicas.

    python -m tests.deploy.cluster_on_ray PORT


A process of its own, because Ray warns, starts threads and stays in whatever imports it.
"""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from deploy.ray.service import streamdiffusion

LEAST, MOST = 3, 4


def main(port: int) -> None:
    # With an address of its own on the loopback, the cluster's parts find each other there.
    ray.init(
        _node_ip_address="127.0.0.2",
        num_cpus=MOST + 1,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    small = streamdiffusion.options(
        ray_actor_options={"num_cpus": 1},
        autoscaling_config={
            "min_replicas": LEAST,
            "max_replicas": MOST,
            "target_ongoing_requests": 12,
            "upscale_delay_s": 1,
            "downscale_delay_s": 1,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 2,
        },
        graceful_shutdown_timeout_s=30,
    )
    serve.run(small.bind(), route_prefix="/")
    running = 0
    while signal.sigtimedwait({signal.SIGTERM}, 0.2) is None:
        states = serve.status().applications["default"].deployments["streamdiffusion"].replica_states
        now = sum(count for state, count in states.items() if str(state).endswith("RUNNING"))
        if now != running:
            running = now
            sys.stdout.write(f"{running} replicas run\n")
            sys.stdout.flush()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(int(sys.argv[1]))
