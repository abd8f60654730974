"""torch.compile: what it needs, and that two compilations serve every batch size."""

from __future__ import annotations

import shutil
import sysconfig
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.accelerations import _triton
from app.accelerations.base import Shapes
from app.accelerations.compile import Acceleration, _packed
from app.accelerations.fused import Acceleration as Fused
from tests import tiny

CUDA = torch.device("cuda", 0)
BATCHES = (1, 2, 3, 4)


def test_it_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert Acceleration.problems(torch.device("cpu")) == [
        "torch.compile needs a C++ compiler; run: apt install g++"
    ]


def test_a_compiler_of_the_operators_choice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-compiler" else None)
    assert Acceleration.problems(torch.device("cpu")) == []


def test_on_a_gpu_it_needs_what_triton_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(_triton, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    for acceleration, oldest in ((Acceleration, "7.0"), (Fused, "8.0")):
        assert acceleration.problems(CUDA) == [
            "Triton is not installed; run: pip install triton",
            f"it needs a GPU of compute capability {oldest} or newer",
            "Triton needs a C compiler; run: apt install gcc",
            "Triton needs Python's headers; run: apt install python3-dev",
        ]
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang" else None)
    monkeypatch.setattr(_triton, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert Acceleration.problems(CUDA) == Fused.problems(CUDA) == []


@pytest.mark.parametrize("batch", BATCHES)
def test_a_column_of_a_table_looks_like_any_vector_to_the_compiler(batch: int) -> None:
    column = torch.zeros(batch, 9)[:, 3]
    assert _packed(column).stride() == (1,)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # the compiler uses what PyTorch itself has deprecated
def test_two_compilations_serve_every_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = tiny.model()
    model = replace(plain, unet=deepcopy(plain.unet), vae=deepcopy(plain.vae))
    words: list[str] = []
    networks = Acceleration(tmp_path).networks(model, Shapes(64, 64, BATCHES, BATCHES), words.append)
    assert words[0].startswith("compiling the UNet for one picture")
    torch.compiler.set_stance("fail_on_recompile")  # from here on nothing may be compiled
    try:
        for batch in BATCHES:
            with torch.inference_mode():  # tensors that are made outside would be compiled for anew
                latents = torch.randn(batch, *plain.latent_shape(64, 64))
                images = torch.rand(batch, 64, 64, 3).permute(0, 3, 1, 2) * 2 - 1
                timesteps = torch.full((batch, 9), 499.0)[:, 0]  # a column, as the runner passes it
                text = plain.embed("a").expand(batch, -1, -1)
                assert close(networks.unet(latents, timesteps, text), plain.predict(latents, timesteps, text))
                assert close(networks.encode(images), plain.encode(images))
                assert close(networks.decode(latents), plain.decode(latents))
    finally:
        torch.compiler.set_stance("default")


def close(made: Tensor, expected: Tensor) -> bool:
    return float((made - expected).norm() / expected.norm()) < 1e-5
