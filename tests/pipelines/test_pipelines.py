"""Pipelines over real networks: shapes, both kinds of autoencoder, and one of a user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

import app.pipelines
from app.core.messages import Mode
from app.models.pixels import to_pixels, to_unit
from app.pipelines import img2img, load_pipelines, txt2img
from app.pipelines.base import BasePipeline
from tests import tiny
from tests.core.rows import create_runner, frame, picture, run_alone, run_together

VAES: dict[tiny.Vae, int] = {"tiny": 8, "tiny4": 4, "kl": 8}
SIZE = (64, 48)  # width, height


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([picture(n, SIZE) for n in range(count)]))


@pytest.mark.parametrize(("vae", "factor"), VAES.items())
def test_latents_have_the_size_that_the_autoencoder_makes(vae: tiny.Vae, factor: int) -> None:
    assert tiny.model(vae).latent_shape(*SIZE) == (4, SIZE[1] // factor, SIZE[0] // factor)


@pytest.mark.parametrize(("vae", "factor"), VAES.items())
@torch.inference_mode()
def test_a_picture_begins_as_its_latents_with_noise(vae: tiny.Vae, factor: int) -> None:
    networks, pipeline = tiny.model(vae).networks(), img2img.Pipeline()
    images = pictures(3)
    noise = torch.randn(
        3, 4, SIZE[1] // factor, SIZE[0] // factor, generator=torch.Generator().manual_seed(1)
    )
    latents = networks.encode(to_unit(images))
    assert latents.shape == noise.shape
    levels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    begun = pipeline.begin(networks, images, noise, levels)
    assert begun.dtype == torch.float32
    torch.testing.assert_close(begun[0], latents[0])
    torch.testing.assert_close(begun[1], noise[1])
    torch.testing.assert_close(begun[2], 0.6 * latents[2] + 0.8 * noise[2])


@torch.inference_mode()
def test_video_begins_as_noise() -> None:
    noise = torch.randn(2, 4, 6, 8)
    begun = txt2img.Pipeline().begin(tiny.model().networks(), None, noise, torch.rand(2, 2))
    assert torch.equal(begun, noise)


@pytest.mark.parametrize(("vae", "factor"), VAES.items())
@torch.inference_mode()
def test_latents_become_bytes(vae: tiny.Vae, factor: int) -> None:
    networks = tiny.model(vae).networks()
    latents = torch.randn(2, 4, SIZE[1] // factor, SIZE[0] // factor)
    images = txt2img.Pipeline().decode(networks, latents)
    assert images.shape == (2, SIZE[1], SIZE[0], 3)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    expected = (networks.decode(latents) * 127.5 + 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    assert (images - expected).abs().max() <= 0.5 + 1e-4


@torch.inference_mode()
def test_the_scaling_of_latents_is_undone() -> None:
    """A full autoencoder has a factor of its own, which the UNet's latents are multiplied by."""
    model = tiny.model("kl")
    images = to_unit(pictures(1))
    raw = model.vae.encode(images).latent_dist.mode()
    latents = model.encode(images)
    torch.testing.assert_close(latents, raw * 0.18215)
    torch.testing.assert_close(model.decode(latents), model.vae.decode(raw).sample)


def test_bytes_survive_the_way_to_tensors_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    units = to_unit(every)
    assert (float(units.min()), float(units.max())) == (-1.0, 1.0)
    assert torch.equal(to_pixels(units), every)
    beyond = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert to_pixels(beyond)[0, 0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("vae", "mode"), [(vae, mode) for vae in VAES for mode in ("image", "video")])
def test_a_frame_is_made_with_every_autoencoder(vae: tiny.Vae, mode: Mode) -> None:
    runner = create_runner(tiny.model(vae), size=SIZE)
    image = run_alone(runner, frame(mode, image=picture(1, SIZE) if mode == "image" else None))
    assert image is not None
    assert image.shape == (SIZE[1], SIZE[0], 3)
    assert image.std() > 1


# -- one of a user's own ------------------------------------------------------------------------------

MIRROR = '''
    """Image mode, mirrored."""

    from pydantic import Field

    from app.pipelines.img2img import ImageParams
    from app.pipelines.img2img import Pipeline as Img2Img

    class MirrorParams(ImageParams):
        mirror: bool = Field(True, title="Mirror", json_schema_extra={"field": "checkbox"})

    class Pipeline(Img2Img):
        Params = MirrorParams

        def begin(self, networks, images, noise, levels):
            return super().begin(networks, images.flip(2), noise, levels)
'''
SHOUT = """
    from app.core.messages import Plan
    from app.pipelines.base import BaseParams, BasePipeline

    class Pipeline(BasePipeline[BaseParams]):
        mode = "video"
        Params = BaseParams

        def plan(self, params):
            return params.plan(self.mode, strength=0.5)

        def begin(self, networks, images, noise, levels):
            return noise * 2.0

        def decode(self, networks, latents):
            return 255 - super().decode(networks, latents)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are pipelines, as if they lay in app/pipelines."""
    monkeypatch.setattr(app.pipelines, "__path__", [*app.pipelines.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("app.pipelines."):
            del sys.modules[name]
            delattr(app.pipelines, name.rpartition(".")[2])


def place(folder: Path, name: str, source: str) -> dict[Mode, BasePipeline[Any]]:
    (folder / f"{name}.py").write_text(dedent(source))
    return load_pipelines(name)


def test_the_built_in_ones() -> None:
    for name in ("img2img", "txt2img"):
        found = load_pipelines(name)
        assert isinstance(found["image"], img2img.Pipeline)
        assert isinstance(found["video"], txt2img.Pipeline)


def test_one_file_is_a_pipeline(folder: Path) -> None:
    pipelines = place(folder, "mirror", MIRROR)
    assert isinstance(pipelines["video"], txt2img.Pipeline)
    assert pipelines["image"].Params().mirror is True
    runner = create_runner(pipelines=pipelines)
    mirrored = np.ascontiguousarray(picture(1)[:, ::-1])
    mine = run_alone(runner, frame(image=picture(1)))
    np.testing.assert_array_equal(mine, run_alone(create_runner(), frame(image=mirrored)))
    assert not np.array_equal(mine, run_alone(create_runner(), frame(image=picture(1))))  # type: ignore[arg-type]


def test_a_pipeline_with_a_decoder_of_its_own_shares_a_batch(folder: Path) -> None:
    pipelines = place(folder, "shout", SHOUT)
    assert isinstance(pipelines["image"], img2img.Pipeline)
    runner = create_runner(pipelines=pipelines)
    frames = [frame("image", number=1), frame("video", number=2), frame("image", number=3)]
    together = run_together(runner, frames)
    for mine, one in zip(together, frames, strict=True):
        alone = run_alone(runner, one)
        assert mine is not None
        assert alone is not None
        # Alone it is another batch size, where a sum may round otherwise.
        assert np.abs(mine.astype(int) - alone).max() <= 1
    usual = run_alone(create_runner(), frames[1])
    assert not np.array_equal(together[1], usual)  # type: ignore[arg-type]


def test_a_file_without_the_class_is_told_so(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"app/pipelines/empty\.py has no class Pipeline"):
        place(folder, "empty", "class Pipeline:\n    pass\n")


@pytest.mark.parametrize(("line", "found"), [('mode = "img2img"', "'img2img'"), ("", "None")])
def test_a_mode_that_does_not_exist_is_refused(folder: Path, line: str, found: str) -> None:
    with pytest.raises(TypeError, match=rf"modeless\.py: the mode .* 'image' or 'video', not {found}"):
        place(folder, "modeless", SHOUT.replace('mode = "video"', line))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "must be a pydantic model"),
        ("Params = dict", "must be a pydantic model"),
        ("class Params(BaseParams):\n            power: float", "need a default for power"),
    ],
)
def test_parameters_without_a_model_or_a_default_are_refused(folder: Path, lines: str, words: str) -> None:
    with pytest.raises(TypeError, match=rf"powerless\.py: the Params of Pipeline {words}"):
        place(folder, "powerless", SHOUT.replace("Params = BaseParams", lines))


def test_a_method_that_is_missing_is_named(folder: Path) -> None:
    source = SHOUT.replace("def begin", "def start")
    with pytest.raises(TypeError, match="begin"):
        place(folder, "half", source)
