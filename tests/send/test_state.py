"""--state: how far each file has been acked, for the next run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from aggregator.client.send.state import BadState, StateFile
from tests.harness import wire
from tests.harness.polling import wait_until
from tests.harness.sending import Start, has_stored, messages, run
from tests.harness.server_process import ServerProcess, StartServer

pytestmark = pytest.mark.timeout(180)


def position(state: Path) -> int:
    """How far the only file is acked, according to the state."""
    files = json.loads(state.read_bytes())["files"] if state.exists() else []
    return int(files[0]["offset"]) if files else -1


@pytest.mark.parametrize("way", [[], ["--follow"]])
@pytest.mark.parametrize("kind", ["text", "events"])
def test_what_was_acked_is_not_sent_again(
    server: ServerProcess, tmp_path: Path, start: Start, way: list[str], kind: str
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    lines = wire.events("e", 300) if kind == "events" else [b"%d\n" % (i % 7) for i in range(300)]
    arguments: list[str | Path] = [*way, "--state", state, *([] if kind == "events" else ["--topic", "t"]), file]
    for part in range(3):
        with file.open("ab") as out:
            out.write(b"".join(lines[100 * part : 100 * (part + 1)]))
        if way:
            following = start(server.port, *arguments)
            wait_until(has_stored(server, 100 * (part + 1)))
            outcome = following.interrupt(signal.SIGTERM)
        else:
            outcome = run(server.port, *arguments)
        assert outcome.has(sent=100, stored=100)
        assert position(state) == file.stat().st_size
    assert run(server.port, *[one for one in arguments if one != "--follow"]).has()


def test_without_it_everything_is_sent_again(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n")
    assert run(server.port, "--topic", "t", file).has(sent=2, stored=2)
    assert run(server.port, "--topic", "t", file).has(sent=2, duplicate=2)
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / "server0"]


def test_an_unfinished_line_is_not_passed(server: ServerProcess, tmp_path: Path) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n2\nthr")
    assert run(server.port, "--topic", "t", "--state", state, file).has(sent=3, stored=3)
    assert position(state) == 4
    assert run(server.port, "--topic", "t", "--state", state, file).has(sent=1, duplicate=1)
    with file.open("ab") as out:
        out.write(b"ee\n4\n")
    assert run(server.port, "--topic", "t", "--state", state, file).has(sent=2, stored=2)
    assert messages(server) == ["1", "2", "thr", "three", "4"]


def test_only_what_was_acked_counts_after_a_kill(
    free_port: int, start_server: StartServer, tmp_path: Path, start: Start
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n2\n")
    server = start_server("--port", str(free_port))
    arguments: list[str | Path] = ["--topic", "t", "--follow", "--state", state, file]
    following = start(free_port, *arguments)
    wait_until(lambda: position(state) == 4)
    server.kill()
    with file.open("ab") as out:
        out.write(b"3\n4\n")
    wait_until(lambda: "trying again" in following.errors)
    following.process.kill()
    following.process.wait()
    assert position(state) == 4
    server.restart()
    start(free_port, *arguments)
    wait_until(lambda: position(state) == 8)
    assert messages(server) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("new_name", ["app.log.1", "app-2026.log", "x"])
def test_a_file_renamed_while_nobody_looked_is_read_to_its_end_first(
    server: ServerProcess, tmp_path: Path, start: Start, new_name: str
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"same\n")
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    assert run(server.port, *arguments).has(sent=1, stored=1)
    with file.open("ab") as out:
        out.write(b"same\nlast words")
    file.rename(tmp_path / new_name)
    file.write_bytes(b"same\nnew\n")
    outcome = run(server.port, *arguments)
    assert outcome.has(sent=4, stored=4)
    assert outcome.lines == []
    assert messages(server) == ["same", "same", "last words", "same", "new"]
    assert run(server.port, *arguments).has()
    assert run(server.port, *arguments[:-1], tmp_path / new_name).counts["stored"] == 0


def test_files_that_came_and_went_while_nobody_looked_are_sent_in_order(server: ServerProcess, tmp_path: Path) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n")
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    run(server.port, *arguments)
    with file.open("ab") as out:
        out.write(b"2\n")
    for number in range(3, 7):
        file.rename(tmp_path / f"app.log-2026112{number}")
        file.write_bytes(b"%d\n" % number)
    assert run(server.port, *arguments).has(sent=5, stored=5)
    assert messages(server) == ["1", "2", "3", "4", "5", "6"]
    assert run(server.port, *arguments).has()


def test_a_file_copied_and_emptied_while_nobody_looked_is_read_to_its_end_first(
    server: ServerProcess, tmp_path: Path
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n2\n")
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    assert run(server.port, *arguments).has(sent=2, stored=2)
    with file.open("ab") as out:
        out.write(b"3\n4\n")
    shutil.copyfile(file, tmp_path / "app.log.1")
    file.write_bytes(b"1\n2\n5\n6\n7\n8\n")  # longer than before, with the same beginning
    with file.open("r+b") as out:
        out.write(b"9")
    assert run(server.port, *arguments).has(sent=8, stored=8)
    assert messages(server) == ["1", "2", "3", "4", "9", "2", "5", "6", "7", "8"]


def test_equal_lines_after_each_truncation_are_new(server: ServerProcess, tmp_path: Path) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    for count in (30, 20, 19, 3, 1):
        file.write_bytes(b"ok\n" * count)
        outcome = run(server.port, "--topic", "t", "--state", state, file)
        assert outcome.has(sent=count, stored=count)
    assert len(messages(server)) == 73


def test_a_file_that_is_gone_is_told_once(server: ServerProcess, tmp_path: Path) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    file.write_bytes(b"1\n")
    run(server.port, *arguments)
    file.unlink()
    file.write_bytes(b"2\n")
    outcome = run(server.port, *arguments)
    assert outcome.lines == [
        f"aggregator: {file}: the file that had this name is no longer in its folder; it was sent up to byte 2"
    ]
    assert outcome.has(sent=1, stored=1)
    assert run(server.port, *arguments).lines == []


def test_several_files_and_names_share_one_state(server: ServerProcess, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("app.log", "app.log.1", "app.log.2")]
    state = tmp_path / "state"
    for number, file in enumerate(files):
        file.write_bytes(b"%d\n" % number)
    arguments: list[str | Path] = ["--topic", "t", "--state", state]
    assert run(server.port, *arguments, *files).has(sent=3, stored=3)
    for file in reversed(files):
        file.rename(file.with_name(f"{file.name}.x"))
    for file, name in zip(files, ("app.log.1", "app.log.2", "app.log.3"), strict=True):
        file.with_name(f"{file.name}.x").rename(tmp_path / name)
    files[0].write_bytes(b"new\n")
    outcome = run(server.port, *arguments, *files, tmp_path / "app.log.3")
    assert outcome.has(sent=1, stored=1)
    assert outcome.lines == []


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (["--topic", "a"], ["--topic", "b"], "written with topic 'a', and this is 'b': name another file"),
        (["--topic", "a"], [], "written with lines 'text', and this is 'events': name another file"),
        (["--topic", "a"], ["--topic", "a", "--json"], "written with lines 'text'"),
        (["--topic", "a"], ["--topic", "a", "--identity", "content"], "written with identity 'file'"),
    ],
)
def test_positions_for_something_else_are_refused(
    server: ServerProcess, tmp_path: Path, before: list[str], after: list[str], complaint: str
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n")
    run(server.port, *before, "--state", state, file)
    outcome = run(server.port, *after, "--state", state, file)
    assert outcome.code == 1
    (line,) = outcome.lines
    assert line.startswith(f"aggregator: {state}: {complaint}")
    assert server.ask("STATS")["received"] == 1


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b"\0", b'{"version":2}', b'{"version":1}', b'{"version":1,"files":[{}],"purpose":{}}'],
)
def test_another_programs_file_is_refused_and_kept(free_port: int, tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "state"
    state.write_bytes(content)
    outcome = run(free_port, "--topic", "t", "--state", state, "/dev/null")
    assert outcome.code == 1
    (line,) = outcome.lines
    assert line.startswith(f"aggregator: {state}: not written by send --state")
    assert state.read_bytes() == content


def test_an_empty_state_is_a_beginning(server: ServerProcess, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.touch()
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    assert run(server.port, "--topic", "t", "--state", state, file).has(sent=1, stored=1)
    assert position(state) == 2


def test_a_state_may_be_a_symbolic_link(server: ServerProcess, tmp_path: Path) -> None:
    file, link = tmp_path / "app.log", tmp_path / "link"
    file.write_bytes(b"1\n")
    link.symlink_to("state")
    assert run(server.port, "--topic", "t", "--state", link, file).has(sent=1, stored=1)
    assert link.is_symlink()
    assert position(tmp_path / "state") == 2


def test_two_runs_do_not_share_a_state(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n")
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    following = start(server.port, "--follow", *arguments)
    wait_until(has_stored(server, 1))
    outcome = run(server.port, *arguments)
    assert outcome.code == 1
    assert outcome.lines == [f"aggregator: {state}: another process uses it"]
    following.process.kill()
    following.process.wait()
    assert run(server.port, *arguments).code == 0


@pytest.mark.parametrize("place", ["missing/state", "/dev/full", "/proc/state"])
def test_a_state_that_cannot_be_written_is_told_before_anything_is_sent(
    server: ServerProcess, tmp_path: Path, place: str
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    outcome = run(server.port, "--topic", "t", "--state", tmp_path / place, file)
    assert outcome.code == 1
    assert outcome.lines[0].startswith(f"aggregator: {tmp_path / place}: ")
    assert server.ask("STATS")["received"] == 0


def test_a_full_disk_later_is_told_and_costs_only_the_position(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"1\n")
    following = start(server.port, "--topic", "t", "--follow", "--state", state, file)
    wait_until(lambda: position(state) == 2)
    (tmp_path / "state.new").mkdir()  # blocks the next save
    with file.open("ab") as out:
        out.write(b"2\n")
    wait_until(lambda: "trying again" in following.errors)
    assert has_stored(server, 2)()
    (tmp_path / "state.new").rmdir()
    wait_until(lambda: position(state) == 4)
    outcome = following.interrupt()
    assert outcome.code == 0
    assert outcome.lines == [f"aggregator: {state}: Is a directory; trying again"]


def test_the_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state")
    state.save(1, {"files": ["old"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(OSError, match="broken"):
            state.save(2, {"files": ["new"]})
    assert state.load()["files"] == ["old"]
    state.save(4, {"files": ["newest"]})
    state.save(3, {"files": ["late"]})
    assert state.load()["files"] == ["newest"]
    with pytest.raises(BadState):
        StateFile(tmp_path / "state")
    state.close()
    StateFile(tmp_path / "state").close()
