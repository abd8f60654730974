"""Images and Compose projects as an operator has them, with the embedded model instead of a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.deploy.servers import ROOT

IMAGE = "streamdiffusion-backend:test"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it wrote; its errors too if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def copy_repository(folder: Path) -> None:
    """Copy what git has or would take, so that a test can change it and Docker can make folders in it."""
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


class Project:
    """A Compose project of files that are shipped, and a last one that changes what a test must.

    Args:
        folder: a copy of the repository.
        files: the shipped ones.
        override: content of the last one.
        options: of every command, beside the files.
    """

    def __init__(self, folder: Path, files: list[str], override: str, *options: str) -> None:
        self.folder = folder
        last = folder / f"{folder.name}-{len(files)}.yml"
        last.write_text(override)
        self._options = [part for name in (*files, last.name) for part in ("-f", name)] + list(options)

    def compose(self, *arguments: str) -> str:
        """Run a command of Compose."""
        return run("docker", "compose", *self._options, *arguments, cwd=self.folder)

    def build(self) -> float:
        """Build the image. Returns how many seconds it took."""
        began = time.monotonic()
        self.compose("build")
        return time.monotonic() - began

    def up(self, *arguments: str) -> None:
        """Start or replace, and wait until healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", "180", *arguments)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service)

    def inspect(self, service: str, what: str) -> Any:
        """A part of what Docker knows of a service's container, such as ``.State``."""
        return json.loads(
            run("docker", "inspect", "--format", f"{{{{json {what}}}}}", self.container(service))
        )

    def down(self) -> float:
        """End all of it and forget its volumes. Returns how many seconds it took."""
        began = time.monotonic()
        self.compose("down", "--volumes")
        return time.monotonic() - began
