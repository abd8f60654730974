"""The image, built once for all tests with containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.containers import IMAGE, Project, copy_repository
from tests.deploy.servers import free_port


class OneServer(Project):
    """`docker-compose.yml` with the CPU override, on the host's network and a port of its own."""

    port: int
    built_in: float


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneServer]:
    folder = tmp_path_factory.mktemp("project")
    copy_repository(folder)
    port = free_port()
    override = f"""
services:
  backend:
    image: {IMAGE}
    build: {{network: host}}
    network_mode: host
    ports: !reset []
    environment:
      STREAMDIFFUSION_SERVER__HOST: 127.0.0.1
      STREAMDIFFUSION_SERVER__PORT: "{port}"
      STREAMDIFFUSION_MODEL__THREADS: "1"
"""
    project = OneServer(folder, ["docker-compose.yml", "docker-compose.cpu.yml"], override)
    project.port = port
    project.built_in = project.build()
    try:
        yield project
    finally:
        project.down()
