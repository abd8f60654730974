"""Loads Stable Diffusion models with diffusers: folders, Hub ids and single files; LoRAs; tiny VAEs.

It knows nothing of how the model is executed afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError

from app.config.schema import LoraSettings, ModelSettings, PipelineSettings
from app.core.denoise import NoiseSchedule
from app.core.messages import StartError
from app.models.model import Model
from app.models.safety import SafetyChecker

log = logging.getLogger(__name__)

TRAIN_STEPS = 1000  # of every Stable Diffusion 1.x and 2.x; the grid of time steps is made for it
TAESD = "madebyollin/taesd"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # as diffusers saves a LoRA

Report = Callable[[str], None]


class ModelLoadError(StartError):
    """A model cannot be loaded or cannot be used; the message says which and why."""


def resolve_device(name: str) -> torch.device:
    """The device that ``model.device`` means.

    Raises:
        ModelLoadError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise ModelLoadError(
            f"model.device is {name}, but {torch.cuda.device_count()} CUDA devices are found"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that ``model.dtype`` means on a device.

    Raises:
        ModelLoadError: if the device cannot compute in it.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    if dtype == torch.float16 and device.type == "cpu":
        raise ModelLoadError("model.dtype is float16, which a CPU cannot compute in; use float32 or bfloat16")
    return dtype


def load(model: ModelSettings, pipeline: PipelineSettings, report: Report) -> Model:
    """Load a model as configured.

    Raises:
        ModelLoadError: if anything of it is missing, does not fit or cannot be used.
    """
    device = resolve_device(model.device)
    dtype = resolve_dtype(model.dtype, device)
    report(f"loading {model.model_id}")
    _quieten_libraries()
    loaded = _load_pipeline(model, dtype)
    scheduler = loaded.scheduler.config
    if pipeline.use_tiny_vae and not isinstance(loaded.vae, AutoencoderTiny):
        report("loading the tiny VAE")
        loaded.vae = _load_tiny_vae(model, dtype)
    _check(model.model_id, loaded)
    distilled = _is_distilled(scheduler) if model.distilled is None else model.distilled
    if pipeline.use_lcm_lora and not distilled:
        report("fusing the LCM-LoRA")
        hint = "set pipeline.use_lcm_lora to false, or model.lcm_lora_id to one made for this model"
        _fuse(loaded, LoraSettings(id=model.lcm_lora_id), model.local_files_only, hint)
        distilled = True
    for lora in model.loras:
        report(f"fusing {lora.id}")
        _fuse(loaded, lora, model.local_files_only, "is it made for this model?")
    for part in (loaded.unet, loaded.vae, loaded.text_encoder):
        part.to(device=device, dtype=dtype).requires_grad_(False).eval()
    checker = None
    if model.use_safety_checker:
        report("loading the safety checker")
        with _failing("the safety checker cannot be loaded"):
            checker = SafetyChecker.load(model, device, dtype)
    return Model(
        name=model.model_id,
        unet=loaded.unet,
        vae=loaded.vae,
        text_encoder=loaded.text_encoder,
        tokenizer=loaded.tokenizer,
        schedule=_noise_schedule(scheduler),
        distilled=distilled,
        device=device,
        dtype=dtype,
        safety_checker=checker,
    )


def _load_pipeline(model: ModelSettings, dtype: torch.dtype) -> Any:
    path = Path(model.model_id)
    hint = ""
    if path.is_file():
        hint = " (model.single_file_config can name a model with its configuration)"
    elif not path.is_dir():
        hint = " (no folder or file has this name here, so it was looked for on Hugging Face)"
    with _failing(f"the model {model.model_id!r} cannot be loaded{hint}"):
        if path.is_file():
            config = model.single_file_config
            pipeline = StableDiffusionPipeline.from_single_file(
                str(path),
                config=_cached_config(path, config) if model.local_files_only else config,
                dtype=dtype,
                local_files_only=model.local_files_only,
                safety_checker=None,
            )
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                model.model_id,
                dtype=dtype,
                revision=model.revision,
                variant=model.variant,
                local_files_only=model.local_files_only,
                safety_checker=None,
                requires_safety_checker=False,
            )
        _check_weights(pipeline.unet, pipeline.vae)
    return pipeline


def _cached_config(file: Path, name: str | None) -> str:
    """The folder with a single file's configuration. diffusers would ask the network for what is not in the
    cache, although it is told not to.
    """
    if name is None:
        name = str(fetch_diffusers_config(load_single_file_checkpoint(file))["pretrained_model_name_or_path"])
    return name if Path(name).is_dir() else snapshot_download(name, local_files_only=True)


def _check_weights(*parts: Any) -> None:
    """Raise ValueError if a file lacks weights: diffusers only warns, and leaves them without memory."""
    for part in parts:
        lacking = [name for name, weights in part.named_parameters() if weights.is_meta]
        if lacking:
            raise ValueError(f"the file lacks weights of {type(part).__name__}, for example {lacking[0]}")


def _load_tiny_vae(model: ModelSettings, dtype: torch.dtype) -> Any:
    name = model.tiny_vae_id or TAESD
    with _failing(f"the tiny VAE {name!r} cannot be loaded (pipeline.use_tiny_vae: false does without)"):
        vae = AutoencoderTiny.from_pretrained(name, dtype=dtype, local_files_only=model.local_files_only)
        _check_weights(vae)  # a full VAE has others
    return vae


def _fuse(pipeline: Any, lora: LoraSettings, local_files_only: bool, hint: str) -> None:
    """Add a LoRA to the weights, so that it costs nothing at run time."""
    with _failing(f"the LoRA {lora.id!r} cannot be fused; {hint}"):
        file = _lora_file(lora.id, local_files_only)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        pipeline.fuse_lora(lora_scale=lora.scale)
        pipeline.unload_lora_weights()


def _lora_file(lora_id: str, local_files_only: bool) -> Path:
    """The file that a LoRA's id means; of a repository on the Hub nothing else is fetched.

    Not by diffusers, which asks the Hub for the file's name even where all is in the cache, and takes any of
    several.

    Raises:
        ModelLoadError: if the id leaves open which file.
        OSError: if there is no such file, or it cannot be fetched.
    """
    path = Path(lora_id)
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose_weights(lora_id, [child.name for child in path.iterdir()])
    # A file on the Hub has the two names of its repository before its own.
    local = path.parent.is_dir() if len(path.parts) > 2 else path.suffix == ".safetensors"
    if path.is_absolute() or local:
        raise FileNotFoundError("there is no such file")
    parts = lora_id.split("/")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    fetch = partial(hf_hub_download, repository, local_files_only=local_files_only)
    if file:
        return Path(fetch(file))
    try:
        return Path(fetch(LORA_WEIGHTS))
    except LocalEntryNotFoundError:  # the Hub is not to be asked, or out of reach
        cached = snapshot_download(repository, allow_patterns=LORA_WEIGHTS, local_files_only=local_files_only)
        names = [child.name for child in Path(cached).iterdir()]
    except EntryNotFoundError:
        names = list_repo_files(repository)
    return Path(fetch(_choose_weights(lora_id, names)))


def _choose_weights(lora_id: str, names: list[str]) -> str:
    """Which of these files holds a LoRA's weights: the one that diffusers calls so, or the only one."""
    for ending in (".safetensors", ".bin"):
        found = sorted(name for name in names if name.endswith(ending) and "/" not in name)
        if LORA_WEIGHTS in found:
            return LORA_WEIGHTS
        if len(found) > 1:
            raise ModelLoadError(
                f"the LoRA {lora_id!r} holds several files of weights: {', '.join(found)}; "
                f"name one, as '{lora_id}/{found[0]}'"
            )
        if found:
            return found[0]
    raise ModelLoadError(f"the LoRA {lora_id!r} holds no weights")


def _quieten_libraries() -> None:
    """Their progress bars and remarks on harmless details would drown what our log says."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Whatever the libraries raise for files that are missing, broken or made for something else."""
    try:
        yield
    except ModelLoadError:
        raise  # it says what and why
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__  # of the Hub's errors the second line says what
        raise ModelLoadError(f"{what}: {reason}") from error


def _is_distilled(scheduler: Any) -> bool:
    """Whether a model's own scheduler is one for few steps: LCM's, or Euler's with the trailing spacing
    that SD-Turbo is sampled with.
    """
    turbo = "Euler" in scheduler["_class_name"] and scheduler.get("timestep_spacing") == "trailing"
    return turbo or scheduler["_class_name"] in ("LCMScheduler", "TCDScheduler")


def _noise_schedule(scheduler: Any) -> NoiseSchedule:
    """Read by diffusers' own scheduler, which knows every way to write the betas."""
    consistency = LCMScheduler.from_config(scheduler)
    return NoiseSchedule(
        alphas_cumprod=tuple(consistency.alphas_cumprod.double().tolist()),
        prediction=consistency.config.prediction_type,
        timestep_scaling=consistency.config.timestep_scaling,
    )


def _check(name: str, pipeline: Any) -> None:
    """Refuse what would load and then make nonsense."""
    unet, latents = pipeline.unet.config, pipeline.vae.config.latent_channels
    steps = pipeline.scheduler.config.num_train_timesteps
    problem = None
    if unet.in_channels != latents:
        problem = (
            f"its UNet takes {unet.in_channels} channels and the VAE has {latents} (an inpainting model?)"
        )
    elif unet.time_cond_proj_dim is not None:
        problem = "it is a full LCM with a guidance embedding; use its base model with the LCM-LoRA"
    elif unet.addition_embed_type not in (None, "text"):  # "text" takes nothing but the prompt's embedding
        problem = "it is not of the Stable Diffusion 1.x or 2.x family (an SDXL model?)"
    elif unet.class_embed_type is not None or unet.num_class_embeds is not None:
        problem = "its UNet takes a class or a picture beside the prompt (an unCLIP model?)"
    elif unet.cross_attention_dim != pipeline.text_encoder.config.hidden_size:
        problem = "its text encoder does not fit its UNet"
    elif steps != TRAIN_STEPS:
        problem = f"it was trained with {steps} time steps, not {TRAIN_STEPS}"
    elif pipeline.scheduler.config.get("prediction_type", "epsilon") not in (
        "epsilon",
        "v_prediction",
        "sample",
    ):
        problem = f"its prediction type is {pipeline.scheduler.config.prediction_type}"
    if problem:
        raise ModelLoadError(f"the model {name!r} cannot be used: {problem}")
