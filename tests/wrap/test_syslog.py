"""Lines of syslog as programs write them: RFC 3164 and RFC 5424, with and without a priority."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.wrap.stamp import leading_stamp
from aggregator.wrap.syslog import read

PRIORITY = {"priority": 13, "facility": "user", "severity": "notice"}
NOV_28 = leading_stamp("Nov 28 10:00:00", datetime.now(UTC))
TODAY = datetime.now(UTC).date()
T = "2026-11-28T10:00:00.123456+00:00"

LINES: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("<13>hello", {**PRIORITY, "message": "hello"}, None, None),
    ("<0>", {"priority": 0, "facility": "kern", "severity": "emerg", "message": ""}, None, None),
    ("<191>x", {"priority": 191, "facility": "local7", "severity": "debug", "message": "x"}, None, None),
    ("<13>app: hello", {**PRIORITY, "message": "app: hello"}, None, None),
    # RFC 3164
    ("<13>Nov 28 10:00:00 web-1 app[12]: hi", {**PRIORITY, "program": "app", "pid": "12", "message": "hi"}, NOV_28,
     "web-1"),
    ("<13>Nov 28 10:00:00 web-1 app: hi", {**PRIORITY, "program": "app", "message": "hi"}, NOV_28, "web-1"),
    ("<13>Nov 28 10:00:00 web-1 app:hi", {**PRIORITY, "program": "app", "message": "hi"}, NOV_28, "web-1"),
    ("<13>Nov 28 10:00:00 web-1 app:  two", {**PRIORITY, "program": "app", "message": " two"}, NOV_28, "web-1"),
    (f"<13>{T} web-1 app[1]: hi", {**PRIORITY, "program": "app", "pid": "1", "message": "hi"}, T, "web-1"),
    ("Nov 28 10:00:00 web-1 app[12]: hi", {"program": "app", "pid": "12", "message": "hi"}, NOV_28, "web-1"),
    (f"{T} web-1 app: hi", {"program": "app", "message": "hi"}, T, "web-1"),
    (f"<13>{T} INFO app: hi", {**PRIORITY, "program": "app", "message": "hi"}, T, "INFO"),
    ("<13>Nov 31 10:00:00 web-1 app: hi", {**PRIORITY, "message": "Nov 31 10:00:00 web-1 app: hi"}, None, None),
    ("<13>Nov 28 10:00:00 no tag here", {**PRIORITY, "message": "Nov 28 10:00:00 no tag here"}, None, None),
    ("<13>Nov 28 10:00:00 web-1 app: a\nb", {**PRIORITY, "program": "app", "message": "a\nb"}, NOV_28, "web-1"),
    # RFC 5424
    (f"<13>1 {T} web-1 app 12 ID - hi",
     {**PRIORITY, "program": "app", "pid": "12", "msgid": "ID", "message": "hi"}, T, "web-1"),
    ("<13>1 - - - - - -", {**PRIORITY, "message": ""}, None, None),
    ("<13>1 - - - - - - \ufeffhi", {**PRIORITY, "message": "hi"}, None, None),
    (f"1 {T} web-1 app - - - hi", {"program": "app", "message": "hi"}, T, "web-1"),
    (f'<13>1 {T} web-1 app - - [timeQuality tzKnown="1" isSynced="0"] hi',
     {**PRIORITY, "program": "app", "message": "hi",
      "structured_data": {"timeQuality": {"tzKnown": "1", "isSynced": "0"}}},
     T, "web-1"),
    (r'<13>1 - - - - - [a@1 b="c\"d\]e\\f\g" b="2" b="3"][e] [no data]',
     {**PRIORITY, "message": "[no data]", "structured_data": {"a@1": {"b": [r'c"d]e\f\g', "2", "3"]}, "e": {}}},
     None, None),
    ('<13>1 - - - - - [a b="1"]', {**PRIORITY, "message": "", "structured_data": {"a": {"b": "1"}}}, None, None),
]  # fmt: skip

BROKEN = ['[a b="1"', '[a b="1"][a b="2"] hi', "[a b=1] hi", "[] hi", '[a b="1"]hi', "x hi", "hi"]
"""Structured data that is not valid: the priority counts, and everything after it is the message."""


@pytest.mark.parametrize(("line", "payload", "timestamp", "host"), LINES)
def test_a_line_of_syslog(line: str, payload: dict[str, Any], timestamp: str | None, host: str | None) -> None:
    found = read(line, TODAY)

    assert found is not None
    assert (found.payload, found.timestamp, found.host) == (payload, timestamp, host)


@pytest.mark.parametrize("data", BROKEN)
def test_broken_structured_data_makes_it_a_message(data: str) -> None:
    found = read(f"<13>1 - - app - - {data}", TODAY)

    assert found is not None
    assert found.payload == {**PRIORITY, "message": f"1 - - app - - {data}"}


@pytest.mark.parametrize(
    "line", ["", "hello", "<", "<>", "<192>x", "<1234>x", "<13", "<-1>x", "1 hello", "1 - - - - - -x",
             "2026-02-30T10:00:00Z web-1 app: hi", "Nov 28 10:00:00", "Foo 28 10:00:00 web-1 app: hi", "<１>x"],
)  # fmt: skip
def test_other_text_is_none(line: str) -> None:
    assert read(line, TODAY) is None


@given(st.lists(st.sampled_from(["<13>", "1 ", T, " ", "-", "[a", ' b="', '"', "]", "\\", "web-1 ", "app", ":", "\n"])))
def test_a_message_is_the_end_of_its_line(parts: list[str]) -> None:
    line = "<13>" + "".join(parts)
    found = read(line, TODAY)

    assert found is not None
    assert line.endswith(found.payload["message"])


@pytest.mark.parametrize("host", ["INFO", "warning", "Error", "[main]", "-", "(worker)"])
def test_without_a_priority_a_level_or_a_thread_is_no_host(host: str) -> None:
    assert read(f"{T} {host} app: started", TODAY) is None
