"""Checks this machine against what the server needs, and says what to do about the difference.

The version ranges come from the requirements files and the tested versions from `constraints.txt`: this
module holds none of its own. `python -m app.core.dependencies [ACCELERATION]` prints a table; its exit status
is 0 if the server can start, 1 if not and 2 if the acceleration is unknown.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version
    from rich.console import Console
    from rich.table import Table

    from app.config.schema import available_accelerations, closest_first
    from app.config.settings import ConfigurationError, load_settings
    from app.core.messages import StartError
    from app.utils.performance import device_memory, host_memory
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing.name} is not installed; run: pip install -r requirements.txt")

ROOT = Path(__file__).resolve().parents[2]

PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13")
# The oldest Linux driver that runs programs of a CUDA major version, from NVIDIA's CUDA compatibility guide,
# table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility".
OLDEST_DRIVER: Mapping[int, Version] = {
    11: Version("450.80.02"),
    12: Version("525.60.13"),
    13: Version("580"),
}

_GIB = 2**30
# What the requirements call 8, 16 and 20 GB; a card sold as 8 GB reports a little less than 8 GiB.
GPU_MEMORY = int(7.5 * _GIB)
HOST_MEMORY = int(15 * _GIB)
DISK = 20 * 10**9

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    An "error" keeps the server from starting as configured; a "warning" is a shortage it may run with.
    `message` says what to do and is empty if all is well.
    """

    name: str
    found: str
    wanted: str
    status: Status = "ok"
    message: str = ""


class DependencyChecker:
    """Compares Python, libraries, GPU, memory and disk of this machine with what is needed."""

    def check_all(self, acceleration: str = "auto") -> tuple[bool, list[str]]:
        """Say whether the server can start with an acceleration, and what is in the way.

        Args:
            acceleration: A value of `model.acceleration`.

        Returns:
            Whether nothing is in the way, and one readable sentence for each thing that is. Shortages that
            the server may run with (little memory or disk) are not among them; see `findings`.
        """
        errors = [finding.message for finding in self.findings(acceleration) if finding.status == "error"]
        return not errors, errors

    def get_recommended_versions(self, acceleration: str = "auto") -> dict[str, str]:
        """Return versions that were tested together on this Python, by the name of the distribution.

        Args:
            acceleration: A value of `model.acceleration`; adds what it needs, if that was tested.
        """
        wanted = {canonicalize_name(requirement.name) for requirement in _required(acceleration)}
        return {
            requirement.name: next(iter(requirement.specifier)).version
            for requirement in _read_requirements(ROOT / "constraints.txt")
            if canonicalize_name(requirement.name) in wanted
        }

    def findings(self, acceleration: str = "auto", device: str = "auto") -> list[Finding]:
        """Look at everything and return what was found, good and bad.

        Args:
            acceleration: A value of `model.acceleration`.
            device: A value of `model.device`, which the acceleration has to work on.
        """
        known = available_accelerations()
        if acceleration not in known:
            right = ", ".join(closest_first(acceleration, known))
            message = f"unknown acceleration {acceleration!r}; right would be: {right}"
            return [Finding("acceleration", acceleration, right, "error", message)]
        findings = [_python(platform.python_version()), *_packages(acceleration), *_gpu()]
        wrong = any(finding.status == "error" for finding in findings)
        # What else is wrong comes first, unless without a GPU it would be mended in vain.
        if not wrong or any(finding.name == "GPU" for finding in findings):
            findings.append(_acceleration(acceleration, device))
        return [*findings, *_resources()]


def _read_requirements(path: Path) -> list[Requirement]:
    """Return the requirements in a file that apply to this Python; comments and options are left out."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    requirements = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [item for item in requirements if item.marker is None or item.marker.evaluate()]


def _requirement_files(acceleration: str) -> list[Path]:
    own = ROOT / f"requirements-{acceleration}.txt"
    return [ROOT / "requirements.txt", *([own] if own.is_file() else [])]


def _required(acceleration: str) -> list[Requirement]:
    return [item for path in _requirement_files(acceleration) for item in _read_requirements(path)]


def _installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python(version: str) -> Finding:
    wanted = f"{PYTHON_VERSIONS[0]} to {PYTHON_VERSIONS[-1]}"
    if version.rpartition(".")[0] in PYTHON_VERSIONS:
        return Finding("Python", version, wanted)
    return Finding("Python", version, wanted, "error", f"Python {version} runs, but {wanted} is needed")


def _packages(acceleration: str) -> Iterator[Finding]:
    """Compare what is installed with the requirements files, and with what the libraries want."""
    for path in _requirement_files(acceleration):
        for requirement in _read_requirements(path):
            yield _package(requirement, f"pip install -r {path.name}")
    for requirement in _required(acceleration):
        distribution = _installed(requirement.name)
        if distribution is not None:
            yield from _conflicts(requirement.name, distribution)


def _package(requirement: Requirement, remedy: str) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier)
    distribution = _installed(name)
    if distribution is None:
        return Finding(name, "missing", wanted, "error", f"{name} is not installed; run: {remedy}")
    found = distribution.version
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(name, found, wanted)
    return Finding(name, found, wanted, "error", f"{name} {found} is installed, not {wanted}; run: {remedy}")


def _conflicts(name: str, distribution: importlib.metadata.Distribution) -> Iterator[Finding]:
    """Report libraries that are installed in a version that `distribution` says it does not work with."""
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        other = _installed(requirement.name)
        if other is None or requirement.specifier.contains(other.version, prereleases=True):
            continue
        message = (
            f"{name} {distribution.version} needs {requirement.name}{requirement.specifier}, but "
            f"{other.version} is installed; run: pip install -r requirements.txt -c constraints.txt"
        )
        yield Finding(requirement.name, other.version, str(requirement.specifier), "error", message)


def _driver() -> str | None:
    """Ask NVIDIA's driver for its version; None where there is no driver or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.split()[0] if answer.strip() else None


def _gpu() -> Iterator[Finding]:
    """Report the driver, torch's build and every device; without a GPU, what that means."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        if _installed("torch") is not None:
            yield Finding("torch", "broken", "", "error", f"torch is installed but does not load: {error}")
        return
    driver, cuda = _driver(), torch.version.cuda
    yield _driver_finding(driver, cuda)
    with warnings.catch_warnings():
        # torch warns about an old driver; the finding above says it, with the remedy.
        warnings.simplefilter("ignore")
        devices = device_memory()
    for device in devices:
        found = f"{device.name}, {device.total / _GIB:.1f} GiB"
        short = device.total < GPU_MEMORY
        yield Finding(
            f"cuda:{device.index}",
            found,
            "8 GB",
            "warning" if short else "ok",
            "with less than 8 GB use a smaller width and height" if short else "",
        )
    if not devices:
        message = "without a GPU only small models are fast enough"
        yield Finding("GPU", "none", "an NVIDIA GPU", "warning", message)


def _driver_finding(driver: str | None, cuda: str | None) -> Finding:
    """Compare NVIDIA's driver with the CUDA version that torch was built for (None: a CPU build)."""
    found = f"{driver or 'none'}, torch for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    if driver is None:
        return Finding("NVIDIA driver", found, "")
    if cuda is None:
        message = (
            "there is an NVIDIA GPU, but this torch is a CPU build; run: "
            "pip uninstall -y torch && pip install -r requirements.txt"
        )
        return Finding("NVIDIA driver", found, "torch for CUDA", "error", message)
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    if oldest is None or Version(driver) >= oldest:
        return Finding("NVIDIA driver", found, f">={oldest}" if oldest else "")
    message = (
        f"the NVIDIA driver {driver} is too old for CUDA {cuda} (at least {oldest}): update the driver, or "
        "install a torch for an older CUDA from https://pytorch.org/get-started/locally/"
    )
    return Finding("NVIDIA driver", found, f">={oldest}", "error", message)


def _acceleration(name: str, device: str) -> Finding:
    """Ask the acceleration itself, as the server does when it starts; takes the libraries' seconds."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from app.accelerations import load_acceleration
        from app.models.loader import resolve_device

        load_acceleration(name, resolve_device(device), Path())
    except (StartError, ImportError, OSError) as error:
        return Finding("acceleration", name, "", "error", str(error))
    return Finding("acceleration", name, "")


def _resources() -> Iterator[Finding]:
    memory, disk = host_memory().total, shutil.disk_usage(ROOT).free
    yield Finding(
        "memory",
        f"{memory / _GIB:.1f} GiB",
        "16 GB",
        "ok" if memory >= HOST_MEMORY else "warning",
        "" if memory >= HOST_MEMORY else "loading a large model may run out of memory",
    )
    yield Finding(
        "free disk",
        f"{disk / 10**9:.0f} GB",
        "20 GB",
        "ok" if disk >= DISK else "warning",
        "" if disk >= DISK else "a downloaded model or compiled engines may not fit",
    )


def _table(findings: list[Finding]) -> Table:
    table = Table("", "found", "wanted", "")
    style: Mapping[Status, str] = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        status = f"[{style[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, finding.found, finding.wanted, status)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Print the findings as a table, and what to do; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.core.dependencies", description=__doc__)
    parser.add_argument(
        "acceleration", nargs="?", help="a value of model.acceleration; else the configured one"
    )
    chosen = parser.parse_args(arguments).acceleration
    console = Console()
    try:
        model = load_settings().model
    except ConfigurationError as error:
        console.print(str(error), markup=False)
        return 2
    acceleration = chosen or model.acceleration
    findings = DependencyChecker().findings(acceleration, model.device)
    console.print(_table(findings))
    for finding in findings:
        if finding.message:  # in one piece, for it has commands to copy
            console.print(f"{finding.status}: {finding.message}", markup=False, soft_wrap=True)
    if acceleration not in available_accelerations():
        return 2
    return int(any(finding.status == "error" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
