"""ONNX Runtime against PyTorch, on the CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.accelerations import load_acceleration, onnx
from app.accelerations.base import AccelerationError, Shapes
from app.models.model import Model
from app.models.networks import Networks
from tests import tiny

pytest.importorskip("onnx", reason="pip install -r requirements-onnx.txt")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-onnx.txt")

CPU = torch.device("cpu")
SHAPES = Shapes(64, 64, (1, 2, 4), (1, 2, 4))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def networks(model: Model) -> Networks:
    return load_acceleration("onnx", CPU, Path()).networks(model, SHAPES, lambda _words: None)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_networks_compute_the_same(model: Model, networks: Networks, batch: int) -> None:
    latents, images = normal(batch, *model.latent_shape(64, 64)), normal(batch, 3, 64, 64)
    timesteps, texts = torch.linspace(19, 999, batch).round(), normal(batch, 16, tiny.WIDTH)
    with torch.inference_mode():
        for made, expected in (
            (networks.unet(latents, timesteps, texts), model.predict(latents, timesteps, texts)),
            (
                networks.encode(images.contiguous(memory_format=torch.channels_last)),
                model.encode(images),
            ),
            (networks.decode(latents), model.decode(latents)),
        ):
            assert made.dtype == torch.float32
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_see_the_others(model: Model, networks: Networks) -> None:
    latents, images = normal(4, *model.latent_shape(64, 64)), normal(4, 3, 64, 64)
    timesteps, texts = torch.full((4,), 499.0), normal(4, 16, tiny.WIDTH)
    others = [1, 0, 3, 2]
    pairs = (
        (networks.unet(latents, timesteps, texts), networks.unet(latents[others], timesteps, texts[others])),
        (networks.encode(images), networks.encode(images[others])),
        (networks.decode(latents), networks.decode(latents[others])),
    )
    for made, moved in pairs:
        assert torch.equal(made[others], moved)


def test_what_it_cannot_do_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(model, dtype=torch.bfloat16)
    with pytest.raises(AccelerationError, match="dtype is bfloat16"):
        load_acceleration("onnx", CPU, Path()).networks(half, SHAPES, lambda _words: None)
    with pytest.raises(AccelerationError, match="the device is cuda"):
        load_acceleration("onnx", torch.device("cuda"), Path())
    monkeypatch.setattr(onnx, "LIBRARIES", ("onnx", "no_such_library"))
    with pytest.raises(AccelerationError, match="no_such_library not installed; run: pip"):
        load_acceleration("onnx", CPU, Path())


def taken(model: Model) -> str:
    """What `auto` takes."""
    chosen = load_acceleration("auto", CPU, Path())
    chosen.networks(deepcopy(model), SHAPES, lambda _words: None)
    return chosen.name


def test_auto_takes_it_for_small_models(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(model) == "onnx"
    monkeypatch.setattr(onnx, "LARGE", 1000)
    with pytest.raises(AccelerationError, match="for small models"):
        load_acceleration("onnx", CPU, Path()).networks(model, SHAPES, lambda _words: None)
    assert taken(model) == "none"


def test_auto_passes_over_it_where_the_disk_is_full(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "export", full)
    with pytest.raises(AccelerationError, match="No space left on device"):
        load_acceleration("onnx", CPU, Path()).networks(model, SHAPES, lambda _words: None)
    assert taken(model) == "none"
