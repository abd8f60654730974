"""What a client says, message by message, as an explicit state machine without any input or output.

A frame is ``{"status": "next_frame"}``, then the parameters as a JSON object, then, in image mode, the
picture as one binary message. Whatever else comes is answered with a `Refusal` that names the field,
and the rest of that frame, which a client that does not wait for answers has sent already, is passed
over. It does not know what is inside a picture, nor what a parameter means: the pipeline's model does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from app.core.messages import Mode, Plan, Tag

log = logging.getLogger(__name__)

MAX_TEXT = 2**20
"""The most characters of a text message that are read at all."""

MAX_FRAME_ID = 2**53 - 1
"""The largest integer that JavaScript can tell from its neighbours."""


class Planner(Protocol):
    """What a pipeline shows of itself here: the model of its parameters, and what it makes of them."""

    @property
    def Params(self) -> type[BaseModel]:  # noqa: N802 - the name that a pipeline's author writes
        """The parameters, each with a default."""

    def plan(self, params: Any) -> Plan:
        """How to make a frame with these parameters."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A complete frame. ``revision`` counts how often the parameters have changed; ``picture`` is the
    file as the client sent it, None in video mode.
    """

    plan: Plan
    revision: int
    tag: Tag
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that could not be taken, and why."""

    message: str


class NoPicture(Enum):
    """An empty picture: the client's camera is not ready yet. It wants to be asked again soon."""

    YET = auto()


Outcome = Frame | Refusal | NoPicture | None


class Parameters:
    """Turns the text of a parameters message into a plan; the same text is read only once.

    Args:
        planner: of the pipeline.
        max_length: the most characters of a text.
    """

    def __init__(self, planner: Planner, max_length: int) -> None:
        self._planner = planner
        self._max_length = max_length
        self._text: str | None = None
        self._written: str | None = None
        self._tag = Tag()
        self._plan: Plan | None = None
        self._revision = -1

    def read(self, message: Mapping[str, Any], text: str) -> tuple[Plan, int, Tag]:
        """Read a message. ``text`` is what it was parsed from. Raises ValueError with words."""
        tag = _tag(message)
        # A null stands for "not set": public pages send one for a range without a default.
        fields = self._planner.Params.model_fields
        values = {name: _number(message[name]) for name in fields if message.get(name) is not None}
        written = json.dumps(values)  # in which true is not 1
        if written != self._written or self._plan is None:
            self._plan = self._make_plan(values, written)
            self._written = written
            self._revision += 1
        self._text, self._tag = text, tag
        return self._plan, self._revision, tag

    def recall(self, text: str) -> tuple[Plan, int, Tag] | None:
        """What `read` made of this text, if it was the last one."""
        if self._plan is None or text != self._text:
            return None
        return self._plan, self._revision, self._tag

    def _make_plan(self, values: dict[str, Any], written: str) -> Plan:
        try:
            return self._planner.plan(self._validate(values, written))
        except ValueError:
            raise
        except Exception as error:
            # A pipeline is anybody's code: its mistakes may touch this frame only.
            log.warning("the pipeline could not plan a frame", exc_info=error)
            raise ValueError(f"parameters: {type(error).__name__}: {error}") from error

    def _validate(self, values: dict[str, Any], written: str) -> BaseModel:
        for name, value in values.items():
            if isinstance(value, str) and len(value) > self._max_length:
                raise ValueError(f"{name}: {len(value)} characters; at most {self._max_length} are allowed")
        try:
            # As JSON, where strictness knows enumerations by their values.
            return self._planner.Params.model_validate_json(
                written, strict=True, by_alias=False, by_name=True
            )
        except ValidationError as error:
            raise ValueError("; ".join(map(_sentence, error.errors(include_url=False)))) from error


def _number(value: Any) -> Any:
    """JSON has one kind of number, and some clients write every one of them with a fraction: 4.0 is 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Due(Enum):
    STATUS = auto()
    PARAMETERS = auto()
    PICTURE = auto()


class Assembler:
    """The state of one connection.

    Args:
        mode: whether frames come with a picture.
        parameters: reads parameters messages.
    """

    def __init__(self, mode: Mode, parameters: Parameters) -> None:
        self._mode = mode
        self._parameters = parameters
        self._due = _Due.STATUS
        self._read: tuple[Plan, int, Tag] | None = None
        # What of a refused frame may still be on its way.
        self._objects_left = 0
        self._pictures_left = 0
        self._refused_parameters = False

    def text(self, text: str) -> Outcome:
        """Take a text message."""
        if len(text) > MAX_TEXT:
            return self._refuse(f"{self._expected}: {len(text)} characters; at most {MAX_TEXT} are allowed")
        if self._due is _Due.PARAMETERS and (read := self._parameters.recall(text)) is not None:
            return self._complete(read)
        try:
            message = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            return self._refuse(f"{self._expected}: this is not JSON ({error})")
        if not isinstance(message, dict):
            return self._refuse(f"{self._expected}: this is JSON, but no object")
        if "status" in message:
            return self._status(message["status"])
        return self._object(message, text)

    def binary(self, data: bytes) -> Outcome:
        """Take a binary message."""
        if self._due is _Due.PICTURE:
            assert self._read is not None
            plan, revision, tag = self._read
            self._due = _Due.STATUS
            return Frame(plan, revision, tag, data) if data else NoPicture.YET
        if self._due is _Due.STATUS and self._pictures_left:
            self._pictures_left -= 1
            return None
        if self._mode == "video":
            return self._refuse("picture: none is due in video mode, but this is binary")
        return self._refuse(f"{self._expected}: this is binary, where text is due")

    def oversized(self, size: int, limit: int) -> Refusal:
        """Take note of a message that was too large to be kept."""
        name = "picture" if self._due is _Due.PICTURE else self._expected
        return self._refuse(f"{name}: a message of {size} bytes; at most {limit} are allowed")

    def asked(self) -> None:
        """The client is asked for a frame, so what comes from now on is meant for that. Only the picture
        after bad parameters may be so large that it still arrives.
        """
        self._objects_left = 0
        if not self._refused_parameters:
            self._pictures_left = 0

    @property
    def _expected(self) -> str:
        return {
            _Due.STATUS: 'status: {"status": "next_frame"} is due',
            _Due.PARAMETERS: "parameters: a JSON object is due",
            _Due.PICTURE: "picture: a binary message is due",
        }[self._due]

    def _status(self, status: Any) -> Outcome:
        if status != "next_frame":
            return self._refuse(f'status: unknown status {_shortened(status)}; "next_frame" is the only one')
        if self._due is not _Due.STATUS:
            return self._refuse(f"{self._expected}, not another next_frame")
        self._objects_left = self._pictures_left = 0
        self._due = _Due.PARAMETERS
        return None

    def _object(self, message: dict[str, Any], text: str) -> Outcome:
        if self._due is not _Due.PARAMETERS:
            if self._due is _Due.STATUS and self._objects_left:
                self._objects_left -= 1
                return None
            return self._refuse(f"{self._expected}: this is an object without a status")
        try:
            return self._complete(self._parameters.read(message, text))
        except ValueError as error:
            return self._refuse(str(error))

    def _complete(self, read: tuple[Plan, int, Tag]) -> Frame | None:
        if self._mode == "video":
            self._due = _Due.STATUS
            return Frame(*read, None)
        self._read = read
        self._due = _Due.PICTURE
        return None

    def _refuse(self, message: str) -> Refusal:
        """Begin anew; a client that does not wait has sent the rest of the frame already."""
        self._refused_parameters = self._due is _Due.PARAMETERS
        self._objects_left = 1
        self._pictures_left = int(self._mode == "image")
        self._due = _Due.STATUS
        return Refusal(message)


def _tag(message: Mapping[str, Any]) -> Tag:
    frame_id, frame_time = message.get("frame_id"), message.get("frame_time")
    if frame_id is None and frame_time is None:
        return Tag()
    if frame_id is not None and (type(frame_id) is not int or not 0 <= frame_id <= MAX_FRAME_ID):
        raise ValueError(f"frame_id: must be an integer from 0 to 2**53 - 1, not {_shortened(frame_id)}")
    if frame_time is not None and type(frame_time) not in (int, float):
        raise ValueError(f"frame_time: must be a number, not {_shortened(frame_time)}")
    try:
        return Tag(frame_id, None if frame_time is None else float(frame_time))
    except OverflowError as error:
        raise ValueError("frame_time: is too large") from error


def _sentence(error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"])) or "parameters"
    return f"{name}: {error['msg'].removeprefix('Input ')}, not {_shortened(error['input'])}"


def _shortened(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
