"""What Prometheus is told. Counting happens where things happen; this reads it when it is asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
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


class Metrics(Collector):
    """The metrics of one service."""

    def __init__(self, sessions: Registry, engine: Engine) -> None:
        self._sessions = sessions
        self._engine = engine
        self._registry = CollectorRegistry()
        self._results = Rate()

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, words, namespace=NAMESPACE, buckets=buckets, registry=self._registry)

        self._age = histogram("frame_age_seconds", "From a frame's arrival to its result", _SECONDS)
        self._tick = histogram("tick_seconds", "Time of one forward pass and what belongs to it", _SECONDS)
        self._fill = histogram("batch_fill_ratio", "Rows of a batch that carry a frame", _FILL)
        self.failures = Counter(
            "engine_failures", "Times the device was lost", namespace=NAMESPACE, registry=self._registry
        )
        self._registry.register(self)

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
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: registering must not read the devices."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read what is counted elsewhere."""
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
        yield _gauge("resident_memory_bytes", "Memory of this process", host_memory().resident)
        memory = GaugeMetricFamily(
            f"{NAMESPACE}_device_memory_bytes", "Memory of the CUDA devices", labels=("device", "kind")
        )
        for device in device_memory():
            for kind in ("total", "free", "allocated", "reserved"):
                memory.add_metric((str(device.index), kind), getattr(device, kind))
        yield memory


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", words, value)
