"""What the measured figures mean for 100, 1 000 and 100 000 users: the tables of docs/scaling.md.

What is assumed stands in `Assumptions`; all else comes from ``benchmarks/results``: frames a second of a GPU
from ``gpu.json`` and ``gpu-server.json``, processor time and added latency from ``proxies.json``.
``python -m benchmarks.report`` writes the tables, in both languages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Figures = Mapping[str, Any]
Language = Literal["en", "zh"]
Rows = list[list[object]]

PEERS = ("original", "diffusers")
"""Beginnings of the variants in ``gpu.json`` that are not this server."""

USERS = (100, 1_000, 100_000)


@dataclass(frozen=True)
class Assumptions:
    """What nobody has measured: how users behave, and prices. Change them to yours."""

    frames_per_second: float = 15.0
    """Of a user."""

    full: float = 0.8
    """How much of its frames a GPU is sold for; the rest is for uneven users."""

    occupied: float = 0.5
    """Share of the hours for which a paid place has a user."""

    oldest_ms: float = 100.0
    """Median age of a frame at which a batch size still counts as real time."""

    gpu_hour: float = 4.0
    """Dollars for an hour of a GPU with its share of a machine."""

    gigabyte: float = 0.05
    """Dollars for a gigabyte that leaves the data centre."""

    port_gbit: float = 10.0
    """Gbit/s of a machine's port."""

    files: int = 65_536
    """Open files of a proxy: ``fd-hard-limit`` in deploy/haproxy/haproxy.cfg. A user takes four."""


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Setting:
    """A way to run one GPU, as measured: frames a second in all, and milliseconds that a frame is old."""

    acceleration: str
    batch: int
    frames_per_second: float
    age_p50: float
    age_p99: float

    def users(self, assumed: Assumptions = ASSUMED) -> int:
        """How many it carries."""
        return int(assumed.full * self.frames_per_second / assumed.frames_per_second)

    def dollars(self, assumed: Assumptions = ASSUMED) -> float:
        """The price of the GPU for one user and hour."""
        return assumed.gpu_hour / (self.users(assumed) * assumed.occupied)


def engines(gpu: Figures) -> Iterator[Setting]:
    """Every acceleration and batch size in ``gpu.json``, without sockets and JPEG; peers are left out."""
    for name, variant in gpu["variants"].items():
        if not name.startswith(PEERS):
            for batch, found in variant.get("streams", {}).items():
                age = found["age_ms"]
                yield Setting(name, int(batch), found["frames_per_second"], age["median"], age["p99"])


def servers(server: Figures) -> Iterator[Setting]:
    """The whole server's users, by batch size."""
    name = f"{server['acceleration']}, graph, whole server"
    for run in server["as fast as they can"]:
        age = run["age_ms"]
        yield Setting(name, run["users"], run["frames_per_second"], age["p50"], age["p99"])


def chosen(server: Figures, assumed: Assumptions = ASSUMED) -> Setting:
    """The whole server's setting that carries most users while frames are young enough."""
    young = [setting for setting in servers(server) if setting.age_p50 <= assumed.oldest_ms]
    return max(young, key=lambda setting: setting.frames_per_second)


@dataclass(frozen=True)
class Plan:
    """What a number of users takes."""

    users: int
    gpu: Setting
    proxies: Figures
    assumed: Assumptions = ASSUMED

    @property
    def gpus(self) -> int:
        """Each with a server process."""
        return math.ceil(self.users / self.gpu.users(self.assumed))

    @property
    def picture_cores(self) -> float:
        """Processor cores of all servers for JPEG, sockets and Python."""
        return self._cores("server")

    @property
    def proxy_cores(self) -> float:
        """Processor cores of HAProxy, TLS included: browsers give no camera to pages without."""
        return self._cores("haproxy, TLS")

    @property
    def gbit(self) -> float:
        """Gbit/s, each way."""
        return self._frames * int(self.proxies["jpeg_bytes"]) * 8 / 1e9

    @property
    def gpu_dollars(self) -> float:
        """For an hour with so many users."""
        return self.users * self.gpu.dollars(self.assumed)

    @property
    def traffic_dollars(self) -> float:
        """For an hour with so many users; only what leaves is paid for."""
        return self.gbit / 8 * 3600 * self.assumed.gigabyte

    @property
    def _frames(self) -> float:
        return self.users * self.assumed.frames_per_second

    def _cores(self, process: str) -> float:
        return self._frames * float(self.proxies["cpu_ms_per_frame"][process]) / 1000


HEADS: Mapping[str, Mapping[Language, list[str]]] = {
    "assumed": {"en": ["Assumed", ""], "zh": ["假设", ""]},
    "gpu": {
        "en": ["Acceleration", "Batch", "*T*", "Age p50", "Age p99", "*N*", "$ per user-hour"],
        "zh": ["加速方式", "批次", "*T*", "延迟 p50", "延迟 p99", "*N*", "每用户小时 $"],
    },
    "server": {
        "en": ["Users", "send", "frames/s in all", "Age p50", "Age p99"],
        "zh": ["用户", "发送", "每秒总帧数", "延迟 p50", "延迟 p99"],
    },
    "plan": {
        "en": [
            *("Users", "GPUs", "server cores", "HAProxy cores", "Gbit/s each way"),
            *("GPUs, $/h", "traffic, $/h"),
        ],
        "zh": ["用户", "GPU", "服务器核心", "HAProxy 核心", "每方向 Gbit/s", "GPU $/h", "流量 $/h"],
    },
    "limits": {
        "en": ["One", "carries users", "for 1 000", "for 100 000"],
        "zh": ["一个", "承载用户", "1 000 用户", "100 000 用户"],
    },
    "latency": {
        "en": ["", "p50", "p95", "added p50", "added p95"],
        "zh": ["", "p50", "p95", "增加 p50", "增加 p95"],
    },
}

ASSUMPTIONS: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "frames a second of a user, *f*",
        "how full a GPU is planned, *u*",
        "share of paid places in use, *o*",
        "bytes of a picture, *B*",
        "a GPU for an hour, *P*",
        "a gigabyte that leaves",
    ),
    "zh": (
        "一个用户每秒的帧数 *f*",
        "GPU 计划的饱和程度 *u*",
        "付费位置被使用的比例 *o*",
        "一张图片的字节数 *B*",
        "一块 GPU 一小时 *P*",
        "流出的每 GB",
    ),
}

LIMITS: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "GPU",
        "core of a server, for pictures",
        "core of HAProxy",
        "port of {port:g} Gbit/s",
        "HAProxy's open files",
    ),
    "zh": ("GPU", "处理图片的服务器核心", "HAProxy 核心", "{port:g} Gbit/s 端口", "HAProxy 的打开文件数"),
}

PACES: Mapping[Language, Mapping[str, str]] = {
    "en": {"as fast as they can": "as fast as they can", "20 fps each": "20 frames/s each"},
    "zh": {"as fast as they can": "尽快", "20 fps each": "各 20 帧/秒"},
}

WAYS: Mapping[Language, Mapping[str, str]] = {
    "en": {"direct": "direct", "haproxy": "HAProxy", "haproxy, TLS": "HAProxy, TLS", "ray": "Ray Serve"},
    "zh": {"direct": "直连", "haproxy": "HAProxy", "haproxy, TLS": "HAProxy, TLS", "ray": "Ray Serve"},
}


def assumptions(language: Language, proxies: Figures) -> Rows:
    """What the other tables assume."""
    values = (
        f"{ASSUMED.frames_per_second:g}",
        f"{ASSUMED.full:g}",
        f"{ASSUMED.occupied:g}",
        f"{proxies['jpeg_bytes']:,}".replace(",", " "),
        f"${ASSUMED.gpu_hour:.2f}",
        f"${ASSUMED.gigabyte:.2f}",
    )
    return [list(row) for row in zip(ASSUMPTIONS[language], values, strict=True)]


def users_of_a_gpu(gpu: Figures, server: Figures) -> Rows:
    """Every setting; the one that the plan takes is bold."""
    best = chosen(server)
    rows: Rows = []
    for found in (*engines(gpu), *servers(server)):
        row = [
            f"`{found.acceleration}`",
            found.batch,
            f"{found.frames_per_second:.0f}",
            f"{found.age_p50:.0f} ms",
            f"{found.age_p99:.0f} ms",
            found.users(),
            f"{found.dollars():.2f}",
        ]
        rows.append([f"**{cell}**" for cell in row] if found == best else list(row))
    return rows


def users_of_a_server(language: Language, server: Figures) -> Rows:
    """The whole server on a GPU, sockets and JPEG included."""
    return [
        [
            run["users"],
            pace,
            f"{run['frames_per_second']:.0f}",
            *(f"{run['age_ms'][key]:.0f} ms" for key in ("p50", "p99")),
        ]
        for name, pace in PACES[language].items()
        for run in server[name]
    ]


def plan(server: Figures, proxies: Figures) -> Rows:
    """What so many users take."""
    plans = (Plan(users, chosen(server), proxies) for users in USERS)
    return [
        [
            _count(p.users),
            _count(p.gpus),
            _count(p.picture_cores + p.gpus),
            _count(p.proxy_cores),
            f"{p.gbit:.1f}",
            _count(p.gpu_dollars),
            _count(p.traffic_dollars),
        ]
        for p in plans
    ]


def limits(language: Language, server: Figures, proxies: Figures) -> Rows:
    """What carries fewest users first."""
    one = Plan(1, chosen(server), proxies)
    carried = (
        one.gpu.users(),
        1 / one.picture_cores,
        1 / one.proxy_cores,
        ASSUMED.port_gbit / one.gbit,
        ASSUMED.files / 4,
    )
    named = zip((name.format(port=ASSUMED.port_gbit) for name in LIMITS[language]), carried, strict=True)
    return [
        [name, _count(users, math.floor), *(_count(wanted / users) for wanted in USERS[1:])]
        for name, users in sorted(named, key=lambda pair: pair[1])
    ]


def latency(language: Language, proxies: Figures) -> Rows:
    """A frame's way there and back, beside a direct connection in the same run."""
    return [
        [
            WAYS[language][way],
            *(f"{found[key]:.1f} ms" for key in ("p50_ms", "p95_ms")),
            *(f"{found[key]:.2f} ms" if way != "direct" else "" for key in ("added_p50_ms", "added_p95_ms")),
        ]
        for way, found in proxies["ways"].items()
    ]


def _count(number: float, whole: Any = math.ceil) -> str:
    return f"{whole(number):,}".replace(",", " ")
