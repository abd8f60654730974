"""Loading: what a model brings, what the configuration changes, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from app.config.schema import LoraSettings, ModelSettings, PipelineSettings
from app.models.loader import ModelLoadError, load, resolve_device, resolve_dtype
from app.models.model import Model
from app.models.safety import DEFAULT, SafetyChecker
from tests import tiny

PLAIN = PipelineSettings(use_lcm_lora=False)


def load_folder(folder: Path, pipeline: PipelineSettings = PLAIN, **more: Any) -> Model:
    words: list[str] = []
    model = load(ModelSettings(model_id=str(folder), device="cpu", **more), pipeline, words.append)
    assert words[0] == f"loading {folder}"
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def save_lora(folder: Path, rank: int = 2, target: str = "to_q", width: int = tiny.WIDTH) -> Path:
    """A LoRA for the tiny UNet whose effect is not zero."""
    torch.manual_seed(4)
    unet = tiny.unet(width=width)
    unet.add_adapter(LoraConfig(r=rank, target_modules=[target], init_lora_weights="gaussian"))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def predict(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.inference_mode():
        return model.predict(latents, torch.tensor([499.0]), model.embed("abc"))


def test_a_folder_loads_in_the_wanted_precision(folder: Path) -> None:
    model = load_folder(folder, dtype="bfloat16")
    parts = (model.unet, model.vae, model.text_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.bfloat16}
    assert not any(part.training for part in parts)
    assert model.latent_shape(64, 48) == (4, 6, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_noise_schedule_is_the_models_own(tmp_path: Path, prediction: Any) -> None:
    schedule = load_folder(tiny.save(tmp_path, prediction=prediction)).schedule
    assert schedule.prediction == prediction
    assert schedule.alphas_cumprod == pytest.approx(tiny.schedule().alphas_cumprod, rel=1e-4)
    assert schedule.timestep_scaling == 10.0


def test_the_boundary_scalings_are_the_models_own(folder: Path) -> None:
    change(folder, "scheduler/scheduler_config.json", timestep_scaling=0.001)
    assert load_folder(folder).schedule.timestep_scaling == 0.001


@pytest.mark.parametrize(
    ("scheduler", "distilled"),
    [
        ({"_class_name": "LCMScheduler"}, True),
        ({"timestep_spacing": "trailing"}, True),  # SD-Turbo
        ({"_class_name": "PNDMScheduler"}, False),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False}, False),
    ],
)
def test_a_distilled_model_is_told_by_its_scheduler(
    tmp_path: Path, scheduler: dict[str, str], distilled: bool
) -> None:
    folder = tiny.save(tmp_path)
    change(folder, "scheduler/scheduler_config.json", **scheduler)
    if "_class_name" in scheduler:
        change(folder, "model_index.json", scheduler=["diffusers", scheduler["_class_name"]])
    assert load_folder(folder).distilled is distilled


def test_a_key_overrules_what_the_scheduler_tells(folder: Path) -> None:
    assert load_folder(folder, distilled=True).distilled


def test_the_lcm_lora_makes_a_model_distilled(folder: Path, tmp_path: Path) -> None:
    lora = save_lora(tmp_path)
    plain = load_folder(folder)
    fused = load_folder(folder, PipelineSettings(use_lcm_lora=True), lcm_lora_id=str(lora))
    assert (plain.distilled, fused.distilled) == (False, True)
    assert not torch.allclose(predict(plain), predict(fused))
    assert not any("lora" in name for name, _ in fused.unet.named_parameters())


def test_the_lcm_lora_is_left_out_of_a_distilled_model(folder: Path) -> None:
    model = load_folder(
        folder, PipelineSettings(use_lcm_lora=True), distilled=True, lcm_lora_id="missing/lora"
    )
    assert model.distilled


def test_loras_count_by_their_scale(folder: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path) / WEIGHTS

    def shift(scale: float) -> torch.Tensor:
        model = load_folder(folder, loras=(LoraSettings(id=str(file), scale=scale),))
        return queries(model) - queries(load_folder(folder))

    def queries(model: Model) -> torch.Tensor:
        return torch.cat([p.flatten() for name, p in model.unet.named_parameters() if "to_q" in name])

    assert shift(1.0).norm() > 0.1
    torch.testing.assert_close(shift(0.25), 0.25 * shift(1.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_lora_of_the_hub_is_found_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_files_only: bool
) -> None:
    """The tests run with the Hub out of reach: tests/conftest.py."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--some--lora"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abcd")
    save_lora(cached / "snapshots/0123abcd")
    model = load_folder(folder, loras=(LoraSettings(id="some/lora"),), local_files_only=local_files_only)
    assert not torch.allclose(predict(model), predict(load_folder(folder)))


WEIGHTS = "pytorch_lora_weights.safetensors"


class NotOnHubError(EntryNotFoundError, OSError):
    """As the client's own, which wants a response."""


class Hub:
    """A repository on the Hub and what of it was fetched; ``reached`` says whether the Hub answers."""

    def __init__(self, cache: Path, *files: str, reached: bool = True) -> None:
        self.files = files
        self.reached = reached
        self.fetched: list[str] = []
        self.lora = save_lora(cache / "lora") / WEIGHTS
        self._cache = cache / "snapshot"
        self._cache.mkdir()

    def keep(self, name: str) -> str:
        """Put a file into the cache."""
        target = self._cache / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(self.lora, target)
        return str(target)

    def download(self, repository: str, name: str, local_files_only: bool) -> str:
        assert repository == "some/lora"
        if not self.reached or local_files_only:
            if not (self._cache / name).exists():
                raise LocalEntryNotFoundError("not in the cache")
            return str(self._cache / name)
        if name not in self.files:
            raise NotOnHubError(f"404 Client Error.\n\nEntry Not Found for url: {name}.")
        self.fetched.append(name)
        return self.keep(name)

    def snapshot(self, repository: str, allow_patterns: str, local_files_only: bool) -> str:
        assert (repository, allow_patterns) == ("some/lora", WEIGHTS)
        assert local_files_only or not self.reached
        return str(self._cache)

    def list(self, repository: str) -> list[str]:
        assert repository == "some/lora"
        assert self.reached
        return list(self.files)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def create(*files: str, reached: bool = True) -> Hub:
        hub = Hub(tmp_path, *files, reached=reached)
        monkeypatch.setattr("app.models.loader.hf_hub_download", hub.download)
        monkeypatch.setattr("app.models.loader.snapshot_download", hub.snapshot)
        monkeypatch.setattr("app.models.loader.list_repo_files", hub.list)
        return hub

    return create


@pytest.mark.parametrize(
    ("lora", "files", "expected"),
    [
        ("some/lora", ["a.safetensors", WEIGHTS], WEIGHTS),
        ("some/lora", ["README.md", "a.safetensors", "a.bin", "old/b.safetensors"], "a.safetensors"),
        ("some/lora", ["README.md", "a.bin"], "a.bin"),
        ("some/lora/b.safetensors", ["a.safetensors", "b.safetensors"], "b.safetensors"),
        ("some/lora/old/b.safetensors", ["a.safetensors", "old/b.safetensors"], "old/b.safetensors"),
    ],
)
def test_of_a_lora_of_the_hub_only_what_is_fused_is_fetched(
    folder: Path, hub: Callable[..., Hub], lora: str, files: list[str], expected: str
) -> None:
    it = hub(*files)
    if expected.endswith(".bin"):
        it.lora = it.lora.with_suffix(".bin")
        torch.save(load_file(it.lora.with_suffix(".safetensors")), it.lora)
    model = load_folder(folder, loras=(LoraSettings(id=lora),))
    assert it.fetched == [expected]
    assert not torch.allclose(predict(model), predict(load_folder(folder)))


def test_a_lora_of_several_files_is_refused_with_their_names(
    folder: Path, tmp_path: Path, hub: Callable[..., Hub]
) -> None:
    it = hub("README.md", "b.safetensors", "a.safetensors")
    words = refusal(folder, loras=(LoraSettings(id="some/lora"),))
    assert words == (
        "the LoRA 'some/lora' holds several files of weights: a.safetensors, b.safetensors; "
        "name one, as 'some/lora/a.safetensors'"
    )
    assert not it.fetched
    for name in ("a.safetensors", "b.safetensors"):
        it.keep(name)
    local = str(tmp_path / "snapshot")
    assert f"name one, as '{local}/a.safetensors'" in refusal(folder, loras=(LoraSettings(id=local),))


def test_a_lora_without_weights_is_refused(folder: Path, hub: Callable[..., Hub]) -> None:
    hub("README.md", "old/b.safetensors")
    assert "'some/lora' holds no weights" in refusal(folder, loras=(LoraSettings(id="some/lora"),))
    words = refusal(folder, loras=(LoraSettings(id="some/lora/c.safetensors"),))
    assert words.endswith("404 Client Error. Entry Not Found for url: c.safetensors.")


@pytest.mark.parametrize("lora", ["{}/none.safetensors", "/none/none.safetensors", "none/none.safetensors"])
def test_a_lora_that_can_only_be_a_file_is_not_looked_for_on_the_hub(
    folder: Path, tmp_path: Path, hub: Callable[..., Hub], lora: str
) -> None:
    hub()
    words = refusal(folder, loras=(LoraSettings(id=lora.format(tmp_path)),))
    assert words.endswith("there is no such file")


@pytest.mark.parametrize(("reached", "local_files_only"), [(True, True), (False, False)])
def test_without_the_hub_a_lora_is_what_is_in_the_cache(
    folder: Path, hub: Callable[..., Hub], reached: bool, local_files_only: bool
) -> None:
    it = hub("a.safetensors", "b.safetensors", reached=reached)
    it.keep("b.safetensors")
    model = load_folder(folder, loras=(LoraSettings(id="some/lora"),), local_files_only=local_files_only)
    assert not torch.allclose(predict(model), predict(load_folder(folder)))
    assert not it.fetched


def test_a_tiny_vae_takes_the_place_of_the_full_one(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "kl")
    tiny.vae("tiny").save_pretrained(tmp_path / "vae")
    full = load_folder(folder, PipelineSettings(use_lcm_lora=False, use_tiny_vae=False))
    light = load_folder(folder, tiny_vae_id=str(tmp_path / "vae"))
    assert type(full.vae).__name__ == "AutoencoderKL"
    assert type(light.vae).__name__ == "AutoencoderTiny"


def test_a_model_with_a_tiny_vae_of_its_own_keeps_it(folder: Path) -> None:
    assert type(load_folder(folder, tiny_vae_id="missing/vae").vae).__name__ == "AutoencoderTiny"


def test_a_prompt_that_is_too_long_is_cut(folder: Path) -> None:
    model = load_folder(folder)
    assert torch.equal(model.embed("a " * 1000), model.embed("a " * 2000))


def refusal(folder: Path, pipeline: PipelineSettings = PLAIN, **more: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_folder(folder, pipeline, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")  # of diffusers' own call
def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    words = refusal(Path("nowhere/at-all"), local_files_only=True)
    assert "'nowhere/at-all'" in words
    assert "no folder or file has this name here" in words
    assert "'missing/vae'" in refusal(tiny.save(tmp_path, "kl"), tiny_vae_id="missing/vae")
    words = refusal(folder, PipelineSettings(use_lcm_lora=True), lcm_lora_id="missing/lora")
    assert "'missing/lora'" in words
    assert "pipeline.use_lcm_lora" in words


def test_a_lora_made_for_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """As the LCM-LoRA of Stable Diffusion 1.5 for a model of 2.x, whose prompts are wider."""
    lora = save_lora(tmp_path, target="to_k", width=48)
    words = refusal(folder, PipelineSettings(use_lcm_lora=True), lcm_lora_id=str(lora))
    assert str(lora) in words
    assert "pipeline.use_lcm_lora to false" in words


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert str(folder) in refusal(folder)


def test_a_full_vae_in_the_place_of_a_tiny_one_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, "kl")
    words = refusal(folder, tiny_vae_id=str(folder / "vae"))
    assert f"the tiny VAE '{folder / 'vae'}'" in words
    assert "lacks weights of AutoencoderTiny" in words


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_file_without_some_of_the_weights_is_refused(part: str, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    file = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({other: values for other, values in weights.items() if other != name}, file)
    words = refusal(folder)
    assert str(folder) in words
    assert name in words


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"damaged")
    words = refusal(file)
    assert str(file) in words
    assert "model.single_file_config" in words


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "500 time steps"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction type is flow"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(
    tmp_path: Path, file: str, values: dict[str, Any], words: str
) -> None:
    folder = tiny.save(tmp_path)
    change(folder, file, **values)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        ({"channels": 9}, "inpainting"),
        ({"time_cond_proj_dim": 8}, "full LCM"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "SDXL",
        ),
        ({"width": 48}, "text encoder"),
        ({"num_class_embeds": 4}, "unCLIP"),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8}, "unCLIP"),
    ],
)
def test_a_unet_that_does_not_fit_is_refused(tmp_path: Path, unet: dict[str, Any], words: str) -> None:
    folder = tiny.save(tmp_path)
    tiny.unet(**unet).save_pretrained(folder / "unet")
    # The default LCM-LoRA would not fit either, which would say nothing.
    assert words in refusal(folder, PipelineSettings())


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cpu = resolve_device("auto")
    assert cpu.type == "cpu"
    with pytest.raises(ModelLoadError, match="0 CUDA devices"):
        resolve_device("cuda:1")
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    with pytest.raises(ModelLoadError, match="float16"):
        resolve_dtype("float16", cpu)


def safety_network(concept: float) -> Any:
    """A checker that finds everything (a threshold below every cosine) or nothing."""
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = CLIPConfig(
        text_config=CLIPTextConfig().to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    network = StableDiffusionSafetyChecker(config)
    network.concept_embeds_weights.data.fill_(concept)
    network.special_care_embeds_weights.data.fill_(2.0)
    return network.eval()


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 40, 64, 3), np.uint8))


@pytest.mark.parametrize(("threshold", "unsafe"), [(-2.0, True), (2.0, False)])
def test_the_models_own_safety_checker_is_used(tmp_path: Path, threshold: float, unsafe: bool) -> None:
    folder = tiny.save(tmp_path)
    safety_network(threshold).save_pretrained(folder / "safety_checker")
    change(folder, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    checker = load_folder(folder, use_safety_checker=True).safety_checker
    assert isinstance(checker, SafetyChecker)
    assert checker.unsafe(pictures(2)).tolist() == [unsafe, unsafe]


def test_pictures_are_unsafe_by_the_networks_own_rule() -> None:
    """Which is stricter with what it takes special care of."""
    network = safety_network(0.0)
    torch.manual_seed(6)
    for weights in (network.concept_embeds, network.special_care_embeds):
        weights.data.normal_()
    verdicts = set()
    for special in (-1.0, 1.0):
        network.special_care_embeds_weights.data.fill_(special)
        for threshold in torch.linspace(0.4, 0.9, 100):
            network.concept_embeds_weights.data.fill_(threshold)
            checker, images = SafetyChecker(network), pictures(8)
            inputs = checker._prepare(images)
            _, expected = network(clip_input=inputs, images=list(images.numpy()))
            assert checker.unsafe(images).tolist() == expected
            verdicts.add((special, tuple(expected)))
    assert len(verdicts) > 10


def test_the_models_own_safety_checker_is_of_its_revision_and_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, Any, Any]] = []

    def from_pretrained(source: str, revision: Any = None, variant: Any = None, **_: Any) -> Any:
        asked.append((source, revision, variant))
        return safety_network(0.0)

    own: Any = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    monkeypatch.setattr(StableDiffusionSafetyChecker, "from_pretrained", from_pretrained)
    settings = ModelSettings(model_id="some/model", revision="v2", variant="fp16")
    for index in ({"safety_checker": own}, {"safety_checker": [None, None]}, {}):
        monkeypatch.setattr(StableDiffusionPipeline, "load_config", lambda *_, index=index, **__: index)
        SafetyChecker.load(settings, torch.device("cpu"), torch.float32)
    assert asked == [("some/model", "v2", "fp16"), (DEFAULT, None, None), (DEFAULT, None, None)]


def test_no_safety_checker_is_loaded_unless_wanted(folder: Path) -> None:
    assert load_folder(folder).safety_checker is None
