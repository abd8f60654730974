"""The embedded model: its training runs end to end in small; the shipped weights do what the card says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from training.mini.average import Average
from training.mini.batch import REPAINTED, SHARPEN, STRIDE, Stages, assemble
from training.mini.critic import Critic, Rival
from training.mini.drawing import Pool
from training.mini.graphs import Twin
from training.mini.learner import learner, work_of
from training.mini.memory import recall, remember
from training.mini.mend import Aimed, mend
from training.mini.mend import main as mend_main
from training.mini.model import EXPORTED, GRID, LATENTS, PICTURE, Parts, boundary, build_unet, noise_levels
from training.mini.ops import blur, luma
from training.mini.prompts import words
from training.mini.sample import Sampler, time_steps
from training.mini.scenes import KINDS, SHAPES, Scene, draw_scene
from training.mini.settings import SMALL
from training.mini.sources import draw_sources
from training.mini.styles import ALL_STYLES, apply
from training.mini.tokenizer import build_tokenizer
from training.mini.train import Run, main

MODEL = Path(__file__).parents[2] / "models" / "mini"


@pytest.fixture(scope="module")
def shipped() -> Sampler:
    return Sampler.from_folder(str(MODEL))


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    torch.manual_seed(3)
    return draw_sources(3, 128, 128, torch.device("cpu"))


def test_small_run_trains_resumes_and_exports(tmp_path: Path) -> None:
    first, second, model = tmp_path / "first", tmp_path / "second", tmp_path / "model"
    main(["--small", "--vae-minutes", "0.02", "--minutes", "5", "--steps", "2", "--share", "0", "0.5",
          "--out", str(first)])  # fmt: skip
    main(["--small", "--vae-minutes", "0", "--minutes", "5", "--steps", "5", "--share", "0.5", "1",
          "--resume", str(first), "--out", str(second), "--export", str(model)])  # fmt: skip

    history = json.loads((second / "history.json").read_text())
    assert history[-1]["step"] == 5

    third = tmp_path / "third"
    main(["--small", "--vae-minutes", "0", "--minutes", "5", "--steps", "2", "--rows", "4",
          "--resume", str(second), "--out", str(third)])  # fmt: skip
    assert json.loads((third / "history.json").read_text())[-1]["rows"] == 2 * 4

    sampler = Sampler.from_folder(str(model))
    assert sampler.repaint(torch.rand(1, 3, 64, 64), "pencil sketch").shape == (1, 3, 64, 64)
    assert sampler.imagine("the sea", height=64, width=96, steps=2).shape == (1, 3, 64, 96)


class _Unrecordable(TorchDispatchMode):
    """Fails on what a CUDA graph cannot record: figures read back, copies from the host, random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forbidden = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal", "rand", "uniform",
                     "normal_", "bernoulli")  # fmt: skip
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.startswith(forbidden), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("against_critic", [False, True])
def test_gradients_of_a_step_can_be_recorded_as_a_graph(tmp_path: Path, against_critic: bool) -> None:
    run = Run(
        replace(SMALL, critic_share=0.3 if against_critic else 0.0), torch.device("cpu"), tmp_path, None
    )
    main_shape = SMALL.shapes[0]
    batch = assemble(Pool(run, main_shape), None, SMALL, run.b, run.grid)
    inputs = run.inputs(batch, main_shape)
    twin, rival = Twin([run.parts.unet, run.parts.text], torch.contiguous_format), run.rival()
    assert (rival is not None) == against_critic
    step = learner(twin, work_of(twin.modules[0], run.vae), rival, graphs=False)
    mode: Any = _Unrecordable
    with mode():
        predicted, figures = step(*inputs)
    assert predicted.shape == batch.x.shape
    assert figures.isfinite().all()
    learning = [twin] if rival is None else [twin, rival.twin]
    parameters = [p for each in learning for p in each.parameters]
    unused = [p.shape for p in parameters if p.grad is None or not p.grad.any()]
    assert len(unused) < len(parameters) / 50, unused


def test_critic_asks_for_a_bounded_share_of_the_gradient() -> None:
    torch.manual_seed(0)
    rival = Rival(Critic(8), torch.contiguous_format, 1e-2)
    real, prompt = torch.rand(4, 3, 32, 32).sign(), torch.randn(4, 8)
    shown = torch.zeros_like(real).requires_grad_()
    for _ in range(30):
        pull = rival.pull(shown, real, prompt, torch.tensor([0.5, 1.0, 0.5, 1.0]))
        rival.step()
    norms = pull.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.5, 1.0, 0.5, 1.0]), atol=1e-3, rtol=0)
    # A step against the gradient goes towards the pictures that are called real.
    assert ((shown - pull) - real).square().mean() < (shown - real).square().mean()


def test_optimisers_go_on_from_what_was_kept(tmp_path: Path) -> None:
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    optimisers = [torch.optim.AdamW(layer.parameters()) for layer in layers]
    for _ in range(3):
        layers[0](torch.ones(1, 3)).sum().backward()
        optimisers[0].step()
    remember({"layer": (layers[0], optimisers[0])}, tmp_path, whole=("layer",))
    assert recall({"layer": (layers[1], optimisers[1])}, tmp_path)
    for ours, theirs in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=0.01, rtol=0.01)
        kept, found = optimisers[0].state[ours], optimisers[1].state[theirs]
        torch.testing.assert_close(found["exp_avg_sq"], kept["exp_avg_sq"], atol=0, rtol=0.01)
        assert found["step"] == 3
    assert not recall({}, tmp_path / "elsewhere")


def test_default_strength_always_repaints() -> None:
    """A source that is repainted already is shown only below the default strength's time step."""
    left = torch.arange(1, (REPAINTED + 1) // STRIDE + 1)
    for count in (2, 3, 4):
        later = Stages(left, torch.full_like(left, count), torch.ones_like(left)).times()
        assert later.max() < time_steps(1, 0.5)[0]


@pytest.mark.parametrize("strength", [0.5, 0.36, 1.0])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_further_steps_are_learned_where_they_are_made(strength: float, count: int) -> None:
    left = torch.full((count,), round(len(GRID) * strength))
    stages = Stages(left, torch.full((count,), count), torch.arange(count))
    assert stages.times().tolist() == time_steps(count, strength)


def test_what_was_begun_goes_on_to_its_last_step(tmp_path: Path) -> None:
    run = Run(SMALL, torch.device("cpu"), tmp_path, None)
    pool = Pool(run, SMALL.shapes[0])
    batch = assemble(pool, None, SMALL, run.b, run.grid)
    made: list[int] = []
    for _ in range(12):
        batch = assemble(pool, batch.carry(batch.x, pool.encode), SMALL, run.b, run.grid)
        made += batch.stages.made.tolist()
        going = (batch.stages.made > 0) & (batch.stages.made + 1 < batch.stages.count)
        assert set(going.nonzero().flatten().tolist()) <= set(batch.again.tolist())
        assert (batch.stages.made < batch.stages.count).all()
    assert max(made) > 1


def test_what_is_mended_are_scenes_named_so_of_every_step(tmp_path: Path) -> None:
    run = Run(replace(SMALL, scenes=0.8), torch.device("cpu"), tmp_path, None)
    run.drawer = drawer = Aimed(run, "season", "autumn", ["forest"])
    pool = Pool(run, SMALL.shapes[0])
    batch = assemble(pool, None, run.settings, run.b, run.grid)
    made: list[int] = []
    for _ in range(12):
        found = drawer.found(batch)
        for tokens, here in zip(batch.tokens, found, strict=True):
            named = {"autumn", "fall", "colors"} & set(str(run.parts.tokenizer.decode(tokens)).split())
            assert bool(named) or not here
        made += batch.stages.made[found].tolist()
        batch = assemble(pool, batch.carry(batch.x, pool.encode), run.settings, run.b, run.grid)
    assert {0, 1} <= set(made)


def test_mending_leaves_the_autoencoder_as_it_is(tmp_path: Path) -> None:
    run = Run(replace(SMALL, steps=3, rate=1e-4, warmup=1), torch.device("cpu"), tmp_path, None)
    before = {name: value.clone() for name, value in run.parts.state_dict().items()}
    mend(run, Aimed(run, "season", "autumn", ["forest"]))
    after = run.parts.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in changed} == {"unet", "text"}


def test_only_what_a_landscape_shows_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mend_main(["autumn", "--kinds", "sea", "--resume", str(MODEL), "--out", str(tmp_path)])
    assert "there is no sea; there are: mountains, lake, forest, meadow" in capsys.readouterr().err


def test_average_goes_back_to_the_last_good_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    average = Average([weight], 0.5)
    weight.data.fill_(3.0)
    for _ in range(20):
        average.update()
    assert average.keep()
    weight.data.fill_(float("nan"))
    average.update()
    assert not average.keep()
    average.restore()
    torch.testing.assert_close(weight.data, torch.full((3,), 3.0), atol=0.05, rtol=0)


def test_time_steps_are_those_of_the_scheduler() -> None:
    scheduler = LCMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    scheduler.set_timesteps(4)
    assert time_steps(4, 1.0) == scheduler.timesteps.tolist() == [999, 759, 499, 259]
    assert time_steps(1, 0.5) == [499]
    assert time_steps(8, 0.0) == [GRID[-1]]


def test_scheduler_has_the_noise_levels_of_training() -> None:
    scheduler = LCMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    shipped = (1 - scheduler.alphas_cumprod.double()).sqrt()
    torch.testing.assert_close(shipped, torch.from_numpy(noise_levels()), atol=2e-3, rtol=0)


def test_unet_begins_near_a_copy_of_its_input() -> None:
    torch.manual_seed(0)
    unet: Any = build_unet()
    latents = torch.randn(2, LATENTS, 16, 16)
    with torch.no_grad():
        unet.up_blocks[-1].resnets[-1].conv2.weight.zero_()
        for feature in (k for k in range(unet.conv_out.in_channels) if k % 3 == 2 or k >= 3 * PICTURE):
            unet.conv_out.weight[:, feature] = 0  # what is there by chance beside the copy
        copied = unet(latents, torch.full((2,), 499), torch.randn(2, 32, 96)).sample[:, :PICTURE]
    latents = latents[:, :PICTURE]
    skip, out = boundary(torch.tensor([499]))
    assert torch.corrcoef(torch.stack([latents.flatten(), copied.flatten()]))[0, 1] > 0.99
    torch.testing.assert_close((skip * latents + out * copied).std(), latents.std(), atol=0.01, rtol=0)


@torch.no_grad()
def test_shipped_autoencoder_writes_the_plan_and_reads_the_picture(
    shipped: Sampler, drawn: torch.Tensor
) -> None:
    latents = shipped.vae.encode(drawn * 2 - 1).latents
    assert latents.shape[1] == LATENTS
    torch.testing.assert_close(latents[:, PICTURE:], latents[:, :PICTURE])
    decoded = shipped.vae.decode(latents).sample
    assert (decoded / 2 + 0.5 - drawn).abs().mean() < 0.05
    latents[:, PICTURE:] = torch.randn_like(latents[:, PICTURE:])
    torch.testing.assert_close(shipped.vae.decode(latents).sample, decoded)


def test_shipped_folder_can_be_trained_on_and_written_again(tmp_path: Path) -> None:
    parts = Parts()
    parts.load(MODEL)
    parts.export(tmp_path)
    for file in EXPORTED.values():
        shipped, written = load_file(MODEL / file), load_file(tmp_path / file)
        assert shipped.keys() == written.keys()
        assert all(torch.equal(shipped[name], written[name]) for name in shipped), file


@torch.no_grad()
def test_shipped_unet_leaves_the_plan_to_the_skipped_share(shipped: Sampler) -> None:
    made = shipped.unet(
        torch.randn(1, LATENTS, 16, 16), torch.tensor([499]), shipped.encode_prompt("the sea")
    ).sample
    assert made[:, :PICTURE].any()
    assert not made[:, PICTURE:].any()


def test_a_further_step_has_the_plan_of_the_first_and_a_sharpened_target(tmp_path: Path) -> None:
    run = Run(SMALL, torch.device("cpu"), tmp_path, None)
    pool = Pool(run, SMALL.shapes[0])
    batch = assemble(pool, None, SMALL, run.b, run.grid)
    skip, _ = boundary(batch.t)
    carry = batch.carry(skip * batch.x, pool.encode)
    rows = batch.again
    torch.testing.assert_close(carry.latent[:, PICTURE:], (skip * batch.x)[rows, PICTURE:])
    before = batch.pixels[rows] / 255
    sharp = (before + SHARPEN * (before - blur(before, 1.0))).clamp(0, 1)
    torch.testing.assert_close(carry.target, pool.encode(sharp))
    again = assemble(pool, carry, SMALL, run.b, run.grid)
    assert again.x.shape[1] == LATENTS
    assert again.target.shape[1] == PICTURE


def test_a_scene_is_a_function_of_its_noise() -> None:
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    for kind in (*KINDS, *SHAPES):
        picture = draw_scene(noise, Scene(kind))
        assert picture.shape == (2, 3, 64, 96)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert torch.equal(picture, draw_scene(noise, Scene(kind)))
        assert not torch.equal(picture[0], picture[1])


def test_styles_keep_the_range_and_repeat(drawn: torch.Tensor) -> None:
    for name, style in ALL_STYLES.items():
        picture = style.operator(drawn)
        assert picture.shape == drawn.shape, name
        assert torch.equal(picture, style.operator(drawn)), name
    mixed = apply(drawn, "watercolor", "sunset")
    assert 0 <= mixed.min() <= mixed.max() <= 1


def test_shipped_model_is_small_and_complete() -> None:
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert size <= 16_000_000
    for part in ("model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "README.md", "LICENSE"):
        assert (MODEL / part).is_file(), part


def test_shipped_tokenizer_is_the_one_of_the_word_list(shipped: Sampler) -> None:
    fresh = build_tokenizer(words())
    text = "An oil painting of qwxz at sunset, 8-bit!"
    assert shipped.tokenizer(text)["input_ids"] == fresh(text)["input_ids"]
    assert len(fresh.tokenize("watercolor")) == 1


@pytest.mark.parametrize("name", ["blueprint", "neon", "halftone", "thermal", "scanlines", "sunset", "gold"])
def test_shipped_style_comes_near_its_rendering(shipped: Sampler, drawn: torch.Tensor, name: str) -> None:
    style = ALL_STYLES[name]
    rendering = blur(style.operator(drawn), 1.0)
    result = blur(shipped.repaint(drawn, style.words[0]), 1.0)
    assert (result - rendering).abs().mean() < 0.5 * (blur(drawn, 1.0) - rendering).abs().mean()


@pytest.mark.parametrize("tint", [(1.0, 1.0, 1.0), (1.4, 0.8, 0.45)])
@pytest.mark.parametrize("name", ["pencil", "vintage", "ice", "fog"])
def test_shipped_model_takes_no_photograph_for_a_finished_picture(
    shipped: Sampler, drawn: torch.Tensor, name: str, tint: tuple[float, float, float]
) -> None:
    """Grey and warm pictures are repainted like any other."""
    source = (luma(drawn) * torch.tensor(tint).view(1, 3, 1, 1)).clamp(0, 1)
    rendering = blur(ALL_STYLES[name].operator(source), 1.0)
    result = blur(shipped.repaint(source, ALL_STYLES[name].words[0]), 1.0)
    assert (result - rendering).abs().mean() < 0.5 * (blur(source, 1.0) - rendering).abs().mean()


def test_shipped_model_leaves_unknown_words_alone(shipped: Sampler, drawn: torch.Tensor) -> None:
    for prompt in ("", "qwertz uiop"):
        assert (blur(shipped.repaint(drawn, prompt), 1.0) - blur(drawn, 1.0)).abs().mean() < 0.05


def test_shipped_scenes_follow_prompt_and_seed(shipped: Sampler) -> None:
    red = shipped.imagine("a red circle", seed=1)
    middle = red[0, :, 96:160, 96:160].mean((1, 2))
    assert middle[0] > 2 * middle[1]
    assert middle[0] > 2 * middle[2]
    star = shipped.imagine("a yellow star on blue", seed=1)
    middle, corner = star[0, :, 96:160, 96:160].mean((1, 2)), star[0, :, :32, :32].mean((1, 2))
    assert middle[:2].min() > 2 * middle[2]
    assert corner[2] > 2 * corner[0]
    night, day = shipped.imagine("the sea at night", seed=1), shipped.imagine("the sea", seed=1)
    assert night.mean() < 0.5 * day.mean()
    assert torch.equal(day, shipped.imagine("the sea", seed=1))
    assert (day - shipped.imagine("the sea", seed=2)).abs().mean() > 0.01
