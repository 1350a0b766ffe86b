"""What the log says of clients: one line of each kind in an interval, and whatever is left out is counted."""

from __future__ import annotations

import logging
import time

import pytest

from aggregator.server.excerpt import Excerpt
from aggregator.server.peer_log import PEER_LOG_INTERVAL_S, PeerLog
from aggregator.server.port import ACKED, SILENT
from aggregator.wire import Code, Rejection

START = '"<13>\\xff\\n' + 51 * "x" + '…"'


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_each_kind_is_said_once_in_a_while_with_how_many_were_left_out(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = PeerLog()
    for number in range(5):
        log.say(logging.INFO, "%s is odd", number)
        log.say(logging.INFO, "%s is another matter", number)
    now += PEER_LOG_INTERVAL_S
    log.say(logging.INFO, "%s is odd", 5)
    log.say(logging.INFO, "%s is odd", 6)

    assert said.messages == [
        "0 is odd",
        "0 is another matter",
        "5 is odd (and 4 more since the last such line)",
    ]


def test_at_its_end_it_says_what_it_has_left_out(said: pytest.LogCaptureFixture) -> None:
    log = PeerLog()
    for number in range(3):
        log.say(logging.WARNING, "%s did not finish line %d within %g s", "a client", number, 1.5)
    log.say(logging.WARNING, "said in full")
    log.close()
    log.close()

    assert said.messages[2:] == ["2 more lines like this were left out: … did not finish line … within … s"]


def test_rejections_are_said_by_port_and_by_code(said: pytest.LogCaptureFixture) -> None:
    log = PeerLog()
    for port in (ACKED, SILENT):
        for code in (Code.BAD_JSON, Code.BAD_EVENT, Code.BAD_JSON):
            log.rejected(port, "192.0.2.1:5", 7, Rejection(code, "100 % wrong"), Excerpt(b"<13>\xff\n" + 100 * b"x"))
    log.close()

    assert [(record.levelname, record.message) for record in said.records] == [
        ("INFO", "acked port: rejected line 7 of 192.0.2.1:5: bad_json: 100 % wrong: " + START),
        ("INFO", "acked port: rejected line 7 of 192.0.2.1:5: bad_event: 100 % wrong: " + START),
        ("WARNING", "silent port: rejected line 7 of 192.0.2.1:5: bad_json: 100 % wrong: " + START),
        ("WARNING", "silent port: rejected line 7 of 192.0.2.1:5: bad_event: 100 % wrong: " + START),
        ("INFO", "1 more lines like this were left out: acked port: rejected line … of …: bad_json: …: …"),
        ("INFO", "1 more lines like this were left out: silent port: rejected line … of …: bad_json: …: …"),
    ]
