"""What Prometheus is told. Counting happens where things happen; this reads it when it is asked."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.core.engine import Engine
from app.core.messages import Done, Ticked
from app.core.session import Registry
from app.utils.performance import device_memory, host_memory

NAMESPACE = "streamdiffusion"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_WINDOW = 10


class Rate:
    """Events per second over the last ten seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (_WINDOW + 1)
        self._seconds = [0] * (_WINDOW + 1)

    def add(self, now: float) -> None:
        """Count an event at ``now``, in seconds of the monotonic clock."""
        second = int(now)
        place = second % len(self._counts)
        if self._seconds[place] != second:
            self._seconds[place], self._counts[place] = second, 0
        self._counts[place] += 1

    def value(self, now: float) -> float:
        """The rate; the second that is under way does not count yet."""
        second = int(now)
        recent = range(second - _WINDOW, second)
        counted = zip(self._seconds, self._counts, strict=True)
        return sum(count for when, count in counted if when in recent) / _WINDOW


class Distribution:
    """A histogram that costs a frame next to nothing: it belongs to one thread and needs no lock."""

    def __init__(self, name: str, words: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._words = words
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Metric:
        """What was counted, as Prometheus has it: each bucket contains the ones below."""
        bounds = (*map(str, self._bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(f"{NAMESPACE}_{self._name}", self._words, buckets, self._sum)


class Metrics(Collector):
    """The metrics of one service."""

    def __init__(self, sessions: Registry, engine: Engine) -> None:
        self._sessions = sessions
        self._engine = engine
        self._results = Rate()
        self._age = Distribution("frame_age_seconds", "From a frame's arrival to its result", _SECONDS)
        self._tick = Distribution("tick_seconds", "Time of one forward pass and what belongs to it", _SECONDS)
        self._fill = Distribution("batch_fill_ratio", "Rows of a batch that carry a frame", _FILL)

    def observe(self, event: Ticked | Done) -> None:
        """Note a tick or a published result."""
        if isinstance(event, Ticked):
            self._tick.observe(event.seconds)
            self._fill.observe(event.rows / event.batch)
            return
        now = time.monotonic()
        self._age.observe(now - event.frame.received_at)
        self._results.add(now)

    @property
    def frames_per_second(self) -> float:
        """Results of all users, over the last ten seconds."""
        return self._results.value(time.monotonic())

    def render(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        yield from (self._age.collect(), self._tick.collect(), self._fill.collect())
        counters = self._sessions.counters
        for name, words in {
            "received": "Complete frames of clients",
            "dropped": "Frames that gave way to a newer one",
            "skipped": "Frames that the similarity filter skipped",
            "failed": "Frames that gave no picture",
            "results": "Pictures published",
            "errors": "Messages and pictures that were refused",
        }.items():
            prefix = "" if name == "errors" else "frames_"
            yield CounterMetricFamily(f"{NAMESPACE}_{prefix}{name}", words, getattr(counters, name))
        yield _gauge("frames_per_second", "Results over the last ten seconds", self.frames_per_second)
        yield _gauge("sessions", "Users connected", len(self._sessions))
        yield _gauge("frames_waiting", "Frames that wait for the device", self._engine.waiting)
        yield _gauge("ready", "1 when frames can be made", float(self._engine.state == "ready"))
        yield _gauge(
            "degraded", "1 when the server does less than it should", float(self._engine.degraded is not None)
        )
        yield _gauge("resident_memory_bytes", "Memory of this process", host_memory().resident)
        memory = GaugeMetricFamily(
            f"{NAMESPACE}_device_memory_bytes", "Memory of the CUDA devices in use", labels=("device", "kind")
        )
        for device in device_memory(in_use=True):
            for kind in ("total", "free", "allocated", "reserved"):
                memory.add_metric((str(device.index), kind), getattr(device, kind))
        yield memory


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", words, value)
