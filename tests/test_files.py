"""The files of a database: who owns them, whether they are still there, and what a failed start leaves behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aggregator.storage.engine import StorageFailed, StorageUnusable
from aggregator.storage.sqlite import file
from aggregator.storage.sqlite.file import Names
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of

SUFFIXES = ["", "-wal", "-shm", ".lock"]


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await storage.open_store(path)
    await append(opened, keys_of("before", 10))
    await opened.verify()
    yield opened
    await opened.close()


# --- names


def test_a_name_is_known_from_when_it_is_first_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    names = Names([first, second])
    assert names.fault() is None
    first.touch()
    second.touch()
    assert names.fault() is None
    second.unlink()
    assert names.fault() == f"{second} was removed while it was open"
    (tmp_path / "other").touch()
    (tmp_path / "other").rename(first)
    assert names.fault() == f"{first} was replaced while it was open"


def remove(one: Path) -> None:
    one.unlink()


def move_away(one: Path) -> None:
    one.rename(one.with_name("elsewhere"))


def replace_by_a_copy(one: Path) -> None:
    shutil.copy(one, one.with_name("copy"))
    one.with_name("copy").rename(one)


def replace_by_a_folder(one: Path) -> None:
    one.unlink()
    one.mkdir()


def replace_by_a_dead_link(one: Path) -> None:
    one.unlink()
    one.symlink_to("nowhere")


def replace_by_a_link_to_itself(one: Path) -> None:
    one.unlink()
    one.symlink_to(one.name)


def move_the_folder(one: Path) -> None:
    one.parent.rename(one.parent.with_name("moved"))


def replace_the_folder_by_a_file(one: Path) -> None:
    one.parent.rename(one.parent.with_name("moved"))
    one.parent.touch()


@pytest.mark.parametrize("settled", [False, True], ids=["a new folder", "a folder that has not changed for long"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "harm",
    [
        remove, move_away, replace_by_a_copy, replace_by_a_folder, replace_by_a_dead_link, replace_by_a_link_to_itself,
        move_the_folder, replace_the_folder_by_a_file,
    ],
)  # fmt: skip
async def test_no_batch_is_acked_once_a_file_is_gone(
    store: Store, suffix: str, harm: Callable[[Path], None], settled: bool
) -> None:
    if settled:
        os.utime(store.database.path.parent, ns=(0, 0))
        await store.verify()
        await append(store, keys_of("between", 1))
    harm(beside(store.database.path, suffix))

    with pytest.raises(StorageFailed, match=r"events\.db"):
        await append(store, keys_of("after", 1))
    with pytest.raises(StorageFailed, match=r"events\.db"):
        await store.verify()


async def test_a_new_database_is_known_before_its_first_event(path: Path) -> None:
    for suffix in SUFFIXES:
        store = await storage.open_store(path)
        beside(path, suffix).unlink()
        with pytest.raises(StorageFailed):
            await store.verify()
        await store.close()
        for left in SUFFIXES:
            beside(path, left).unlink(missing_ok=True)


async def test_a_file_that_is_moved_back_is_the_same_file(store: Store) -> None:
    path = store.database.path
    path.rename(path.with_name("elsewhere"))
    path.with_name("elsewhere").rename(path)
    await store.verify()
    await append(store, keys_of("after", 10))


async def test_a_link_to_the_database_may_come_and_go(path: Path, tmp_path: Path) -> None:
    """What counts is the file that the link points to."""
    path.parent.mkdir()
    link = tmp_path / "link.db"
    link.symlink_to(path)
    store = await storage.open_store(link)
    link.unlink()
    await append(store, keys_of("k", 10))
    await store.verify()
    await store.close()
    check_database(path)


# --- content


def overwrite(one: Path, other: bytes) -> None:
    """Like ``cp``: the same file, truncated and rewritten."""
    one.write_bytes(other)


async def with_events(path: Path, count: int) -> bytes:
    """The database file of a store with this many events."""
    store = await storage.open_store(path)
    await append(store, keys_of("k", count))
    await store.close()
    return path.read_bytes()


@pytest.mark.parametrize("content", ["nothing", "another database", "a larger one", "its own, of a while ago"])
async def test_a_database_that_is_overwritten_is_noticed(path: Path, tmp_path: Path, content: str) -> None:
    old = await with_events(path, 1_000)
    store = await storage.open_store(path)
    for number in range(10):
        await append(store, keys_of(f"more-{number}", 1_000))
    await storage.empty_wal(store)
    await store.verify()
    other = {
        "nothing": b"",
        "another database": await with_events(tmp_path / "other.db", 100),
        "a larger one": await with_events(tmp_path / "other.db", 30_000),
        "its own, of a while ago": old,
    }[content]
    assert len(other) != path.stat().st_size
    overwrite(path, other)

    with pytest.raises(StorageFailed, match=r"events\.db was overwritten while it was open"):
        await store.verify()
    await store.close()


@pytest.mark.parametrize("content", [b"", b"not a write-ahead log"])
async def test_a_wal_that_is_overwritten_is_noticed_before_the_next_ack(store: Store, content: bytes) -> None:
    overwrite(store.database.wal_path, content)

    with pytest.raises(StorageFailed, match=r"events\.db-wal was overwritten|disk I/O error|malformed"):
        await append(store, keys_of("after", 1))


async def test_what_the_store_does_with_its_own_files_is_no_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows; its WAL is copied, truncated, started over, and grows again."""
    storage.checkpoint_after(monkeypatch.setattr, 64 << 10)
    store = await storage.open_store(path)
    sizes = set()
    for number in range(30):
        await append(store, keys_of(f"{number}", 300), padding=300)
        await store.upkeep(quiet=number % 3 == 0)
        if number % 7 == 0:
            await storage.empty_wal(store)
        await store.verify()
        sizes.add((store.database.db_bytes, store.database.wal_bytes))
    assert len({db for db, _ in sizes}) > 5
    assert 0 in {wal for _, wal in sizes} != {0}
    await store.close()
    check_database(path)


async def test_a_vacuum_of_another_program_is_no_fault_of_a_file(store: Store) -> None:
    """The database becomes smaller. That another program writes is reported, though."""
    for number in range(5):
        await append(store, keys_of(f"more-{number}", 1_000), padding=1_000)
    await storage.empty_wal(store)
    await store.verify()
    assert store.troubles()["other_writers"] is None
    size = store.database.db_bytes
    with sqlite3.connect(store.database.path) as other:
        other.execute("CREATE TABLE other AS SELECT data FROM blocks")
        other.execute("DROP TABLE other")
    other.execute("VACUUM")
    other.close()
    for _ in range(2):
        await store.verify()
        await storage.empty_wal(store)
    await store.verify()
    await append(store, keys_of("after", 10))

    assert store.database.db_bytes <= size
    assert store.troubles()["other_writers"] == "another program has written to the database; only one aggregator may"


# --- the lock


async def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("a text of mine")
    for name in (target, tmp_path / "not there"):
        beside(path, ".lock").symlink_to(name)
        with pytest.raises(StorageUnusable, match=r"cannot use .*events\.db\.lock: it is a symbolic link"):
            await storage.open_store(path)
        beside(path, ".lock").unlink()

    assert target.read_text() == "a text of mine"
    assert not (tmp_path / "not there").exists()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"a text of mine", b"x" * 4096, b"12 13\n", b"123\n456\n", b"\xff"])
async def test_a_lock_that_is_another_file_of_ours_is_not_written_over(
    path: Path, tmp_path: Path, content: bytes
) -> None:
    """A hard link, which anyone who may write to the folder can make."""
    path.parent.mkdir()
    target = tmp_path / "precious"
    target.write_bytes(content)
    beside(path, ".lock").hardlink_to(target)
    store = await storage.open_store(path)
    assert target.read_bytes() == content
    with pytest.raises(StorageUnusable, match=r"in use by another aggregator \(process unknown\)"):
        await storage.open_store(path)
    await store.close()

    assert target.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n", b"123\n", b"99999999999999999999\n"])
async def test_a_lock_that_is_left_names_its_next_owner(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    beside(path, ".lock").write_bytes(content)
    store = await storage.open_store(path)
    assert beside(path, ".lock").read_text() == f"{os.getpid()}\n"
    await store.close()


async def test_a_lock_that_is_a_pipe_or_a_folder_holds_up_nobody(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(beside(path, ".lock"))
    store = await storage.open_store(path)
    with pytest.raises(StorageUnusable, match="in use by another aggregator"):
        await storage.open_store(path)
    await store.close()
    beside(path, ".lock").unlink()
    beside(path, ".lock").mkdir()
    with pytest.raises(StorageUnusable, match=r"cannot use .*events\.db\.lock: Is a directory"):
        await storage.open_store(path)


async def test_others_may_not_even_read_the_lock(store: Store) -> None:
    """Anyone who can open it can lock it, and so keep the server out."""
    assert beside(store.database.path, ".lock").stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_other_files_that_are_links_are_refused_and_their_targets_kept(
    path: Path, tmp_path: Path, suffix: str
) -> None:
    await with_events(path, 10)
    target = tmp_path / "precious"
    target.write_text("a text of mine")
    before = path.read_bytes()
    for name in (target, tmp_path / "not there"):
        beside(path, suffix).symlink_to(name)
        with pytest.raises(StorageUnusable, match=rf"cannot use .*events\.db{suffix}: it is a symbolic link"):
            await storage.open_store(path)
        beside(path, suffix).unlink()

    assert target.read_text() == "a text of mine"
    assert not (tmp_path / "not there").exists()
    assert path.read_bytes() == before


# --- a start that fails


def files_in(folder: Path) -> dict[str, bytes | None]:
    return {
        str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", ["new/deep/events.db", "new/..", "data", ".", "", "..", "data/.."])
async def test_a_path_that_is_a_folder_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    if name.endswith(".db"):
        Path(name).mkdir(parents=True)
    before = files_in(tmp_path)
    with pytest.raises(StorageUnusable, match="Is a directory"):
        await storage.open_store(Path(name))

    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "content", [b"this is a text", b"x" * 10_000, b"SQLite format 3\0" + b"\0" * 200, b"SQLite format 3\0"]
)
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    before = files_in(tmp_path)
    with pytest.raises(StorageUnusable):
        await storage.open_store(tmp_path / "notes")

    assert files_in(tmp_path) == before


async def test_a_new_database_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in ("ledger", "writer", "database"):
        with monkeypatch.context() as patch:
            storage.break_start(patch.setattr, failing)
            with pytest.raises(StorageUnusable, match="a disk that fails"):
                await storage.open_store(tmp_path / "new" / "deep" / "events.db")
        assert files_in(tmp_path) == {}
    store = await storage.open_store(tmp_path / "new" / "deep" / "events.db")
    await store.close()


async def test_an_old_database_that_cannot_be_opened_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_events(path, 10)
    beside(path, ".lock").unlink()
    before = path.read_bytes()
    for failing in ("ledger", "writer", "database"):
        with monkeypatch.context() as patch:
            storage.break_start(patch.setattr, failing)
            with pytest.raises(StorageUnusable, match="a disk that fails"):
                await storage.open_store(path)
        assert path.read_bytes() == before
        assert [one.name for one in path.parent.iterdir()] == ["events.db"], "the lock was this start's own"
    check_database(path)


async def test_a_server_that_is_kept_out_leaves_the_lock_of_the_other(store: Store) -> None:
    with pytest.raises(StorageUnusable, match=f"process {os.getpid()}"):
        await storage.open_store(store.database.path)
    await store.verify()
    await append(store, keys_of("after", 10))


def test_a_lock_that_vanishes_while_it_is_taken_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose start fails removes the lock file, which other servers may already have open."""
    path.parent.mkdir()
    flock, times = fcntl.flock, 0

    def late(fd: int, how: int) -> None:
        nonlocal times
        times += 1
        if times < 3:
            beside(path, ".lock").unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    fd = file.lock(path)

    assert os.path.samestat(os.fstat(fd), beside(path, ".lock").stat())
    os.close(fd)
