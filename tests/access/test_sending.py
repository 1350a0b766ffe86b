"""Our own sender, when it may not publish everything that it sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.client import match
from aggregator.client.reply import Unknown, final_status
from tests.harness import identities
from tests.harness.sending import run
from tests.harness.server_process import StartServer
from tests.harness.wire import event


def test_what_may_not_be_published_is_rejected_and_the_rest_is_stored(
    start_server: StartServer, tmp_path: Path
) -> None:
    path = identities.write(
        tmp_path / "identities.toml", {"name": "here", "address": ["127.0.0.0/8"], "publish": ["app"]}
    )
    server = start_server("--identities", str(path))
    events = tmp_path / "events"
    events.write_bytes(b"".join(event(f"e{n}", "db" if n % 10 == 3 else "app") for n in range(1000)))
    outcome = run(server.port, events)

    assert outcome.code == 1
    assert outcome.has(sent=1000, stored=900, rejected=100)
    assert any("not_allowed" in line for line in outcome.lines)
    assert any("here may not publish to this topic" in line for line in outcome.lines)


@pytest.mark.parametrize(
    ("names", "is_answer"),
    [
        ({"topic": "db", "event_id": "e"}, True),
        ({"topic": "db", "event_id": "other"}, False),
        ({}, False),
    ],
)
def test_a_refusal_answers_an_event_by_its_names(names: dict[str, str], is_answer: bool) -> None:
    reply = {"status": "rejected", "code": "not_allowed", "detail": "", "line": 1, **names}

    assert match.answers(reply, event("e", "db").strip(), 1) is is_answer


@pytest.mark.parametrize("code", ["auth_required", "auth_failed", "killed", "busy", "shutting_down"])
def test_what_is_said_before_the_end_ends_the_connection(code: str) -> None:
    reply = f'{{"status":"error","code":"{code}","detail":"d"}}'.encode()
    with pytest.raises(Unknown) as caught:
        final_status(reply, event("e").strip(), 1)

    assert caught.value.ends_connection
