"""The embedded model's parts, their sizes, and its noise schedule."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.mini.prompts import words
from training.mini.tokenizer import MAX_TOKENS, build_tokenizer, save_vocabulary

TRAIN_STEPS = 1000
GRID = tuple(999 - 20 * index for index in range(50))
"""The time steps that ever occur: the latent consistency grid of 50 steps."""
FACTOR = 4
"""Pixels per latent pixel of the autoencoder."""
PICTURE = 4
"""Latent channels of a picture."""
LATENTS = 2 * PICTURE
"""Channels that the UNet takes: the picture as it is by now, and the plan, what it is painted from.

In image mode that is the source once more, in video mode the noise that the scene is drawn from. So a further
step sees what the first one saw beside what it made, and can mend it; without, it gives a style again to what
has it already. The UNet has no weights for the plan in its output, which `boundary` makes a little fainter at
every step.
"""

# Share of noise b(t) = sqrt(1 - abar(t)) at chosen time steps. Low up to the middle, because what noise hides
# comes out blurred; pure noise at the end, where video mode begins.
_NOISE_ANCHORS = (
    (0, 0.004),
    (19, 0.005),
    (259, 0.01),
    (499, 0.02),
    (759, 0.05),
    (899, 0.25),
    (959, 0.8),
    (999, 0.99995),
)


TIMESTEP_SCALING = 0.0001
"""Of `boundary`: 0.99 of what is made at the default strength is the noisy latents themselves. So what shall
stay is exact, and further steps hardly add up their errors.
"""


def boundary(t: Tensor, scaling: float = TIMESTEP_SCALING) -> tuple[Tensor, Tensor]:
    """Shares of the noisy latents and of the UNet's output in the clean latents, both (B, 1, 1, 1).

    The scalings of latent consistency models (arXiv:2310.04378, section 4.1) as in diffusers' LCMScheduler,
    whose `timestep_scaling` of 10 leaves nothing of the first.
    """
    scaled = (t.float() * scaling / 0.5).square().view(-1, 1, 1, 1)
    skip = 1 / (scaled + 1)
    return skip, (1 - skip).sqrt()


def noise_levels() -> np.ndarray:
    """b(t) for t = 0..999, between the anchors linear in log b / (1 - b), float64."""
    times, values = np.array(_NOISE_ANCHORS).T
    logits = np.interp(np.arange(TRAIN_STEPS), times, np.log(values / (1 - values)))
    return np.asarray(1 / (1 + np.exp(-logits)))


def trained_betas() -> list[float]:
    """The betas whose cumulative products give `noise_levels`."""
    abar = 1 - noise_levels() ** 2
    previous = np.concatenate([[1.0], abar[:-1]])
    return [float(f"{value:.7g}") for value in 1 - abar / previous]


def build_scheduler() -> LCMScheduler:
    scheduler: LCMScheduler = LCMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=trained_betas(),
        prediction_type="sample",
        original_inference_steps=50,
        timestep_scaling=TIMESTEP_SCALING,
        clip_sample=False,
        steps_offset=1,
    )
    return scheduler


def _autoencoder(latents: int) -> AutoencoderTiny:
    """An autoencoder 4 times smaller than the picture; cheap at full size."""
    vae: AutoencoderTiny = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(4, 1, 0),
        latent_channels=latents,
        scaling_factor=1.0,
    )
    return vae


def build_vae() -> AutoencoderTiny:
    """The autoencoder of training, without a plan."""
    vae = _autoencoder(PICTURE)
    _begin_as_pyramid(vae)
    return vae


@torch.no_grad()
def _begin_as_pyramid(vae: AutoencoderTiny) -> None:
    """Start as plain down- and upsampling of brightness and two colour differences.

    From a random start all latents learn brightness first and colour arrives late; from here only detail is
    missing.
    """
    to_latent = torch.tensor([[0.299, 0.587, 0.114], [-0.299, -0.587, 0.886], [0.701, -0.587, -0.114]])
    to_latent = to_latent * torch.tensor([[3.6], [6.0], [6.0]])
    tent = torch.tensor([[1.0, 2.0, 1.0]])
    tent = tent.T @ tent / 16
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    for block in [*encoder, *decoder]:
        if hasattr(block, "fuse"):
            block.conv[-1].weight.mul_(0.1)
    convolutions: list[Any] = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions:
        layer.weight[:3] = 0
        if layer.bias is not None:
            layer.bias[:3] = 0
    for c in range(3):
        convolutions[0].weight[c, c, 1, 1] = 1
        for layer in convolutions[1:-1]:
            layer.weight[c, c] = tent
    convolutions[-1].weight[:3, :3, 1, 1] = to_latent
    convolutions[-1].bias[0] = -1.6
    convolutions = [layer for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions:
        layer.weight[:3] = 0
    convolutions[0].weight[:3, :3, 1, 1] = torch.linalg.inv(to_latent)
    convolutions[0].bias[:3] = torch.linalg.inv(to_latent) @ torch.tensor([1.6, 0.0, 0.0])
    for c in range(3):
        for layer in convolutions[1:]:
            layer.weight[c, c, 1, 1] = 1
    convolutions[-1].bias.zero_()


def _ends(vae: AutoencoderTiny) -> tuple[str, str]:
    """Names of the convolution that writes the latents and of the one that reads them."""
    named = [name for name, layer in vae.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    encoder, decoder = ([name for name in named if name.startswith(part)] for part in ("encoder", "decoder"))
    return encoder[-1], decoder[0]


def with_plan(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The autoencoder as it is shipped: it writes every latent twice, and reads the first half."""
    wide = _autoencoder(LATENTS)
    writes, reads = _ends(vae)
    state = vae.state_dict()
    for name in (f"{writes}.weight", f"{writes}.bias"):
        state[name] = torch.cat([state[name], state[name]])
    weight = state[f"{reads}.weight"]
    state[f"{reads}.weight"] = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    wide.load_state_dict(state)
    return wide


def without_plan(vae: AutoencoderTiny, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights for `vae` in those of its form with a plan."""
    writes, reads = _ends(vae)
    weight = state[f"{reads}.weight"][:, :PICTURE]
    halves = {name: state[name][:PICTURE] for name in (f"{writes}.weight", f"{writes}.bias")}
    return {**state, **halves, f"{reads}.weight": weight}


def build_unet() -> UNet2DConditionModel:
    """UNet with attention at the lowest level only; the prompt also modulates every block through the time
    embedding.
    """
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=64,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    _begin_as_copy(unet)
    return unet


@torch.no_grad()
def _begin_as_copy(unet: Any) -> None:
    """Start the UNet near a copy of the noisy latents, so that only changes are left to learn.

    Through the last block's shortcut one feature carries a latent and one its negative, because
    silu(z) - silu(-z) = z. The two, with a third that begins empty, are a group of the last normalisation,
    and offsets of both signs keep its mean and gain nearly the same for every picture: a change of tone or
    contrast would be made again by every step. With `boundary` the UNet's own share is the whole copy; here
    it is that near the default strength. The plan has no weights in the output, and as no loss looks there,
    none come.
    """
    offset = 6.0
    share = boundary(torch.tensor([479]))[1].item()
    first, normalise, out = unet.conv_in, unet.conv_norm_out, unet.conv_out
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    skipped = shortcut.in_channels - first.out_channels
    for latent in range(PICTURE):
        plus, minus, empty = range(3 * latent, 3 * latent + 3)
        shortcut.weight[empty] = 0
        shortcut.bias[empty] = normalise.bias[empty] = 0
        for feature, sign in ((plus, 1), (minus, -1)):
            first.weight[feature] = first.bias[feature] = 0
            first.weight[feature, latent, 1, 1] = sign
            shortcut.weight[feature] = 0
            shortcut.weight[feature, skipped + feature] = 1
            shortcut.bias[feature] = sign * offset
            normalise.bias[feature] = -sign * offset
            out.weight[:, feature] = 0
            out.weight[latent, feature, 1, 1] = sign * share
        normalise.weight[plus : empty + 1] = (2 * offset**2 / 3 + 0.7) ** 0.5
    out.bias.zero_()
    out.weight[PICTURE:] = 0


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    assert isinstance(tokenizer.bos_token_id, int)
    assert isinstance(tokenizer.eos_token_id, int)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=96,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


EXPORTED = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text": "text_encoder/model.safetensors",
}
"""Where a diffusers folder keeps the weights of the parts."""


class Parts(torch.nn.Module):
    """Everything that has weights, and the tokenizer."""

    NAMES = ("vae", "unet", "text")

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(words())
        self.vae = build_vae()
        self.unet = build_unet()
        self.text = build_text_encoder(self.tokenizer)

    def save(self, folder: Path) -> None:
        """Write the weights in half precision, one file each, replacing older ones whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.NAMES:
            state = {
                key: value.detach().half().cpu().contiguous()
                for key, value in getattr(self, name).state_dict().items()
            }
            partial = folder / f"{name}.partial"
            save_file(state, partial)
            partial.replace(folder / f"{name}.safetensors")

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint, or of a diffusers folder with the same vocabulary."""
        for name in self.NAMES:
            file = folder / f"{name}.safetensors"
            if file.is_file():
                state = load_file(file)
            else:
                state = load_file(folder / EXPORTED[name])
                if name == "vae":
                    state = without_plan(self.vae, state)
            getattr(self, name).load_state_dict({key: value.float() for key, value in state.items()})

    def export(self, folder: Path) -> None:
        """Write a diffusers pipeline folder in half precision."""
        parts = {"vae": with_plan(self.vae), "unet": self.unet, "text": self.text}
        half: dict[str, Any] = {name: copy.deepcopy(part).cpu().half() for name, part in parts.items()}
        absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        tokenizer = build_tokenizer(words())  # one that was used would be written with its padding
        scheduler: Any = build_scheduler()
        pipeline = StableDiffusionPipeline(
            vae=half["vae"],
            text_encoder=half["text"],
            tokenizer=tokenizer,
            unet=half["unet"],
            scheduler=scheduler,
            requires_safety_checker=False,
            **absent,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
        save_vocabulary(tokenizer, folder / "tokenizer")
