"""``aggregator tail`` as its users run it, against real servers that stop, die and change."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, wire
from tests.harness.background import in_background
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.server_process import ServerProcess
from tests.harness.tailing import Outcome, Running, command, on_terminal, remove_oldest, run, seqs, store

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a run with these arguments; it is killed when its test ends."""
    runs: list[Running] = []

    def start_run(server: ServerProcess, *arguments: str | Path | int) -> Running:
        runs.append(Running(tmp_path / f"run{len(runs)}", "tail", server.port, *arguments))
        return runs[-1]

    yield start_run
    for one in runs:
        one.kill()


def tail(server: ServerProcess, *arguments: Any) -> Outcome:
    return run("tail", server.port, *arguments)


def fill(server: ServerProcess, count: int, prefix: str = "e", topic: str = "t") -> None:
    store(server.port, wire.events(prefix, count, topic))


# --- what is shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], range(2491, 2501)),
        (["-n", 3], range(2498, 2501)),
        (["-n", 0], []),
        (["-n", 2200], range(301, 2501)),
        (["-n", 9999], range(1, 2501)),
        (["--after", 0], range(1, 2501)),
        (["--after", 2498], range(2499, 2501)),
        (["--since", "1h"], range(1, 2501)),
        (["--since", "now"], []),
        (["--until", "1h"], []),
        (["--since", "1h", "--until", "NOW"], range(1, 2501)),
        (["even", "-n", 3], [2496, 2498, 2500]),
        (["o[d]d", "nope", "-n", 2], [2497, 2499]),
        (["*", "--contains", '"n":77}'], [78]),
        (["--source", "nobody"], []),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_was_asked_for_is_shown_oldest_first(shared: ServerProcess, arguments: list[Any], expected: Any) -> None:
    done = tail(shared, *arguments)
    assert seqs(done.lines) == list(expected)
    assert (done.code, done.errors) == (0, "")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that holds 2,500 events, for tests that only read."""
    server = ServerProcess(tmp_path_factory.mktemp("shared")).start()
    try:
        store(
            server.port,
            [wire.event(str(n), "even" if n % 2 else "odd", f'{{"n":{n}}}') for n in range(2500)],
        )
        yield server
    finally:
        server.end()


def test_pages_that_the_server_cuts_short_are_put_together(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--reply-buffer-bytes", "10000")
    store(server.port, [wire.event(str(n), payload='{"text":"' + "x" * 3000 + '"}') for n in range(40)])
    assert seqs(tail(server, "-n", 35).lines) == list(range(6, 41))


def test_json_has_what_the_server_knows_and_event_has_the_bytes_that_were_sent(server: ServerProcess) -> None:
    line = (
        b'{ "topic":"t","event_id":"1", "timestamp":"2026-11-22T10:00:00Z","source":"s","payload":{"n":1.10,"seq":1}}\n'
    )
    store(server.port, [line])
    for how in (["-n", 1], ["--after", 0]):
        (shown,) = tail(server, *how).lines
        assert shown.startswith(line[:-2] + b',"seq":1,"received_at":"20')
        assert tail(server, "--format", "event", *how).output == line


def test_text_is_for_people(server: ServerProcess) -> None:
    payloads = [
        '{"message":"hello","n":1}',
        '{"n":1.10}',
        '{"message":"two\\nlines","exception":"E: x"}',
        '{"message":7}',
    ]
    store(server.port, [wire.event(str(n), "app.web", payload) for n, payload in enumerate(payloads)])
    head = "2026-11-22T10:00:00Z app.web test "
    assert tail(server, "--format", "text").output.decode() == (
        f'{head}hello\n{head}{{"n":1.10}}\n{head}two\n    lines\n    E: x\n{head}{{"message":7}}\n'
    )


UNPRINTABLE = "\\u001b[31m\\u009b2J\\u202e\\u0007\\r"


@pytest.mark.parametrize("arguments", [[], ["--format", "json"], ["--format", "event"], ["--after", "0"]], ids=str)
def test_a_terminal_gets_nothing_unprintable(server: ServerProcess, arguments: list[str]) -> None:
    raw = '{"message":"a\x7f\u009b2Jb\u202ec' + UNPRINTABLE + '"}'
    store(server.port, [wire.event("1", "t\u202ex", raw, source='"\u202e"')])
    shown = on_terminal("tail", server.port, *arguments, variables={"NO_COLOR": "1"}).decode()
    assert shown.replace("\r\n", "").isprintable()
    assert "\\u202Ec" in shown
    if "--format" in arguments:
        assert json.loads(shown)["payload"]["message"].startswith("a\x7f\u009b2Jb\u202ec\x1b[31m")


def test_a_terminal_gets_text_in_colours(server: ServerProcess) -> None:
    store(server.port, [wire.event("1", "app", '{"message":"hello","level":"ERROR"}')])
    shown = on_terminal("tail", server.port)
    assert b"\x1b[31mhello\x1b[0m" in shown
    assert b"app\x1b[0m" in shown
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        assert on_terminal("tail", server.port, variables={name: value}) == b"2026-11-22T10:00:00Z app test hello\r\n"


# --- following


def test_what_is_stored_between_the_last_ones_and_the_next_ones_is_shown(server: ServerProcess, start: Start) -> None:
    count = 4000
    with in_background(lambda: fill(server, count)):
        runs = []
        for _ in range(3):
            runs.append(start(server, "-n", 10, "--follow"))
            runs[-1].wait_for(1)
    fill(server, 1, "last")
    for one in runs:
        one.wait_for_seq(count + 1)
        done = one.end()
        assert (done.code, done.errors) == (0, "")
        assert one.seqs == list(range(one.seqs[0], count + 2))


def test_none_of_the_last_ones_means_from_now_on(server: ServerProcess, start: Start) -> None:
    fill(server, 5)
    following = start(server, "-n", 0, "--follow")
    wait_until(lambda: server.ask("SUBSCRIBERS")["total"] == 1)
    fill(server, 2, "f")
    following.wait_for(2)
    assert following.seqs == [6, 7]


def test_it_follows_over_restarts_and_crashes(server: ServerProcess, start: Start) -> None:
    following = start(server, "--follow", "--after", 0, "t")
    total = 0
    for number, end in enumerate([ServerProcess.stop, ServerProcess.kill, ServerProcess.kill]):
        fill(server, 500, f"e{number}")
        total += 500
        following.wait_for(total)  # so that it is connected when its server ends
        end(server)
        server.restart()
    fill(server, 1, "last")
    following.wait_for(total + 1)
    done = following.end()
    assert seqs(done.lines) == [event["seq"] for event in server.listed("t")]
    assert done.code == 0
    assert 1 <= len(done.errors.splitlines()) <= 3
    assert "trying again" in done.errors


def test_it_waits_for_a_server_that_is_not_there_yet(server: ServerProcess, start: Start) -> None:
    fill(server, 3)
    server.stop()
    following = start(server, "--follow")
    wait_until(lambda: "trying again" in following.errors)
    server.restart()
    following.wait_for(3)
    assert following.seqs == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_well(server: ServerProcess, start: Start, number: signal.Signals) -> None:
    following = start(server, "--follow", "--after", 0)
    wait_until(lambda: server.ask("SUBSCRIBERS")["total"] == 1)
    done = following.end(number)
    assert (done.code, done.errors) == (0, "")


def test_a_reader_that_stands_still_does_not_keep_it_from_ending(server: ServerProcess) -> None:
    store(server.port, [wire.event(str(n), payload='{"text":"' + "x" * 1000 + '"}') for n in range(2000)])
    with subprocess.Popen(
        command("tail", server.port, "--follow", "--after", 0), stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout
        assert process.stdout.read(1)
        wait_until(lambda: server.ask("SUBSCRIBERS")["total"] == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    "arguments", [["--after", "0"], ["--follow", "--after", "0"], ["--follow", "-n", "1"]], ids=str
)
def test_a_closed_pipe_ends_it_well(server: ServerProcess, arguments: list[str]) -> None:
    fill(server, 2000)
    with subprocess.Popen(
        command("tail", server.port, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()  # the last of these runs is idle by then, and notices it all the same
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == b""


# --- resuming where the last run ended


def test_a_cursor_file_goes_on_where_it_ended(server: ServerProcess, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    fill(server, 20)
    assert seqs(tail(server, "--cursor-file", cursor).lines) == list(range(11, 21))
    assert json.loads(cursor.read_bytes())["seq"] == 20
    assert tail(server, "--cursor-file", cursor).output == b""
    fill(server, 1500, "f")
    assert seqs(tail(server, "--cursor-file", cursor, "-n", 1).lines) == list(range(21, 1521))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("cursor")) == ["cursor"]


def test_a_cursor_file_begins_where_it_is_told(server: ServerProcess, tmp_path: Path) -> None:
    fill(server, 20)
    for name, value, first in (("--after", "0", 1), ("--since", "1h", 1), ("-n", "5", 16)):
        found = tail(server, "--cursor-file", tmp_path / value, name, value)
        assert seqs(found.lines) == list(range(first, 21))


def is_past(cursor: Path, seq: int) -> bool:
    return cursor.exists() and json.loads(cursor.read_bytes())["seq"] > seq


def test_a_cursor_file_survives_kill_9_and_leaves_nothing_out(
    server: ServerProcess, start: Start, tmp_path: Path
) -> None:
    cursor = tmp_path / "cursor"
    shown: list[int] = []
    for number in range(4):
        following = start(server, "--follow", "--after", 0, "--cursor-file", cursor)
        fill(server, 300, f"e{number}")
        wait_until(partial(is_past, cursor, 400 * number))
        fill(server, 100, f"f{number}")
        following.kill()
        assert following.seqs == list(range(following.seqs[0], following.seqs[-1] + 1))
        assert json.loads(cursor.read_bytes())["seq"] <= following.seqs[-1], "only what has been shown"
        shown += following.seqs
    done = tail(server, "--cursor-file", cursor)
    assert (done.code, done.errors) == (0, "")
    assert set(shown + seqs(done.lines)) == set(range(1, 1601))


def test_a_cursor_file_of_another_store_is_told_and_left_alone(server: ServerProcess, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    fill(server, 20)
    for seq in (5, 500):
        cursor.write_text(f'{{"store":"0123456789abcdef","seq":{seq}}}')
        for follow in ([], ["--follow"]):
            done = tail(server, "--cursor-file", cursor, *follow)
            assert (done.code, done.output) == (1, b"")
            assert done.errors.count("\n") == 1
            assert "another store" in done.errors
    assert json.loads(cursor.read_bytes()) == {"store": "0123456789abcdef", "seq": 500}


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"store":"x"}', '{"store":"x","seq":true}', "\xff\n", '{"seq":1}']
)
def test_what_is_no_cursor_file_is_left_alone(server: ServerProcess, tmp_path: Path, content: str) -> None:
    cursor = tmp_path / "cursor"
    cursor.write_text(content)
    done = tail(server, "--cursor-file", cursor)
    assert (done.code, done.output) == (1, b"")
    assert done.errors == f"aggregator: {cursor}: not a cursor file\n"
    assert cursor.read_text() == content


def test_a_cursor_file_that_cannot_be_written_is_said(server: ServerProcess, tmp_path: Path) -> None:
    fill(server, 3)
    done = tail(server, "--cursor-file", tmp_path / "no folder" / "cursor")
    assert done.code == 1
    assert done.errors.count("\n") == 1
    assert "No such file or directory" in done.errors
    assert seqs(done.lines) == [1, 2, 3]


def test_a_gap_is_told_once_and_the_next_run_goes_on(server: ServerProcess, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    fill(server, 3000)
    tail(server, "--after", 0, "--cursor-file", tmp_path / "whole")
    position = json.loads((tmp_path / "whole").read_bytes())
    cursor.write_text(json.dumps({**position, "seq": 5}))
    server.stop()
    gone = remove_oldest(server.db)
    server.restart()
    done = tail(server, "--cursor-file", cursor)
    assert (done.code, done.output) == (1, b"")
    assert (
        done.errors
        == f"aggregator: 127.0.0.1:{server.port}: a gap: events past 5, up to {gone}, are no longer stored\n"
    )
    again = tail(server, "--cursor-file", cursor)
    assert (again.code, again.errors) == (0, "")
    assert seqs(again.lines) == list(range(gone + 1, 3001))


def test_a_gap_is_told_while_it_follows_and_it_goes_on(server: ServerProcess, start: Start) -> None:
    fill(server, 3000)
    server.stop()
    gone = remove_oldest(server.db)
    server.restart()
    following = start(server, "--follow", "--after", 0)
    following.wait_for(3000 - gone)
    done = following.end()
    assert done.code == 0
    assert done.errors.count("a gap: events past 0") == 1
    assert seqs(done.lines) == list(range(gone + 1, 3001))


def test_a_name_goes_on_where_it_ended(server: ServerProcess) -> None:
    fill(server, 10)
    assert seqs(tail(server, "--name", "ship", "--after", 0).lines) == list(range(1, 11))
    assert tail(server, "--name", "ship").output == b""
    fill(server, 3, "f")
    assert seqs(tail(server, "--name", "ship", "--after", 0).lines) == [11, 12, 13]
    assert server.ask("CURSORS")["cursors"][0]["acked"] == 13


def test_a_name_survives_kill_9_of_both(server: ServerProcess, start: Start) -> None:
    shown: set[int] = set()
    for number in range(4):
        following = start(server, "--name", "ship", "--after", 0, "--follow")
        fill(server, 500, f"e{number}")
        following.wait_for(200)
        following.kill()
        server.kill()
        server.restart()
        shown |= set(following.seqs)
    shown |= set(seqs(tail(server, "--name", "ship").lines))
    assert shown == {event["seq"] for event in server.listed("t")}


def test_a_name_that_is_taken_over_ends_it(server: ServerProcess, start: Start) -> None:
    first = start(server, "--name", "ship", "--follow")
    wait_until(lambda: server.ask("SUBSCRIBERS")["total"] == 1)
    second = start(server, "--name", "ship", "--follow")
    done = first.wait()
    assert done.code == 1
    assert "subscribed as ship" in done.errors
    fill(server, 1)
    second.wait_for(1)


# --- what goes wrong


def test_a_full_disk_is_said(server: ServerProcess) -> None:
    fill(server, 3)
    runs: list[list[str]] = [[], ["--follow"], ["--after", "0"]]
    for arguments in runs:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                command("tail", server.port, *arguments), stdout=full, stderr=subprocess.PIPE, cwd=ROOT,
                timeout=2 * DEADLINE_S, check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == b"aggregator: standard output: No space left on device\n"


def test_without_a_server_it_gives_up(server: ServerProcess) -> None:
    server.stop()
    for arguments in (["-n", "5"], ["--after", "0"]):
        started = time.monotonic()
        done = tail(server, "--give-up-after", "0.3", *arguments)
        assert done.code == 1
        assert "refused" in done.errors
        assert time.monotonic() - started < DEADLINE_S


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a[b"], "not closed"),
        (["--after", "99"], "past the newest"),
        (["--since", "2999-01-01T00:00:00Z"], "in the future"),
        (["--after", "17.20.3.8"], "after: expected a number"),
    ],
    ids=str,
)
def test_what_the_server_refuses_is_said(server: ServerProcess, arguments: list[str], why: str) -> None:
    done = tail(server, *arguments)
    assert (done.code, done.output) == (1, b"")
    assert why in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", "1h", "--after", "1"],
        ["-n", "-1"],
        ["-n", "1", "--name", "x"],
        ["--name", "x", "--cursor-file", "y"],
        ["--follow", "--until", "NOW"],
        ["--format", "xml"],
        ["--after", ""],
    ],
    ids=str,
)
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    done = run("tail", 1, *arguments)
    assert (done.code, done.output) == (2, b"")
    assert done.errors.count("\n") == 1


def test_without_any_output_it_ends_well(server: ServerProcess) -> None:
    fill(server, 3)
    words = command("tail", server.port, "-n", "3")
    done = subprocess.run(["/bin/sh", "-c", '"$@" >&-', "sh", *words], capture_output=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_reads_the_address_from_the_environment(server: ServerProcess) -> None:
    fill(server, 1)
    words = [word for word in command("tail", server.port) if "127.0.0.1" not in word and word != "--to"]
    environment = {**os.environ, "AGGREGATOR_TO": f"127.0.0.1:{server.port}"}
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env=environment, check=True)
    assert seqs(done.stdout.splitlines()) == [1]


def test_followers_and_others_share_a_server(server: ServerProcess, start: Start) -> None:
    runs = [start(server, f"t{number % 3}", "--follow", "--after", 0) for number in range(6)]
    with contextlib.ExitStack() as stack:
        for number in range(3):
            topic = f"t{number}"
            stack.enter_context(in_background(partial(fill, server, 700, topic, topic)))
    for number, one in enumerate(runs):
        one.wait_for(700)
        assert one.seqs == [event["seq"] for event in server.listed(f"t{number % 3}")]
