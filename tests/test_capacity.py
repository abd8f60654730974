"""The plan for many users is made of what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.capacity import Assumptions, Plan, Setting, chosen, engines, limits, servers

PROXIES = {"jpeg_bytes": 50_000, "cpu_ms_per_frame": {"server": 2.0, "haproxy": 9.0, "haproxy, TLS": 0.25}}
ASSUMED = Assumptions(
    frames_per_second=10, full=0.5, occupied=0.25, oldest_ms=100, gpu_hour=5.0, gigabyte=0.1, port_gbit=10
)


def variant(**streams: tuple[float, float]) -> dict[str, Any]:
    """Frames a second and median age by number of streams."""
    return {
        "streams": {
            name.removeprefix("of_"): {"frames_per_second": fps, "age_ms": {"median": age, "p99": age + 5}}
            for name, (fps, age) in streams.items()
        }
    }


GPU = {
    "variants": {
        "none, graph": variant(of_1=(100, 20), of_4=(200, 50), of_16=(300, 160)),
        "fused, graph": variant(of_4=(250, 99), of_16=(400, 101)),
        "original, xformers": variant(of_16=(900, 10)),
        "lone frames only": {},
    }
}


SERVER = {
    "acceleration": "fused",
    "as fast as they can": [
        {"users": users, "frames_per_second": fps, "age_ms": {"p50": age, "p99": age + 20}}
        for users, fps, age in ((2, 220, 40), (4, 240, 98), (8, 260, 110))
    ],
}


def test_engines_are_ours_and_the_chosen_server_is_the_fastest_whose_frames_are_young() -> None:
    assert [(found.acceleration, found.batch) for found in engines(GPU)] == [
        *(("none, graph", batch) for batch in (1, 4, 16)),
        *(("fused, graph", batch) for batch in (4, 16)),
    ]
    assert [found.batch for found in servers(SERVER)] == [2, 4, 8]
    assert chosen(SERVER, ASSUMED) == Setting("fused, graph, whole server", 4, 240, 98, 118)


def test_plan_is_the_arithmetic_that_the_page_describes() -> None:
    plan = Plan(1000, Setting("any", 4, 250, 99, 104), PROXIES, ASSUMED)
    assert plan.gpu.users(ASSUMED) == 12  # 0.5 * 250 / 10, whole users only
    assert plan.gpus == 84
    assert plan.picture_cores == pytest.approx(20)
    assert plan.proxy_cores == pytest.approx(2.5)
    assert plan.gbit == pytest.approx(4)
    assert plan.gpu_dollars == pytest.approx(1000 * 5 / (12 * 0.25))
    assert plan.traffic_dollars == pytest.approx(4 / 8 * 3600 * 0.1)


def test_what_carries_fewest_users_comes_first() -> None:
    carried = [int(str(row[1]).replace(" ", "")) for row in limits("en", SERVER, PROXIES)]
    assert carried == sorted(carried)
    assert limits("en", SERVER, PROXIES)[0][0] == "GPU"
