"""No space left: stored events are delivered as always; ACK works again once there is space."""

from __future__ import annotations

import time

import pytest

from tests.harness.account import Account
from tests.harness.disk import SmallDisk
from tests.harness.polling import wait_until
from tests.harness.reading import Reading, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer

PAYLOAD = f'{{"x":"{"x" * 1000}"}}'


@pytest.mark.root
def test_acks_of_readers_work_again_when_there_is_space(
    start_server: StartServer, small_disk: SmallDisk, record_figures: RecordFigures
) -> None:
    """R10: deliveries go on, live and from the store. ACK, a new name and FORGET are answered with
    ``storage_full``; within 2 s of space being freed, the same commands succeed, and their effect is on disk."""
    server = start_server(db=small_disk.folder / "events.db")
    account = Account()
    live = Reading(server.port, "* BEAT 1", [account])
    with Peer(server.port) as sender, Peer(server.port) as reader:
        reader.send(b"SUBSCRIBE * AFTER 0 AS me BEAT 0\n")
        assert reader.replies(2)[1]["status"] == "caught_up"
        number = 0
        while not account.errors:
            name = f"e-{number}"
            account.heard(name, sender.ask(account.line(name, PAYLOAD)))
            number += 1
        last = max(account.acked.values())
        assert [reader.reply()["event"]["seq"] for _ in range(last)] == list(range(1, last + 1))

        seq = 0
        while (answer := reader.ask(b"ACK %d\n" % (seq + 1)))["status"] == "ok":  # each ACK takes some space
            seq += 1
            assert seq < last, "it was never full"
        assert (answer["status"], answer["code"]) == ("error", "storage_full")
        again = reader.ask(b"ACK %d\n" % (seq + 1))
        assert again["code"] == "storage_full", "it is not on disk, although it was acked before"
        for command in ("SUBSCRIBE * AFTER 0 AS new", "SUBSCRIBE * AFTER 0 AS new", "FORGET me", "FORGET me"):
            assert server.ask(command)["code"] == "storage_full"
        later = Reading(server.port, "* AFTER 0", [account])
        for reading in (live, later):
            reading.wait_for(last)
            verify(reading, [account])

        small_disk.remount("size=64m")
        enlarged = time.monotonic()
        with Peer(server.port) as new:
            wait_until(lambda: new.ask(b"SUBSCRIBE * AFTER 0 AS new\n")["status"] == "ok")
        recovered_s = time.monotonic() - enlarged
        assert recovered_s < SLACK * 2
        assert server.ask("FORGET me")["forgotten"] is False, "it was, and now it is on disk"
        account.heard("after", sender.ask(account.line("after")))
        live.wait_for(account.acked["after"])
        later.wait_for(account.acked["after"])
    for reading in (live, later):
        verify(reading, [account])
        reading.close()
    server.kill()
    server.restart()
    assert [one["name"] for one in server.ask("CURSORS")["cursors"]] == ["new"]
    verdict = account.verify_and_stop(server)
    record_figures("full disk under readers", **verdict.figures, recovery_s=recovered_s)


@pytest.mark.root
def test_an_ack_is_answered_when_there_is_space(start_server: StartServer, small_disk: SmallDisk) -> None:
    """R10: its answer means that it is on disk."""
    server = start_server(db=small_disk.folder / "events.db")
    account = Account()
    with Peer(server.port) as sender, Peer(server.port) as reader:
        number = 0
        while not account.errors:
            name = f"e-{number}"
            account.heard(name, sender.ask(account.line(name, PAYLOAD)))
            number += 1
            if number == 10:
                reader.send(b"SUBSCRIBE * AFTER 0 AS me BEAT 0\n")
                while reader.reply()["status"] != "caught_up":
                    pass
        assert set(account.errors.values()) == {"storage_full"}
        last = max(account.acked.values())
        while reader.reply()["event"]["seq"] < last:
            pass
        seq = 1
        while (answer := reader.ask(b"ACK %d\n" % seq))["status"] == "ok":
            seq += 1
        assert answer["code"] == "storage_full"
        small_disk.remount("size=64m")
        wait_until(lambda: reader.ask(b"ACK %d\n" % seq) == {"status": "ok", "name": "me", "acked": seq})
    server.kill()
    server.restart()
    assert server.ask("CURSORS")["cursors"][0]["acked"] == seq
