"""``aggregator send`` as its users run it, against a real server."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.client.send import lines as file_lines
from tests.harness import ROOT, wire
from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.sending import Outcome, Running, Start, command, has_stored, messages, run
from tests.harness.server_process import ServerProcess, StartServer

# --- events


def test_events_are_stored_once_however_often_they_are_sent(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(wire.events("e", 3000)))
    first = run(server.port, file)
    again = run(server.port, file)
    assert first.code == again.code == 0
    assert first.lines == again.lines == []
    assert first.has(sent=3000, stored=3000)
    assert again.has(sent=3000, duplicate=3000)
    assert len(server.stored("t")) == 3000


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_standard_input_may_be_a_pipe(server: ServerProcess, arguments: tuple[str, ...]) -> None:
    assert run(server.port, *arguments, stdin=b"".join(wire.events("e", 5000))).has(sent=5000, stored=5000)


def test_standard_input_may_be_a_file(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(wire.event("1"))
    with file.open() as stdin:
        done = subprocess.run(command(server.port), stdin=stdin, capture_output=True, cwd=ROOT, check=True)
    assert Outcome(0, done.stderr).has(sent=1, stored=1)


def test_lines_may_end_in_crlf_or_not_at_all_and_a_file_may_start_with_a_bom(
    server: ServerProcess, tmp_path: Path
) -> None:
    files = [tmp_path / "1", tmp_path / "2"]
    files[0].write_bytes(b"\xef\xbb\xbf" + wire.event("1")[:-1] + b"\r\n\r\n\n" + wire.event("2")[:-1])
    files[1].write_bytes(b"\xef\xbb\xbf" + wire.event("3"))
    assert run(server.port, *files).has(sent=3, stored=3)


def test_rejections_are_told_with_file_and_line(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\n" + wire.event("1") + b'{"topic":1}\n{"a":\n' + b'{"\xff"}\n' + b"[{},{}]\n" * 4 + b"[]\n")
    outcome = run(server.port, file)
    assert outcome.code == 1
    assert outcome.has(sent=12, stored=1, rejected=11)
    assert outcome.lines[:3] == [
        f"{file}:3: bad_event: topic: expected a string, got a number",
        f"{file}:4: bad_json: unexpected end of data at character 6",
        f"{file}:5: bad_json: not valid UTF-8 at byte 3",
    ]
    assert outcome.lines[3:] == [
        f"{file}:6: bad_event: event 1: topic: missing, expected a string",
        f"{file}:6: bad_event: event 2: topic: missing, expected a string",
        "and 6 more",
    ]


def test_a_line_that_is_no_event_is_never_sent(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "commands"
    file.write_bytes(b"QUIT\nSTATS\nstats\n -\n\xff\n\xef\xbb\xbf{}\n" + wire.event("1") + b"QUIT")
    outcome = run(server.port, file)
    assert outcome.code == 1
    assert outcome.has(sent=8, stored=1, rejected=7)
    assert outcome.lines[0] == f"{file}:1: bad_line: expected {{ or [, got b'Q'; not sent"
    stats = server.ask("STATS")
    assert (stats["received"], stats["rejected"]) == (1, 0)


def test_the_events_of_a_batch_count_one_by_one(server: ServerProcess) -> None:
    one, two = wire.event("1").decode().strip(), wire.event("2").decode().strip()
    outcome = run(server.port, stdin=f'[{one},{two},{one},3]\n{{"events":[{one}]}}\n'.encode())
    assert outcome.has(sent=5, stored=2, duplicate=2, rejected=1)
    assert outcome.lines == ["-:1: bad_event: event 4: expected an object, got a number"]


def test_a_line_longer_than_the_server_takes_is_told(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(wire.event("1") + wire.event("2", payload=f'{{"x":"{"x" * (1 << 20)}"}}') + wire.event("3"))
    outcome = run(server.port, file)
    assert outcome.has(sent=3, stored=2, rejected=1)
    assert outcome.lines == [f"{file}:2: too_long: longer than 1048576 bytes; skipped to the end of the line"]


def test_memory_is_bounded_by_a_line_and_a_window(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.write(wire.event("1"))
        out.truncate(600 << 20)  # NULs in front of an event
        out.seek(0, os.SEEK_END)
        out.write(wire.event("2"))
        for _ in range(128):
            out.write(b"x" * (1 << 20))
        out.write(b"\n" + wire.event("3"))
    # Its own peak, which it prints at its end: wait4() would also count the process that it was forked from.
    program = "import sys; from aggregator import cli; cli.main(); print(open('/proc/self/status').read())"
    arguments = [sys.executable, "-c", program, *command(server.port, file)[3:]]
    done = subprocess.run(arguments, capture_output=True, cwd=ROOT, timeout=100, check=True)
    outcome = Outcome(1, done.stderr)
    assert outcome.has(sent=4, stored=3, rejected=1)
    assert outcome.lines == [f"{file}:3: too_long: longer than 67108864 bytes; not sent"]
    peak = re.search(rb"VmHWM:\s+(\d+) kB", done.stdout)
    assert peak
    assert int(peak[1]) < 200 * 1024


# --- lines of text


def test_text_becomes_events(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes('\ufefföne\r\n\n{"json":1}\nSTATS\nöne\n'.encode() + b"latin \xe9\n\0\x1b[1m\tno end")
    outcome = run(server.port, "--topic", "t", "--source", "web 1", file)
    assert outcome.code == 0
    assert outcome.has(sent=6, stored=6)
    assert messages(server) == ["öne", '{"json":1}', "STATS", "öne", "latin \\xe9", "\x1b[1m\tno end"]
    event = next(iter(server.stored("t").values()))
    assert event["source"] == "web 1"
    assert re.fullmatch(r"[0-9a-f]{32}", event["event_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event["timestamp"])


def test_the_source_is_the_hosts_name_unless_given(server: ServerProcess) -> None:
    run(server.port, "--topic", "t", stdin=b"x\n")
    (event,) = server.stored("t").values()
    assert event["source"] == socket.gethostname()


def test_sending_a_file_again_stores_only_what_it_has_grown_by(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"same\nsame\nno end")
    assert run(server.port, "--topic", "t", file).has(sent=3, stored=3)
    with file.open("ab") as out:
        out.write(b"\nsame\n")
    assert run(server.port, "--topic", "t", file).has(sent=4, stored=1, duplicate=3)
    relative = os.path.relpath(file, ROOT)
    assert run(server.port, "--topic", "t", relative).has(sent=4, duplicate=4)
    assert messages(server) == ["same", "same", "no end", "same"]


def test_standard_input_is_new_each_time(server: ServerProcess) -> None:
    for _ in range(2):
        assert run(server.port, "--topic", "backup", stdin=b"backup ok\n").has(sent=1, stored=1)


def test_an_id_says_which_source_file_and_place_a_line_is_from(server: ServerProcess, tmp_path: Path) -> None:
    files = [tmp_path / "1", tmp_path / "2"]
    for file in files:
        file.write_bytes(b"a\n")
    assert run(server.port, "--topic", "t", *files).has(sent=2, stored=2)
    assert run(server.port, "--topic", "t", "--source", "other", *files).has(sent=2, stored=2)
    files[0].write_bytes(b"b\na\n")
    assert run(server.port, "--topic", "t", *files).has(sent=3, stored=2, duplicate=1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--topic", ""], "aggregator: topic: expected 1 to 255 characters, got 0"),
        (["--topic", "x" * 256], "aggregator: topic: expected 1 to 255 characters, got 256"),
        (["--topic", "a\nb"], "aggregator: topic: control character U+000A at character 2"),
        (["--topic", "t", "--source", ""], "aggregator: source: expected 1 to 255 characters, got 0"),
        (["--topic", os.fsdecode(b"\xff")], "aggregator: str is not valid UTF-8: surrogates not allowed"),
    ],
)
def test_a_bad_topic_or_source_is_told_at_once(free_port: int, arguments: list[str], complaint: str) -> None:
    outcome = run(free_port, *arguments, stdin=b"x\n")
    assert outcome.code == 2
    assert outcome.lines == [complaint]


@given(
    data=st.binary(max_size=60).map(lambda raw: raw.translate(bytes(b"\n\r\xef\xbb\xbfa\0"[i % 7] for i in range(256))))
)
def test_any_split_gives_the_same_lines_with_their_true_ends(data: bytes) -> None:
    for size in (1, 2, 3, 7, 60):
        lines = file_lines.Lines()
        found = [line for start in range(0, len(data), size) for line in lines.feed(data[start : start + size])]
        found += lines.finish()
        assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
        assert len(found) == data.count(b"\n") + bool(data.split(b"\n")[-1].strip(b"\0"))
        start = 0
        for number, end, content in found:
            raw = data[start:].split(b"\n")[0]
            is_rest = start + len(raw) == len(data)
            assert end == start + len(raw) + (not is_rest)
            bare = (raw.rstrip(b"\0") if is_rest else raw).removesuffix(b"\r").lstrip(b"\0")
            assert content == (bare.removeprefix(b"\xef\xbb\xbf") if number == 1 else bare)
            start = end


def test_what_follows_a_line_too_long_keeps_its_number_and_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lines, "MAX_LINE_BYTES", 10)
    lines = file_lines.Lines()
    found = [line for piece in (b"1234567", b"8901", b"234\nab", b"c\n") for line in lines.feed(piece)]
    assert found == [(1, 15, None), (2, 19, b"abc")]


# --- following files


def test_a_file_is_followed_line_by_line_as_it_grows(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\nhal")
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 2))
    with file.open("ab", buffering=0) as out:
        out.write(b"f")
        out.write(b"\n3\nunfin")
        wait_until(has_stored(server, 4))
    outcome = following.interrupt()
    assert outcome.code == 0
    assert outcome.lines == []
    assert outcome.has(sent=4, stored=4)
    assert messages(server) == ["1", "2", "half", "3"]
    assert run(server.port, "--topic", "t", file).has(sent=5, stored=1, duplicate=4)


def test_rotation_loses_nothing(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 1))
    with file.open("ab", buffering=0) as old:
        file.rename(tmp_path / "app.log.1")
        old.write(b"2 after the rename\n")
        wait_until(has_stored(server, 2))
        file.touch()
        old.write(b"3 beside the new file\n")
        wait_until(has_stored(server, 3))
        old.write(b"4 last words")
        file.write_bytes(b"5 new\n")
    wait_until(has_stored(server, 5))
    file.rename(tmp_path / "app.log.2")
    file.write_bytes(b"6 newer\n")
    wait_until(has_stored(server, 6))
    assert following.interrupt(signal.SIGTERM).has(sent=6, stored=6)
    assert messages(server) == [
        "1", "2 after the rename", "3 beside the new file", "4 last words", "5 new", "6 newer",
    ]  # fmt: skip


def test_a_truncated_file_is_read_from_its_start(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"first line\nsecond line\n")
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 2))
    file.write_bytes(b"third\n")
    wait_until(has_stored(server, 3))
    with file.open("ab") as out:
        out.write(b"fourth\n")
    wait_until(has_stored(server, 4))
    assert following.interrupt().has(sent=4, stored=4)
    assert messages(server) == ["first line", "second line", "third", "fourth"]


def test_a_missing_file_is_waited_for(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(lambda: following.errors)
    assert following.errors == f"aggregator: {file}: No such file or directory; waiting for it\n"
    file.write_bytes(b"1\n")
    wait_until(has_stored(server, 1))
    file.unlink()
    file.write_bytes(b"2 again\n")
    wait_until(has_stored(server, 2))
    assert following.interrupt().code == 0


def test_several_files_and_a_pipe_are_followed_at_once(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(wire.event(f"{file.name}1"))
    following = start(server.port, "--follow", *files, "-")
    for count in (2, 3):
        for file in files:
            with file.open("ab") as out:
                out.write(wire.event(f"{file.name}{count}"))
        following.stdin.write(wire.event(f"-{count}"))
        following.stdin.flush()
        wait_until(has_stored(server, 3 * count - 1))
    following.stdin.close()
    assert following.interrupt().has(sent=8, stored=8)
    assert sorted(server.stored("t")) == ["-2", "-3", "a1", "a2", "a3", "b1", "b2", "b3"]


@pytest.fixture
def stopped_follower(free_port: int, tmp_path: Path, start: Start) -> Running:
    """A follower of two lines that was told to stop while the server was down."""
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n")
    following = start(free_port, "--topic", "t", "--follow", file)
    wait_until(lambda: "cannot connect" in following.errors)
    following.process.send_signal(signal.SIGTERM)
    return following


def test_a_second_signal_ends_a_follower_that_waits_for_acks(stopped_follower: Running) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        stopped_follower.process.wait(0.5)  # it is waiting for the acks
    assert stopped_follower.interrupt().code == 130


def test_a_follower_that_is_stopped_waits_for_what_is_in_flight(
    free_port: int, stopped_follower: Running, start_server: StartServer
) -> None:
    server = start_server("--port", str(free_port))
    outcome = stopped_follower.wait()
    assert outcome.code == 0
    assert outcome.has(sent=2, stored=2)
    assert messages(server) == ["1", "2"]


# --- servers that go away


def test_a_server_killed_again_and_again_costs_nothing(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    count = 40_000
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(wire.events("e", count)))
    sending = start(server.port, file)
    for stored in (5_000, 15_000):
        wait_until(has_stored(server, stored))
        server.kill()
        server.restart()
    outcome = sending.wait()
    assert outcome.code == 0
    assert outcome.counts["stored"] + outcome.counts["duplicate"] == outcome.counts["sent"] == count
    assert len(outcome.lines) <= 2, "each outage is told once"
    assert all(
        re.fullmatch(r"aggregator: \S+: (lost the|cannot) connect.*; trying again", one) for one in outcome.lines
    )
    assert server.stored("t").keys() == {f"e-{i}" for i in range(count)}


def test_a_server_stopped_in_the_middle_costs_nothing(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(wire.events("e", 20_000)))
    sending = start(server.port, file)
    wait_until(has_stored(server, 5_000))
    assert server.stop() == 0
    server.restart()
    assert sending.wait().code == 0
    assert len(server.stored("t")) == 20_000


def test_a_server_that_is_not_up_yet_is_waited_for(free_port: int, start: Start, start_server: StartServer) -> None:
    sending = start(free_port, "--topic", "t")
    sending.stdin.write(b"1\n")
    sending.stdin.close()
    wait_until(lambda: sending.errors)
    server = start_server("--port", str(free_port))
    outcome = sending.wait()
    assert outcome.code == 0
    assert outcome.lines == [f"aggregator: 127.0.0.1:{free_port}: cannot connect: Connection refused; trying again"]
    assert messages(server) == ["1"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_it_gives_up_when_told_to(free_port: int, start: Start, quiet: list[str]) -> None:
    sending = start(free_port, "--topic", "t", "--give-up-after", "0.5", *quiet)
    sending.stdin.write(b"1\n2\n")
    sending.stdin.flush()  # standard input stays open: send must not wait for more of it
    outcome = sending.wait()
    assert outcome.code == 1
    assert outcome.lines == [
        f"aggregator: 127.0.0.1:{free_port}: cannot connect: Connection refused; trying again",
        f"aggregator: 127.0.0.1:{free_port}: no ack for 0.5 s; 2 lines are unanswered",
    ]
    assert quiet or outcome.has(unanswered=2)


def test_a_server_of_another_protocol_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def smtp() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example.org ESMTP\r\n")
                connection.recv(1 << 20)

        port = listener.getsockname()[1]
        with in_background(smtp):
            outcome = run(port, stdin=wire.event("1"))
    assert outcome.code == 1
    assert outcome.lines == [
        f"aggregator: 127.0.0.1:{port}: expected an aggregator's reply, got '220 mail.example.org ESMTP'"
    ]
    assert outcome.has(unanswered=1)


# --- interruptions and input that fails


def test_ctrl_c_while_it_waits_for_input_ends_it_with_a_summary(server: ServerProcess, start: Start) -> None:
    sending = start(server.port, "--topic", "t")
    sending.stdin.write(b"1\n2\nunfin")
    sending.stdin.flush()
    wait_until(has_stored(server, 2))
    outcome = sending.interrupt()
    assert outcome.code == 130
    assert outcome.lines == []
    assert outcome.has(sent=2, stored=2)


def test_ctrl_c_while_the_server_is_away_says_what_is_unknown(free_port: int, start: Start) -> None:
    sending = start(free_port, "--topic", "t")
    sending.stdin.write(b"1\n2\n")
    sending.stdin.close()
    wait_until(lambda: sending.errors)
    outcome = sending.interrupt()
    assert outcome.code == 130
    assert outcome.has(unanswered=2)


def test_what_cannot_be_read_is_told_and_the_rest_is_sent(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    outcome = run(server.port, "--topic", "t", tmp_path / "missing", tmp_path, file)
    assert outcome.code == 1
    assert outcome.lines == [
        f"aggregator: {tmp_path / 'missing'}: No such file or directory",
        f"aggregator: {tmp_path}: Is a directory",
    ]
    assert outcome.has(sent=1, stored=1)


def test_standard_input_may_be_closed(server: ServerProcess) -> None:
    outcome = run(server.port, stdin=None, preexec_fn=lambda: os.close(0))
    assert outcome.code == 1
    assert outcome.lines == ["aggregator: -: Bad file descriptor"]


def test_a_named_pipe_is_read_to_its_end(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sending = start(server.port, "--topic", "t", pipe)
    with pipe.open("wb", buffering=0) as out:
        out.write(b"1\n")
        wait_until(has_stored(server, 1))
        out.write(b"2")
    assert sending.wait().has(sent=2, stored=2)


def test_nothing_to_send_is_no_failure(server: ServerProcess) -> None:
    outcome = run(server.port, os.devnull)
    assert outcome.code == 0
    assert outcome.has()


# --- what it shows


def test_quiet_is_silent_when_all_goes_well_and_tells_rejections(server: ServerProcess) -> None:
    assert run(server.port, "--quiet", stdin=wire.event("1")).lines == []
    outcome = run(server.port, "--quiet", stdin=wire.event("1") + b"x\n")
    assert outcome.code == 1
    assert outcome.lines == ["-:2: bad_line: expected { or [, got b'x'; not sent"]


def test_a_terminal_gets_a_progress_bar_that_makes_way_for_the_summary(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("tqdm")
    file = tmp_path / "app.log"
    file.write_bytes(b"line\n" * 100_000)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with subprocess.Popen(command(server.port, "--topic", "t", file), stderr=theirs, cwd=ROOT) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the end of a terminal
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\d+%\|.*[\d.]+k?/500k \[.*, [\d,]+ events/s\]", shown)
    last = re.sub(rb"\x1b\[[0-9;]*[A-Z]", b"", shown).rstrip().split(b"\r")[-1].strip()
    assert last.startswith(b"sent 100000: stored 100000, ")
