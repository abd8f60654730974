"""What the deployment's files promise each other; the tests marked docker and cluster show that they work."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config.schema import ServerSettings
from app.main import CONFIGURATION_ERROR

ROOT = Path(__file__).resolve().parents[2]


class Loader(yaml.SafeLoader):
    """Knows Compose's `!reset`."""


Loader.add_constructor("!reset", lambda loader, node: None)


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((ROOT / path).read_text(), Loader)
    return content


def gpus(service: dict[str, Any]) -> dict[str, Any]:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    found: dict[str, Any] = device
    return found


def test_one_server_has_one_gpu_and_keeps_engines_and_models() -> None:
    backend = read("docker-compose.yml")["services"]["backend"]
    assert gpus(backend)["count"] == 1
    assert backend["volumes"] == ["./engines:/app/engines", "huggingface:/app/.cache/huggingface"]
    assert backend["ports"] == ["8000:8000"]
    assert backend["restart"] == "unless-stopped"


def test_cpu_override_runs_the_embedded_model_without_a_gpu() -> None:
    backend = read("docker-compose.cpu.yml")["services"]["backend"]
    assert backend["deploy"] is None
    assert backend["build"]["args"]["COMPILERS"] == ""  # of no use to `none`
    defaults = {}
    for name, value in backend["environment"].items():
        found = re.fullmatch(rf"\${{{name}:-(.+)}}", value)
        assert found, f"{name} could not be changed in .env"
        defaults[name] = found[1]
    assert (ROOT / defaults["STREAMDIFFUSION_MODEL__MODEL_ID"] / "model_index.json").is_file()


@pytest.mark.parametrize("count", range(1, 9))
def test_profile_starts_so_many_servers_each_with_its_own_gpu(count: int) -> None:
    services = read("deploy/haproxy/docker-compose.yml")["services"]
    started = [
        name
        for name, service in services.items()
        if name.startswith("gpu-") and str(count) in service.get("profiles", [str(count)])
    ]
    assert started == [f"gpu-{number}" for number in range(count)]
    assert [gpus(services[name])["device_ids"] for name in started] == [[str(n)] for n in range(count)]


def test_proxy_and_prometheus_know_every_server() -> None:
    services = read("deploy/haproxy/docker-compose.yml")["services"]
    servers = [name for name in services if name.startswith("gpu-")]
    configuration = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    listed = re.findall(r"^    server (\S+) (\S+)$", configuration, re.MULTILINE)
    assert listed == [(name, f"{name}:8000") for name in servers]
    (job, _) = read("deploy/haproxy/prometheus.yml")["scrape_configs"]
    assert job["dns_sd_configs"][0]["names"] == servers


def test_image_is_made_of_what_the_ignore_file_lets_through() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(shlex.split(line)[1:-1])
    assert {
        source.removesuffix("/entrypoint").removesuffix("/healthcheck") for source in copied
    } == let_through
    assert not any(source in (".", ".env") for source in copied)


def test_ray_aims_at_the_users_that_service_names() -> None:
    (application,) = read("deploy/ray/serve.yaml")["applications"]
    (deployment,) = application["deployments"]
    service = (ROOT / "deploy/ray/service.py").read_text()
    users, connections = (int(found) for found in re.findall(r"^[A-Z]+ = (\d+)$", service, re.MULTILINE))
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == users * connections
    assert deployment["max_ongoing_requests"] == users * connections * 8


def test_prometheus_has_the_alerts_and_they_its_job() -> None:
    configuration = read("deploy/haproxy/prometheus.yml")
    (rules,) = configuration["rule_files"]
    mounted = read("deploy/haproxy/docker-compose.yml")["services"]["prometheus"]["volumes"]
    assert f"../prometheus/alerts.yml:/etc/prometheus/{rules}:ro" in mounted
    jobs = re.findall(r'job="(\w+)"', (ROOT / "deploy/prometheus/alerts.yml").read_text())
    assert set(jobs) == {configuration["scrape_configs"][0]["job_name"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (apt-get install prometheus)")
def test_a_server_that_is_no_target_any_more_is_down(tmp_path: Path) -> None:
    """gpu-0 answers, gpu-1 has left DNS, gpu-2 does not answer; then there is nothing at all."""

    def up(instance: str, values: str) -> dict[str, str]:
        return {"series": f'up{{job="streamdiffusion",instance="{instance}"}}', "values": values}

    def down(summary: str, **labels: str) -> dict[str, Any]:
        labels |= {"job": "streamdiffusion", "severity": "critical"}
        return {"exp_labels": labels, "exp_annotations": {"summary": summary}}

    def case(series: list[dict[str, str]], *alerts: dict[str, Any]) -> dict[str, Any]:
        expected = {"eval_time": "8m", "alertname": "StreamDiffusionDown", "exp_alerts": list(alerts)}
        return {"interval": "30s", "input_series": series, "alert_rule_test": [expected]}

    cases = [
        case(
            [up("gpu-0", "1x20"), up("gpu-1", "1x10 stale"), up("gpu-2", "1x10 0x10")],
            down("gpu-1 does not answer", instance="gpu-1"),
            down("gpu-2 does not answer", instance="gpu-2"),
        ),
        case([], down("There is no server")),
    ]
    file = tmp_path / "cases.yml"
    rules = str(ROOT / "deploy/prometheus/alerts.yml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "30s", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_starts_again_what_can_be_mended_and_waits_for_the_end() -> None:
    unit = (ROOT / "deploy/systemd/streamdiffusion.service").read_text()
    values = dict(re.findall(r"^(\w+)=(.+)$", unit, re.MULTILINE))
    assert int(values["RestartPreventExitStatus"]) == CONFIGURATION_ERROR
    assert float(values["TimeoutStopSec"]) > ServerSettings().shutdown_timeout
    assert values["ExecStart"] == f"{values['WorkingDirectory']}/.venv/bin/python -m app.main"
