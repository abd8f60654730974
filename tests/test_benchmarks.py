"""What the benchmarks do where something is not as it should be."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.front_end import Record, User, client_frame
from benchmarks.gpu import isolated
from benchmarks.proxies import figures, ray_before
from benchmarks.results import save
from benchmarks.serving import Server


def dies_at_once(_port: int, _pipe: Connection) -> None:
    raise SystemExit(3)


def dies_before_it_serves(_port: int, pipe: Connection) -> None:
    pipe.send({})
    raise SystemExit(3)


@pytest.mark.parametrize("target", [dies_at_once, dies_before_it_serves])
def test_nobody_waits_for_a_server_that_died(target: Callable[..., None]) -> None:
    with pytest.raises(RuntimeError, match="process died"):
        Server(target)


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def test_front_ends_answer_pings() -> None:
    wire = Wire()
    user = User("localhost", "ann", [], Record(), None, "ws")
    user.connection_made(wire)
    user.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x89\x04ping")
    assert wire.written[1:] == [client_frame(10, b"ping")]


@pytest.mark.parametrize("name", ["gpu", "gpu_server", "kernels"])
def test_without_a_gpu_no_results_are_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_properties", None)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit, match="there is none"):
        importlib.import_module(f"benchmarks.{name}").main()


def test_what_ray_added_is_kept_by_a_run_without_it_on_such_a_machine(tmp_path: Path) -> None:
    result = figures({"direct": [1.0], "ray": [3.0]})
    row = result["ways"]["ray"]
    written = save("proxies", result, tmp_path)
    date = json.loads(written.read_text("utf-8"))["machine"]["date"]
    kept = ray_before(written)
    assert kept == {"ray": {"date": date, **row}}
    save("proxies", {"ways": {"ray": {**row, "date": "long ago"}}}, tmp_path)
    assert ray_before(written)["ray"]["date"] == "long ago", "that of its measurement, not of the file"
    written.write_text(json.dumps({"ways": kept, "machine": {"cpu": "another", "versions": {}}}), "utf-8")
    assert ray_before(written) == {}
    assert ray_before(tmp_path / "none.json") == {}


def test_tables_leave_out_what_could_not_be_measured() -> None:
    error = {"error": "ModuleNotFoundError: No module named 'torchvision'"}
    found = {"ticks": {"fused": error}, "attention_us": error, "codec_ms": error}
    assert report.codec(found).splitlines() == ["|  | ms a picture |", "| --- | ---: |"]
    assert "error" not in report.attention(found) + report.kernels(found)


def _measure(ending: str) -> Iterator[dict[str, int]]:
    yield {"frames": 1}
    yield {"frames": 2}
    if ending == "raises":
        raise RuntimeError("out of memory")
    if ending == "dies":
        os._exit(1)


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("raises", {"error": "RuntimeError: out of memory"}),
        ("dies", {"error": "the process died"}),
    ],
)
def test_what_was_measured_before_an_error_is_kept(ending: str, error: dict[str, str]) -> None:
    assert isolated(_measure, ending) == {"frames": 2, **error}


def test_a_measurement_ends_at_its_limit() -> None:
    assert isolated(_measure, "ends", limit=0) == {"error": "ended after 0 s"}
