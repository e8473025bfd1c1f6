"""The operator's log lines."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from genai_operator.manager.json_log import JsonFormatter


def line_of(message: str, *arguments: object, **given: Any) -> str:
    extra = given.pop("extra", {})
    record = logging.LogRecord(
        "genai_operator.jobs", logging.WARNING, "x.py", 7, message, arguments, given.get("exc_info")
    )
    record.created = 0.5
    record.__dict__.update(extra)
    return JsonFormatter().format(record)


def test_format_gives_one_object_a_line_when_a_message_has_several() -> None:
    line = line_of("a Job is %s:\nits pod \u2028 'quits'", "gone", extra={"job": "j-1", "tries": 2})
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "warning",
        "logger": "genai_operator.jobs",
        "message": "a Job is gone:\nits pod \u2028 'quits'",
        "job": "j-1",
        "tries": 2,
    }


def test_format_leaves_out_what_is_not_plain_when_extra_holds_it() -> None:
    line = line_of("asked", extra={"secret": {"data": "x"}, "build": "tiny"})
    assert json.loads(line).keys() == {"time", "level", "logger", "message", "build"}


def test_format_holds_the_traceback_when_an_exception_is_logged() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    error = caught.value
    line = line_of("it broke", exc_info=(type(error), error, error.__traceback__))
    assert "\n" not in line
    assert "ZeroDivisionError: division by zero" in json.loads(line)["exception"]
