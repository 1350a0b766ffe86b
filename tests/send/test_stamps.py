"""The date and time in front of a line, with --timestamp auto."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.wire import rules
from aggregator.wrap.stamp import leading_stamp
from tests.harness.sending import run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)

WRITTEN = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("line", "stamp"),
    [
        ("2026-11-22T10:00:00Z started", "2026-11-22T10:00:00Z"),
        ("2026-11-22t10:00:00z started", "2026-11-22T10:00:00Z"),
        ("2026-11-22T10:00:00.123456789+05:30 x", "2026-11-22T10:00:00.123456789+05:30"),
        ("2026-11-22T10:00:00.1234567891234Z", "2026-11-22T10:00:00.123456789Z"),
        ("2026-11-22T10:00:00-0500 x", "2026-11-22T10:00:00-05:00"),
        ("2026-11-22T10:00:00+01 x", "2026-11-22T10:00:00+01:00"),
        ("2026-11-22 10:00:00 +0100 x", "2026-11-22T10:00:00+01:00"),
        ("2026-11-22 10:00:00.123 UTC [17] LOG:  x", "2026-11-22T10:00:00.123Z"),
        ("2026-11-22 10:00:00,123 INFO x", "2026-11-22T10:00:00.123+01:00"),
        ("2026-07-22 10:00:00 startup packages", "2026-07-22T10:00:00+02:00"),
        ("2026-11-22T10:00 x", "2026-11-22T10:00:00+01:00"),
        ("2026-11-22 10:00:00", "2026-11-22T10:00:00+01:00"),
        ("[2026-11-22T10:00:00Z] x", "2026-11-22T10:00:00Z"),
        ("  2026-11-22T10:00:00Z x", "2026-11-22T10:00:00Z"),
        ("<34>1 2026-11-22T22:14:15.003Z host app", "2026-11-22T22:14:15.003Z"),
        ("20261122T100000Z x", "2026-11-22T10:00:00Z"),
        ("20261122T1000 x", "2026-11-22T10:00:00+01:00"),
        ("2016-12-31T23:59:60Z x", "2016-12-31T23:59:60Z"),
        ("Nov 22 10:00:00 host sshd[1]: x", "2026-11-22T10:00:00+01:00"),
        ("<13>Nov  2 10:00:00 host x", "2026-11-02T10:00:00+01:00"),
        ("Nov 22 10:00:00.5 host x", "2026-11-22T10:00:00.5+01:00"),
        ("Nov 29 01:00:00 host x", "2026-11-29T01:00:00+01:00"),  # a clock that is fast
        ("Dec  1 10:00:00 host x", "2025-12-01T10:00:00+01:00"),
        ("Jan  1 00:00:00 host x", "2026-01-01T00:00:00+01:00"),
        ("Feb 29 10:00:00 host x", "2024-02-29T10:00:00+01:00"),
        # none
        ("", None),
        ("started at 2026-11-22T10:00:00Z", None),
        ("2026-11-22", None),
        ("2026-11-22 10:00:0", None),
        ("2026-11-22 10:00:000", None),
        ("2026-13-22T10:00:00Z x", None),
        ("2026-02-30 10:00:00 x", None),
        ("2026-11-22T25:00:00Z x", None),
        ("2026-11-22T10:60:00Z x", None),
        ("2026-11-22T10:00:00+99:99 x", None),
        ("Nov 31 10:00:00 x", None),
        ("Nov 22 10:61:00 x", None),
        ("Foo 22 10:00:00 x", None),
        ("20261122 100000 x", None),
        ("1732269600.123 x", None),
        ("0001-01-01 00:00:00 x", None),
    ],
)  # fmt: skip
def test_stamps(line: str, stamp: str | None) -> None:
    assert leading_stamp(line, WRITTEN) == stamp


@pytest.mark.parametrize(
    ("written", "line", "stamp"),
    [
        ("2025-01-01T00:00:05", "Dec 31 23:59:59 x", "2024-12-31T23:59:59+01:00"),
        ("2024-12-31T23:59:59", "Jan  1 00:00:01 x", "2025-01-01T00:00:01+01:00"),
        ("2024-03-01T00:00:00", "Feb 29 10:00:00 x", "2024-02-29T10:00:00+01:00"),
        ("2024-02-01T00:00:00", "Feb 29 10:00:00 x", "2020-02-29T10:00:00+01:00"),
    ],
)
def test_the_year_is_the_one_in_which_the_file_was_written(written: str, line: str, stamp: str) -> None:
    assert leading_stamp(line, datetime.fromisoformat(written).replace(tzinfo=UTC)) == stamp


@given(line=st.text(alphabet="0123456789-:.,+TZ[]<> NovFeb", max_size=40))
def test_whatever_is_taken_for_a_stamp_is_one(line: str) -> None:
    stamp = leading_stamp(line, WRITTEN)
    assert stamp is None or rules.is_date_time(stamp)


@given(
    moment=st.datetimes(),
    separator=st.sampled_from("T "),
    timespec=st.sampled_from(["seconds", "milliseconds", "auto"]),
)
def test_every_moment_is_read_as_it_was_written(moment: datetime, separator: str, timespec: str) -> None:
    text = moment.isoformat(separator, timespec)
    assert leading_stamp(f"{text}Z message", WRITTEN) == text.replace(" ", "T") + "Z"


def test_the_stamp_in_front_of_a_line_becomes_its_timestamp(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"2026-11-22T10:00:00.5+02:00 a\nNov 22 10:00:00 b\nno stamp\n")
    os.utime(file, (0, datetime(2020, 12, 1, tzinfo=UTC).timestamp()))
    assert run(server.port, "--topic", "now", file).has(sent=3, stored=3)
    assert run(server.port, "--topic", "t", "--timestamp", "auto", file).has(sent=3, stored=3)
    this_year = str(datetime.now(UTC).year)
    for event in server.listed("now"):
        assert event["timestamp"].startswith(this_year)
        assert event["timestamp"].endswith("+00:00")
    events = server.listed("t")
    assert [event["timestamp"] for event in events[:2]] == ["2026-11-22T10:00:00.5+02:00", "2020-11-22T10:00:00+01:00"]
    assert events[2]["timestamp"].endswith("+00:00")
    assert [event["payload"]["message"] for event in events] == [  # the line stays whole
        "2026-11-22T10:00:00.5+02:00 a", "Nov 22 10:00:00 b", "no stamp",
    ]  # fmt: skip
