"""Which acceleration runs, and what is said where one cannot."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention

from app import accelerations
from app.accelerations import choose_cuda_graph, load_acceleration
from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.accelerations.none import Acceleration as Plain
from app.accelerations.xformers import Acceleration as Xformers
from app.config.settings import available_accelerations
from app.models.model import Model
from app.models.networks import Networks
from tests import tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_what_works(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-onnx.txt")
    auto = load_acceleration("auto", CPU, tmp_path)
    networks = auto.networks(deepcopy(tiny.model()), Shapes(64, 64, (1,), (1,)), lambda words: None)
    assert auto.name == "onnx"
    assert networks.unet(*inputs()).isfinite().all()


def test_auto_takes_the_fastest_and_passes_over_what_cannot_do_this_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Fast(BaseAcceleration):
        fits = True

        @classmethod
        def problems(cls, device: torch.device) -> list[str]:
            return []

        def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
            tried.append(self.fits)
            if not self.fits:
                raise AccelerationError("not this model")
            return model.networks()

    load = accelerations._load
    monkeypatch.setattr(accelerations, "_load", lambda name: Fast if name == "onnx" else load(name))
    shapes = Shapes(64, 64, (1,), (1,))
    for fits, name in ((True, "onnx"), (False, "none")):
        Fast.fits = fits
        auto = load_acceleration("auto", CPU, tmp_path)
        auto.networks(deepcopy(tiny.model()), shapes, lambda words: None)
        assert auto.name == name
    assert tried == [True, False]


@pytest.mark.parametrize(
    ("device", "fastest", "level"), [(CPU, "onnx", logging.INFO), (CUDA, "fused", logging.WARNING)]
)
def test_a_gpu_without_the_fastest_is_a_warning(
    device: torch.device,
    fastest: str,
    level: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = f"app.accelerations.{fastest}.Acceleration.problems"
    monkeypatch.setattr(problems, lambda device: ["no compiler"])
    model = replace(deepcopy(tiny.model()), device=device)
    auto = load_acceleration("auto", device, tmp_path)
    with caplog.at_level(logging.INFO, "app.accelerations"):
        auto.networks(model, Shapes(64, 64, (1,), (1,)), lambda words: None)
    assert auto.name == "none"
    (record,) = caplog.records
    assert record.levelno == level
    assert "no compiler" in record.getMessage()


def test_an_acceleration_is_called_as_its_file(tmp_path: Path) -> None:
    assert load_acceleration("none", CPU, tmp_path).name == "none"


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model = tiny.model()
    return torch.zeros(1, *model.latent_shape(64, 64)), torch.ones(1), model.embed("")


def test_auto_takes_cuda_graphs_where_there_are_any() -> None:
    assert choose_cuda_graph("auto", False, CUDA)
    assert not choose_cuda_graph("auto", False, CPU)
    assert not choose_cuda_graph("none", False, CUDA)
    assert choose_cuda_graph("none", True, CUDA)


def test_cuda_graphs_on_a_cpu_are_an_error() -> None:
    with pytest.raises(AccelerationError, match="use_cuda_graph needs an NVIDIA GPU, and the device is cpu"):
        choose_cuda_graph("auto", True, CPU)


def test_what_cannot_work_says_why_and_what_would(tmp_path: Path) -> None:
    with pytest.raises(AccelerationError) as caught:
        load_acceleration("xformers", CPU, tmp_path)
    assert str(caught.value) == (
        "model.acceleration 'xformers' cannot work here: xformers needs an NVIDIA GPU, and the device is cpu "
        "(auto takes what can, none works everywhere)"
    )


def test_xformers_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("app.accelerations.xformers.import_module", fail)
    (problem,) = Xformers.problems(CUDA)
    assert problem.startswith("xformers does not load (No module named 'xformers.ops'); run: pip install")


class PlayedXformers:
    """xformers on a CPU. As the real one, it takes PyTorch's kernels only where it believes in CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *widths: int) -> None:
        self.calls = 0
        self._built_with_cuda = False
        self._widths = widths
        monkeypatch.setattr("app.accelerations.xformers.import_module", lambda name: self)
        monkeypatch.setattr("diffusers.models.attention_processor.xformers", SimpleNamespace(ops=self))
        monkeypatch.setattr(torch.version, "cuda", "13.0")

    def memory_efficient_attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_bias: object = None,
        op: object = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        if not self._built_with_cuda or q.shape[-1] not in self._widths:
            raise NotImplementedError("No operator found\n  `fa2F` is not supported because:\n    it is new")
        self.calls += 1
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def test_xformers_computes_the_attention_of_the_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepcopy(tiny.model())
    latents, timesteps, embedding = inputs()
    expected = model.predict(latents, timesteps, embedding)
    attentions = [module for module in model.unet.modules() if isinstance(module, Attention)]
    widths = {attention.inner_dim // attention.heads for attention in attentions}
    played = PlayedXformers(monkeypatch, *widths)
    networks = Xformers(tmp_path).networks(model, Shapes(64, 64, (1,), (1,)), lambda words: None)
    assert played.calls == len(widths)
    torch.testing.assert_close(networks.unet(latents, timesteps, embedding), expected, rtol=1e-4, atol=1e-5)
    assert played.calls == len(widths) + len(attentions)


def test_xformers_without_a_kernel_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PlayedXformers(monkeypatch)
    with pytest.raises(AccelerationError) as caught:
        Xformers(tmp_path).networks(deepcopy(tiny.model()), Shapes(64, 64, (1,), (1,)), lambda words: None)
    assert str(caught.value) == (
        "model.acceleration 'xformers' cannot work here: No operator found `fa2F` is not supported because: "
        "it is new; use none, which has PyTorch's own memory-efficient attention"
    )


def test_plain_torch_works_everywhere(tmp_path: Path) -> None:
    assert isinstance(load_acceleration("none", CPU, tmp_path), Plain)


def test_every_file_is_an_acceleration() -> None:
    for name in available_accelerations():
        assert issubclass(accelerations._load(name), BaseAcceleration)
