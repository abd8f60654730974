"""Logging set up once, at start: modules use `logging.getLogger(__name__)` and know nothing of formats.

Values that a machine should find again go into `extra`: `log.info("frame failed", extra={"user": user})`.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

# uvicorn brings handlers of its own; without them its records go the way of all others.
_WITH_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

SPELL = 60.0
"""Seconds after which an error that goes on is counted, and one that stayed away counts as new."""


@dataclass
class _Spell:
    """An error that came and may come again."""

    first: logging.LogRecord
    told_at: float
    came_at: float
    untold: int = 0


class RepeatsCounted(logging.Handler):
    """Passes a record with an error on at once, and of the same error after it only how often it came: what
    fails for every frame would otherwise write a traceback for every frame.

    Errors are the same if the line that logs them, their types, the lines that raised them and what caused
    them are, whatever their words say. They are counted every `SPELL` seconds, when something is logged then.

    Args:
        target: writes the records.
        clock: seconds, monotonic.
    """

    def __init__(self, target: logging.Handler, clock: Callable[[], float]) -> None:
        super().__init__()
        self._target = target
        self._clock = clock
        self._spells: dict[Hashable, _Spell] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, or count it. The caller holds the handler's lock."""
        try:
            now = self._clock()
            self._tell_counts(now)
            if not self._counted(record, now):
                self._target.handle(record)
        except Exception:  # noqa: BLE001 - as every handler does: who logs something must not fail of it
            self.handleError(record)

    def _counted(self, record: logging.LogRecord, now: float) -> bool:
        """Whether the record's error was passed on before, and this time is counted."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return False
        kind = (record.pathname, record.lineno, *_links(error))
        if (spell := self._spells.get(kind)) is None:
            self._spells[kind] = _Spell(_without_error(record), now, now)
            return False
        spell.untold, spell.came_at = spell.untold + 1, now
        return True

    def _tell_counts(self, now: float) -> None:
        for kind, spell in tuple(self._spells.items()):
            seconds = now - spell.told_at
            if seconds < SPELL:
                continue
            if spell.untold:
                count = _without_error(spell.first)
                count.msg += f", and {spell.untold} times more in {seconds:.0f} s"
                self._target.handle(count)
            if now - spell.came_at < SPELL:
                spell.told_at, spell.untold = now, 0
            else:
                del self._spells[kind]


def _links(error: BaseException) -> tuple[Hashable, ...]:
    """The type of an error and the lines that raised it, then the same of what caused it."""
    found: dict[int, Hashable] = {}
    link: BaseException | None = error
    while link is not None and id(link) not in found:
        lines = ((frame.f_code, line) for frame, line in traceback.walk_tb(link.__traceback__))
        found[id(link)] = (type(link), *lines)
        link = link.__cause__ or link.__context__
    return tuple(found.values())


def _without_error(record: logging.LogRecord) -> logging.LogRecord:
    """The words of a record alone: an error keeps what its functions worked on, which may be pictures."""
    words = record.getMessage()
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, words, None, None)


def _drop_color_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove the second copy of the message that uvicorn adds for its own formatter."""
    event.pop("color_message", None)
    return event


def _renderers(log_format: LogFormat, *, colors: bool) -> Sequence[Processor]:
    if log_format == "json":
        return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
    return (
        structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        ),
    )


def configure_logging(
    level: str = "info",
    log_format: LogFormat = "console",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send every record of this process, uvicorn's included, to one stream in one format.

    May be called again; the last call counts.

    Args:
        level: Least severe level that is shown: "debug", "info", "warning" or "error".
        log_format: "console" for people, "json" for one object a line with `timestamp` (UTC, ISO 8601),
            `level`, `logger`, `event` and what the record carries in `extra`.
        stream: Where to; standard error if not given.
        clock: Seconds, by which an error that goes on is counted instead of shown (`RepeatsCounted`).
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _drop_color_message,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format, colors=stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(RepeatsCounted(handler, clock))
    root.setLevel(level.upper())
    for name in _WITH_OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(capture=True)
