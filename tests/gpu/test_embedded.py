"""The embedded model in half precision on a GPU, against the same in float32; `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from app.accelerations import load_acceleration
from app.accelerations._cuda_graph import GraphExecutor
from app.accelerations.base import Shapes
from app.config.schema import ModelSettings, PipelineSettings
from app.core.messages import FrameIn, Image, Mode, Row, SessionKey
from app.core.runner import DiffusionRunner, execute
from app.models.loader import load
from app.models.networks import Networks
from app.pipelines import load_pipelines

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

MODEL = Path(__file__).parents[2] / "models" / "mini"
SIZE = 256
PROMPTS: dict[Mode, str] = {"image": "pencil sketch", "video": "a lake, clouds"}
DIFFERENCE = 1.0
"""Grey levels of 255, the mean over a picture."""


def paint(using: DiffusionRunner, mode: Mode, steps: int, source: Image) -> Image:
    pipeline = load_pipelines("img2img")[mode]
    plan = pipeline.plan(pipeline.Params(prompt=PROMPTS[mode], num_inference_steps=steps, seed=3))
    frame = FrameIn(SessionKey("user", 0), 0, plan, source if mode == "image" else None, 0.0)
    row = Row(0, frame, 0.0, tuple(using.encode(text) for text in plan.texts))
    for _ in plan.timesteps:
        made = using.launch((row,)).collect()
        row = row.advanced()
    assert made[0] is not None
    picture: Image = made[0].copy()
    return picture


def test_half_precision_and_graphs_paint_what_float32_does(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def runner(dtype: str, accelerated: bool) -> DiffusionRunner:
        model = load(
            ModelSettings.model_validate({"model_id": str(MODEL), "dtype": dtype, "device": "cuda"}),
            PipelineSettings(),
            lambda _words: None,
        )
        networks: Networks = model.networks()
        if accelerated:
            acceleration = load_acceleration("none", model.device, tmp_path)
            networks = acceleration.networks(model, Shapes(SIZE, SIZE, (1,), (1,)), lambda _words: None)
        made = DiffusionRunner(
            model,
            networks,
            load_pipelines("img2img"),
            width=SIZE,
            height=SIZE,
            buckets=(1,),
            guidance="none",
            description={},
            execute=GraphExecutor(model.device) if accelerated else execute,
        )
        made.warm_up(1, lambda _words: None)
        return made

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact, fast = runner("float32", False), runner("float16", True)
    coarse = default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    source = np.kron(coarse, np.ones((SIZE // 8, SIZE // 8, 1), dtype=np.uint8))
    for mode in PROMPTS:
        for steps in (1, 2, 4):
            a, b = (paint(each, mode, steps, source).astype(float) for each in (exact, fast))
            assert np.ptp(a) > 100
            assert np.abs(a - b).mean() < DIFFERENCE, (mode, steps)
