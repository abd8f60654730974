"""A played runner under the real engine: every step of a batch can be held, fail, and be seen in a log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from app.core.messages import (
    DeviceLostError,
    Event,
    FrameIn,
    Image,
    Mode,
    OutOfMemoryError,
    Plan,
    Row,
    SessionKey,
)

PATIENCE = 20.0
"""Seconds after which a gate that nobody opens fails the test."""


def frame(
    user: str = "a",
    number: int = 1,
    *,
    prompt: str = "",
    steps: int = 1,
    epoch: int = 1,
    negative: str | None = None,
) -> FrameIn:
    mode: Mode = "video"
    plan = Plan(mode, prompt, negative, number, tuple(range(steps, 0, -1)), 1.0, 1.0)
    return FrameIn(SessionKey(user, epoch), number, plan, None, received_at=0.0)


def names(rows: Iterable[Row]) -> str:
    """Who has a row: ``a1`` is the first step of user a's frame."""
    return " ".join(f"{row.frame.session.user}{row.stage + 1}" for row in rows)


class Gate:
    """Open until it is closed; tells when somebody stands before it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE), "nobody opened the gate"


class PlayedBatch:
    def __init__(self, runner: PlayedRunner, rows: tuple[Row, ...]) -> None:
        self._runner = runner
        self._rows = rows
        self.batch = len(rows)

    def wait_turn(self) -> None:
        self._runner.note("wait", self._rows)
        self.wait_forward()
        self._runner.fail_at("wait")

    def wait_forward(self) -> None:
        self._runner.forward()

    def complete(self) -> bool:
        return self._runner.decoding.is_open

    def collect(self) -> list[Image | None]:
        self._runner.note("collect", self._rows)
        self._runner.decoding()
        self._runner.fail_at("collect")
        if any(row.frame.plan.prompt == "torn" for row in self._rows):
            raise RuntimeError("the pictures are torn")
        return [self._runner.paint(row) for row in self._rows if row.finishes]


class PlayedRunner:
    """Paints one grey, the frame's number.

    The prompts "crash", "lost", "nan", "torn", "bad prompt" and "long prompt" do what they say. ``memory``
    is the most rows a batch may have; ``faults`` are raised by the next launches, in their order; ``lost_at``
    is where the device gets lost: "encode", "wait" or "collect".
    """

    description: dict[str, str | int | bool] = {"model": "played"}  # noqa: RUF012 - as the protocol has it

    def __init__(
        self,
        *,
        memory: int = 1000,
        costs: Mapping[int, float] | None = None,
        lost_at: str = "",
        negative: bool = True,
    ) -> None:
        self.memory = memory
        self.costs = costs or {}
        self.lost_at = lost_at
        self.reads_negative_prompts = negative
        self.faults: list[Exception] = []
        self.forward = Gate()
        self.decoding = Gate()
        self.encoding = Gate()
        self.log: list[str] = []
        self.encoded: list[str] = []
        self.threads: dict[str, str] = {}

    def note(self, what: str, rows: tuple[Row, ...]) -> None:
        self.threads[what] = threading.current_thread().name
        self.log.append(f"{what} {names(rows)}")

    def fail_at(self, place: str) -> None:
        if self.lost_at == place:
            raise DeviceLostError("the device fell off the bus")

    def encode(self, text: str) -> Any:
        self.threads["encode"] = threading.current_thread().name
        self.encoded.append(text)
        if text.startswith("slow"):
            self.encoding()
        self.fail_at("encode")
        if text == "bad prompt":
            raise ValueError("no such words")
        if text == "long prompt":
            raise OutOfMemoryError("no memory for so many words")
        return f"embedding of {text}"

    def launch(self, rows: tuple[Row, ...]) -> PlayedBatch:
        self.note("launch", rows)
        for row in rows:
            plan = row.frame.plan
            texts = plan.texts if self.reads_negative_prompts else (plan.prompt,)
            assert row.embeddings == tuple(f"embedding of {text}" for text in texts)
        prompts = {row.frame.plan.prompt for row in rows}
        if "lost" in prompts:
            raise DeviceLostError("the device fell off the bus")
        if len(rows) > self.memory:
            raise OutOfMemoryError(f"no memory for {len(rows)} rows")
        if "crash" in prompts:
            raise RuntimeError("this row cannot be made")
        if self.faults:
            raise self.faults.pop(0)
        return PlayedBatch(self, rows)

    def paint(self, row: Row) -> Image | None:
        if row.frame.plan.prompt == "nan":
            return None
        return np.full((8, 8, 3), row.frame.number % 256, np.uint8)

    @property
    def launched(self) -> list[int]:
        """The rows of each launch."""
        return [len(line.split()) - 1 for line in self.log if line.startswith("launch")]


Creates = Callable[[Callable[[str], None]], PlayedRunner]
Events = list[Event]
