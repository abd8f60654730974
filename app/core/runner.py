"""One step of a batch of rows on the device: begin new rows, one UNet forward, advance, decode.

The host's part of a step is to fill index vectors and a table of coefficients; the device's part is a few
functions of tensors with static shapes, one batch size ("bucket") each, which is what lets CUDA graphs
replay them. What a step makes of a row is written last, when its pictures are being decoded already, so a
launch that raises can be repeated.

It knows neither sessions nor the order of service.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core import denoise
from app.core.denoise import Guidance, Step
from app.core.messages import (
    SLOTS_PER_ROW,
    DeviceLostError,
    FrameIn,
    Image,
    Mode,
    OutOfMemoryError,
    Row,
    SessionKey,
)
from app.core.pace import Pace
from app.core.pool import LruTable, RowPool
from app.core.transfer import CudaTransfer, Download, HostTransfer, Mark, Transfer
from app.models.model import Model
from app.models.networks import Networks
from app.pipelines.base import MAX_STEPS, BasePipeline
from app.utils.performance import PerformanceOptimizer

log = logging.getLogger(__name__)

Execute = Callable[..., Any]
"""Calls a function of tensors: (key, function, *tensors) → its result. The key names function and shapes."""

WARM_CALLS = 3
"""So often every function runs before frames do: kernels are tuned, compiled and captured by then."""


def execute(_key: object, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """The plain way: call it."""
    return function(*tensors)


@dataclass(frozen=True)
class Embedding:
    """A text and what the text encoder made of it, (L, D), on the host."""

    text: str
    values: Tensor


class Batch:
    """A batch that was launched; its forward pass is what the device does between two marks."""

    def __init__(
        self,
        batch: int,
        forward: tuple[Mark, Mark],
        downloads: list[tuple[list[int], Download]],
        pace: Pace,
    ) -> None:
        self.batch = batch
        self._begun, self._done = forward
        self._downloads = downloads
        self._pace = pace
        self._launched_at = time.monotonic()
        self._over = False

    def wait_turn(self) -> None:
        """Sleep until the next batch is to be launched; a size that never ran is waited for."""
        due = self._pace.due(self.batch, self._launched_at)
        if due is None:
            self.wait_forward()
        elif not self.complete():
            time.sleep(max(0.0, due - time.monotonic()))

    def wait_forward(self) -> None:
        """Block until the forward pass is done."""
        with device_errors():
            self._done.wait()
            if not self._over:
                self._pace.ended(self.batch, self._done.seconds_since(self._begun), time.monotonic())
            self._over = True

    def complete(self) -> bool:
        """Whether the pictures are on the host."""
        with device_errors():
            return self._done.complete() and all(download.complete() for _, download in self._downloads)

    def collect(self) -> list[Image | None]:
        """The pictures of the rows that finished, in the order of the rows."""
        self.wait_forward()
        found: dict[int, Image | None] = {}
        with device_errors():
            for places, download in self._downloads:
                pixels, finite = download.wait()
                for place, image, good in zip(places, pixels.numpy(), finite.tolist(), strict=True):
                    # A copy: every session keeps its newest picture, and would keep the whole batch with it.
                    found[place] = image.copy() if good else None
        return [found[place] for place in sorted(found)]


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn torch's errors of a device into ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        PerformanceOptimizer.cleanup_gpu_memory()
        raise OutOfMemoryError(str(error)) from error
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error)) from error


class DiffusionRunner:
    """Runs a model.

    Args:
        model: for its text encoder, device and noise schedule.
        networks: its UNet and VAE, as an acceleration left them.
        pipelines: the pipeline of each mode.
        width: of a picture, pixels.
        height: likewise.
        buckets: the batch sizes to run, ascending.
        guidance: the kind of classifier-free guidance.
        description: what to say of it all in the status.
        execute: how the three functions are called; CUDA graphs put themselves here.
    """

    def __init__(
        self,
        model: Model,
        networks: Networks,
        pipelines: Mapping[Mode, BasePipeline[Any]],
        *,
        width: int,
        height: int,
        buckets: tuple[int, ...],
        guidance: Guidance,
        description: Mapping[str, str | int | bool],
        execute: Execute = execute,
    ) -> None:
        self._model = model
        self._networks = networks
        self._pipelines = dict(pipelines)
        self._picture = (height, width, 3)
        self._buckets = buckets
        self._guidance = guidance
        self.reads_negative_prompts = guidance in ("full", "initialize")
        self.description = description
        self._execute = execute
        self._latent_shape = model.latent_shape(width, height)
        slots, device = SLOTS_PER_ROW * buckets[-1], model.device
        empty = model.embed("")[0]
        self._pool = RowPool(slots, self._latent_shape, device)
        self._noise = LruTable(2 * slots + 4 * MAX_STEPS, self._latent_shape, torch.float32, device)
        self._prompts = LruTable(2 * slots + 64, empty.shape, model.dtype, device)
        self._transfer: Transfer = CudaTransfer(device) if device.type == "cuda" else HostTransfer()
        self._pace = Pace()
        self.costs: Mapping[int, float] = {}

    def encode(self, text: str) -> Embedding:
        """The embedding of a prompt."""
        with device_errors(), self._transfer.aside():
            return Embedding(text, self._model.embed(text)[0])

    @torch.inference_mode()
    def launch(self, rows: tuple[Row, ...]) -> Batch:
        """One step for every row. What begins is made ready beside the forward pass before, what finishes is
        decoded beside the one after.
        """
        started_at = time.monotonic()
        with device_errors():
            batch = self._bucket(len(rows))
            beginning = _grouped(rows, lambda row: row.frame.plan.mode if row.begins else None)
            with self._transfer.ahead():
                # First what may copy from pageable memory, for which the host waits for all that is queued.
                inputs = self._step_inputs(rows, batch)
                negative_inputs = self._negative_inputs(rows)
                for mode, places in beginning.items():
                    self._begin(mode, [rows[place] for place in places])
            begun = self._transfer.mark()
            if negative_inputs is not None:
                self._execute(("negative", len(negative_inputs[1])), self._device_negative, *negative_inputs)
            step: Step = self._execute(("step", batch), self._device_step, *inputs)
            done = self._transfer.mark()
            finished = _grouped(rows, lambda row: self._decoder(row) if row.finishes else None)
            with self._transfer.behind(step.denoised):
                downloads = [
                    (places, self._decode(rows[places[0]].frame.plan.mode, step.denoised, places))
                    for places in finished.values()
                ]
            if not all(row.finishes for row in rows):  # nobody reads the slots of rows that leave
                self._pool.write(inputs[0][0], step.x, step.residual)
            self._pace.launched(time.monotonic() - started_at)
            return Batch(batch, (begun, done), downloads, self._pace)

    @torch.inference_mode()
    def warm_up(self, ticks: int, report: Callable[[str], None]) -> None:
        """Run every batch size in every mode, so that nothing is compiled, tuned or captured later, then
        ``ticks`` more of the smallest; measure what each size takes. On the CPU nothing depends on the
        size, so one is enough.
        """
        sizes = self._buckets if self._model.device.type == "cuda" else self._buckets[:1]
        run = partial(self._run_alone, lru_cache(self.encode))
        costs = {}
        for size in reversed(sizes):  # graphs of smaller ones then fit into the memory of the largest's
            report(f"warming up: batch of {size}, the smallest is {sizes[0]}")
            for mode in self._pipelines:
                for _ in range(WARM_CALLS):
                    run(mode, size)
            costs[size] = statistics.median(run(mode, size) for _ in range(3))
        for _ in range(ticks):
            run(mode, sizes[0])
        self.costs = costs if sizes == self._buckets else {}
        log.info("seconds per tick by batch size: %s", {size: round(cost, 5) for size, cost in costs.items()})

    def _begin(self, mode: Mode, rows: list[Row]) -> None:
        """Write the latents of new rows into their slots."""
        pipeline, batch = self._pipelines[mode], self._bucket(len(rows))
        noise = self._noise_rows([(row.frame.plan.seed, 0) for row in rows])
        levels = [self._coefficients(row) for row in rows]
        inputs = [
            self._indices(batch, [row.slot for row in rows], noise),
            self._table(batch, [[c.begin_image, c.begin_noise] for c in levels], 2),
        ]
        images = [row.frame.image for row in rows if row.frame.image is not None]
        if images:
            if len(images) < len(rows):
                raise ValueError("a frame has no picture")  # or the others' pictures would move up
            inputs.append(self._transfer.upload_images(images, batch))
        self._execute(("begin", mode, batch), partial(self._device_begin, pipeline), *inputs)

    def _step_inputs(self, rows: Sequence[Row], batch: int) -> tuple[Tensor, Tensor]:
        """Slots and rows of tables, (4, batch); each row's time step and coefficients, (batch, columns)."""
        following = [
            (row.frame.plan.seed, min(row.stage + 1, len(row.frame.plan.timesteps) - 1)) for row in rows
        ]
        table = [
            [float(row.frame.plan.timesteps[row.stage]), *columns]
            for row, columns in zip(rows, denoise.table([self._entry(row) for row in rows]), strict=True)
        ]
        indices = self._indices(
            batch,
            [row.slot for row in rows],
            self._prompt_rows(rows, 0),
            self._prompt_rows(rows, -1),
            self._noise_rows(following),
        )
        return indices, self._table(batch, table, 1 + denoise.COLUMNS)

    def _negative_inputs(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor] | None:
        """As for a step, of the rows that need a pass for their negative prompt alone; None if none does."""
        beginning = [row for row in rows if row.begins and self._guidance == "initialize"]
        return self._step_inputs(beginning, self._bucket(len(beginning))) if beginning else None

    def _decode(self, mode: Mode, denoised: Tensor, places: list[int]) -> Download:
        """Make the pictures of the rows at these places and send them to the host."""
        pipeline, batch = self._pipelines[mode], self._bucket(len(places))
        if batch != len(denoised) or places != list(range(len(places))):
            padded = torch.tensor([*places, *[places[0]] * (batch - len(places))])
            denoised = denoised[self._transfer.upload(padded)]
        images, finite = self._execute(
            ("decode", type(pipeline).decode, batch), partial(self._device_decode, pipeline), denoised
        )
        return self._transfer.download([images[: len(places)], finite[: len(places)]])

    # -- functions of tensors ---------------------------------------------------------------------

    def _device_begin(
        self, pipeline: BasePipeline[Any], indices: Tensor, levels: Tensor, images: Tensor | None = None
    ) -> None:
        slots, noise_rows = indices.unbind()
        noise = self._noise.data.index_select(0, noise_rows)
        latents = pipeline.begin(self._networks, images, noise, levels)
        self._pool.write(slots, latents.float(), noise)

    def _device_negative(self, indices: Tensor, table: Tensor) -> None:
        slots, _, negatives, _ = indices.unbind()
        x, _ = self._pool.read(slots)
        negative = self._networks.unet(x, table[:, 0], self._prompts.data.index_select(0, negatives))
        self._pool.write(slots, x, denoise.initial_residual(x, negative, table[:, 1:]))

    def _device_step(self, indices: Tensor, table: Tensor) -> Step:
        slots, prompts, negatives, noise_rows = indices.unbind()
        timesteps, columns = table[:, 0], table[:, 1:]
        x, residual = self._pool.read(slots)
        if self._guidance == "full":
            texts = self._prompts.data.index_select(0, torch.cat([negatives, prompts]))
            both = self._networks.unet(torch.cat([x, x]), torch.cat([timesteps, timesteps]), texts)
            negative, prediction = both.chunk(2)
        else:
            texts = self._prompts.data.index_select(0, prompts)
            negative, prediction = None, self._networks.unet(x, timesteps, texts)
        noise = self._noise.data.index_select(0, noise_rows)
        return denoise.advance(x, residual, noise, prediction, negative, columns, self._guidance)

    def _device_decode(self, pipeline: BasePipeline[Any], latents: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures, unsafe ones black, and for each whether its latents and what the VAE made of them are
        finite.
        """
        sums = [_sums(latents, len(latents))]

        def decode(latents: Tensor) -> Tensor:
            images = self._networks.decode(latents)
            sums.append(_sums(images, len(sums[0])))
            return images

        pictures = pipeline.decode(replace(self._networks, decode=decode), latents)
        if (checker := self._model.safety_checker) is not None:
            pictures = pictures.masked_fill(checker.unsafe(pictures)[:, None, None, None], 0)
        return pictures, torch.isfinite(torch.stack(sums)).all(0)

    # -- from rows to vectors ---------------------------------------------------------------------

    def _bucket(self, rows: int) -> int:
        return next(size for size in self._buckets if size >= rows)

    def _indices(self, batch: int, slots: list[int], *vectors: list[int]) -> Tensor:
        """Slots and rows of tables, (vectors, batch); padding is the scratch slot and rows 0."""
        padding = batch - len(slots)
        padded = [slots + [self._pool.scratch] * padding, *(vector + [0] * padding for vector in vectors)]
        return self._transfer.upload(torch.tensor(padded))

    def _table(self, batch: int, lines: list[list[float]], columns: int) -> Tensor:
        """(batch, columns), float32; padding is zero."""
        padding = [[0.0] * columns] * (batch - len(lines))
        return self._transfer.upload(torch.tensor(lines + padding))

    def _coefficients(self, row: Row) -> denoise.Coefficients:
        timesteps = row.frame.plan.timesteps
        return self._model.schedule.coefficients(
            timesteps[row.stage], None if row.finishes else timesteps[row.stage + 1]
        )

    def _entry(self, row: Row) -> tuple[denoise.Coefficients, float, float]:
        plan = row.frame.plan
        scale = denoise.effective_guidance(plan.guidance_scale, self._model.distilled)
        return self._coefficients(row), scale, plan.delta

    def _noise_rows(self, wanted: list[tuple[int, int]]) -> list[int]:
        """Rows of the noise table by (seed, stage)."""
        return self._noise.rows([(key, partial(_noise_map, *key, self._latent_shape)) for key in wanted])

    def _prompt_rows(self, rows: Sequence[Row], which: int) -> list[int]:
        """Rows of the table of embeddings: of the prompt (0) or of the last text (-1), which is the
        negative prompt of a row that has one where it has an effect.
        """
        embeddings: list[Embedding] = [row.embeddings[which] for row in rows]
        return self._prompts.rows([(e.text, partial(_values, e)) for e in embeddings])

    def _decoder(self, row: Row) -> Callable[..., Tensor]:
        """What decodes the row: pipelines that share it, as the built-in ones do, share a batch."""
        return type(self._pipelines[row.frame.plan.mode]).decode

    # -- warm-up ----------------------------------------------------------------------------------

    def _run_alone(self, encode: Callable[[str], Embedding], mode: Mode, size: int) -> float:
        """One step in each of ``size`` rows that nobody asked for; returns the seconds that it took."""
        pipeline = self._pipelines[mode]
        plan = pipeline.plan(pipeline.Params())
        plan = replace(plan, timesteps=plan.timesteps[:1])
        image = np.full(self._picture, 127, np.uint8) if mode == "image" else None
        embeddings = tuple(encode(text) for text in plan.texts)
        frames = (FrameIn(SessionKey("", 0), n, plan, image, received_at=0.0) for n in range(size))
        rows = tuple(Row(slot, frame, 0.0, embeddings) for slot, frame in enumerate(frames))
        started_at = time.perf_counter()
        self.launch(rows).collect()
        return time.perf_counter() - started_at


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[int]]:
    """The places of the rows by key; a row whose key is None is in no group."""
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        group = key(row)
        if group is not None:
            groups.setdefault(group, []).append(place)
    return groups


def _sums(values: Tensor, rows: int) -> Tensor:
    """A sum for each row, (rows,), float32: finite only if all its values are; cheaper than to ask each."""
    grouped: Tensor = values.unflatten(0, (rows, -1))
    return grouped.sum(tuple(range(1, grouped.ndim)), dtype=torch.float32)


def _noise_map(seed: int, stage: int, shape: tuple[int, ...]) -> Tensor:
    return denoise.seed_noise(seed, stage + 1, shape)[stage]


def _values(embedding: Embedding) -> Tensor:
    return embedding.values
