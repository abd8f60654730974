"""Which acceleration runs, and what is said where one cannot."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

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
    auto = load_acceleration("auto", CPU, tmp_path)
    networks = auto.networks(deepcopy(tiny.model()), Shapes(64, 64, (1,), (1,)), lambda words: None)
    assert auto.name == "none"
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
    monkeypatch.setattr(accelerations, "_load", lambda name: Fast if name == "fused" else load(name))
    shapes = Shapes(64, 64, (1,), (1,))
    for fits, name in ((True, "fused"), (False, "none")):
        Fast.fits = fits
        auto = load_acceleration("auto", CPU, tmp_path)
        auto.networks(deepcopy(tiny.model()), shapes, lambda words: None)
        assert auto.name == name
    assert tried == [True, False]


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


def test_xformers_that_diffusers_cannot_use(tmp_path: Path) -> None:
    model = deepcopy(tiny.model())
    with pytest.raises(AccelerationError, match=r"'xformers' cannot work here: .+; use none, which has"):
        Xformers(tmp_path).networks(model, Shapes(64, 64, (1,), (1,)), lambda words: None)


def test_plain_torch_works_everywhere(tmp_path: Path) -> None:
    assert isinstance(load_acceleration("none", CPU, tmp_path), Plain)


def test_every_file_is_an_acceleration() -> None:
    for name in available_accelerations():
        assert issubclass(accelerations._load(name), BaseAcceleration)
