"""Compressed files are read as text; a file without lines is refused, and the message says what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.client.send import compressed, content
from aggregator.client.send.compressed import Damaged, Decoder
from aggregator.client.send.content import Refused
from tests.harness import ROOT, wire
from tests.harness.polling import wait_until
from tests.harness.sending import Outcome, Start, command, has_stored, messages, run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)

TEXT = b"1 first\n2 second\n3 no end"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("way", ["file", "pipe", "standard input"])
def test_compressed_text_is_text(server: ServerProcess, tmp_path: Path, kind: str, way: str) -> None:
    data = COMPRESS[kind](TEXT)
    if way == "pipe":
        outcome = run(server.port, "--topic", "t", stdin=data)
    else:
        file = tmp_path / "app.log.compressed"
        file.write_bytes(data)
        if way == "file":
            outcome = run(server.port, "--topic", "t", file)
        else:
            with file.open() as stdin:
                done = subprocess.run(
                    command(server.port, "--topic", "t"), stdin=stdin, capture_output=True, cwd=ROOT, check=True
                )
                outcome = Outcome(done.returncode, done.stderr)
    assert outcome.has(sent=3, stored=3)
    assert messages(server) == TEXT.decode().split("\n")


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_events_are_events(server: ServerProcess, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(COMPRESS[kind](b"".join(wire.events("e", 3000))))
    assert run(server.port, file).has(sent=3000, stored=3000)


def test_a_compressed_file_is_known_when_it_is_sent_again(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log.2.gz"
    file.write_bytes(gzip.compress(TEXT))
    assert run(server.port, "--topic", "t", file).has(sent=3, stored=3)
    file = file.rename(tmp_path / "app.log.3.gz")
    assert run(server.port, "--topic", "t", file).has(sent=3, duplicate=3)
    state: list[str | Path] = ["--state", tmp_path / "state"]
    assert run(server.port, "--topic", "t", *state, file).has(sent=3, duplicate=3)
    assert run(server.port, "--topic", "t", *state, file).has()
    with file.open("ab") as out:
        out.write(gzip.compress(b"4\n"))
    assert run(server.port, "--topic", "t", *state, file).has(sent=1, stored=1)


@pytest.mark.parametrize("damage", ["cut", "changed", "trailing"])
@pytest.mark.parametrize("kind", COMPRESS)
def test_damaged_compressed_data_is_told(server: ServerProcess, tmp_path: Path, kind: str, damage: str) -> None:
    lines = b"".join(b"%d\n" % random.Random(number).getrandbits(99) for number in range(60_000))
    data = bytearray(COMPRESS[kind](lines))
    if damage == "cut":
        del data[-len(data) // 3 :]
    elif damage == "changed":
        data[len(data) // 2] ^= 0xFF
    else:
        data += b"something else"
    file = tmp_path / "damaged"
    file.write_bytes(data)
    (tmp_path / "good").write_bytes(b"good\n")
    outcome = run(server.port, "--topic", "t", file, tmp_path / "good")
    assert outcome.code == 1
    (line,) = outcome.lines
    assert line.startswith(f"aggregator: {file}: ")
    assert f"{kind} data" in line
    assert messages(server)[-1] == "good"
    if kind != "bzip2" or damage != "changed":  # a bzip2 block is as large as the file
        assert outcome.counts["stored"] > 1


def test_a_small_file_that_unpacks_to_much_is_no_danger(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "bomb.gz"
    with gzip.open(file, "wb", compresslevel=1) as out:
        for _ in range(300):
            out.write(b"x" * (1 << 20))  # one line of 300 MiB
        out.write(b"\nafter\n")
    program = "import sys; from aggregator import cli; cli.main(); print(open('/proc/self/status').read())"
    arguments = command(server.port, "--topic", "t", file)
    done = subprocess.run(
        [arguments[0], "-c", program, *arguments[3:]], capture_output=True, cwd=ROOT, timeout=100, check=True
    )
    assert Outcome(1, done.stderr).has(sent=2, stored=1, rejected=1)
    (peak,) = [line for line in done.stdout.splitlines() if line.startswith(b"VmHWM:")]
    assert int(peak.split()[1]) < 200 * 1024


REFUSED = {
    "utf-16": ("one\ntwo\n".encode("utf-16"), "UTF-16: iconv -f UTF-16 -t UTF-8 FILE | aggregator send -"),
    "utf-16-be": (b"\xfe\xff" + "one\n".encode("utf-16-be"), "UTF-16: iconv"),
    "utf-16 without a BOM": ("one\ntwo\n".encode("utf-16-le"), "binary (a NUL at byte 2)"),
    "utf-16-be without a BOM": ("one\ntwo\n".encode("utf-16-be"), "binary (a NUL at byte 3)"),
    "utf-32": ("one\n".encode("utf-32"), "UTF-32: iconv"),
    "zstd": (b"\x28\xb5\x2f\xfd rest", "compressed with zstd: zstd -dc FILE | aggregator send -"),
    "lz4": (b"\x04\x22\x4d\x18 rest", "lz4 -dc FILE"),
    "zip": (b"PK\x03\x04 rest", "unzip -p FILE"),
    "journal": (b"LPKSHHRH rest", "journalctl --file FILE"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\0" + b"00".ljust(300, b"\0"), "tar -xOf FILE"),
    "program": (b"\x7fELF\2\1\1\0\0\0\0", "binary (a NUL at byte 8)"),
    "accounting": (b"\7\0\0\0\0user\0\0\0", "binary (a NUL at byte 2)"),
    "late": (b"text\n" * 1000 + b"a\0b\n", "binary (a NUL at byte 5002)"),
    "gzip twice": (gzip.compress(gzip.compress(TEXT)), "its content is compressed with gzip"),
    "utf-16 in xz": (lzma.compress("one\n".encode("utf-16")), "UTF-16: iconv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_lines_is_refused_with_the_cure(name: str) -> None:
    data, what = REFUSED[name]

    def check() -> None:
        if kind := content.compression(data[: content.HEAD_BYTES]):
            content.check_text(b"".join(Decoder(kind).feed(data)))

    with pytest.raises(Refused) as refused:
        check()
    assert str(refused.value).startswith("not sent, because ")
    assert what in str(refused.value)


@pytest.mark.parametrize("way", ["file", "pipe", "follow"])
@pytest.mark.parametrize("name", ["utf-16", "late", "gzip twice"])
def test_the_rest_is_sent(server: ServerProcess, tmp_path: Path, start: Start, name: str, way: str) -> None:
    data, what = REFUSED[name]
    file, good = tmp_path / "bad", tmp_path / "good"
    file.write_bytes(data)
    good.write_bytes(b"good\n")
    if way == "file":
        outcome = run(server.port, "--topic", "t", file, good)
    elif way == "pipe":
        outcome = run(server.port, "--topic", "t", "-", good, stdin=data)
    else:
        following = start(server.port, "--topic", "t", "--follow", file, good)
        wait_until(lambda: has_stored(server, 1)() and following.errors)
        outcome = following.interrupt()
    assert outcome.code == 1
    (line,) = outcome.lines
    assert line.startswith(f"aggregator: {'-' if way == 'pipe' else file}: not sent, because ")
    assert what in line
    assert messages(server) == ["good"]


def test_an_sqlite_database_is_refused(server: ServerProcess) -> None:
    outcome = run(server.port, server.db)
    assert outcome.code == 1
    assert outcome.lines == [
        f"aggregator: {server.db}: not sent, because it is an SQLite database: "
        "sqlite3 FILE 'SELECT …' | aggregator send -  (--text sends it anyway)"
    ]
    assert outcome.has()


def test_a_real_archive_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "app.log").write_bytes(TEXT)
    for mode in ("w", "w:gz"):
        archive = tmp_path / "logs.tar"
        with tarfile.open(archive, mode) as out:
            out.add(tmp_path / "app.log")
        outcome = run(server.port, "--topic", "t", archive)
        assert outcome.code == 1
        assert "tar -xOf FILE" in outcome.lines[0]


def test_text_takes_everything_for_text(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(gzip.compress(b"x")[:4] + b"\n\xff\xfea\0b\n\0c")
    assert run(server.port, "--topic", "t", "--text", file).has(sent=3, stored=3)
    assert messages(server) == ["\x1f\\x8b\x08\0", "\\xff\\xfea\0b", "c"]
    assert run(server.port, "--topic", "t", "--text", "-", stdin=b"a\0b").has(sent=1, stored=1)


@pytest.mark.parametrize("text", [b"BZh9 is how bzip2 begins\n", b"PK\n", b"\n", b"B", b"\x1f\n", b"\xef\xbb\xbfa\n"])
def test_text_that_begins_like_something_else_is_text(server: ServerProcess, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "text"
    file.write_bytes(text)
    lines = bool(text.strip())
    assert run(server.port, "--topic", "t", file).has(**({"sent": 1, "stored": 1} if lines else {}))
    assert run(server.port, "--topic", "t", stdin=text).has(**({"sent": 1, "stored": 1} if lines else {}))


def test_a_refused_file_that_is_replaced_is_read(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    file.write_bytes("one\n".encode("utf-16"))
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(lambda: "UTF-16" in following.errors)
    file.write_bytes(b"one\n")
    wait_until(has_stored(server, 1))
    file.unlink()
    file.write_bytes(b"two\n")
    wait_until(has_stored(server, 2))
    outcome = following.interrupt()
    assert outcome.code == 1
    assert len(outcome.lines) == 1


# --- parts


@pytest.mark.parametrize("kind", COMPRESS)
@given(
    texts=st.lists(st.binary(max_size=200), max_size=4),
    size=st.integers(1, 50),
    padding=st.integers(0, 3),
    most=st.integers(1, 90),
)
def test_any_split_of_any_streams_unpacks_to_the_same(
    kind: str, texts: list[bytes], size: int, padding: int, most: int
) -> None:
    data = b"".join(COMPRESS[kind](text) + bytes(4 * padding) for text in texts)
    decoder = Decoder(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "PIECE_BYTES", most)
        pieces = [piece for at in range(0, len(data), size) for piece in decoder.feed(data[at : at + size])]
    decoder.finish()
    assert b"".join(pieces) == b"".join(texts)
    assert all(0 < len(piece) <= most for piece in pieces)


@pytest.mark.parametrize("kind", COMPRESS)
def test_data_that_ends_too_early_is_told(kind: str) -> None:
    data = COMPRESS[kind](TEXT)
    for end in range(1, len(data)):
        decoder = Decoder(kind)
        assert TEXT.startswith(b"".join(decoder.feed(data[:end])))
        with pytest.raises(Damaged):
            decoder.finish()


def test_heads_are_told_apart() -> None:
    for kind, compress in COMPRESS.items():
        assert content.compression(compress(TEXT)) == kind
        assert content.compression(compress(b"")) == kind
    assert content.compression(b"") is None
    assert content.compression(b"\0\0\0text\n\0\0more") is None
    with pytest.raises(Refused):
        content.compression(b"text\0")
