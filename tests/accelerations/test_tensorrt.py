"""TensorRT as far as it goes without a GPU: export, parsing, building, caching. Running needs one, so there
the library is played.
"""

from __future__ import annotations

import ctypes
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.accelerations import tensorrt
from app.accelerations._onnx_export import Network, export, networks
from app.accelerations._tensorrt import cache, provider
from app.accelerations._tensorrt.build import build
from app.accelerations._tensorrt.engine import Engine
from app.accelerations.base import AccelerationError, Shapes
from app.models.model import Model
from tests import tiny

SHAPES = Shapes(width=64, height=64, unet_batches=(1, 2, 4), vae_batches=(1, 2, 4))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def unet(model: Model) -> Network:
    return networks(model, SHAPES)[0]


def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="pip install -r requirements-tensorrt.txt")


class Words(list[str]):
    def __call__(self, words: str) -> None:
        self.append(words)


# -- export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_exported_networks_compute_the_same_at_every_batch_size(
    model: Model, which: int, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = networks(model, SHAPES)[which]
    export(network, tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(3)
    for batch in (1, 2, 4):
        inputs = {
            name: torch.rand(batch, *example.shape[1:], generator=generator)
            * (900 if example.ndim == 1 else 1)
            for name, example in network.inputs.items()
        }
        (made,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.inference_mode():
            expected = network.function(*inputs.values()).numpy()
        assert np.linalg.norm(made - expected) < 1e-4 * np.linalg.norm(expected)


# -- build --------------------------------------------------------------------------------------------


def test_an_engine_is_built_cached_and_not_built_again(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, words = rtx(), Words()
    path = cache.path_of(tmp_path, "unet", "key")
    plan = tensorrt.make(trt, unet, path, "key", words)
    assert len(plan) > 10_000
    assert cache.read(path, "key") == plan
    assert words[0] == "exporting the UNet to ONNX"
    assert "TensorRT builds the UNet: Building engine, 50 %" in words
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing is left lying about

    engines: list[bytes] = []
    monkeypatch.setattr(tensorrt, "Engine", lambda _trt, plan, *_: engines.append(plan))
    monkeypatch.setattr(tensorrt, "make", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(cache, "key_of", lambda facts: "key")
    tensorrt.Acceleration(tmp_path)._engine(trt, unet, {}, CPU, words)
    assert engines == [plan]


def test_an_engine_that_the_library_refuses_is_built_anew(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cache.key_of({})
    cache.write(cache.path_of(tmp_path, "unet", key), key, b"of another version")

    def engine(_trt: Any, plan: bytes, *_: Any) -> bytes:
        if plan != b"new":
            raise AccelerationError("TensorRT does not take the engine")
        return plan

    monkeypatch.setattr(tensorrt, "Engine", engine)
    monkeypatch.setattr(tensorrt, "make", lambda *_: b"new")
    made: object = tensorrt.Acceleration(tmp_path)._engine(None, unet, {}, CPU, Words())
    assert made == b"new"


def test_a_folder_that_cannot_be_used_is_an_error(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(__name__="tensorrt", __version__="10")
    monkeypatch.setattr(provider, "find", lambda _device: (library, []))
    monkeypatch.setattr(tensorrt, "_gpu", lambda _device: "sm89")
    file = tmp_path / "engines"
    file.touch()
    with pytest.raises(AccelerationError, match=f"model.engine_dir cannot keep engines: .*'{file}/"):
        tensorrt.Acceleration(file).networks(model, SHAPES, Words())


def test_what_cannot_be_parsed_is_an_error(unet: Network, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(AccelerationError, match=r"TensorRT cannot read the UNet: .+"):
        build(rtx(), unet, tmp_path / "broken.onnx", Words())


# -- cache --------------------------------------------------------------------------------------------


def test_a_kept_engine_comes_back_and_only_under_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deep" / "unet.engine"
    assert cache.read(path, "a") is None
    assert not caplog.records  # that there is none is no news
    cache.write(path, "a", b"plan\nwith lines")
    assert cache.read(path, "a") == b"plan\nwith lines"
    assert cache.read(path, "b") is None
    assert "belongs to something else" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"rubbish", cache.MAGIC, cache.MAGIC + b"{}\nplan"])
def test_a_damaged_file_is_no_engine(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "unet.engine"
    path.write_bytes(damage)
    assert cache.read(path, "a") is None


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "unet.engine"
    cache.write(path, "a", bytes(1000))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cache.read(path, "a") is None


def test_a_write_that_fails_leaves_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unet.engine"
    cache.write(path, "a", b"old")

    def full(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("app.accelerations._tensorrt.cache.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        cache.write(path, "a", b"new")
    assert cache.read(path, "a") == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_key_follows_everything_an_engine_depends_on(
    model: Model, unet: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(__name__="tensorrt", __version__="10")

    def key(network: Network = unet, shapes: Shapes = SHAPES, version: str = "10", gpu: str = "sm89") -> str:
        monkeypatch.setattr(tensorrt, "_gpu", lambda device: gpu)
        library.__version__ = version
        return cache.key_of(tensorrt._facts(library, model, network, shapes))

    other = replace(unet, part=deepcopy(unet.part))
    assert key() == key(other)  # the same weights, elsewhere
    with torch.no_grad():
        next(other.part.parameters()).flatten()[0] += 1
    different = [
        key(),
        key(other),
        key(shapes=replace(SHAPES, width=128)),
        key(replace(unet, batches=(1, 2))),
        key(version="11"),
        key(gpu="sm90"),
    ]
    assert len(set(different)) == len(different)


# -- which library ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "there", "found", "words"),
    [
        ((8, 9), ("tensorrt", "tensorrt_rtx"), "tensorrt", ""),
        ((8, 9), ("tensorrt_rtx",), "tensorrt_rtx", "tensorrt does not load"),
        ((9, 0), ("tensorrt_rtx",), None, "tensorrt_rtx runs on RTX cards"),
        ((12, 0), (), None, "tensorrt_rtx does not load"),
        ((7, 0), ("tensorrt", "tensorrt_rtx"), None, "this GPU has 7.0"),
    ],
)
def test_the_library_is_the_first_that_loads_and_runs_on_the_gpu(
    capability: tuple[int, int], there: tuple[str, ...], found: str | None, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def load(name: str) -> str:
        if name not in there:
            raise ImportError(f"No module named {name!r}")
        return name

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(provider, "import_module", load)
    library, problems = provider.find(torch.device("cuda"))
    assert library == found
    assert words in "; ".join(problems)


# -- run ----------------------------------------------------------------------------------------------


class PlayedContext:
    """Adds one, at most for a batch of four, as an execution context would: through addresses."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 4

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shapes["latents"]

    def execute_async_v3(self, _stream: int) -> bool:
        count = int(np.prod(self.shapes["latents"]))
        array = ctypes.c_float * count
        source = array.from_address(self.addresses["latents"])
        target = array.from_address(self.addresses["output"])
        for place in range(count):
            target[place] = source[place] + 1
        return True


def played(engine: Any) -> Any:
    class Ilogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    return SimpleNamespace(
        ILogger=Ilogger,
        Runtime=lambda _logger: SimpleNamespace(deserialize_cuda_engine=lambda _plan: engine),
        DataType=SimpleNamespace(FLOAT=0, HALF=1, BF16=2),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
    )


def test_an_engine_runs_on_torchs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    contexts: list[PlayedContext] = []

    def create(strategy: int) -> PlayedContext:
        assert strategy == 2
        contexts.append(PlayedContext())
        return contexts[-1]

    native = SimpleNamespace(
        create_execution_context=create, get_tensor_dtype=lambda name: 0, device_memory_size_v2=1000
    )
    engine = Engine(played(native), b"plan", ("latents",), CPU)
    strided = torch.arange(12, dtype=torch.float64).view(3, 4).T
    assert torch.equal(engine(strided), strided.float() + 1)
    assert torch.equal(engine(strided[:1]), strided[:1].float() + 1)
    assert torch.equal(engine(strided), strided.float() + 1)
    first, second = contexts  # a batch size each, and one memory: they run one after the other
    assert first.memory == second.memory
    assert first.memory[1] == 1000
    with pytest.raises(RuntimeError, match=r"not built for latents of shape \(5, 2\)"):
        engine(torch.zeros(5, 2))


def test_a_refused_engine_is_an_error() -> None:
    with pytest.raises(AccelerationError, match="TensorRT does not take the engine"):
        Engine(played(None), b"plan", ("latents",), CPU)
