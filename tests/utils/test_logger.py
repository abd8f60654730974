"""One stream and one format for every logger of the process."""

import copy
import io
import json
import logging
import logging.config
import warnings
from collections.abc import Callable, Iterator
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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(frame: int) -> None:
    raise ValueError(f"frame {frame} cannot be made")


def fail_otherwise(frame: int) -> None:
    raise ValueError(f"frame {frame} cannot be made")


def log_failure(frame: int, failing: Callable[[int], None] = fail) -> None:
    try:
        failing(frame)
    except ValueError as error:
        logging.getLogger("app.some").warning("a batch of %d rows raised", frame, exc_info=error)


def test_an_error_of_every_frame_is_shown_once_and_then_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    configure_logging("info", "json", stream, clock)
    for frame in range(2000):  # two minutes and five seconds
        log_failure(frame)
        clock.now += 1 / 16
    first, *counts = lines(stream)
    assert "frame 0 cannot be made" in first["exception"]
    assert [line["event"] for line in counts] == [
        "a batch of 0 rows raised, and 959 times more in 60 s",
        "a batch of 0 rows raised, and 960 times more in 60 s",
    ]
    assert {line["level"] for line in counts} == {"warning"}
    assert not any("exception" in line for line in counts)


def test_another_kind_of_error_is_shown_at_once() -> None:
    """Other lines raised it, or something else caused it."""

    def fail_by(cause: Callable[[int], None]) -> Callable[[int], None]:
        def failing(frame: int) -> None:
            try:
                cause(frame)
            except ValueError as error:
                raise ValueError("it failed below") from error

        return failing

    stream = io.StringIO()
    configure_logging("info", "json", stream, Clock())
    for frame in range(10):
        for failing in (fail, fail_otherwise, fail_by(fail), fail_by(fail_otherwise)):
            log_failure(frame, failing)
    assert len(lines(stream)) == 4


def test_an_error_that_comes_back_is_shown_again() -> None:
    """After a minute without it; and what was not told of before is counted, whatever is logged next."""
    stream, clock = io.StringIO(), Clock()
    configure_logging("info", "json", stream, clock)
    for frame in range(3):
        log_failure(frame)
    clock.now += 100
    logging.getLogger("app.some").info("hello")
    log_failure(3)
    events = [(line["event"], "exception" in line) for line in lines(stream)]
    assert events == [
        ("a batch of 0 rows raised", True),
        ("a batch of 0 rows raised, and 2 times more in 100 s", False),
        ("hello", False),
        ("a batch of 3 rows raised", True),
    ]


def test_rare_errors_are_all_shown() -> None:
    stream, clock = io.StringIO(), Clock()
    configure_logging("info", "json", stream, clock)
    for frame in range(3):
        log_failure(frame)
        clock.now += 61
    assert ["exception" in line for line in lines(stream)] == [True] * 3


def test_what_is_no_error_may_repeat_itself() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream, Clock())
    for _ in range(3):
        logging.getLogger("app.some").warning("slow")
    assert len(lines(stream)) == 3


def test_what_else_is_said_of_an_error_is_shown() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream, Clock())
    error = ValueError("no")
    for _ in range(3):
        logging.getLogger("app.some").warning("once more", exc_info=error)
        logging.getLogger("app.some").critical("it ends", exc_info=error)
    assert [line["event"] for line in lines(stream)] == ["once more", "it ends"]


def test_a_mistake_of_who_logs_an_error_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as the standard library's handlers do."""
    monkeypatch.setattr("sys.stderr", told := io.StringIO())
    configure_logging("info", "json", io.StringIO(), Clock())
    logging.getLogger("app.some").warning("%d rows raised", "many", exc_info=ValueError("no"))
    assert "--- Logging error ---" in told.getvalue()


def test_an_error_that_causes_itself_is_shown() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream, Clock())
    error = ValueError("of itself")
    error.__cause__ = error
    logging.getLogger("app.some").error("it broke", exc_info=error)
    assert len(lines(stream)) == 1


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
