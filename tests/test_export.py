"""``aggregator export`` as its users run it: complete, or with an exit code that says it is not."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, wire
from tests.harness.background import in_background
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.sending import command as send_command
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.tailing import Outcome, command, on_terminal, read_terminal, remove_oldest, run, seqs, store

SUMMARY = re.compile(r"exported (\d+)(?:, last seq (\d+))? in [\d.]+ s \([\d,]+/s\)\n")


def export(server: ServerProcess, *arguments: Any, **options: Any) -> Outcome:
    return run("export", server.port, *arguments, **options)


def summary(done: Outcome) -> tuple[int, int | None]:
    """The count and the last seq in the summary."""
    found = SUMMARY.fullmatch(done.errors.splitlines(keepends=True)[-1])
    assert found, done.errors
    return int(found[1]), int(found[2]) if found[2] else None


def large(count: int) -> list[bytes]:
    return [wire.event(str(n), payload='{"text":"' + "x" * 5000 + '"}') for n in range(count)]


@pytest.fixture
def stalled(server: ServerProcess) -> Iterator[subprocess.Popen[bytes]]:
    """An export of 50 MB; only the first byte of its output has been read."""
    store(server.port, large(10_000))
    with subprocess.Popen(
        command("export", server.port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, bufsize=0
    ) as process:
        assert process.stdout
        assert process.stdout.read(1) == b"{"
        try:
            yield process
        finally:
            process.kill()


# --- what is written


def test_every_event_is_written_as_it_was_sent(server: ServerProcess) -> None:
    lines = [*wire.events("e", 5000), wire.event("odd", payload='{"n":1.10,"big":1e400}', seq="1")]
    store(server.port, lines)
    done = export(server)
    assert done.code == 0
    assert done.output == b"".join(lines)
    assert summary(done) == (5001, 5001)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], range(1, 11, 2)),
        (["?", "zz"], range(1, 11)),
        (["--contains", '"n":3}'], [4]),
        (["--source", "nobody"], []),
        (["--since", "1h"], range(1, 11)),
        (["--since", "now"], []),
        (["--until", "1h"], []),
    ],
    ids=str,
)
def test_what_was_asked_for_is_written(server: ServerProcess, arguments: list[str], expected: Any) -> None:
    store(server.port, [wire.event(str(n), "ab"[n % 2], f'{{"n":{n}}}') for n in range(10)])
    done = export(server, "--format", "json", *arguments)
    assert seqs(done.lines) == list(expected)
    assert summary(done) == (len(expected), max(expected, default=None))
    assert done.code == 0


def test_times_are_those_of_storing(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3))
    moment = server.listed("t")[-1]["received_at"]
    wait_until(lambda: store(server.port, wire.events("f", 1)) and server.listed("t")[-1]["received_at"] > moment)
    store(server.port, wire.events("g", 3))
    later = server.listed("t")[-1]["received_at"]
    first = seqs(export(server, "--format", "json", "--until", later).lines)
    rest = seqs(export(server, "--format", "json", "--since", later).lines)
    assert first + rest == [event["seq"] for event in server.listed("t")]
    assert first
    assert rest


def test_quiet_says_nothing(server: ServerProcess) -> None:
    assert export(server, "--quiet").errors == ""


def test_csv_has_the_columns_that_were_named(server: ServerProcess) -> None:
    payloads = [
        '{"user":{"id":7,"name":"ann, \\"bob\\""},"n":1.10,"http.status":200}',
        '{"user":{"id":123456789012345678901234567890},"n":null,"http":{"status":404}}',
        '{"user":["a",{"b":1.0}],"n":true,"text":"two\\nlines","half":"\\ud83d"}',
    ]
    store(server.port, [wire.event(str(n), "t", payload) for n, payload in enumerate(payloads)])
    columns = ["seq", "event_id", "payload.user.id", "payload.user", "payload.n", "payload.http.status", "payload.text"]
    done = export(server, "--format", "csv", "--columns", ",".join([*columns, "payload.half", "nope.x"]))
    rows = list(csv.reader(io.StringIO(done.output.decode(), newline="")))
    assert rows == [
        [*columns, "payload.half", "nope.x"],
        ["1", "0", "7", '{"id":7,"name":"ann, \\"bob\\""}', "1.10", "200", "", "", ""],
        ["2", "1", "123456789012345678901234567890", '{"id":123456789012345678901234567890}', "", "404", "", "", ""],
        ["3", "2", "", '["a",{"b":1.0}]', "true", "", "two\nlines", "\\ud83d", ""],
    ]
    assert summary(done) == (3, 3)


def test_csv_has_columns_without_being_told(server: ServerProcess) -> None:
    assert export(server, "--format", "csv").output == b"seq,received_at,timestamp,topic,source,event_id,payload\n"
    store(server.port, wire.events("e", 3000))
    rows = list(csv.DictReader(io.StringIO(export(server, "--format", "csv").output.decode())))
    assert [row["event_id"] for row in rows] == [f"e-{n}" for n in range(3000)]
    assert json.loads(rows[7]["payload"]) == {"n": 7}


def test_a_terminal_gets_nothing_unprintable(server: ServerProcess) -> None:
    store(server.port, [wire.event("1", payload='{"message":"\u009b2J\u202e"}')])
    shown = on_terminal("export", server.port, "--quiet")
    assert shown.count(b"\\u009B2J\\u202E") == 1
    assert shown.replace(b"\r\n", b"").decode().isprintable()


# --- files


def test_a_file_is_there_when_all_of_it_is_there(server: ServerProcess, tmp_path: Path) -> None:
    lines = wire.events("e", 3000)
    store(server.port, lines)
    file = tmp_path / "out.ndjson"
    file.write_text("the one before")
    done = export(server, "--output", file)
    assert (done.code, done.output) == (0, b"")
    assert summary(done) == (3000, 3000)
    assert file.read_bytes() == b"".join(lines)
    assert list(tmp_path.glob("out*")) == [file]


def test_a_file_that_is_not_complete_is_not_there(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    file.write_text("the one before")
    store(server.port, wire.events("e", 3))
    server.stop()
    done = export(server, "--output", file, "--give-up-after", "0.2")
    assert done.code == 1
    assert file.read_text() == "the one before"
    assert list(tmp_path.glob("out*")) == [file]


@pytest.mark.parametrize("target", ["no folder/out", "/dev/full"])
def test_a_file_that_cannot_be_written_is_named(server: ServerProcess, tmp_path: Path, target: str) -> None:
    store(server.port, wire.events("e", 3))
    done = export(server, "--output", tmp_path / target)
    assert done.code == 1
    assert re.fullmatch(rf"aggregator: \S*{target}(\.part)?: .+\n", done.errors), done.errors


# --- the other server


def mirror(source: ServerProcess, target: ServerProcess, *arguments: str) -> str:
    """``aggregator export | aggregator send``; return the summary of ``send``."""
    with subprocess.Popen(
        command("export", source.port, *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as reading:
        sent = subprocess.run(
            send_command(target.port), stdin=reading.stdout, capture_output=True, cwd=ROOT, timeout=100, check=True
        )
        assert reading.wait(DEADLINE_S) == 0
    return sent.stderr.decode().splitlines()[-1]


@pytest.mark.timeout(300)
def test_a_mirror_has_equal_bytes_and_again_stores_nothing_twice(start_server: StartServer) -> None:
    source, target = start_server(), start_server()
    count = 100_000
    store(source.port, [wire.event(str(n), f"t{n % 50}", f'{{"n":{n},"f":{n}.10}}') for n in range(count)])
    assert f"stored {count}, duplicate 0, rejected 0" in mirror(source, target)
    assert f"stored 0, duplicate {count}, rejected 0" in mirror(source, target)
    original, copy = export(source), export(target)
    assert (original.code, copy.code) == (0, 0)
    assert original.output.count(b"\n") == count
    assert original.output == copy.output


# --- outages


@pytest.mark.parametrize("end", [ServerProcess.stop, ServerProcess.kill], ids=["SIGTERM", "kill -9"])
def test_a_restart_in_the_middle_leaves_nothing_out(
    server: ServerProcess, stalled: subprocess.Popen[bytes], end: Any
) -> None:
    end(server)
    server.restart()
    output, errors = stalled.communicate(timeout=2 * DEADLINE_S)
    assert stalled.returncode == 0
    assert b"{" + output == b"".join(large(10_000))
    assert b"trying again" in errors


def test_what_comes_after_the_beginning_of_the_export_is_left_out(
    server: ServerProcess, stalled: subprocess.Popen[bytes]
) -> None:
    store(server.port, wire.events("late", 10))
    output, errors = stalled.communicate(timeout=2 * DEADLINE_S)
    assert stalled.returncode == 0
    assert output.count(b"\n") == 10_000
    assert b"exported 10000, last seq 10000 in" in errors


def test_a_gap_in_the_middle_is_no_success(server: ServerProcess, stalled: subprocess.Popen[bytes]) -> None:
    server.stop()
    gone = remove_oldest(server.db, blocks=-1)
    server.restart()
    output, errors = stalled.communicate(timeout=2 * DEADLINE_S)
    assert stalled.returncode == 1
    assert 0 < output.count(b"\n") < gone
    assert re.search(rb"a gap: events past \d+, up to %d, are no longer stored\n$" % gone, errors)


def test_what_was_removed_before_is_no_gap(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3000))
    server.stop()
    gone = remove_oldest(server.db)
    server.restart()
    done = export(server, "--format", "json")
    assert done.code == 0
    assert seqs(done.lines) == list(range(gone + 1, 3001))


def test_another_store_in_the_middle_is_no_success(server: ServerProcess, stalled: subprocess.Popen[bytes]) -> None:
    server.stop()
    for file in server.db.parent.iterdir():
        file.unlink()
    server.restart()
    store(server.port, wire.events("other", 20_000))
    output, errors = stalled.communicate(timeout=2 * DEADLINE_S)
    assert stalled.returncode == 1
    assert b"other-" not in output
    assert b"another store" in errors.splitlines()[-1]


def test_without_a_server_it_gives_up(server: ServerProcess) -> None:
    server.stop()
    done = export(server, "--give-up-after", "0.3")
    assert (done.code, done.output) == (1, b"")
    assert "cannot connect: Connection refused" in done.errors


# --- its end


def test_a_closed_pipe_ends_it_well(stalled: subprocess.Popen[bytes]) -> None:
    assert stalled.stdout
    assert stalled.stderr
    stalled.stdout.close()
    assert stalled.wait(DEADLINE_S) == 0
    assert stalled.stderr.read() == b""


def test_an_interrupt_ends_it_at_once(stalled: subprocess.Popen[bytes]) -> None:
    stalled.send_signal(signal.SIGINT)
    assert stalled.wait(DEADLINE_S) == 130


def test_a_full_disk_is_said(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("export", server.port), stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"aggregator: standard output: No space left on device\n")


def test_a_long_export_shows_a_bar_on_a_terminal(server: ServerProcess) -> None:
    store(server.port, large(5000))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with subprocess.Popen(
        command("export", server.port), stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, bufsize=0
    ) as process:
        os.close(theirs)
        shown: list[bytes] = []
        with in_background(lambda: shown.append(read_terminal(ours))):
            assert process.stdout
            count = 0
            started = time.monotonic()
            while piece := process.stdout.read(1 << 20):
                count += piece.count(b"\n")
                if time.monotonic() - started < 3:
                    time.sleep(0.05)  # a slow reader
        assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    assert count == 5000
    assert re.search(rb"\d+%\|.*\| [\d.]+k?/5\.00k \[", shown[0])
    last = re.sub(rb"\x1b\[[0-9;]*[A-Z]", b"", shown[0]).rstrip().split(b"\r")[-1].strip()
    assert last.startswith(b"exported 5000, last seq 5000 in ")


@pytest.mark.parametrize(
    "arguments", [["--columns", "a"], ["--format", "csv", "--columns", "a,,b"], ["--since", "x"], ["--format", "text"]]
)
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    done = run("export", 1, *arguments)
    assert (done.code, done.output) == (2, b"")
    assert done.errors.count("\n") == 1
