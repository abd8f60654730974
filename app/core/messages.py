"""Plain data that crosses a layer or a thread.

Everything here is frozen, free of torch and of asyncio, so that it can be handed to another thread
without a thought. It does not know who sends it or what a model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Mode = Literal["image", "video"]
Image = NDArray[np.uint8]
"""A picture: RGB, uint8, shape ``(height, width, 3)``, C-contiguous."""


SLOTS_PER_ROW = 2
"""Slots on the device for each row of the largest batch: two batches overlap, and a slot that the first one
frees is not used by the second."""


class SessionKey(NamedTuple):
    """One connection of one user: a user who connects again gets a new epoch, so late results of the
    connection before cannot be mistaken for results of this one.
    """

    user: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How one frame is made; a pure function of its parameters, pinned when the frame is admitted.

    ``timesteps`` are training time steps, descending, one per denoising step. ``guidance_scale`` is what
    the client asked for, 1 meaning none, in which case ``negative_prompt`` is None; what the scale means
    to the model is the runner's business (`app.core.denoise.effective_guidance`).
    """

    mode: Mode
    prompt: str
    negative_prompt: str | None
    seed: int
    timesteps: tuple[int, ...]
    guidance_scale: float
    delta: float

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts whose embeddings this frame needs: the prompt, then the negative prompt if any."""
        return (self.prompt,) if self.negative_prompt is None else (self.prompt, self.negative_prompt)


@dataclass(frozen=True, slots=True)
class Tag:
    """What a client wrote on a frame and gets back with its result, unread."""

    id: int | None = None
    time: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FrameIn:
    """A frame to make. ``image`` has the model's size, and is None in video mode. ``received_at`` is in
    seconds of the monotonic clock; ``revision`` counts the session's changes of parameters.
    """

    session: SessionKey
    number: int
    plan: Plan
    image: Image | None
    received_at: float
    revision: int = 0
    tag: Tag = Tag()


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A frame in flight: ``slot`` is where the device keeps its latents, ``stage`` the next denoising
    step, ``embeddings`` what the runner made of ``frame.plan.texts``.
    """

    slot: int
    frame: FrameIn
    admitted_at: float
    embeddings: tuple[Any, ...]
    stage: int = 0

    @property
    def begins(self) -> bool:
        """Whether this is the frame's first step."""
        return self.stage == 0

    @property
    def finishes(self) -> bool:
        """Whether the picture is done after this step."""
        return self.stage == len(self.frame.plan.timesteps) - 1

    def advanced(self) -> Row:
        """The row one step later."""
        return replace(self, stage=self.stage + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """The session's waiting frame went into a batch: there is room for the next one."""

    session: SessionKey
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A finished picture. Times are seconds of the monotonic clock."""

    frame: FrameIn
    image: Image
    admitted_at: float
    finished_at: float

    @property
    def session(self) -> SessionKey:
        """Whose frame it was."""
        return self.frame.session


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """A frame that gave no picture, and why, in words for its user."""

    frame: FrameIn
    reason: str

    @property
    def session(self) -> SessionKey:
        """Whose frame it was."""
        return self.frame.session


@dataclass(frozen=True, slots=True)
class Ticked:
    """One forward pass: how many rows it carried, in a batch of which size, and how long it took (s)."""

    rows: int
    batch: int
    seconds: float


Event = Taken | Done | Failed | Ticked


class StartError(RuntimeError):
    """The server cannot start as it is configured; the message is a sentence for its operator."""


class DeviceLostError(RuntimeError):
    """The device cannot go on; the process must be started again."""


class OutOfMemoryError(RuntimeError):
    """The device had too little memory for a batch; a smaller one may pass."""


class Launched(Protocol):
    """A batch that was given to the device."""

    @property
    def batch(self) -> int:
        """The batch size that ran, padding included."""

    def wait_turn(self) -> None:
        """Block until it is time to launch the next batch, so that the device does not run out of work: when
        the forward pass is done, or earlier by what a launch takes.
        """

    def wait_forward(self) -> None:
        """Block until the forward pass is done; decoding and copies may still run."""

    def complete(self) -> bool:
        """Whether everything is done, so that collect would not block."""

    def collect(self) -> list[Image | None]:
        """Block until all is done. One entry per finished row, in the order of the batch; None for a
        picture that came out non-finite. Raises DeviceLostError.
        """


class Runner(Protocol):
    """What the engine thread drives: a model on a device, or a fake one in tests."""

    @property
    def costs(self) -> Mapping[int, float]:
        """What a tick of each batch size takes, in seconds; empty where that was not measured."""

    @property
    def reads_negative_prompts(self) -> bool:
        """Whether a negative prompt has an effect; where it has none it is not embedded."""

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """What runs where, for the status: model, device, acceleration really in use, sizes."""

    def encode(self, text: str) -> Any:
        """The embedding of a prompt. Called from another thread than the rest."""

    def launch(self, rows: tuple[Row, ...]) -> Launched:
        """One step for every row; nothing is committed when it raises. Raises OutOfMemoryError,
        DeviceLostError, or whatever a pipeline raises for a row that it cannot make.
        """
