"""The server dies under its readers: delivered events are still there, and acked events are not delivered again."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time

import pytest

from tests.harness.account import Account
from tests.harness.disk import Ext4Image
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.power_cut import cut_power
from tests.harness.reading import Reading, total, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import ACK_KILLS, POWER_CUT_ROUNDS, READER_KILLS
from tests.harness.strace import has_strace, inject
from tests.harness.wire import exchange


class Acking(Reading):
    """A reader with a name, which can ack its position."""

    def ack(self, seq: int) -> None:
        """Ack this seq without waiting for the answer, which may never come."""
        self.peer.send(b"ACK %d\n" % seq)

    def is_answered(self, seq: int) -> bool:
        """Ack this seq; return whether it was answered before the connection ended."""
        with contextlib.suppress(OSError):
            self.ack(seq)
        wait_until(lambda: self.acked >= seq or self.ended)
        return self.acked >= seq

    @property
    def acked(self) -> int:
        """The highest acked seq that was answered."""
        return max((line["acked"] for line in list(self.control) if "acked" in line), default=0)


def head(server: ServerProcess) -> int:
    return int(server.ask("EVENTS * 1")["seq"])


def test_readers_resume_behind_a_kill(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """R6, S2, S5: kill -9 under load. Each delivered event is there under its seq. A reader that resumes by seq misses
    and doubles nothing; one that resumes by name begins right after the last ack on disk."""
    account = Account()
    by_seq: list[list[Reading]] = [[], []]
    by_name: list[list[Acking]] = [[], []]
    answered = [0, 0]
    for number in range(READER_KILLS):
        load = Load(account, server.port, 4, f"r{number}c", in_flight=50)
        load.wait_for_acks()
        for chain in by_seq:
            chain.append(Reading(server.port, f"* AFTER {chain[-1].position if chain else 0} BEAT 1", [account]))
            assert chain[-1].reply["status"] == "ok", chain[-1].reply
        for index, names in enumerate(by_name):
            names.append(Acking(server.port, f"* AFTER 0 AS n{index} BEAT 1", [account]))
            assert names[-1].after >= answered[index], "an ack that was answered is undone"
        ends = time.monotonic() + moments.uniform(0.05, 0.8)  # the moment of the fault, not a wait for anything
        while time.monotonic() < ends:
            for names in by_name:
                names[-1].ack(names[-1].position)
            time.sleep(0.01)
        server.kill()
        load.finish()
        newest: list[Reading] = [*(chain[-1] for chain in by_seq), *(names[-1] for names in by_name)]
        for reading in newest:
            reading.finish()
        answered = [max(before, names[-1].acked) for before, names in zip(answered, by_name, strict=True)]
        server.restart()
        stored = {name: found["seq"] for name, found in server.stored("t").items()}
        for reading in newest:
            for name, seq in zip(reading.ids, reading.seqs, strict=True):
                assert stored.get(name) == seq, "it was delivered, and is not there"
    verdicts = []
    for chain in by_seq:
        chain.append(Reading(server.port, f"* AFTER {chain[-1].position} BEAT 1", [account]))
        chain[-1].wait_for(head(server))
        verdicts.append(verify(chain, [account]))
        assert sum(len(reading.seqs) for reading in chain) == len(server.listed("t"))
    for index, names in enumerate(by_name):
        names.append(Acking(server.port, f"* AS n{index} BEAT 1", [account]))
        names[-1].wait_for(head(server))
        verdicts.append(verify(names, [account], may_double=True))
        assert {name for reading in names for name in reading.ids} == server.stored("t").keys()
        assert any(reading.after for reading in names), "nothing was acked"
        for before, after in itertools.pairwise(names):
            assert before.acked <= after.after <= before.position
    for newest_one in [*(chain[-1] for chain in by_seq), *(names[-1] for names in by_name)]:
        newest_one.close()
    record_figures("readers resume behind kill -9", rounds=READER_KILLS, **total(verdicts))
    account.verify_and_stop(server)


@pytest.mark.root
@has_strace
def test_an_answered_ack_is_never_undone(server: ServerProcess, record_figures: RecordFigures) -> None:
    """R7: death at the n-th system call that writes, either for the ack's commit or for its answer."""
    account = Account()
    account.send(server.port, "e", 500)
    last, answered, between = 0, 0, 0
    for number in range(ACK_KILLS):
        reading = Acking(server.port, "* AFTER 0 AS me BEAT 0", [account])
        assert answered <= reading.after <= last, "undone, or never acked"
        between += reading.after > answered
        reading.wait_for(500)
        assert reading.seqs == list(range(reading.after + 1, 501)), "delivery starts right behind it"
        calls = ("pwrite64", "fdatasync", "write,writev,sendto,sendmsg")[number % 3]
        start = reading.after
        with inject(server, f"{calls}:signal=KILL:when={1 + number // 3 % 3}"):
            for seq in range(start + 1, 500):
                last = seq
                if not reading.is_answered(seq):
                    break
            assert server.wait() == -signal.SIGKILL
        reading.finish()
        answered = max(answered, reading.acked)
        server.restart()
    assert answered > 0
    assert between > 0, "no round died between an ack's commit and its answer"
    record_figures("death around an ACK", rounds=ACK_KILLS, answered=answered, stored_not_answered=between)


@pytest.mark.root
def test_an_answered_ack_outlives_a_power_cut(
    start_server: StartServer, ext4_image: Ext4Image, moments: random.Random, record_figures: RecordFigures
) -> None:
    """R7: and so does each delivered event."""
    for number in range(POWER_CUT_ROUNDS):
        name = f"cut{number}"
        server = start_server(db=ext4_image.folder / name / "events.db")
        account = Account()
        load = Load(account, server.port, 2, in_flight=50)
        reading = Acking(server.port, "* AFTER 0 AS me BEAT 1", [account])
        load.wait_for_acks()
        ends = time.monotonic() + moments.uniform(0.1, 0.8)  # the moment of the fault, not a wait for anything
        while time.monotonic() < ends or not reading.acked:
            reading.ack(reading.position)
            time.sleep(0.01)
        left = cut_power(server, ext4_image, name)
        load.finish()
        reading.finish()
        try:
            error = left.mount()
            assert error is None, error
            survivor = start_server(db=left.folder / name / "events.db")
            stored = {name: found["seq"] for name, found in survivor.stored("t").items()}
            for event_id, seq in zip(reading.ids, reading.seqs, strict=True):
                assert stored.get(event_id) == seq, "it was delivered, and is not there"
            again = Acking(survivor.port, "* AS me BEAT 1", [account])
            assert reading.acked <= again.after <= reading.position
            again.wait_for(head(survivor))
            verdict = verify([reading, again], [account], may_double=True)
            again.close()
            account.verify_and_stop(survivor)
        finally:
            left.remove()
        record_figures("power cut under a reader", **verdict.figures, acked_seq=again.after)


def test_a_name_is_there_however_the_server_ends(server: ServerProcess) -> None:
    """S5: also if it is killed while it stops."""
    account = Account()
    account.send(server.port, "e", 50)
    reading = Acking(server.port, "* AFTER 0 AS me", [account])
    reading.wait_for(50)
    reading.ack(20)
    wait_until(lambda: reading.acked == 20)
    reading.ack(30)
    server.signal(signal.SIGTERM)
    server.wait()
    reading.finish()
    server.restart()
    assert exchange(server.port, b"CURSORS\n")[0]["cursors"][0]["acked"] in (20, 30)
    assert reading.acked <= exchange(server.port, b"CURSORS\n")[0]["cursors"][0]["acked"]
