"""Memory readings without a GPU, and with one that is played."""

import logging
import os
from pathlib import Path

import psutil
import pytest
import torch

from app.utils.performance import DeviceMemory, PerformanceOptimizer, device_memory, host_memory

GIB = 2**30


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def played_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Play a device of 8 GiB whose cache of 3 GiB shrinks to 1 GiB when emptied; return the calls."""
    calls: list[str] = []

    def reserved(index: int = 0) -> int:
        return 1 * GIB if "empty_cache" in calls else 3 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Played GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: GIB // 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    return calls


def test_host_memory_is_that_of_this_process() -> None:
    memory = host_memory()
    pages = int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1])
    assert memory.resident == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.1)
    assert memory.resident < memory.total
    assert 0 < memory.available <= memory.total == psutil.virtual_memory().total


def test_without_gpu(no_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    assert device_memory() == []
    with caplog.at_level(logging.DEBUG):
        PerformanceOptimizer.cleanup_gpu_memory()
        PerformanceOptimizer.log_gpu_memory_info()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "no CUDA device: no GPU memory to clean up"),
        ("INFO", "no CUDA device: no GPU memory in use"),
    ]


def test_device_memory(played_gpu: list[str]) -> None:
    assert device_memory() == [
        DeviceMemory(
            index=0, name="Played GPU", total=8 * GIB, free=5 * GIB, allocated=GIB // 2, reserved=3 * GIB
        )
    ]


def test_a_device_that_is_not_in_use_is_not_opened(
    played_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def mem_get_info(index: int) -> tuple[int, int]:
        opened.append(index)
        return 5 * GIB, 8 * GIB

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: GIB if index == 1 else 0)
    assert [device.index for device in device_memory(in_use=True)] == [1]
    assert opened == [1]
    assert [device.index for device in device_memory()] == [0, 1, 2]


def test_cleanup_gives_the_cache_back_and_says_how_much(
    played_gpu: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        PerformanceOptimizer.cleanup_gpu_memory()
    assert caplog.records[0].__dict__["freed_gib"] == 2.0


def test_log_names_the_device_and_its_memory(played_gpu: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        PerformanceOptimizer.log_gpu_memory_info()
    (record,) = caplog.records
    assert record.message == "GPU memory of cuda:0"
    values = record.__dict__
    assert (values["device_name"], values["total_gib"], values["free_gib"]) == ("Played GPU", 8.0, 5.0)
    assert (values["allocated_gib"], values["reserved_gib"]) == (0.5, 3.0)


@pytest.mark.gpu
def test_real_gpu_is_read_and_cleaned() -> None:
    tensor = torch.ones(64 * 2**20, device="cuda")
    (device, *_) = device_memory()
    assert device.allocated >= tensor.nbytes
    assert device.total >= device.free > 0
    del tensor
    PerformanceOptimizer.cleanup_gpu_memory()
    assert device_memory()[0].reserved < device.reserved
