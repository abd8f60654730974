"""The checker on this machine, and on machines that are played."""

import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.accelerations import load_acceleration
from app.accelerations.base import AccelerationError
from app.core import dependencies
from app.core.dependencies import DependencyChecker, main
from app.utils.performance import DeviceMemory

GIB = 2**30

Play = Callable[..., None]


class PlayedDistribution(importlib.metadata.Distribution):
    """A distribution that is nowhere installed."""

    def __init__(self, name: str, version: str, requires: list[str]) -> None:
        lines = [("Metadata-Version", "2.1"), ("Name", name), ("Version", version)]
        message = Message()
        for key, value in [*lines, *(("Requires-Dist", line) for line in requires)]:
            message[key] = value
        self._text = message.as_string()

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def known_accelerations(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["auto", "fused", "none", "tensorrt", "xformers"]
    monkeypatch.setattr(dependencies, "available_accelerations", lambda: names)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """Return a function that plays a machine: what is required, what is installed, which GPU it has."""

    def set_up(
        requirements: str = "",
        installed: tuple[PlayedDistribution, ...] = (),
        driver: str | None = None,
        cuda: str | None = None,
        devices: tuple[DeviceMemory, ...] = (),
    ) -> None:
        (tmp_path / "requirements.txt").write_text(requirements)
        (tmp_path / "requirements-xformers.txt").write_text("# only this\nxformers>=0.0.35\n")
        found = {canonicalize_name(distribution.name): distribution for distribution in installed}
        played_torch = SimpleNamespace(version=SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(dependencies, "ROOT", tmp_path)
        monkeypatch.setattr(dependencies, "_installed", lambda name: found.get(canonicalize_name(name)))
        monkeypatch.setattr(dependencies, "_driver", lambda: driver)
        monkeypatch.setattr(dependencies, "device_memory", lambda: list(devices))
        monkeypatch.setattr(importlib, "import_module", lambda name: played_torch)

    return set_up


def gpu(gib: float = 24) -> DeviceMemory:
    return DeviceMemory(0, "Played GPU", int(gib * GIB), int(gib * GIB), 0, 0)


def warnings_of(acceleration: str) -> list[str]:
    findings = DependencyChecker().findings(acceleration)
    return [finding.message for finding in findings if finding.status == "warning"]


def test_this_machine_can_run_plain_torch() -> None:
    assert DependencyChecker().check_all("none") == (True, [])


def test_table_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none"]) == 0
    out = capsys.readouterr().out
    for line in (dependencies.ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert Requirement(line).name[:17] in out


def test_before_anything_is_installed() -> None:
    bare = [sys.executable, "-S", "-m", "app.core.dependencies"]  # -S: only what comes with Python
    done = subprocess.run(bare, cwd=dependencies.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "packaging is not installed; run: pip install -r requirements.txt\n"


def test_unknown_acceleration() -> None:
    valid, errors = DependencyChecker().check_all("xformer")
    assert not valid
    assert errors == ["unknown acceleration 'xformer'; right would be: xformers, tensorrt, none, fused, auto"]
    assert main(["xformer"]) == 2


def test_missing_and_outdated_libraries(play: Play) -> None:
    play("one>=1\ntwo>=2,<3  # why\nthree\n", (PlayedDistribution("two", "1.9", []),))
    assert DependencyChecker().check_all("none") == (
        False,
        [
            "one is not installed; run: pip install -r requirements.txt",
            "two 1.9 is installed, not <3,>=2; run: pip install -r requirements.txt",
            "three is not installed; run: pip install -r requirements.txt",
        ],
    )


def test_remedies_are_printed_in_one_piece(
    play: Play, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    play(driver="580.65.06", cuda="13.0", devices=(gpu(),))
    assert main(["xformers"]) == 1
    remedy = "error: xformers is not installed; run: pip install -r requirements-xformers.txt\n"
    assert remedy in capsys.readouterr().out


def test_requirements_for_other_pythons_do_not_count(play: Play) -> None:
    play('one>=1; python_version < "3.10"\n')
    assert DependencyChecker().check_all("none") == (True, [])


def test_conflict_between_libraries(play: Play) -> None:
    play(
        "Transformers>=5\n",
        (
            PlayedDistribution("transformers", "5.1", ["tokenizers<0.24", "gone>9; extra == 'more'"]),
            PlayedDistribution("tokenizers", "0.24", []),
            PlayedDistribution("gone", "1", []),
        ),
    )
    assert DependencyChecker().check_all("none")[1] == [
        "Transformers 5.1 needs tokenizers<0.24, but 0.24 is installed; "
        "run: pip install -r requirements.txt -c constraints.txt"
    ]


def test_acceleration_without_its_library(play: Play) -> None:
    play(driver="580.65.06", cuda="13.0", devices=(gpu(),))
    remedy = "xformers is not installed; run: pip install -r requirements-xformers.txt"
    assert DependencyChecker().check_all("xformers") == (False, [remedy])
    assert DependencyChecker().check_all("none") == (True, [])


@pytest.mark.parametrize("acceleration", ["xformers", "tensorrt", "fused"])
def test_acceleration_that_cannot_work_here(acceleration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence that ends the server's start is known before; missing libraries do not hide it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AccelerationError) as caught:
        load_acceleration(acceleration, torch.device("cpu"), Path())
    valid, errors = DependencyChecker().check_all(acceleration)
    assert not valid
    assert errors[-1] == str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["none"]])
def test_the_configured_device_is_the_one_that_counts(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("STREAMDIFFUSION_MODEL__ACCELERATION", "none")
    monkeypatch.setenv("STREAMDIFFUSION_MODEL__DEVICE", "cuda:1")
    assert main(arguments) == 1
    assert "error: model.device is cuda:1, but 0 CUDA devices are found" in capsys.readouterr().out
    monkeypatch.setenv("STREAMDIFFUSION_MODEL__DEVICE", "cpu")
    assert main(arguments) == 0


def test_no_gpu_is_no_error_by_itself(play: Play) -> None:
    play()
    assert DependencyChecker().check_all("auto") == (True, [])
    assert "without a GPU only small models are fast enough" in warnings_of("auto")


def test_cpu_build_beside_a_gpu(play: Play) -> None:
    play(driver="580.65.06")
    (error,) = DependencyChecker().check_all("none")[1]
    assert error.startswith("there is an NVIDIA GPU, but this torch is a CPU build; run: ")


@pytest.mark.parametrize(
    ("driver", "cuda", "message"),
    [
        ("570.86.15", "13.0", "the NVIDIA driver 570.86.15 is too old for CUDA 13.0 (at least 580): "),
        ("520.61.05", "12.6", "the NVIDIA driver 520.61.05 is too old for CUDA 12.6 (at least 525.60.13): "),
        ("525.60.13", "12.6", None),
        ("580.65.06", "13.0", None),
        ("999", "14.0", None),
    ],
)
def test_driver(driver: str, cuda: str, message: str | None, play: Play) -> None:
    play(driver=driver, cuda=cuda, devices=(gpu(),))
    valid, errors = DependencyChecker().check_all("none")
    assert valid is (message is None)
    assert message is None or errors[0].startswith(message)


@pytest.mark.parametrize(("gib", "short"), [(7.4, True), (7.6, False)])
def test_small_gpu_is_a_warning(gib: float, short: bool, play: Play) -> None:
    play(driver="580.65.06", cuda="13.0", devices=(gpu(gib),))
    assert ("with less than 8 GB use a smaller width and height" in warnings_of("none")) is short
    assert DependencyChecker().check_all("none")[0]


def test_little_memory_and_disk_are_warnings(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play()
    monkeypatch.setattr(dependencies, "host_memory", lambda: SimpleNamespace(total=8 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert set(warnings_of("none")) >= {
        "loading a large model may run out of memory",
        "a downloaded model or compiled engines may not fit",
    }
    assert DependencyChecker().check_all("none")[0]


def test_torch_that_does_not_load(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play("torch>=2\n", (PlayedDistribution("torch", "2.13.0", []),))

    def fail(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert DependencyChecker().check_all("none")[1] == [
        "torch is installed but does not load: libcudart.so.13: cannot open shared object file"
    ]


@pytest.mark.parametrize(("version", "status"), [("3.9.18", "error"), ("3.10.0", "ok"), ("3.14.1", "error")])
def test_python(version: str, status: str) -> None:
    assert dependencies._python(version).status == status


@pytest.mark.parametrize(
    ("answer", "version"),
    [("echo 580.65.06; echo 580.65.06", "580.65.06"), ("exit 9", None), ("echo", None)],
)
def test_driver_version_is_asked_of_nvidia_smi(
    answer: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert dependencies._driver() == version


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dependencies._driver() is None


def test_recommended_versions_are_the_tested_ones() -> None:
    plain = DependencyChecker().get_recommended_versions("none")
    accelerated = DependencyChecker().get_recommended_versions("xformers")
    assert set(accelerated) - set(plain) == {"xformers"}
    assert plain["torch"] == "2.13.0"
    assert "pytest" not in plain


def test_tested_versions_lie_in_the_ranges() -> None:
    root = dependencies.ROOT
    tested = DependencyChecker().get_recommended_versions("xformers")
    required = dependencies._required("xformers")
    assert set(tested) == {canonicalize_name(item.name) for item in required}
    development = dependencies._read_requirements(root / "requirements-dev.txt")
    pins = {item.name: item.specifier for item in dependencies._read_requirements(root / "constraints.txt")}
    for item in [*required, *development]:
        (pin,) = pins[canonicalize_name(item.name)]
        assert pin.operator == "=="
        assert item.specifier.contains(pin.version)
