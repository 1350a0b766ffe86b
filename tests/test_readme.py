"""README.md is true: its sessions are replayed, and its files and programs are the ones that the tests run."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest

from aggregator.config import Config
from aggregator.server import commands
from aggregator.server.cursors import Cursors
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.intake import Intake
from aggregator.server.state import State
from aggregator.wire import Code, Status
from tests.harness import ROOT
from tests.harness.database_check import check_database
from tests.harness.engines import opened
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event

README = (ROOT / "README.md").read_text()

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SESSIONS = [text for kind, text in BLOCKS if not kind and text.startswith(">")]
REPLIES = {
    json.loads(reply.replace("…", ""))["code"]: reply
    for reply in re.findall(r'^\| `(\{"status":.*?\})` \|', README, re.MULTILINE)
}


def matches(shown: str, found: str) -> bool:
    return re.fullmatch(re.escape(shown).replace("…", ".*?"), found) is not None


@pytest.mark.parametrize("session", SESSIONS, ids=range(len(SESSIONS)))
def test_sessions_are_literal(server: ServerProcess, session: str) -> None:
    lines = session.splitlines()
    with Peer(server.port) as peer:
        for line in lines:
            mark, text = line[:2], line[2:]
            if mark == "> ":
                sent = text
                peer.send(sent.encode() + b"\n")
            else:
                assert mark == "< "
                found = peer.line().decode().rstrip("\n")
                assert matches(text, found), f"{sent}\nREADME: {text}\nserver: {found}"


def test_the_sessions_show_every_command() -> None:
    typed = {line[2:].split()[0] for line in "".join(SESSIONS).splitlines() if re.match(r"> [A-Z]", line)}

    assert typed - {"FOO"} == set(commands.COMMANDS)


def test_the_replies_to_long_and_deep_lines_are_literal(server: ServerProcess) -> None:
    for code, line in [
        ("too_long", b"x" * (2 << 20) + b"\n"),
        ("too_deep", event("e", payload='{"a":' + "[" * 2000 + "]" * 2000 + "}")),
    ]:
        with Peer(server.port) as peer:
            peer.send(line)
            assert peer.line().decode().strip() == REPLIES[code]


def test_the_reply_to_one_client_too_many_is_literal(start_server: StartServer) -> None:
    server = start_server("--max-connections", "1")
    with Peer(server.port) as guest:
        guest.ask(b"PING\n")
        with Peer(server.port) as extra:
            assert extra.line().decode().strip() == REPLIES["busy"].replace("960", "1")


@pytest.mark.parametrize(("field", "words"), [("code", Code), ("status", Status)])
def test_the_words_of_replies_are_those_of_the_program(field: str, words: type[Code] | type[Status]) -> None:
    shown = set(re.findall(rf'"{field}":"(\w+)"', README))

    assert shown <= set(words), "README knows no word that the program does not know"
    assert {word for word in words if word not in shown and f"`{word}`" not in README} == set(), (
        "the program knows words that README.md does not"
    )


async def test_the_table_of_stats_is_what_the_program_declares(tmp_path: Path) -> None:
    (table,) = re.findall(r"^<!-- stats -->\n(.*?)^<!-- /stats -->", README, re.MULTILINE | re.DOTALL)
    head, _, *rows = table.splitlines()
    async with opened("sqlite", tmp_path) as engine:
        intake = Intake(1, 1)
        feed = Feed(engine, intake)
        cursors = Cursors(engine, lambda _: None, lambda *_: None)
        state = State(Config(), engine, intake, feed, Follower(engine, feed), cursors)
        declared = list(commands.metrics(state))

    assert head == "| name | meaning |"
    assert rows == [f"| `{metric.name}` | {metric.help} |" for metric in declared]


def shown_default(field: str, value: object) -> str:
    return str(value) if value is not None else "off" if field.endswith("port") else "none"


def test_the_configuration_table_has_every_option_with_its_default() -> None:
    table = dict(re.findall(r"^\| `--([a-z-]+)` \| `([^`]*)` \|", README, re.MULTILINE))
    defaults = Config()

    assert {name.replace("-", "_"): value for name, value in table.items()} == {
        field.removesuffix("_s"): shown_default(field, getattr(defaults, field)) for field in Config.__slots__
    }


@pytest.mark.parametrize(
    "name",
    [
        "shippers/rsyslog.conf", "shippers/syslog-ng.conf", "shippers/rsyslog-tls.conf", "shippers/syslog-ng-tls.conf",
        "producers/rsyslog.conf", "producers/syslog-ng.conf",
    ],
)  # fmt: skip
def test_the_shipper_files_are_the_ones_the_tests_run(name: str) -> None:
    assert (ROOT / "tests" / name).read_text() in [text for _, text in BLOCKS]


def test_the_copy_of_a_running_servers_database_is_complete(start_server: StartServer, tmp_path: Path) -> None:
    (uri, into) = re.findall(r"sqlite3 '(file:[^']*)' \"(VACUUM INTO 'copy.db')\"", README)[0]
    server = start_server()
    with Peer(server.port) as peer:
        peer.send(b"".join(event(f"e{i}") for i in range(5000)))
        acked = [peer.reply()["status"] for _ in range(1000)]
        copy = tmp_path / "copy.db"
        with sqlite3.connect(uri.replace("data/events.db", str(server.db)), uri=True) as database:
            database.execute(into.replace("copy.db", str(copy)))
        database.close()
        acked += [peer.reply()["status"] for _ in range(4000)]
    assert acked == ["stored"] * 5000

    again = start_server("--db", str(copy))
    assert 1000 <= again.ask("STATS")["stored_total"] <= 5000
    assert again.ask("EVENT t e999")["event"]["event_id"] == "e999"
    again.stop()
    check_database(copy)
