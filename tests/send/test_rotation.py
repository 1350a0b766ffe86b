"""Files that are emptied, renamed, copied and overwritten while they are followed."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from aggregator.client.send.identity import file_id
from aggregator.client.send.line_ids import LineIds
from aggregator.client.send.sparse import next_data
from aggregator.client.send.track import CHUNK_BYTES, TAIL_BYTES, Track
from tests.harness.polling import wait_until
from tests.harness.sending import Start, has_stored, messages, run
from tests.harness.server_process import ServerProcess, StartServer

pytestmark = pytest.mark.timeout(180)


def copy_and_truncate(file: Path, copy: str = "app.log.1") -> None:
    shutil.copyfile(file, file.with_name(copy))
    os.truncate(file, 0)


def test_a_writer_that_goes_on_at_its_old_place_makes_no_message_of_nuls(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "app.log"
    with file.open("wb", buffering=0) as out:  # not for appending
        for number in range(4000):
            out.write(b"%025d\n" % number)
        following = start(server.port, "--topic", "t", "--follow", file)
        wait_until(has_stored(server, 4000))
        copy_and_truncate(file)
        out.write(b"after 104,000 NULs\n")
        wait_until(has_stored(server, 4001))
        out.write(b"and one more\n")
        wait_until(has_stored(server, 4002))
    assert following.interrupt().has(sent=4002, stored=4002)
    assert messages(server)[4000:] == ["after 104,000 NULs", "and one more"]
    assert run(server.port, "--topic", "t", file).has(sent=2, duplicate=2)


@pytest.mark.parametrize("nuls", [1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 5 << 30])
@pytest.mark.parametrize("is_hole", [True, False])
def test_nuls_at_the_head_of_a_line_are_skipped(
    server: ServerProcess, tmp_path: Path, nuls: int, is_hole: bool
) -> None:
    file = tmp_path / "app.log"
    if not is_hole and nuls > 1 << 24:
        pytest.skip("too much to write")
    with file.open("wb") as out:
        out.write(b"first\n")
        if is_hole:
            out.seek(nuls, os.SEEK_CUR)
        else:
            out.write(bytes(nuls))
        out.write(b"second\n" + bytes(nuls if not is_hole else 5) + b"third")
    assert run(server.port, "--topic", "t", file).has(sent=3, stored=3)
    assert messages(server) == ["first", "second", "third"]


def test_space_that_a_writer_has_reserved_is_read_when_it_is_written(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n" + bytes(2 * CHUNK_BYTES))
    with file.open("r+b", buffering=0) as out:
        following = start(server.port, "--topic", "t", "--follow", file)
        wait_until(has_stored(server, 1))
        out.seek(2)
        for piece, stored in ((b"2\nth", 2), (b"ree\n4\nfi", 4), (b"ve\n", 5)):
            out.write(piece)
            wait_until(has_stored(server, stored))
    assert following.interrupt().has(sent=5, stored=5)
    assert messages(server) == ["1", "2", "three", "4", "five"]


def test_a_file_regrown_past_its_old_end_within_one_look_loses_nothing(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "app.log"
    stored = 0
    file.write_bytes(b"".join(b"life 0 line %d\n" % number for number in range(20)))
    following = start(server.port, "--topic", "t", "--follow", file)
    stored += 20
    wait_until(has_stored(server, stored))
    for life in range(1, 6):
        file.write_bytes(b"".join(b"life %d line %d\n" % (life, number) for number in range(40)))
        stored += 40
        wait_until(has_stored(server, stored))
    assert following.interrupt().has(sent=stored, stored=stored)
    assert len(set(messages(server))) == stored
    assert run(server.port, "--topic", "t", file).has(sent=40, duplicate=40)


@pytest.mark.parametrize("state", [True, False])
def test_equal_lines_are_kept_over_a_truncation_that_is_seen(
    server: ServerProcess, tmp_path: Path, start: Start, state: bool
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"ok\n" * 30)
    arguments = ["--state", str(tmp_path / "state")] if state else []
    following = start(server.port, "--topic", "t", "--follow", *arguments, file)
    wait_until(has_stored(server, 30))
    stored = 30
    for count in (20, 19, 2, 1):  # fewer each time: otherwise nothing shows that these are new lines
        file.write_bytes(b"ok\n" * count)
        stored += count
        wait_until(has_stored(server, stored))
    assert following.interrupt().has(sent=stored, stored=stored)
    again = run(server.port, "--topic", "t", *arguments, file)
    assert again.counts["stored"] == 0


def test_lines_written_just_before_a_copytruncate_are_found_in_the_copy(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "app.log"
    (tmp_path / "app.log.old").write_bytes(b"0\n" * 1000)  # looks like the copy, and is older
    file.write_bytes(b"0\n")
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 1))
    expected = ["0"]
    for number in range(1, 6):
        with file.open("ab") as out:
            out.write(b"%d just before\n%d unfinished" % (number, number))
        copy_and_truncate(file, f"app.log.{number}")
        with file.open("ab") as out:
            out.write(b"%d after\n" % number)
        expected += [f"{number} just before", f"{number} unfinished", f"{number} after"]
        wait_until(has_stored(server, len(expected)))
    assert following.interrupt().has(sent=16, stored=16)
    assert messages(server) == expected


def test_files_that_came_and_went_during_an_outage_are_sent_in_order(
    free_port: int, tmp_path: Path, start: Start, start_server: StartServer
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"0\n" * 6000)  # more than send reads ahead of the acks
    following = start(free_port, "--topic", "t", "--follow", file)
    wait_until(lambda: "cannot connect" in following.errors)
    (tmp_path / "app.log.offset").write_bytes(b"of another program\n")
    for number in range(1, 6):
        for old in sorted(tmp_path.glob("app.log.[0-9]"), reverse=True):
            old.rename(tmp_path / f"app.log.{int(old.suffix[1:]) + 1}")
        file.rename(tmp_path / "app.log.1")
        file.write_bytes(b"%d\n" % number * 3)
    server = start_server("--port", str(free_port))
    wait_until(has_stored(server, 6015))
    assert following.interrupt().has(sent=6015, stored=6015)
    assert messages(server) == ["0"] * 6000 + [str(number) for number in range(1, 6) for _ in range(3)]


def test_a_compressed_file_grows_by_whole_streams(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log.gz"
    file.write_bytes(gzip.compress(b"1\n2\n"))
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 2))
    stream = gzip.compress(b"3\n4\n")
    with file.open("ab", buffering=0) as out:
        out.write(stream[:15])
        out.write(stream[15:])
    wait_until(has_stored(server, 4))
    file.rename(tmp_path / "app.log.2.gz")
    file.write_bytes(gzip.compress(b"5\n"))
    wait_until(has_stored(server, 5))
    assert following.interrupt().has(sent=5, stored=5)
    assert messages(server) == ["1", "2", "3", "4", "5"]


def test_two_names_of_one_file_are_one_file(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    names = [tmp_path / name for name in ("app.log", "hard", "symbolic")]
    names[0].write_bytes(b"1\n")
    names[1].hardlink_to(names[0])
    names[2].symlink_to(names[0])
    following = start(server.port, "--topic", "t", "--follow", *names)
    wait_until(has_stored(server, 1))
    with names[0].open("ab") as out:
        out.write(b"2\n")
    wait_until(has_stored(server, 2))
    outcome = following.interrupt()
    assert outcome.code == 0
    assert outcome.has(sent=2, stored=2)


def test_a_file_may_be_followed_under_its_old_and_its_new_name(
    server: ServerProcess, tmp_path: Path, start: Start
) -> None:
    file, old = tmp_path / "app.log", tmp_path / "app.log.1"
    file.write_bytes(b"1\n")
    old.write_bytes(b"0\n")
    following = start(server.port, "--topic", "t", "--follow", file, old)
    wait_until(has_stored(server, 2))
    for number in (2, 4, 6):
        with file.open("ab") as out:
            out.write(b"%d last\n" % number)
            file.rename(old)
            file.write_bytes(b"%d first\n" % (number + 1))
        wait_until(has_stored(server, number + 2))
    assert following.interrupt().has(sent=8, stored=8)


def test_a_file_that_is_rewritten_all_the_time_ends_a_run(server: ServerProcess, tmp_path: Path) -> None:
    assert run(server.port, "--topic", "t", "/proc/self/status", "/proc/interrupts").code == 0  # different at each read
    assert "VmHWM" in " ".join(messages(server))


# --- parts


def new_track(file: Path) -> Track:
    with file.open() as opened:
        return Track(str(file), file_id(opened.fileno()), LineIds(b"seed", has_generations=True))


def read_all(track: Track, fd: int) -> list[bytes | None] | None:
    """The new lines; None if the file is a different one now."""
    found: list[bytes | None] = []
    while data := track.read(fd, is_whole=True):
        found += [place.content for places in track.take(data) for place in places]
    return None if data is None else found


@pytest.mark.parametrize("size", [1, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, 3 * CHUNK_BYTES])
def test_any_change_of_the_bytes_before_the_place_is_noticed(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    content = bytes(97 + i % 25 for i in range(size - 1)) + b"\n"
    for changed in {0, size // 2, size - 1, max(0, size - TAIL_BYTES)}:
        file.write_bytes(content)
        track = new_track(file)
        with file.open("r+b", buffering=0) as opened:
            assert read_all(track, opened.fileno())
            opened.seek(0, os.SEEK_END)
            opened.write(b"more\n")
            assert read_all(track, opened.fileno()) == [b"more"]
            opened.seek(changed)
            opened.write(b"Z")
            opened.seek(0, os.SEEK_END)
            opened.write(b"later\n")
            seen = changed >= size + 5 - TAIL_BYTES
            assert read_all(track, opened.fileno()) == (None if seen else [b"later"])


@pytest.mark.parametrize("left", [0, 1, 5, 9])
def test_any_shortening_is_noticed(tmp_path: Path, left: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"123\n456\nab")
    track = new_track(file)
    with file.open("r+b") as opened:
        assert read_all(track, opened.fileno()) == [b"123", b"456"]
        os.truncate(file, left)
        assert read_all(track, opened.fileno()) is None


def test_the_next_data_in_a_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.write(b"a" + bytes(3 << 20))
        out.seek(1 << 30, os.SEEK_CUR)
        out.write(b"b" + bytes(100))
        out.truncate(3 << 30)
    with file.open("rb") as opened:
        place = 1 + (3 << 20) + (1 << 30)
        assert next_data(opened.fileno(), 0) == 0
        assert next_data(opened.fileno(), 1) == place
        assert next_data(opened.fileno(), place + 1) is None
        assert next_data(opened.fileno(), 4 << 30) is None
