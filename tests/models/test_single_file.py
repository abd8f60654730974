"""A model in one `.safetensors` file, in the layout that Stable Diffusion was first published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from app.config.schema import ModelSettings, PipelineSettings
from app.models.loader import ModelLoadError, load
from tests import tiny

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# The blocks of the tiny UNet: two levels of one layer, the lower one with attention.
UNET = {
    r"conv_in": "input_blocks.0.0",
    r"down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"down_blocks\.1\.attentions\.0": "input_blocks.3.1",
    r"mid_block\.resnets\.0": "middle_block.0",
    r"mid_block\.attentions\.0": "middle_block.1",
    r"mid_block\.resnets\.1": "middle_block.2",
    r"up_blocks\.0\.resnets\.0": "output_blocks.0.0",
    r"up_blocks\.0\.attentions\.0": "output_blocks.0.1",
    r"up_blocks\.0\.resnets\.1": "output_blocks.1.0",
    r"up_blocks\.0\.attentions\.1": "output_blocks.1.1",
    r"up_blocks\.0\.upsamplers\.0": "output_blocks.1.2",
    r"up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"up_blocks\.1\.resnets\.1": "output_blocks.3.0",
    r"time_embedding\.linear_1": "time_embed.0",
    r"time_embedding\.linear_2": "time_embed.2",
    r"conv_norm_out": "out.0",
    r"conv_out": "out.2",
}
VAE = {
    r"encoder\.down_blocks\.(\d)\.resnets\.(\d)": r"encoder.down.\1.block.\2",
    r"encoder\.down_blocks\.(\d)\.downsamplers\.0": r"encoder.down.\1.downsample",
    r"(en|de)coder\.mid_block\.resnets\.0": r"\1coder.mid.block_1",
    r"(en|de)coder\.mid_block\.attentions\.0": r"\1coder.mid.attn_1",
    r"(en|de)coder\.mid_block\.resnets\.1": r"\1coder.mid.block_2",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"group_norm": "norm",
    r"to_q": "q",
    r"to_k": "k",
    r"to_v": "v",
    r"to_out\.0": "proj_out",
}


def unet_key(key: str) -> str:
    for ours, theirs in UNET.items():
        if match := re.match(ours + r"\.", key):
            inner, rest = theirs, key[match.end() :]
            if "resnets" in ours:
                part, _, leaf = rest.rpartition(".")
                rest = f"{RESNET[part]}.{leaf}"
            return f"model.diffusion_model.{inner}.{rest}"
    raise KeyError(key)


def vae_key(key: str) -> str:
    # The decoder counts its levels from the lowest, the file from the highest.
    key = re.sub(r"decoder\.up_blocks\.(\d)\.resnets\.", lambda m: f"decoder.up.{3 - int(m[1])}.block.", key)
    key = re.sub(
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample", key
    )
    for ours, theirs in VAE.items():
        key = re.sub(ours, theirs, key)
    return f"first_stage_model.{key}"


def vae_value(key: str, value: torch.Tensor) -> torch.Tensor:
    """Attention was once written as convolutions."""
    is_matrix = ".mid.attn_1." in key and value.ndim == 2
    return value[:, :, None, None] if is_matrix else value


def write(parts: Any, file: Path) -> None:
    state = {unet_key(key): value for key, value in parts.unet.state_dict().items()}
    for key, value in parts.vae.state_dict().items():
        state[vae_key(key)] = vae_value(vae_key(key), value)
    for key, value in parts.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key}"] = value
    save_file({key: value.contiguous() for key, value in state.items()}, file)


@pytest.fixture(scope="module")
def parts() -> Any:
    return tiny.pipeline("kl")


def test_a_single_file_holds_the_same_model_as_a_folder(parts: Any, tmp_path: Path) -> None:
    parts.save_pretrained(tmp_path / "folder")
    file = tmp_path / "model.safetensors"
    write(parts, file)

    pipeline = PipelineSettings(use_lcm_lora=False, use_tiny_vae=False)
    folder, single = (
        load(ModelSettings(model_id=str(path), device="cpu", **more), pipeline, lambda _words: None)
        for path, more in (
            (tmp_path / "folder", {}),
            (file, {"single_file_config": str(tmp_path / "folder"), "local_files_only": True}),
        )
    )
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(folder, part).state_dict(), getattr(single, part).state_dict()
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=0, msg=f"{part} {key}")
    assert single.schedule == folder.schedule
    assert torch.equal(single.embed("abc"), folder.embed("abc"))


@pytest.mark.parametrize(("spacing", "distilled"), [("trailing", True), ("leading", False)])
def test_a_single_file_is_what_its_configuration_says(
    parts: Any, tmp_path: Path, spacing: str, distilled: bool
) -> None:
    """SD-Turbo's file has the architecture of SD 2.1: only its configuration tells that it is distilled."""
    parts.save_pretrained(tmp_path / "folder")
    parts.scheduler.from_config(parts.scheduler.config, timestep_spacing=spacing).save_pretrained(
        tmp_path / "folder/scheduler"
    )
    file = tmp_path / "model.safetensors"
    write(parts, file)
    settings = ModelSettings(
        model_id=str(file),
        device="cpu",
        single_file_config=str(tmp_path / "folder"),
        local_files_only=True,
    )
    pipeline = PipelineSettings(use_lcm_lora=False, use_tiny_vae=False)
    assert load(settings, pipeline, lambda _words: None).distilled is distilled


@pytest.mark.parametrize("named", [None, "some/model"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_single_files_configuration_is_of_the_cache_where_the_network_is_not_wanted(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, cached: bool
) -> None:
    """Which file it is of, the weights tell."""
    parts.save_pretrained(tmp_path / "folder")
    file = tmp_path / "model.safetensors"
    write(parts, file)
    asked: list[str] = []

    def snapshot(repository: str, local_files_only: bool, **_: Any) -> str:
        assert local_files_only, "the network is asked"
        asked.append(repository)
        if not cached:
            raise LocalEntryNotFoundError("it is not in the cache")
        return str(tmp_path / "folder")

    for module in ("app.models.loader", "diffusers.loaders.single_file"):
        monkeypatch.setattr(f"{module}.snapshot_download", snapshot)
    settings = ModelSettings(
        model_id=str(file), device="cpu", single_file_config=named, local_files_only=True
    )
    pipeline = PipelineSettings(use_lcm_lora=False, use_tiny_vae=False)
    if cached:
        load(settings, pipeline, lambda _words: None)
    else:
        with pytest.raises(ModelLoadError, match="it is not in the cache"):
            load(settings, pipeline, lambda _words: None)
    assert asked == [named or "stable-diffusion-v1-5/stable-diffusion-v1-5"]
