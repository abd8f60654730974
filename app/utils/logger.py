"""Logging set up once, at start: modules use `logging.getLogger(__name__)` and know nothing of formats.

Values that a machine should find again go into `extra`: `log.info("frame failed", extra={"user": user})`.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

# uvicorn brings handlers of its own; without them its records go the way of all others.
_WITH_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


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
    level: str = "info", log_format: LogFormat = "console", stream: TextIO | None = None
) -> None:
    """Send every record of this process, uvicorn's included, to one stream in one format.

    May be called again; the last call counts.

    Args:
        level: Least severe level that is shown: "debug", "info", "warning" or "error".
        log_format: "console" for people, "json" for one object a line with `timestamp` (UTC, ISO 8601),
            `level`, `logger`, `event` and what the record carries in `extra`.
        stream: Where to; standard error if not given.
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
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _WITH_OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(capture=True)
