"""Parameters and plans: what a client may say, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.core.messages import Plan
from app.pipelines import img2img, txt2img
from app.pipelines.base import MAX_SEED, MAX_STEPS, BaseParams, BasePipeline
from app.pipelines.img2img import ImageParams

IMAGE, VIDEO = img2img.Pipeline(), txt2img.Pipeline()
BOTH: tuple[BasePipeline[Any], ...] = (IMAGE, VIDEO)


@pytest.mark.parametrize("pipeline", BOTH)
def test_defaults_are_those_of_the_contract(pipeline: BasePipeline[Any]) -> None:
    params = pipeline.Params()
    assert params.prompt == ""
    assert params.guidance_scale == 7.5
    assert params.num_inference_steps == 1


@pytest.mark.parametrize("pipeline", BOTH)
def test_every_parameter_can_be_drawn(pipeline: BasePipeline[Any]) -> None:
    properties = pipeline.Params.model_json_schema()["properties"]
    for name, entry in properties.items():
        assert entry["title"], name
        assert entry["description"].endswith("."), name
        assert "default" in entry, name
        assert entry["field"] in ("textarea", "range", "seed", "checkbox", "select"), name
        if entry["field"] == "range":
            assert entry["minimum"] < entry["maximum"], name
            assert entry["step"] > 0, name
    assert properties["guidance_scale"]["minimum"] == 1.0
    assert properties["guidance_scale"]["maximum"] == 20.0
    assert properties["prompt"]["field"] == "textarea"


def test_the_scale_says_what_it_means_to_a_distilled_model() -> None:
    words = BaseParams.model_fields["guidance_scale"].description or ""
    assert "distilled" in words
    assert "7.5 acts as 1.2" in words


def test_only_image_mode_has_a_strength() -> None:
    assert "strength" in ImageParams.model_fields
    assert "strength" not in BaseParams.model_fields


LIMITS = [
    ("guidance_scale", 1.0, 20.0),
    ("num_inference_steps", 1, MAX_STEPS),
    ("seed", 0, MAX_SEED),
    ("delta", 0.0, 2.0),
    ("strength", 0.0, 1.0),
]


@pytest.mark.parametrize(("name", "low", "high"), LIMITS)
def test_limits(name: str, low: float, high: float) -> None:
    for value in (low, high):
        assert getattr(ImageParams(**{name: value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValidationError, match=name):
            ImageParams(**{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None, [1]])
@pytest.mark.parametrize("name", ["guidance_scale", "delta", "strength", "seed"])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        ImageParams(**{name: value})


def test_what_is_not_known_is_overlooked() -> None:
    """Front ends send keys of their own, such as a width."""
    assert ImageParams(width=512) == ImageParams()


@pytest.mark.parametrize(
    ("strength", "steps", "expected"),
    [
        (1.0, 1, (999,)),
        (1.0, 4, (999, 759, 499, 259)),
        (0.5, 1, (499,)),
        (0.5, 2, (499, 259)),
        (0.02, 4, (19,)),
        (0.0, 1, (19,)),
    ],
)
def test_strength_is_where_on_the_grid_a_picture_starts(
    strength: float, steps: int, expected: tuple[int, ...]
) -> None:
    assert IMAGE.plan(ImageParams(strength=strength, num_inference_steps=steps)).timesteps == expected


@given(st.integers(0, 49), st.integers(1, MAX_STEPS))
def test_more_strength_starts_no_later(percent: int, steps: int) -> None:
    less, more = (
        IMAGE.plan(ImageParams(strength=s / 50, num_inference_steps=steps)).timesteps
        for s in (percent, percent + 1)
    )
    assert less[0] <= more[0]
    assert len(less) <= len(more) <= steps


def test_video_starts_from_noise_alone() -> None:
    assert VIDEO.plan(BaseParams(num_inference_steps=4)).timesteps == (999, 759, 499, 259)


@pytest.mark.parametrize("pipeline", BOTH)
def test_a_plan_says_all_that_was_asked_for(pipeline: BasePipeline[Any]) -> None:
    params = pipeline.Params(
        prompt="cat", negative_prompt="dog", guidance_scale=2.0, num_inference_steps=2, seed=9, delta=0.5
    )
    plan = pipeline.plan(params)
    assert plan == Plan(pipeline.mode, "cat", "dog", 9, plan.timesteps, 2.0, 0.5)
    assert plan.texts == ("cat", "dog")
    assert plan == pipeline.plan(params), "pure"
    assert hash(plan) == hash(pipeline.plan(params))


def test_without_guidance_no_negative_prompt_is_embedded() -> None:
    plan = IMAGE.plan(ImageParams(prompt="cat", negative_prompt="dog", guidance_scale=1.0))
    assert plan.negative_prompt is None
    assert plan.texts == ("cat",)
