"""One stream and one format for every logger of the process."""

import copy
import io
import json
import logging
import logging.config
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import uvicorn.config

from app.utils.logger import configure_logging


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Give the loggers back as they were, for the tests that follow."""
    names = (None, "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, names)]
    yield
    logging.captureWarnings(capture=False)
    for log, handlers, level, propagate in before:
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = propagate


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("app.some").info("frame of %s\nfailed", "名前", extra={"user": "u1", "tick": 7})
    (line,) = lines(stream)
    assert line["event"] == "frame of 名前\nfailed"
    assert (line["level"], line["logger"], line["user"], line["tick"]) == ("info", "app.some", "u1", 7)
    at = datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00"))
    assert at.utcoffset() == timedelta(0)


def test_json_carries_the_traceback() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    try:
        raise KeyError("missing")
    except KeyError:
        logging.getLogger("app.some").exception("it broke")
    (line,) = lines(stream)
    assert line["exception"].endswith("KeyError: 'missing'")


def test_console_is_readable_and_without_colours_in_a_file() -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream)
    logging.getLogger("app.some").warning("slow", extra={"seconds": 3})
    text = stream.getvalue()
    assert "warning" in text
    assert "slow" in text
    assert "seconds=3" in text
    assert "\x1b" not in text


def test_level_is_held() -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream)
    logging.getLogger("app.some").info("not this")
    logging.getLogger("app.some").warning("this")
    assert [line["event"] for line in lines(stream)] == ["this"]


def test_uvicorn_goes_the_same_way_once() -> None:
    logging.config.dictConfig(copy.deepcopy(uvicorn.config.LOGGING_CONFIG))
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1mStarted"})
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/api/queue", "1.1", 200
    )
    assert [line["event"] for line in lines(stream)] == [
        "Started",
        '127.0.0.1:1 - "GET /api/queue HTTP/1.1" 200',
    ]
    assert "color_message" not in lines(stream)[0]


def test_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", first)
    configure_logging("info", "json", second)
    logging.getLogger("app.some").info("hello")
    assert (first.getvalue(), len(lines(second))) == ("", 1)


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    assert "old call" in lines(stream)[0]["event"]
