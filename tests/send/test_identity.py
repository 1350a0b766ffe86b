"""Which lines count as the same: those of the same file, whatever its name, up to where it was sent before."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from aggregator.client.send import identity
from aggregator.client.send.line_ids import HEAD_LINES, LineIds
from tests.harness import ROOT
from tests.harness.polling import wait_until
from tests.harness.sending import Start, has_stored, messages, run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)

EQUAL = b"backup ok\n"


@pytest.mark.parametrize("way", [[], ["--follow"], ["--follow", "--state"]])
def test_new_equal_lines_under_an_old_name_are_new(
    server: ServerProcess, tmp_path: Path, start: Start, way: list[str]
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(EQUAL * 5)
    assert run(server.port, "--topic", "t", file).has(sent=5, stored=5)
    file.rename(tmp_path / "app.log.1")
    file.write_bytes(EQUAL * 3)
    arguments = [*way, tmp_path / "state"] if "--state" in way else way
    if way:
        following = start(server.port, "--topic", "t", *arguments, file)
        wait_until(has_stored(server, 8))
        outcome = following.interrupt()
    else:
        outcome = run(server.port, "--topic", "t", file)
    assert outcome.has(sent=3, stored=3)


def test_a_rotated_file_is_known_under_its_new_name(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"heading\n" + EQUAL * 5)
    assert run(server.port, "--topic", "t", file).has(sent=6, stored=6)
    for name in ("app.log.1", "app-20261122.log", "other folder/app.log"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        file = file.rename(target)
        assert run(server.port, "--topic", "t", file).has(sent=6, duplicate=6)
    with file.open("ab") as out:
        out.write(EQUAL * 2)
    assert run(server.port, "--topic", "t", os.path.relpath(file, ROOT)).has(sent=8, stored=2, duplicate=6)


def test_a_file_is_known_by_any_of_its_names(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(EQUAL * 2)
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "symbolic").symlink_to(file)
    assert run(server.port, "--topic", "t", file).has(sent=2, stored=2)
    assert run(server.port, "--topic", "t", tmp_path / "hard").has(sent=2, duplicate=2)
    assert run(server.port, "--topic", "t", tmp_path / "symbolic").has(sent=2, duplicate=2)
    assert run(server.port, "--topic", "t", stdin=None, preexec_fn=lambda: _open_as_stdin(file)).has(
        sent=2, duplicate=2
    )


def _open_as_stdin(file: Path) -> None:
    os.dup2(os.open(file, os.O_RDONLY), 0)


def test_a_file_that_takes_over_the_inode_of_one_that_is_gone_is_another(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    stored = 0
    for _ in range(5):  # ext4 reuses the inode for the very next file
        file.write_bytes(EQUAL * 3)
        with file.open() as opened:
            if not identity.file_id(opened.fileno()).born:
                pytest.skip("this file system does not tell when a file was made")
        assert run(server.port, "--topic", "t", file).has(sent=3, stored=3)
        stored += 3
        file.unlink()
    assert len(server.listed("t")) == stored


@pytest.mark.parametrize("content", [b"", b"# Fields: date time\n", b"\xef\xbb\xbf# Fields\r\n", b"\n\n\n", EQUAL])
def test_equal_beginnings_are_no_collision(server: ServerProcess, tmp_path: Path, content: bytes) -> None:
    files = [tmp_path / name for name in "abc"]
    for number, file in enumerate(files):
        file.write_bytes(content + b"%d\n" % number)
    lines = 1 + (content.strip() != b"")
    assert run(server.port, "--topic", "t", *files).has(sent=3 * lines, stored=3 * lines)
    assert run(server.port, "--topic", "t", *files).has(sent=3 * lines, duplicate=3 * lines)


def test_a_copy_is_another_file_unless_content_is_what_counts(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n" + EQUAL * 3)
    copies = [tmp_path / "copy", tmp_path / "copy.gz"]
    shutil.copy2(file, copies[0])
    copies[1].write_bytes(gzip.compress(file.read_bytes()))
    assert run(server.port, "--topic", "t", file, *copies).has(sent=15, stored=15)
    by_content = ["--topic", "t", "--identity", "content"]
    assert run(server.port, *by_content, file).has(sent=5, stored=5)
    assert run(server.port, *by_content, *copies).has(sent=10, duplicate=10)
    assert run(server.port, *by_content, stdin=file.read_bytes() + b"more\n").has(sent=6, stored=1, duplicate=5)
    assert run(server.port, *by_content, stdin=b"other\n" + file.read_bytes()).has(sent=6, stored=6)


def test_another_source_makes_other_lines(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(EQUAL)
    for source in ("a", "b", "1:a", "1"):
        assert run(server.port, "--topic", "t", "--source", source, file).has(sent=1, stored=1)


def test_where_nobody_knows_when_a_file_was_made_its_inode_and_device_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    for one in (file, other):
        one.touch()
    with file.open() as first, other.open() as second:
        assert identity.file_id(first.fileno()) != identity.file_id(second.fileno())
        monkeypatch.setattr(identity, "_statx", lambda: None)
        status = file.stat()
        assert identity.file_id(first.fileno()) == (status.st_ino, 0, status.st_dev)
        assert identity.file_id(first.fileno()) != identity.file_id(second.fileno())


# --- generations of one file


def ids_of(ids: LineIds, *lines: bytes) -> list[str]:
    return [ids.next(line) for line in lines]


def new_ids() -> LineIds:
    return LineIds(b"seed", has_generations=True)


@pytest.mark.parametrize("count", [1, HEAD_LINES - 1, HEAD_LINES, HEAD_LINES + 1, 3 * HEAD_LINES])
def test_a_file_emptied_and_filled_with_the_same_lines_has_new_ids(count: int) -> None:
    ids = new_ids()
    seen: set[str] = set()
    for generation in range(5):
        seen.update(ids_of(ids, *[b"1"] * count))  # the line is also the number of a generation
        assert len(seen) == (generation + 1) * count
        ids.begin_again()


@pytest.mark.parametrize("equal", [0, 1, HEAD_LINES - 1])
def test_lines_that_differ_from_all_earlier_generations_have_the_ids_of_a_first_reading(equal: int) -> None:
    ids = new_ids()
    heading = [b"heading"] * equal
    for generation in range(4):
        lines = [*heading, b"%d" % generation, *[b"same"] * (2 * HEAD_LINES)]
        assert ids_of(ids, *lines)[equal:] == ids_of(new_ids(), *lines)[equal:]
        ids.begin_again()


@pytest.mark.parametrize("at", [0, 1, 3, HEAD_LINES, HEAD_LINES + 5])
@pytest.mark.parametrize("generations", [0, 1, 2])
def test_ids_go_on_in_another_process(at: int, generations: int) -> None:
    lines = [b"%d" % (number // 3) for number in range(2 * HEAD_LINES)]
    ids, resumed = new_ids(), new_ids()
    for _ in range(generations):
        ids_of(ids, *lines[:7])
        ids.begin_again()
    first = ids_of(ids, *lines[:at])
    chain = ids.chain
    rest = ids_of(ids, *lines[at:])  # read, but not acked when the position was saved
    resumed.resume(ids.to_json(chain, at))
    assert ids_of(resumed, *lines[at:]) == rest
    assert len({*first, *rest}) == len(lines)
    ids.begin_again()
    resumed.begin_again()
    assert ids_of(resumed, *lines) == ids_of(ids, *lines)


def test_without_generations_content_alone_counts() -> None:
    ids = LineIds(b"seed", has_generations=False)
    first = ids_of(ids, b"a", b"a")
    ids.begin_again()
    assert ids_of(ids, b"a", b"a", b"a")[:2] == first


def test_messages_keep_their_order(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"".join(b"%d\n" % (i % 3) for i in range(300)))
    run(server.port, "--topic", "t", file)
    assert messages(server) == [str(i % 3) for i in range(300)]
