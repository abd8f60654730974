"""Reads the configuration: environment variables over `.env` over YAML over the defaults.

What is not understood is an error, whatever its source: a misspelt variable must not be ignored silently.
The types themselves stand in `app.config.schema`.
"""

import os
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.config.schema import (
    LoraSettings,
    ModelSettings,
    PerformanceSettings,
    PipelineSettings,
    ServerSettings,
    Settings,
    available_accelerations,
    available_pipelines,
    closest_first,
)

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_CONFIG",
    "ConfigurationError",
    "LoraSettings",
    "ModelSettings",
    "PerformanceSettings",
    "PipelineSettings",
    "ServerSettings",
    "Settings",
    "available_accelerations",
    "available_pipelines",
    "configuration_keys",
    "describe",
    "load_settings",
    "variable_name",
]

PREFIX = "STREAMDIFFUSION_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_CONFIG = Path(__file__).with_name("config.yaml")
ENV_FILE = Path(".env")

_SERVICE_LINK = re.compile(
    rf"{PREFIX}([A-Z0-9]+_)*?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every container of a namespace that has a service named after this server."""


class ConfigurationError(ValueError):
    """The configuration cannot be used; the message says what is wrong, one sentence a line."""


class _YamlLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, as YAML does; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names: list[Any] = []
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            names.append(key.value)
        return super().construct_mapping(node, deep)


class _Sources(Settings, BaseSettings):
    """The settings with their sources; apart, so that plain `Settings` can be built without reading any."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_nested_max_split=1,
        # Compose passes variables that nobody set as empty strings.
        env_ignore_empty=True,
        env_parse_none_str="null",
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        # `.env` may hold variables of other programs; ours are checked by `_check_variables`.
        dotenv_filtering="only_existing",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, the strongest first."""
        return (env_settings, dotenv_settings, InitSettingsSource(settings_cls, _read_yaml(_config_path())))


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        yield name, section


def configuration_keys() -> list[str]:
    """Return every key as `section.key`, in the order of their definition."""
    return [f"{name}.{key}" for name, section in _sections() for key in section.model_fields]


def variable_name(key: str) -> str:
    """Return the environment variable of a key, e.g. `STREAMDIFFUSION_SERVER__PORT` of `server.port`."""
    return PREFIX + key.replace(".", "__").upper()


def _dotenv() -> Mapping[str, str | None]:
    try:
        return dotenv_values(ENV_FILE, encoding="utf-8") if ENV_FILE.is_file() else {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {ENV_FILE}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{ENV_FILE} is not UTF-8: {error}") from error


def _places(variable: str) -> Iterator[tuple[str, str | None]]:
    """Where a variable is set, in whatever case, and to what; the strongest first. Empty is not set."""
    for source, names in (("", os.environ), (" in .env", _dotenv())):
        for name, value in names.items():
            if name.upper() == variable and value != "":
                yield f"{name}{source}", value


def _config_path() -> Path:
    paths = (value for _, value in _places(CONFIG_VARIABLE) if value is not None)
    return Path(next(paths, DEFAULT_CONFIG))


def _check_variables(source: str, names: Mapping[str, str | None]) -> list[str]:
    """Return a sentence for each variable of `names` that has our prefix and belongs to no key."""
    known = [CONFIG_VARIABLE, *map(variable_name, configuration_keys())]
    return [
        f"{name} ({source}) is no variable of this server; right would be: "
        f"{', '.join(closest_first(name, known)[:3])} …; docs/configuration.md lists all"
        for name in names
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _is_service_link(name)
    ]


def _is_service_link(name: str) -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and _SERVICE_LINK.fullmatch(name) is not None


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of a YAML file; a section whose keys are all commented out is left out."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _YamlLoader)
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the configuration file {path} is not valid YAML: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigurationError(
            f"the configuration file {path} must hold the sections {', '.join(Settings.model_fields)}"
        )
    return {str(name): section for name, section in (data or {}).items() if section is not None}


def _origin_of(key: str) -> str:
    """Return where the value of `key` came from: the strongest source that sets it."""
    places = (place for place, _ in _places(variable_name(key)))
    return next(places, str(_config_path()))


def _right_keys(path: str) -> list[str]:
    """Return what may have been meant by an unknown key: the closest of all, then the rest of its section."""
    section, _, key = path.partition(".")
    if not key:
        return closest_first(section, Settings.model_fields)
    if section == "model" and key.startswith("loras."):
        return list(LoraSettings.model_fields)
    by_likeness = closest_first(key, configuration_keys())
    return [*by_likeness[:3], *(name for name in by_likeness[3:] if name.startswith(f"{section}."))]


def _sentence(error: ErrorDetails) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{path} is no configuration key; right would be: {', '.join(_right_keys(path))}"
    if error["type"] == "value_error":
        return f"{path}: {error['ctx']['error']}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: must hold keys, not {error['input']!r}"
    message = error["msg"].removeprefix("Input ")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        choices = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        message = f"must be one of: {', '.join(closest_first(error['input'], choices))}"
    return f"{path}: {message}, not {error['input']!r}"


def describe(error: ValidationError) -> str:
    """Say what is wrong and what would be right, one sentence a line, with the key's path and its source."""
    return "\n".join(
        f"{_sentence(detail)} (from {_origin_of('.'.join(map(str, detail['loc'][:2])))})"
        for detail in error.errors(include_url=False)
    )


def load_settings() -> Settings:
    """Read the configuration from the environment, `.env` in the working directory and the YAML file.

    The YAML file is `app/config/config.yaml`, or what `STREAMDIFFUSION_CONFIG` names.

    Raises:
        ConfigurationError: if a name is unknown or a value is not allowed.
    """
    unknown = [*_check_variables("environment", os.environ), *_check_variables(".env", _dotenv())]
    if unknown:
        raise ConfigurationError("\n".join(unknown))
    try:
        return _Sources()
    except ValidationError as error:
        raise ConfigurationError(describe(error)) from error
