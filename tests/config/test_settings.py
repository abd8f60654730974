"""Where values come from, and what is refused with which sentence."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.config import schema
from app.config.settings import (
    CONFIG_VARIABLE,
    DEFAULT_CONFIG,
    ConfigurationError,
    ModelSettings,
    PipelineSettings,
    Settings,
    available_accelerations,
    available_pipelines,
    configuration_keys,
    describe,
    load_settings,
    variable_name,
)

# The contract's file, word for word: neither a key nor a default of it may change.
CONTRACT = {
    "model": {
        "model_id": "stabilityai/sd-turbo",
        "acceleration": "xformers",
        "engine_dir": "engines",
        "use_cuda_graph": False,
    },
    "pipeline": {
        "name": "img2img",
        "mode": "image",
        "width": 512,
        "height": 512,
        "use_tiny_vae": True,
        "use_lcm_lora": True,
        "warmup": 10,
    },
    "performance": {
        "enable_similar_image_filter": False,
        "similar_image_filter_threshold": 0.98,
        "similar_image_filter_max_skip_frame": 10,
        "jpeg_quality": 85,
    },
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder without variables of ours."""
    for name in os.environ:
        if name.upper().startswith("STREAMDIFFUSION_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of an empty YAML file that is in use."""
    path = tmp_path / "some.yaml"
    path.touch()
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return str(caught.value)


def test_shipped_file_is_the_contract() -> None:
    assert yaml.safe_load(DEFAULT_CONFIG.read_text()) == CONTRACT


def test_defaults_are_those_of_the_contract(config: Path) -> None:
    defaults = load_settings().model_dump(mode="json")
    for section, values in CONTRACT.items():
        assert defaults[section] | values == defaults[section]


def test_shipped_file_loads_and_changes_no_default() -> None:
    assert load_settings().model_dump() == Settings().model_dump()


def test_environment_wins_over_dotenv_over_yaml_over_default(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config.write_text("pipeline: {width: 64, height: 64, warmup: 3}")
    (tmp_path / ".env").write_text(
        "STREAMDIFFUSION_PIPELINE__WIDTH=128\nSTREAMDIFFUSION_PIPELINE__HEIGHT=128\n"
    )
    monkeypatch.setenv("STREAMDIFFUSION_PIPELINE__WIDTH", "256")
    pipeline = load_settings().pipeline
    assert (pipeline.width, pipeline.height, pipeline.warmup) == (256, 128, 3)


def test_yaml_path_may_stand_in_dotenv(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("server: {port: 9}")
    (tmp_path / ".env").write_text(f"{CONFIG_VARIABLE}={tmp_path / 'other.yaml'}\n")
    assert load_settings().server.port == 9


@pytest.mark.parametrize("dotenv", [True, False])
def test_yaml_path_may_be_named_in_any_case(
    dotenv: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text("server: {port: 9}")
    if dotenv:
        (tmp_path / ".env").write_text(f"{CONFIG_VARIABLE.lower()}={tmp_path / 'other.yaml'}\n")
    else:
        monkeypatch.setenv(CONFIG_VARIABLE.lower(), str(tmp_path / "other.yaml"))
    assert load_settings().server.port == 9


def test_plain_settings_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDIFFUSION_PIPELINE__WIDTH", "256")
    assert Settings().pipeline.width == 512


def test_every_key_has_a_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other: dict[str, Any] = {
        "model.model_id": "some/model",
        "model.acceleration": "none",
        "model.engine_dir": "/cache",
        "model.device": "cuda:1",
        "model.dtype": "bfloat16",
        "model.distilled": True,
        "model.lcm_lora_id": "some/lora",
        "model.tiny_vae_id": "some/vae",
        "model.loras": [{"id": "a", "scale": 0.5}],
        "model.revision": "main",
        "model.variant": "fp16",
        "model.single_file_config": "some/model",
        "pipeline.name": "txt2img",
        "pipeline.mode": "video",
        "pipeline.cfg_type": "initialize",
        "performance.similar_image_filter_threshold": 0.5,
        "performance.jpeg_quality": 90,
        "performance.stream_batch": False,
        "server.host": "::1",
        "server.allowed_origins": ["https://example.org:8443"],
        "server.log_level": "debug",
        "server.log_format": "json",
    }
    before = Settings().model_dump(mode="json")
    for key in configuration_keys():
        section, name = key.split(".")
        default = before[section][name]
        if key not in other:
            other[key] = not default if isinstance(default, bool) else (default or 4) * 2
        value = other[key]
        monkeypatch.setenv(variable_name(key), value if isinstance(value, str) else json.dumps(value))
    after = load_settings().model_dump(mode="json")
    assert {key: after[key.split(".")[0]][key.split(".")[1]] for key in configuration_keys()} == other


def test_empty_variable_is_no_value_and_null_is_null(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("pipeline: {mode: video, cfg_type: full}")
    monkeypatch.setenv("STREAMDIFFUSION_PIPELINE__MODE", "")
    monkeypatch.setenv("STREAMDIFFUSION_PIPELINE__CFG_TYPE", "null")
    pipeline = load_settings().pipeline
    assert (pipeline.mode, pipeline.cfg_type) == ("video", None)


def test_section_whose_keys_are_commented_out(config: Path) -> None:
    config.write_text("server:\n  # port: 9\n")
    assert load_settings().server.port == 8000


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().pipeline.width = 8  # type: ignore[misc]


def test_foreign_variables_in_dotenv_are_left_alone(config: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=secret\nmodel=x\nSTREAMDIFFUSION_SERVER__PORT=9\n")
    assert load_settings().server.port == 9


@pytest.mark.parametrize("name", ["STREAMDIFFUSION_PIPELINE__WITDH", "streamdiffusion_pipeline__witdh"])
def test_misspelt_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "512")
    assert refusal().startswith(
        f"{name} (environment) is no variable of this server; "
        "right would be: STREAMDIFFUSION_PIPELINE__WIDTH, "
    )


@pytest.mark.parametrize("name", ["STREAMDIFFUSION_PIPELINE", "STREAMDIFFUSION_MODEL_MODEL_ID"])
def test_variable_without_section_and_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "{}")
    assert f"{name} (environment) is no variable" in refusal()


def test_misspelt_variable_in_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STREAMDIFFUSION_MODEL__ID=x\n")
    message = refusal()
    assert "STREAMDIFFUSION_MODEL__ID (.env)" in message
    assert "STREAMDIFFUSION_MODEL__MODEL_ID" in message


def test_kubernetes_may_have_a_service_named_after_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its service links have our prefix; outside of Kubernetes they could be misspelt variables of ours."""
    links = {
        "STREAMDIFFUSION_SERVICE_HOST": "10.0.0.11",
        "STREAMDIFFUSION_SERVICE_PORT": "8000",
        "STREAMDIFFUSION_SERVICE_PORT_HTTP": "8000",
        "STREAMDIFFUSION_PORT": "tcp://10.0.0.11:8000",
        "STREAMDIFFUSION_BACKEND_PORT_8000_TCP": "tcp://10.0.0.11:8000",
        "STREAMDIFFUSION_BACKEND_PORT_8000_TCP_PROTO": "tcp",
        "STREAMDIFFUSION_BACKEND_PORT_8000_TCP_PORT": "8000",
        "STREAMDIFFUSION_BACKEND_PORT_8000_TCP_ADDR": "10.0.0.11",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert [line.split()[0] for line in refusal().splitlines()] == list(links)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert load_settings().model_dump() == Settings().model_dump()
    monkeypatch.setenv("STREAMDIFFUSION_SERVER__PRT", "9000")
    assert refusal().startswith("STREAMDIFFUSION_SERVER__PRT (environment) is no variable of this server")


def test_misspelt_key(config: Path) -> None:
    config.write_text("pipeline: {witdh: 512}")
    message = refusal()
    assert message.startswith("pipeline.witdh is no configuration key; right would be: pipeline.width, ")
    assert {key for key in configuration_keys() if key.startswith("pipeline.")} <= set(
        re.split(r"[ ,]+", message)
    )
    assert message.endswith(f"(from {config})")


def test_key_in_the_wrong_section(config: Path) -> None:
    config.write_text("model: {jpeg_quality: 90}")
    assert "right would be: performance.jpeg_quality, " in refusal()


def test_misspelt_section(config: Path) -> None:
    config.write_text("modle: {model_id: x}")
    assert "modle is no configuration key; right would be: model, " in refusal()


def test_misspelt_key_of_a_lora(config: Path) -> None:
    config.write_text("model: {loras: [{id: a, scal: 2}]}")
    assert "model.loras.0.scal is no configuration key; right would be: id, scale" in refusal()


@pytest.mark.parametrize("side", ["width", "height"])
def test_side_that_is_no_multiple_of_8(side: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"STREAMDIFFUSION_PIPELINE__{side.upper()}"
    monkeypatch.setenv(variable, "509")
    assert refusal() == (
        f"pipeline.{side}: 509 is no multiple of 8; the nearest are 504 and 512 (from {variable})"
    )


def test_unknown_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_module_names", lambda _folder: ["inpaint", "img2img", "txt2img"])
    with pytest.raises(ValidationError) as caught:
        PipelineSettings(name="txt2imgg")
    assert "unknown pipeline 'txt2imgg'; right would be: txt2img, img2img, inpaint" in describe(caught.value)


def test_unknown_acceleration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_module_names", lambda _folder: ["compile", "none", "xformers"])
    with pytest.raises(ValidationError) as caught:
        ModelSettings(acceleration="xformer")
    assert "unknown acceleration 'xformer'; right would be: xformers, " in describe(caught.value)


def test_selectable_modules_are_files(tmp_path: Path) -> None:
    for name in ("__init__.py", "base.py", "_shared.py", "mine.py", "notes.txt"):
        (tmp_path / name).touch()
    assert schema._module_names(tmp_path) == ["mine"]


def test_defaults_can_be_selected() -> None:
    assert PipelineSettings().name in available_pipelines()
    assert {"auto", "none", ModelSettings().acceleration} <= set(available_accelerations())


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PIPELINE__MODE", "vidio", "pipeline.mode: must be one of: video, image, not 'vidio'"),
        ("PIPELINE__CFG_TYPE", "slf", "pipeline.cfg_type: must be one of: self, "),
        ("PIPELINE__WIDTH", "0", "pipeline.width: should be greater than or equal to 8, not '0'"),
        ("PERFORMANCE__JPEG_QUALITY", "0", "performance.jpeg_quality: should be greater than"),
        ("MODEL__DEVICE", "gpu", "unknown device 'gpu'; right would be: auto, cpu, cuda, cuda:N"),
        ("MODEL__USE_CUDA_GRAPH", "maybe", "model.use_cuda_graph: should be a valid boolean"),
        ("MODEL__LORAS", "my-lora", "model.loras: 'my-lora' is no JSON list"),
        ("SERVER__ALLOWED_ORIGINS", "https://a", "server.allowed_origins: 'https://a' is no JSON list"),
        ("SERVER__ALLOWED_ORIGINS", '["https://a/"]', "server.allowed_origins.0: 'https://a/' is no origin"),
        ("SERVER__SHUTDOWN_TIMEOUT", "inf", "server.shutdown_timeout: should be a finite number, not 'inf'"),
        ("SERVER__LOG_LEVEL", "warn", "server.log_level: must be one of: warning, "),
    ],
)
def test_value_that_is_not_allowed(
    variable: str, value: str, sentence: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STREAMDIFFUSION_{variable}", value)
    message = refusal()
    assert sentence in message
    assert message.endswith(f"(from STREAMDIFFUSION_{variable})")
    assert "\n" not in message


def test_dotenv_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STREAMDIFFUSION_SERVER__PORT=9\n", encoding="utf-16")
    assert re.fullmatch(r"\.env is not UTF-8: .*", refusal())


def test_dotenv_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / ".env").touch()
    monkeypatch.setattr("app.config.settings.dotenv_values", refuse)
    assert refusal() == "cannot read .env: Permission denied"


def test_name_without_a_value_in_dotenv_is_told_where_it_stands(tmp_path: Path) -> None:
    """Docker's env files know such lines."""
    (tmp_path / ".env").write_text("STREAMDIFFUSION_MODEL__MODEL_ID\n")
    assert refusal().endswith("(from STREAMDIFFUSION_MODEL__MODEL_ID in .env)")


def test_every_fault_is_told_at_once(config: Path) -> None:
    config.write_text("pipeline: {width: 9}\nserver: {port: 70000}")
    assert len(refusal().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pipeline: [", "is not valid YAML: "),
        ("server: {port: 9}\npipeline: {}\nserver: {host: a}", "is not valid YAML: server stands twice"),
        ("server:\n  port: 9\n  port: 8", "is not valid YAML: port stands twice"),
        ("- pipeline", "must hold the sections model, pipeline, performance, server"),
        ("pipeline: 3", "pipeline: must hold keys, not 3"),
    ],
)
def test_file_that_is_no_configuration(config: Path, text: str, sentence: str) -> None:
    config.write_text(text)
    assert sentence in refusal()


def test_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "nowhere.yaml")
    assert refusal() == "cannot read the configuration file nowhere.yaml: No such file or directory"


def test_configuration_does_not_import_torch() -> None:
    code = "import sys, app.config.settings; sys.exit('torch' in sys.modules)"
    root = Path(schema.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
