"""The order of system calls, as recorded by strace: an event is written to the WAL, synced, and only then acked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.account import Account
from tests.harness.forward import ForwardPeer, forward
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.strace import has_strace, traced
from tests.harness.wire import Peer

_CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed>)(.*)")
_ACKED = re.compile(r'\{\\"status\\":\\"stored\\",\\"seq\\":\d+,\\"topic\\":\\"t\\",\\"event_id\\":\\"(#\d+#)\\"\}')
_CHUNK_ACKED = re.compile(r"\\201\\243ack\\24\d(#\d+#)")  # {"ack": …} in MessagePack, as strace writes bytes
_EVENT = re.compile(r"#\d+#")


def acks_before_their_sync(trace: str, acked: re.Pattern[str] = _ACKED) -> tuple[list[str], int]:
    """The events that were acked too early, and the number of acks.

    An ack is too early if its write began before the end of an fdatasync of the WAL that followed the write of its
    event. Each line of a trace is ``thread call(arguments) = result``; a call that another thread
    interrupts takes two lines, ``… <unfinished ...>`` and ``<... call resumed>…``.
    """
    written: dict[str, set[str]] = {}  # by thread, since that thread's last sync
    syncing: set[str] = set()  # threads in the middle of a sync of the WAL
    durable: set[str] = set()
    early, acks = [], 0
    for line in trace.splitlines():
        if not (call := _CALL.match(line)):
            continue
        thread, name, begins, rest = call.groups()
        if name == "pwrite64" and "events.db-wal>" in rest:
            written.setdefault(thread, set()).update(_EVENT.findall(rest))
        elif name == "fdatasync":
            if begins == "(" and "events.db-wal>" in rest:
                syncing.add(thread)
            if thread in syncing and "<unfinished" not in rest:
                syncing.remove(thread)
                if rest.endswith("= 0"):
                    durable |= written.pop(thread, set())
        elif name in ("write", "writev", "sendto", "sendmsg"):
            for event_id in acked.findall(rest):
                acks += 1
                if event_id not in durable:
                    early.append(event_id)
    return early, acks


@pytest.mark.root
@has_strace
@pytest.mark.parametrize("in_flight", [1, 50])
def test_an_fsync_of_the_wal_comes_before_each_ack(
    server: ServerProcess, tmp_path: Path, record_figures: RecordFigures, in_flight: int
) -> None:
    """T4: 1,000 acks, one by one and pipelined: each event's own bytes are in the WAL and synced before its ack.

    The payload repeats the id, so that no end of a page can cut every copy of it.
    """
    account, trace = Account(), tmp_path / "trace"
    calls = "trace=fdatasync,pwrite64,write,writev,sendto,sendmsg"
    with traced(server, "-y", "-s", "100000", "-o", str(trace), "-e", calls), Peer(server.port) as peer:
        for start in range(0, 1000, in_flight):
            names = [f"#{number}#" for number in range(start, start + in_flight)]
            peer.send(account.lines(names, f'{{"x":"{"NAME" * 5}"}}'))
            for name in names:
                account.heard(name, peer.reply())
    early, acks = acks_before_their_sync(trace.read_text())
    assert (early, acks) == ([], 1000)
    verdict = account.verify(server)
    record_figures(f"fsync before ack, {in_flight} in flight", violations=len(early), **verdict.figures)


@pytest.mark.root
@has_strace
def test_an_fsync_of_the_wal_comes_before_each_ack_of_a_chunk(
    start_server: StartServer, tmp_path: Path, record_figures: RecordFigures
) -> None:
    """T4: the same for 500 chunks of Forward, with 20 chunks in flight."""
    server, trace = start_server("--forward-port", "0"), tmp_path / "trace"
    calls = "trace=fdatasync,pwrite64,write,writev,sendto,sendmsg"
    with (
        traced(server, "-y", "-s", "100000", "-o", str(trace), "-e", calls),
        ForwardPeer(server.port_of("forward")) as peer,
    ):
        for start in range(0, 500, 20):
            names = [f"#{number}#" for number in range(start, start + 20)]
            peer.send(b"".join(forward("t", [{"x": name * 5}], name) for name in names))
            assert [peer.answer() for _ in names] == [{"ack": name} for name in names]
    early, acks = acks_before_their_sync(trace.read_text(), _CHUNK_ACKED)
    assert (early, acks) == ([], 500)
    record_figures("Forward: fsync before ack", violations=len(early), sent=500)


def test_the_check_itself_sees_an_ack_that_comes_too_soon() -> None:
    """T4: the sync is missing, or it failed, was of another file, has not ended, or began before the write."""
    write = '7 pwrite64(9</d/events.db-wal>, "{\\"event_id\\":\\"#1#\\"}", 4096, 32) = 4096'
    ack = (
        r'5 write(12<socket:[1]>, "{\"status\":\"stored\",\"seq\":1,\"topic\":\"t\",\"event_id\":\"#1#\"}\n", 64) = 64'
    )
    sync = "7 fdatasync(9</d/events.db-wal>) = 0"
    begun, ended = "7 fdatasync(9</d/events.db-wal> <unfinished ...>", "7 <... fdatasync resumed>) = 0"
    right = [[write, sync, ack], [write, begun, ended, ack]]
    wrong = [
        [write, ack, sync],
        [write, sync.replace("= 0", "= -1 EIO (Input/output error) (INJECTED)"), ack],
        [write, sync.replace("-wal", ""), ack],
        [write, begun, ack, ended],
        [sync, write, ack],
        [sync, ack],
    ]
    for lines in right:
        assert acks_before_their_sync("\n".join(lines)) == ([], 1)
    for lines in wrong:
        assert acks_before_their_sync("\n".join(lines)) == (["#1#"], 1)
