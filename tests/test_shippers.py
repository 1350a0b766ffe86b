"""Real log shippers on the silent port, with the configuration files that the README shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import wire
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess
from tests.harness.shippers import SHIPPED_S, Shippers

pytestmark = pytest.mark.shipper

Ship = Callable[[str, Path], None]


@pytest.fixture
def ship(server: ServerProcess, tmp_path: Path) -> Iterator[Ship]:
    """Start the shipper of this configuration, with this log file and our silent port in place of those it names."""
    shippers = Shippers(tmp_path)
    yield lambda configuration, log: shippers.start(
        configuration, {"/var/log/app.log": f"{log}", "8081": f"{server.silent_port}"}
    )
    shippers.end()


def _append(log: Path, lines: list[bytes]) -> None:
    with log.open("ab") as file:
        file.writelines(lines)


def _stored_total(server: ServerProcess) -> int:
    total: int = server.ask("STATS")["stored_total"]
    return total


@pytest.mark.parametrize("configuration", ["rsyslog.conf", "syslog-ng.conf"])
def test_restarts_of_the_server_lose_nothing_and_store_nothing_twice(
    configuration: str, ship: Ship, server: ServerProcess, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    lines = wire.events("e", 20_000)
    _append(log, lines[:10_000])
    ship(configuration, log)
    wait_until(lambda: _stored_total(server) > 1000)

    _append(log, lines[10_000:14_000])
    assert server.stop() == 0  # with thousands of lines in flight
    _append(log, lines[14_000:17_000])
    server.restart()
    _append(log, lines[17_000:19_000])
    wait_until(lambda: _stored_total(server) == 19_000, SHIPPED_S)

    assert server.stop() == 0  # with an idle shipper; rsyslog does not notice before its next line
    server.restart()
    _append(log, lines[19_000:])
    wait_until(lambda: _stored_total(server) == 20_000, SHIPPED_S)

    stored = {event_id: event["payload"] for event_id, event in server.stored("t").items()}
    assert stored == {f"e-{i}": {"n": i} for i in range(20_000)}
    assert "silent port: rejected" not in server.log


@pytest.mark.parametrize("configuration", ["rsyslog-wrap.conf", "syslog-ng-wrap.conf"])
def test_lines_that_are_no_events_are_wrapped(
    configuration: str, ship: Ship, server: ServerProcess, tmp_path: Path
) -> None:
    texts = [
        "started", "[42] started", "5", "null", '"quoted"', "it's \"quoted\"", "tab\there", r"back\slash \n \u0041",
        "  blanks  ", "naïve ☃ 😀", "100% $MSG %msg% ${HOST}", "{no JSON", "[1, 2]", "escape \x1b[0m", "x" * 100_000,
    ]  # fmt: skip
    texts += [f"plain {i}" for i in range(100)]
    objects: list[wire.Json] = [
        {},
        {"level": "info", "n": -7, "ratio": 0.5, "ok": True, "none": None, "list": [1, "two", {"three": 3}]},
        {"text": 'naïve ☃ 😀 "quoted" tab\t back\\slash / new\nline', "a key": {"with.dots": {"": []}}},
    ]
    objects += [{"number": i} for i in range(100)]
    log = tmp_path / "app.log"
    log.write_text("\n".join([*texts, *map(json.dumps, objects), ""]))
    ship(configuration, log)
    wait_until(lambda: _stored_total(server) == len(texts) + len(objects))

    stored = [event["payload"] for event in server.stored("logs.app").values()]
    assert stored == [{"msg": text} for text in texts] + objects
