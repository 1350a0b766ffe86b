"""Rejected lines are reported as they occur, a few at a time, and --rejects keeps all of them."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from aggregator.client.send import rejects
from aggregator.client.send.rejects import Rejects
from tests.harness import wire
from tests.harness.polling import wait_until
from tests.harness.sending import Start, run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)

BAD = b'{"topic":1}\n'


def test_bad_lines_of_a_followed_file_are_said_as_they_come(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "events"
    file.write_bytes(wire.event("1"))
    following = start(server.port, "--follow", file)
    wait_until(lambda: server.ask("STATS")["stored_total"] == 1)
    with file.open("ab") as out:
        out.write(BAD * 15)
    wait_until(lambda: "and 10 more" in following.errors)  # while send is still running
    with file.open("ab") as out:
        out.write(BAD)
    wait_until(lambda: f"{file}:17: " in following.errors)
    outcome = following.interrupt()
    assert outcome.code == 1
    assert [line.split(": ")[0] for line in outcome.lines] == [
        *(f"{file}:{number}" for number in range(2, 7)), "and 10 more", f"{file}:17",
    ]  # fmt: skip
    assert outcome.has(sent=17, stored=1, rejected=16)


def test_all_rejected_lines_are_kept_without_loss(server: ServerProcess, tmp_path: Path) -> None:
    file, kept = tmp_path / "events", tmp_path / "rejects"
    lines = [
        b'{"topic":1}', b"QUIT", b'{"a":', b'{"\xff"}', b'{"topic":"t","event_id":"\\ud800","n":1.10}', b"\x1b[2J",
        b"[" + wire.event("ok").strip() + b",{},3]", "ü\u202e".encode(), b'{"topic":"t","event_id":"x" }\r', b"x" * 300,
    ]  # fmt: skip
    file.write_bytes(b"\n".join(lines))
    outcome = run(server.port, "--rejects", kept, file)
    assert outcome.code == 1
    assert outcome.has(sent=12, stored=1, rejected=11)
    found = [json.loads(line) for line in kept.read_bytes().splitlines()]
    assert len(found) == 11
    for one in found:
        content = base64.b64decode(one["content_base64"]) if "content_base64" in one else one["content"].encode()
        assert content == lines[one["line"] - 1].removesuffix(b"\r")
        assert one["file"] == str(file)
    assert sorted({one["line"] for one in found}) == list(range(1, 11))
    assert [one["detail"][:9] for one in found if one["line"] == 7] == ["event 2: ", "event 3: "]
    run(server.port, "--rejects", kept, file)
    assert len(kept.read_bytes().splitlines()) == 22  # appended


def test_text_is_kept_as_it_stood_in_its_file(server: ServerProcess, tmp_path: Path) -> None:
    file, kept = tmp_path / "app.log", tmp_path / "rejects"
    file.write_bytes(b"good\n" + b"x" * (1 << 20) + b"\n")
    assert run(server.port, "--topic", "t", "--rejects", kept, file).has(sent=2, stored=1, rejected=1)
    (rejection,) = [json.loads(line) for line in kept.read_bytes().splitlines()]
    assert rejection["content"] == "x" * (1 << 20)
    assert rejection["code"] == "too_long"


@pytest.mark.parametrize("place", ["/dev/full", "missing/rejects", "."])
def test_what_cannot_be_kept_ends_the_run(server: ServerProcess, tmp_path: Path, place: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(wire.event("1") + BAD + wire.event("2"))
    state = tmp_path / "state"
    kept = tmp_path / place
    outcome = run(server.port, "--state", state, "--rejects", kept, file)
    assert outcome.code == 1
    assert outcome.lines[-1].startswith(f"aggregator: {kept}: ")
    again = run(server.port, "--state", state, "--rejects", tmp_path / "rejects", file)
    assert again.counts["rejected"] == 1
    assert len((tmp_path / "rejects").read_bytes().splitlines()) == 1
    assert len(server.stored("t")) == 2


def test_a_period_has_its_rejections_and_the_next_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    kept = Rejects(said.append, None)

    def add(count: int) -> list[str]:
        for number in range(count):
            kept.add("f", number, "c", "d", b"")
        new = said[:]
        said.clear()
        return new

    assert len(add(3)) == 3
    now += rejects.PERIOD_S - 0.1
    assert len(add(4)) == 2
    now += 0.2
    kept.tick()
    assert said == ["and 2 more"]
    said.clear()
    kept.tick()
    assert said == []
    assert len(add(7)) == 5
    kept.close()
    assert said == ["and 2 more"]
    assert kept.count == 14
