"""From settings to frames: the configured model on disk, loaded, warmed up, and used by two users."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.accelerations.base import AccelerationError
from app.config.schema import ModelSettings, PerformanceSettings, PipelineSettings, Settings
from app.core.factory import batch_sizes, create_engine
from app.core.messages import Done, Event, Failed, FrameIn, Image
from app.models.loader import ModelLoadError
from app.pipelines import load_pipelines
from tests import tiny
from tests.core.fakes import PATIENCE
from tests.core.rows import create_runner, frame, run_alone

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def configured(model: Path | str, acceleration: str = "none", **pipeline: Any) -> Settings:
    pipeline = {"width": tiny.SIZE, "height": tiny.SIZE, "use_lcm_lora": False, "warmup": 1, **pipeline}
    return Settings(
        model=ModelSettings(
            model_id=str(model), acceleration=acceleration, device="cpu", local_files_only=True
        ),
        pipeline=PipelineSettings(**pipeline),
        performance=PerformanceSettings(max_batch=2),
    )


async def make(settings: Settings, *frames: FrameIn) -> tuple[dict[int, Image], dict[str, Any]]:
    """The frames' pictures by their numbers, and what the engine says of itself."""
    engine = create_engine(settings, load_pipelines("img2img"))
    ended: list[Done | Failed] = []
    news = asyncio.Event()

    def deliver(events: list[Event]) -> None:
        ended.extend(event for event in events if isinstance(event, Done | Failed))
        news.set()

    await engine.start(deliver)
    try:
        for one in frames:
            engine.submit(one)
        while len(ended) < len(frames):
            news.clear()
            await asyncio.wait_for(news.wait(), PATIENCE)
    finally:
        await engine.stop()
    return {e.frame.number: e.image for e in ended if isinstance(e, Done)}, dict(engine.description)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("largest", "device", "expected"),
    [
        (None, CPU, (1, 2, 3, 4)),
        (6, CPU, (1, 2, 3, 4, 5, 6)),
        (None, CUDA, (1, 2, 3, 4, 6, 8, 12, 16)),
        (10, CUDA, (1, 2, 3, 4, 6, 8, 10)),
        (1, CUDA, (1,)),
    ],
)
def test_batch_sizes(largest: int | None, device: torch.device, expected: tuple[int, ...]) -> None:
    assert batch_sizes(largest, device) == expected


async def test_two_users_share_the_configured_model(folder: Path) -> None:
    frames = [
        frame("image", user="a", number=1, prompt="cat", num_inference_steps=2, guidance_scale=1.4),
        frame("video", user="b", number=2, prompt="sea", num_inference_steps=3, guidance_scale=1.4),
    ]
    images, description = await make(configured(folder), *frames)
    runner = create_runner(guidance="self")
    for one in frames:
        expected = run_alone(runner, one)
        assert expected is not None
        # Another memory format, so sums may round otherwise.
        assert np.abs(images[one.number].astype(int) - expected).max() <= 1
    assert description == {
        "model": str(folder),
        "device": "CPU",
        "dtype": "float32",
        "acceleration": "none",
        "cuda_graph": False,
        "guidance": "self",
        "distilled": False,
        "width": tiny.SIZE,
        "height": tiny.SIZE,
        "max_batch": 2,
    }


async def test_a_distilled_model_needs_no_guidance(tmp_path: Path) -> None:
    tiny.save(tmp_path, timestep_spacing="trailing")  # as SD-Turbo's scheduler has it
    one = frame(number=1, prompt="cat", guidance_scale=7.5)
    images, description = await make(configured(tmp_path), one)
    assert (description["distilled"], description["guidance"]) == (True, "none")
    expected = run_alone(create_runner(guidance="none"), one)
    assert expected is not None
    assert np.abs(images[1].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("guidance", ["full", "initialize"])
async def test_guidance_can_be_chosen(folder: Path, guidance: Any) -> None:
    one = frame(number=1, prompt="cat", negative_prompt="dog", num_inference_steps=2, guidance_scale=1.4)
    images, description = await make(configured(folder, cfg_type=guidance), one)
    assert description["guidance"] == guidance
    expected = run_alone(create_runner(guidance=guidance), one)
    assert expected is not None
    assert np.abs(images[1].astype(int) - expected).max() <= 1


async def test_a_model_that_is_not_there_is_told_by_start(tmp_path: Path) -> None:
    engine = create_engine(configured(tmp_path / "nothing"), load_pipelines("img2img"))
    with pytest.raises(ModelLoadError, match="nothing"):
        await engine.start(lambda _events: None)
    assert engine.state == "failed"
    assert engine.failure is not None
    assert "nothing" in engine.failure
    await engine.stop()


async def test_an_acceleration_that_cannot_work_is_told_by_start(folder: Path) -> None:
    engine = create_engine(configured(folder, "xformers"), load_pipelines("img2img"))
    with pytest.raises(AccelerationError, match="xformers"):
        await engine.start(lambda _events: None)
    await engine.stop()


def test_a_device_that_is_not_there_is_told_at_once() -> None:
    settings = Settings(model=ModelSettings(device="cuda:99"))
    with pytest.raises(ModelLoadError, match="cuda:99"):
        create_engine(settings, {})
