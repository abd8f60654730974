"""The configuration as types: every section, key, default, limit and description stands here once.

The documentation is tested against these descriptions. This module knows nothing of files and environment
variables (see `app.config.settings`) and does not import torch.
"""

import json
import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

Item = TypeVar("Item")

_APP = Path(__file__).resolve().parents[1]


def closest_first(word: str, known: Iterable[str]) -> list[str]:
    """Sort `known` so that the names most like `word` come first; of a dotted name the last part counts."""

    def difference(name: str) -> float:
        last = name.rpartition(".")[2]
        return -SequenceMatcher(None, word.lower(), last.lower()).ratio()

    return sorted(known, key=difference)


def _module_names(folder: Path) -> list[str]:
    """Return the names of the modules in `folder` that can be selected; nothing is imported."""
    return sorted(
        path.stem for path in folder.glob("*.py") if path.stem != "base" and not path.stem.startswith("_")
    )


def available_pipelines() -> list[str]:
    """Return the values `pipeline.name` may have: the files of `app/pipelines`."""
    return _module_names(_APP / "pipelines")


def available_accelerations() -> list[str]:
    """Return the values `model.acceleration` may have: the files of `app/accelerations`."""
    return _module_names(_APP / "accelerations")


def _one_of(kind: str, available: Callable[[], list[str]], value: str) -> str:
    known = available()
    if value not in known:
        right = ", ".join(closest_first(value, known))
        raise ValueError(f"unknown {kind} {value!r}; right would be: {right}")
    return value


def _multiple_of_8(value: int) -> int:
    if value % 8:
        below = value - value % 8
        raise ValueError(f"{value} is no multiple of 8; the nearest are {below} and {below + 8}")
    return value


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if value != "*" and not (
        parts.scheme in ("http", "https") and value == f"{parts.scheme}://{parts.netloc}" and parts.netloc
    ):
        raise ValueError(f'{value!r} is no origin; write "*" or scheme://host[:port] without a path')
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"unknown device {value!r}; right would be: auto, cpu, cuda, cuda:N")
    return value


def _json_list(value: object) -> object:
    """Decode a list that came from an environment variable; anything else is pydantic's business."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'{value!r} is no JSON list such as ["a", "b"]') from error


Device = Annotated[str, AfterValidator(_device)]
PipelineName = Annotated[str, AfterValidator(partial(_one_of, "pipeline", available_pipelines))]
AccelerationName = Annotated[str, AfterValidator(partial(_one_of, "acceleration", available_accelerations))]
PictureSide = Annotated[int, Field(ge=8, le=4096), AfterValidator(_multiple_of_8)]
Origin = Annotated[str, AfterValidator(_origin)]
# NoDecode, because pydantic-settings would not name the key of a list it cannot decode.
JsonList = Annotated[tuple[Item, ...], NoDecode, BeforeValidator(_json_list)]
PositiveInt = Annotated[int, Field(ge=1)]
Mode = Literal["image", "video"]
CfgType = Literal["none", "full", "self", "initialize"]


class Section(BaseModel):
    """Base of all sections: immutable; an unknown key is an error, and so is a number that no timer takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Section):
    """One LoRA that is fused into the UNet at start."""

    id: str = Field(
        min_length=1,
        description="Hugging Face id, or `id/file` where it has several; folder or `.safetensors` file.",
    )
    scale: float = Field(default=1.0, description="Strength of the LoRA; 0 has no effect.")


class ModelSettings(Section):
    """Which model runs, on what, and how it is accelerated."""

    model_id: str = Field(
        default="stabilityai/sd-turbo",
        min_length=1,
        description="Hugging Face id, local folder or single `.safetensors` file of a Stable Diffusion 1.x "
        "or 2.x model.",
    )
    acceleration: AccelerationName = Field(
        default="xformers",
        description="A file of `app/accelerations`: `xformers`, `tensorrt`, `compile`, `fused`, `onnx` or "
        "`none`; `auto` is the fastest that works without a build of minutes, with CUDA graphs on a GPU. "
        "docs/performance.md compares them.",
    )
    engine_dir: Path = Field(
        default=Path("engines"),
        description="Folder that keeps what is compiled: the engines of `tensorrt`, the cache of `compile`; "
        "in Docker also Triton's.",
    )
    use_cuda_graph: bool = Field(
        default=False,
        description="Replay encoding, the UNet's step and decoding as CUDA graphs, one per batch size.",
    )
    device: Device = Field(
        default="auto",
        description="`auto` (CUDA where there is a GPU), `cpu`, `cuda` or `cuda:N`.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Precision of the weights; `auto` is `float16` on CUDA and `float32` on the CPU.",
    )
    distilled: bool | None = Field(
        default=None,
        description="Whether the model is distilled for few steps without guidance; `null` reads it from the "
        "model's own configuration.",
    )
    lcm_lora_id: str = Field(
        default="latent-consistency/lcm-lora-sdv1-5",
        min_length=1,
        description="LCM-LoRA that `pipeline.use_lcm_lora` fuses into a model that is not distilled.",
    )
    tiny_vae_id: str | None = Field(
        default=None,
        description="Tiny autoencoder that `pipeline.use_tiny_vae` puts in the place of the model's own; "
        "`null` is `madebyollin/taesd`.",
    )
    loras: JsonList[LoraSettings] = Field(
        default=(), description="Further LoRAs to fuse, a list of `{id, scale}`."
    )
    use_safety_checker: bool = Field(
        default=False, description="Blacken pictures that the Stable Diffusion safety checker flags."
    )
    local_files_only: bool = Field(
        default=False, description="Load from the local Hugging Face cache only, without the network."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of the model on Hugging Face; `null` is the newest."
    )
    variant: str | None = Field(
        default=None, description="Variant of the weight files, for example `fp16`; `null` is the plain one."
    )
    single_file_config: str | None = Field(
        default=None,
        description="Hugging Face id or local folder of a model that a single file shares its configuration "
        "and tokenizer with; `null` infers it from the weights, which cannot tell SD-Turbo from SD 2.1.",
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of torch and of `onnx`; `null` is torch's own choice, all cores.",
    )


class PipelineSettings(Section):
    """What a frame is: pipeline, mode, size and denoising."""

    name: PipelineName = Field(default="img2img", description="A file of `app/pipelines`, without `.py`.")
    mode: Mode = Field(
        default="image",
        description="Mode of a connection that names none: `image` repaints the client's frames, `video` "
        "generates frames from the prompt alone. A `pipeline.name` other than `img2img` brings its own mode, "
        "and this key then has no effect.",
    )
    width: PictureSide = Field(default=512, description="Width of a frame in pixels, a multiple of 8.")
    height: PictureSide = Field(default=512, description="Height of a frame in pixels, a multiple of 8.")
    use_tiny_vae: bool = Field(default=True, description="Use the tiny autoencoder (TAESD).")
    use_lcm_lora: bool = Field(
        default=True, description="Fuse the LCM-LoRA, unless the model is distilled already."
    )
    warmup: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="Frames generated before the server is ready, after a few of every batch size.",
    )
    cfg_type: CfgType | None = Field(
        default=None,
        description="Classifier-free guidance: `none`, `full`, `self` (residual) or `initialize` (residual "
        "with one negative pass); `null` is `none` for a distilled model and `self` for others.",
    )
    prompt_cache_size: PositiveInt = Field(
        default=256, description="Prompt embeddings kept, least recently used first out."
    )


class PerformanceSettings(Section):
    """What trades work for speed."""

    enable_similar_image_filter: bool = Field(
        default=False, description="Skip frames that are like the last one; the last result is repeated."
    )
    similar_image_filter_threshold: float = Field(
        default=0.98, ge=0, le=1, description="Similarity, 0 to 1, above which a frame may be skipped."
    )
    similar_image_filter_max_skip_frame: int = Field(
        default=10, ge=0, description="Frames skipped in a row at most."
    )
    jpeg_quality: int = Field(
        default=85, ge=1, le=100, description="JPEG quality of the image stream, 1 to 100."
    )
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Frame rows in one UNet forward at most; `null` is 16 on CUDA and 4 on the CPU.",
    )
    stream_batch: bool | None = Field(
        default=None,
        description="Let one session keep several frames in flight, for more frames per second; `null` is "
        "only on CUDA.",
    )
    codec_threads: PositiveInt | None = Field(
        default=None,
        description="Threads that decode and encode pictures; `null` is one for each CPU, at most 8. One "
        "more decodes large PNG, WebP and progressive JPEG pictures, which take seconds.",
    )


class ServerSettings(Section):
    """The service itself: address, limits and times."""

    host: str = Field(default="0.0.0.0", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_origins: JsonList[Origin] = Field(
        default=("*",),
        description="Origins whose pages may open WebSockets and read answers, a list of "
        "`scheme://host[:port]`; `*` is any. Credentials are never allowed.",
    )
    max_queue_size: int = Field(
        default=0, ge=0, description="Sessions at the same time at most; 0 is no limit."
    )
    timeout: float = Field(
        default=0,
        ge=0,
        description="Seconds that a client may be silent when a frame is asked for; 0 is no limit.",
    )
    max_message_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="Largest WebSocket message in bytes."
    )
    max_image_pixels: int = Field(
        default=16 * 2**20, ge=64, description="Largest picture of a client in pixels (width × height)."
    )
    max_prompt_length: int = Field(
        default=2000, ge=1, description="Longest prompt or negative prompt in characters."
    )
    stream_grace: float = Field(
        default=2.0,
        ge=0,
        description="Seconds an image stream waits for its user to connect before it answers 404.",
    )
    shutdown_timeout: float = Field(
        default=5.0, gt=0, description="Seconds a shutdown may take before the rest is abandoned."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severe level that is logged: `debug`, `info`, `warning` or `error`.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="`console` for people, `json` (one object a line) for machines."
    )
    watchdog_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds one engine tick or embedding on a GPU may take before the process gives up "
        "for its supervisor.",
    )


class Settings(BaseModel):
    """The whole configuration; built plainly (in tests) it holds the defaults and reads nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings = ModelSettings()
    pipeline: PipelineSettings = PipelineSettings()
    performance: PerformanceSettings = PerformanceSettings()
    server: ServerSettings = ServerSettings()
