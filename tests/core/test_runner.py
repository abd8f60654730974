"""Rows on a device: neighbours do not matter, a launch can be repeated, a broken row stays alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from app.core.denoise import Guidance
from app.core.messages import DeviceLostError, FrameIn, Image, OutOfMemoryError
from app.core.runner import DiffusionRunner, Embedding, device_errors
from app.models.safety import SafetyChecker
from app.utils.performance import PerformanceOptimizer
from tests import tiny
from tests.core.rows import create_runner, frame, picture, row, run_alone, run_together

GUIDANCE: tuple[Guidance, ...] = ("none", "full", "self", "initialize")


def sessions() -> list[FrameIn]:
    """Users who have nothing in common."""
    return [
        frame(
            "image", user="a", number=1, prompt="cat", num_inference_steps=3, strength=0.9, guidance_scale=1.3
        ),
        frame("video", user="b", number=2, prompt="sea", num_inference_steps=4, guidance_scale=1.5, seed=2),
        frame("image", user="c", number=3, prompt="", num_inference_steps=1, guidance_scale=1.0, seed=3),
        frame(
            "image",
            user="d",
            number=4,
            prompt="sea",
            negative_prompt="red",
            num_inference_steps=2,
            strength=0.4,
            guidance_scale=2.0,
            delta=0.5,
            seed=3,
        ),
    ]


class Recorder:
    """Keeps the decoded pictures as they are before they become bytes, by the order of their rows."""

    def __init__(self) -> None:
        self.decoded: list[Tensor] = []
        self._decode = tiny.model().networks().decode

    def __call__(self, latents: Tensor) -> Tensor:
        images = self._decode(latents)
        self.decoded.append(images)
        return images


def precise(
    frames: list[FrameIn], buckets: tuple[int, ...], guidance: Guidance, together: bool
) -> list[Tensor]:
    """The frames' pictures in float32."""
    recorder = Recorder()
    networks = dataclasses.replace(tiny.model().networks(), decode=recorder)
    runner = create_runner(networks=networks, buckets=buckets, guidance=guidance)
    if not together:
        for one in frames:
            run_alone(runner, one)
        return [images[0] for images in recorder.decoded]
    rows = {one.number: row(runner, one, slot) for slot, one in enumerate(frames)}
    found: dict[int, Tensor] = {}
    while rows:
        runner.launch(tuple(rows.values())).collect()
        finished = [number for number, current in rows.items() if current.finishes]
        if finished:
            found |= dict(zip(finished, recorder.decoded.pop(), strict=False))
        rows = {number: current.advanced() for number, current in rows.items() if not current.finishes}
    return [found[one.number] for one in frames]


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_sessions_together_are_each_alone_bit_for_bit(guidance: Guidance) -> None:
    """In batches of one size: as decoded when they begin together, as pictures whenever they begin."""
    frames = sessions()
    runner = create_runner(buckets=(4,), guidance=guidance)
    alone = [run_alone(create_runner(buckets=(4,), guidance=guidance), one) for one in frames]
    assert len({image.tobytes() for image in alone if image is not None}) == len(frames)
    decoded = [precise(frames, (4,), guidance, together=together) for together in (True, False)]
    for mine, expected in zip(*decoded, strict=True):
        assert torch.equal(mine, expected)
    for delays in ([0, 1, 2, 3], [3, 0, 1, 1]):
        together = run_together(runner, frames, delays)
        for image, picture_alone in zip(together, alone, strict=True):
            np.testing.assert_array_equal(image, picture_alone)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_sessions_together_are_each_alone_in_any_batch(guidance: Guidance) -> None:
    """Across batch sizes, where the CPU may add up in another order: to 1e-4, a hundredth of a grey level."""
    frames = sessions()
    together = precise(frames, (1, 2, 3, 4), guidance, together=True)
    alone = precise(frames, (1, 2, 3, 4), guidance, together=False)
    for mine, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_the_slot_does_not_matter() -> None:
    runner, one = create_runner(guidance="self"), sessions()[0]
    images = [run_alone(runner, one, slot) for slot in (0, 3, 1)]
    assert images[0] is not None
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "b"},
        {"seed": 7},
        {"strength": 0.8},
        {"num_inference_steps": 3},
        {"guidance_scale": 3.0},
        {"delta": 0.2},
        {"image": picture(99)},
    ],
    ids=lambda other: str(next(iter(other))),
)
def test_every_parameter_counts(other: dict[str, Any]) -> None:
    runner = create_runner(guidance="self")
    usual: dict[str, Any] = {"prompt": "a", "seed": 1, "strength": 0.6, "num_inference_steps": 2}
    before, after = (run_alone(runner, frame(**parameters)) for parameters in (usual, {**usual, **other}))
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(before, run_alone(runner, frame(**usual)))


@pytest.mark.parametrize("guidance", ["full", "initialize"])
def test_the_negative_prompt_counts_where_it_should(guidance: Guidance) -> None:
    runner = create_runner(guidance=guidance)
    images = [
        run_alone(runner, frame(negative_prompt=text, guidance_scale=scale, num_inference_steps=2))
        for text, scale in (("", 3.0), ("red", 3.0), ("", 1.0), ("red", 1.0))
    ]
    assert not np.array_equal(images[0], images[1])  # type: ignore[arg-type]
    np.testing.assert_array_equal(images[2], images[3])


def test_a_distilled_model_gets_the_scale_it_bears() -> None:
    distilled = create_runner(tiny.model(distilled=True), guidance="full")
    usual = create_runner(tiny.model(distilled=False), guidance="full")
    asked, meant = frame(prompt="red", guidance_scale=7.5), frame(prompt="red", guidance_scale=1.2)
    np.testing.assert_array_equal(run_alone(distilled, asked), run_alone(usual, meant))
    assert not np.array_equal(run_alone(usual, asked), run_alone(usual, meant))  # type: ignore[arg-type]


# -- faults -------------------------------------------------------------------------------------------


class Fault:
    """Calls a network, but raises at some calls."""

    def __init__(self, network: Callable[..., Tensor], *calls: int) -> None:
        self._network = network
        self._calls = set(calls)
        self.count = 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        self.count += 1
        if self.count in self._calls:
            raise torch.OutOfMemoryError("not enough")
        return self._network(*tensors)


@pytest.mark.parametrize("network", ["encode", "unet", "decode"])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_launch_that_raises_can_be_repeated(network: str, guidance: Guidance) -> None:
    """Wherever it raises: nothing of a row is written before."""
    frames = [frame(number=1, num_inference_steps=2), frame(number=2, num_inference_steps=1, prompt="b")]
    expected = run_together(create_runner(guidance=guidance), frames)
    networks = tiny.model().networks()
    # At the last of these calls of UNet and decoder a row has made a step already, which nothing would undo.
    call = 1 if network == "encode" else 3 if (network, guidance) == ("unet", "initialize") else 2
    fault = Fault(getattr(networks, network), call)
    runner = create_runner(networks=dataclasses.replace(networks, **{network: fault}), guidance=guidance)
    rows = {slot: row(runner, one, slot) for slot, one in enumerate(frames)}
    found: dict[int, Image | None] = {}
    raised = 0
    while rows:
        try:
            images = runner.launch(tuple(rows.values())).collect()
        except OutOfMemoryError:
            raised += 1
            continue
        found |= dict(zip([slot for slot, r in rows.items() if r.finishes], images, strict=True))
        rows = {slot: current.advanced() for slot, current in rows.items() if not current.finishes}
    assert raised == 1
    for slot, image in enumerate(expected):
        np.testing.assert_array_equal(found[slot], image)


def test_a_row_that_comes_out_non_finite_fails_alone() -> None:
    networks = tiny.model().networks()

    def unet(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        predicted = networks.unet(latents, timesteps, embeddings)
        return torch.where(timesteps[:, None, None, None] == 499, torch.nan, predicted)

    frames = [frame(number=1, timesteps=(519,)), frame(number=2, timesteps=(499,)), frame("video", number=3)]
    runner = create_runner(networks=dataclasses.replace(networks, unet=unet))
    expected = run_together(create_runner(), frames)
    for _ in range(2):  # its slot, and the padding's, are as good as before
        good, broken, video = run_together(runner, frames)
        assert broken is None
        np.testing.assert_array_equal(good, expected[0])
        np.testing.assert_array_equal(video, expected[2])
    after = run_together(runner, [frames[0], frames[0], frames[0]])
    for image in after:
        np.testing.assert_array_equal(image, expected[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_picture_that_the_vae_makes_non_finite_fails_alone(value: float) -> None:
    """As in half precision, from latents that are finite; black or white would not tell."""
    networks = tiny.model().networks()
    latents_of_second: list[Tensor] = []

    def decode(latents: Tensor) -> Tensor:
        images = networks.decode(latents).clone()
        latents_of_second.append(latents[1])
        images[1, 2, 3, 4] = value
        return images

    frames = [frame(number=1), frame(number=2), frame("video", number=3)]
    first, second, third = run_together(
        create_runner(networks=dataclasses.replace(networks, decode=decode)), frames
    )
    expected = run_together(create_runner(), frames)
    assert second is None
    assert torch.isfinite(latents_of_second[0]).all()
    np.testing.assert_array_equal(first, expected[0])
    np.testing.assert_array_equal(third, expected[2])


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_negative_prompts_are_read_where_they_have_an_effect(guidance: Guidance) -> None:
    runner = create_runner(guidance=guidance)
    plain, other = (
        row(runner, frame(number=1, negative_prompt=text, guidance_scale=20.0), 0) for text in ("", "a dog")
    )
    (expected,), (image,) = runner.launch((plain,)).collect(), runner.launch((other,)).collect()
    assert expected is not None
    assert image is not None
    assert runner.reads_negative_prompts == (not np.array_equal(image, expected))
    if not runner.reads_negative_prompts:
        alone = dataclasses.replace(other, embeddings=other.embeddings[:1])
        np.testing.assert_array_equal(runner.launch((alone,)).collect()[0], expected)


def test_who_keeps_a_picture_keeps_no_others() -> None:
    """A session keeps its newest one; as a view it would keep all of its batch in memory."""
    for image in run_together(create_runner(), sessions()):
        assert image is not None
        assert image.base is None


def test_a_missing_picture_is_not_replaced_by_a_neighbours() -> None:
    runner = create_runner()
    broken = dataclasses.replace(frame(number=1), image=None)
    with pytest.raises(ValueError, match="no picture"):
        runner.launch((row(runner, broken, 0), row(runner, frame(number=2), 1)))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(torch.OutOfMemoryError, OutOfMemoryError), (torch.AcceleratorError, DeviceLostError)],
)
def test_errors_of_the_device_become_ours(theirs: type[Exception], ours: type[Exception]) -> None:
    with pytest.raises(ours, match="words"), device_errors():
        raise theirs("words")


def test_without_memory_what_is_unused_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by hand: rubbish in cycles holds memory until it is collected."""
    cleanups: list[None] = []
    monkeypatch.setattr(PerformanceOptimizer, "cleanup_gpu_memory", lambda: cleanups.append(None))
    with pytest.raises(OutOfMemoryError), device_errors():
        raise torch.OutOfMemoryError
    assert len(cleanups) == 1


# -- the host's part ----------------------------------------------------------------------------------


def test_a_prompt_is_embedded_once_and_shared() -> None:
    runner = create_runner()
    one = runner.encode("a red cat")
    assert one.text == "a red cat"
    assert one.values.shape == (16, tiny.WIDTH)
    assert torch.equal(one.values, runner.encode("a red cat").values)


def test_a_long_prompt_is_cut() -> None:
    runner = create_runner()
    assert runner.encode("word " * 1000).values.shape == (16, tiny.WIDTH)


def test_few_shapes_are_executed() -> None:
    """What CUDA graphs would capture: a handful of functions and sizes, not one per composition."""
    keys: set[tuple[Any, object]] = set()

    def execute(key: object, function: Callable[..., Any], *tensors: Tensor) -> Any:
        keys.add((key, tuple(tuple(tensor.shape) for tensor in tensors)))
        return function(*tensors)

    runner = create_runner(buckets=(1, 2, 4), guidance="initialize", execute=execute)
    reported: list[str] = []
    runner.warm_up(2, reported.append)
    assert reported == ["warming up: batch of 1, the smallest is 1"]  # on a CPU
    frames = sessions()
    for delays in ([0, 0, 0, 0], [0, 1, 2, 3], [1, 2, 0, 0], [4, 3, 2, 1], [0, 0, 0, 5], [0, 0, 9, 9]):
        run_together(runner, frames, delays)
    assert len({key for key, _shapes in keys}) == len(keys), "one key stands for one set of shapes"
    # Per size: begin in two modes, the negative pass, a step, decode.
    assert len(keys) <= 3 * 5


def test_a_negative_pass_is_made_only_for_who_begins() -> None:
    networks = tiny.model().networks()
    sizes: list[int] = []

    def unet(latents: Tensor, *others: Tensor) -> Tensor:
        sizes.append(len(latents))
        return networks.unet(latents, *others)

    runner = create_runner(networks=dataclasses.replace(networks, unet=unet), guidance="initialize")
    frames = [frame("video", number=number, num_inference_steps=3) for number in range(4)]
    run_together(runner, frames, [0, 0, 0, 1])
    assert sizes == [4, 4, 1, 4, 4, 1]  # three rows are padded to four


def test_warm_up_embeds_a_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = create_runner(guidance="full")
    encode, encoded = runner.encode, list[str]()

    def noted(text: str) -> Embedding:
        encoded.append(text)
        return encode(text)

    monkeypatch.setattr(runner, "encode", noted)
    runner.warm_up(2, lambda _words: None)
    assert sorted(encoded) == sorted(set(encoded))


def test_warm_up_leaves_nothing_behind() -> None:
    one = sessions()[0]
    fresh, warm = create_runner(guidance="self"), create_runner(guidance="self")
    warm.warm_up(3, lambda _words: None)
    assert warm.costs == {}  # on a CPU every row costs the same
    np.testing.assert_array_equal(run_alone(warm, one), run_alone(fresh, one))


@pytest.mark.parametrize("size", [(64, 40), (40, 64)])
def test_pictures_need_not_be_square(size: tuple[int, int]) -> None:
    runner = create_runner(size=size)
    images = [
        run_alone(runner, frame(image=picture(1, size))),
        run_alone(runner, frame("video")),
    ]
    for image in images:
        assert image is not None
        assert image.shape == (size[1], size[0], 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_runs(prediction: Any) -> None:
    runner: DiffusionRunner = create_runner(tiny.model(prediction=prediction), guidance="self")
    image = run_alone(runner, frame(num_inference_steps=4, guidance_scale=1.5))
    assert image is not None
    assert image.std() > 1


def test_an_unsafe_picture_is_shown_black_and_only_that() -> None:
    """Whatever place of a batch it has; the checker sees the pictures themselves."""

    class Checker:
        def unsafe(self, images: Tensor) -> Tensor:
            return (images == torch.from_numpy(unsafe)).flatten(1).all(1)

    frames = sessions()
    expected = run_together(create_runner(buckets=(4,)), frames)
    assert expected[2] is not None
    unsafe = expected[2]
    model = dataclasses.replace(tiny.model(), safety_checker=cast(SafetyChecker, Checker()))
    images = run_together(create_runner(model, buckets=(4,)), frames)
    for place, (image, usual) in enumerate(zip(images, expected, strict=True)):
        np.testing.assert_array_equal(image, np.zeros_like(unsafe) if place == 2 else usual)


def test_pictures_are_checked_where_they_are_made() -> None:
    """When they are collected the device works for others already, who would be waited for."""
    seen: list[int] = []

    class Checker:
        def unsafe(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return torch.ones(len(images), dtype=torch.bool)

    model = dataclasses.replace(tiny.model(), safety_checker=cast(SafetyChecker, Checker()))
    runner = create_runner(model)
    launched = runner.launch((row(runner, frame(), 0),))
    assert seen == [1]
    (image,) = launched.collect()
    assert seen == [1]
    assert image is not None
    assert not image.any()
