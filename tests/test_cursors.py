"""Names and their cursors: what was answered is on disk, whatever fails; a name has one reader; no cursor is parked."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.access.identity import ANONYMOUS
from aggregator.server import cursors as cursors_module
from aggregator.server.cursors import Cursors
from aggregator.server.purpose import to_json
from aggregator.server.queries import BadCommand
from aggregator.server.subscribe import ack
from aggregator.server.subscription import Subscription
from aggregator.storage.engine import Cursor, StorageBusy, StorageFailed, StorageFull, StorageUnreadable
from aggregator.wire.interest import interest_in
from tests.harness import changes
from tests.harness.account import Account
from tests.harness.list_engine import ListEngine
from tests.harness.polling import until, wait_until
from tests.harness.reading import Reading, verify
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Json, Peer, event, events, exchange

pytestmark = pytest.mark.engines

ALL = interest_in(("*",))


class Disk:
    """An engine with only what cursors need: what was saved, and the errors that the next saves raise."""

    shared = False

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}
        self.savings = 0
        self.raises: list[Exception | None] = []

    async def cursors(self) -> list[Cursor]:
        return []

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Sequence[str]:
        self.savings += 1
        await asyncio.sleep(0)
        if self.raises and (error := self.raises.pop(0)):
            raise error
        assert not {one.name for one in changed} & set(gone)
        self.saved |= {one.name: one.acked for one in changed}
        for name in gone:
            self.saved.pop(name, None)
        await asyncio.sleep(0)
        return ()


class Kept:
    """Cursors on such a disk."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.failures: list[Exception] = []
        self.cursors = Cursors(self.disk, self.failures.append, lambda *_: None)  # type: ignore[arg-type]

    async def move(self, name: str, position: int) -> None:
        self.cursors.move(name, ALL, position, ANONYMOUS)
        await self.cursors.on_disk(name)


@pytest.fixture
async def kept(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr(cursors_module, "SAVES_PER_S", 1000)
    monkeypatch.setattr(cursors_module, "FOLLOW_S", 0.001)
    kept = Kept()
    await kept.cursors.load()
    kept.cursors.start()
    yield kept
    await kept.cursors.stop()


async def test_a_move_that_was_not_stored_is_not_taken_for_stored(kept: Kept) -> None:
    """S5, R10: a client that was told that the disk is full acks again, and is answered when the ack is on disk."""
    kept.disk.raises = [StorageFull("full"), StorageFull("full"), None]
    with pytest.raises(StorageFull):
        await kept.move("a", 5)
    with pytest.raises(StorageFull):
        await kept.cursors.on_disk("a")
    assert kept.disk.saved == {}
    await kept.cursors.on_disk("a")
    assert kept.disk.saved == {"a": 5}


async def test_a_name_that_was_not_removed_is_not_taken_for_removed(kept: Kept) -> None:
    await kept.move("a", 5)
    kept.disk.raises = [StorageFull("full")]
    assert kept.cursors.forget("a")
    with pytest.raises(StorageFull):
        await kept.cursors.on_disk("a")
    assert not kept.cursors.forget("a")
    await kept.cursors.on_disk("a")
    assert kept.disk.saved == {}


async def test_what_changes_while_it_is_stored_is_stored_again(kept: Kept) -> None:
    moving = asyncio.create_task(kept.move("a", 1))
    await until(lambda: kept.disk.savings)
    kept.cursors.forget("a")
    kept.cursors.move("a", ALL, 7, ANONYMOUS)
    await kept.cursors.on_disk("a")
    await moving
    assert kept.disk.saved == {"a": 7}
    forgetting = kept.cursors.forget("a")
    await kept.cursors.on_disk("a")
    assert forgetting
    assert kept.disk.saved == {}


async def test_who_asks_while_it_is_stored_waits_for_that(kept: Kept) -> None:
    moving = asyncio.create_task(kept.move("a", 1))
    await until(lambda: kept.disk.savings)
    await kept.cursors.on_disk("a")
    assert kept.disk.saved == {"a": 1}
    await moving
    savings = kept.disk.savings
    await kept.cursors.on_disk("a")
    assert kept.disk.savings == savings, "it is on disk already"


async def test_acks_are_merged(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors_module, "SAVES_PER_S", 100)
    await asyncio.gather(*(kept.move(f"n{number % 50}", number) for number in range(1000)))

    assert kept.disk.saved == {f"n{number}": 950 + number for number in range(50)}
    assert kept.disk.savings < 10


async def test_a_busy_store_is_tried_again_and_nobody_is_told(kept: Kept) -> None:
    kept.disk.raises = [StorageBusy("busy")] * 3
    await kept.move("a", 5)

    assert kept.disk.saved == {"a": 5}


@pytest.mark.parametrize("error", [StorageFailed("EIO"), RuntimeError("a defect")])
async def test_a_broken_store_is_reported(kept: Kept, error: Exception) -> None:
    """I7: the server has to stop. A defect must not leave clients that ack waiting forever."""
    kept.disk.raises = [error]
    with pytest.raises(StorageFailed):
        await kept.move("a", 5)
    (failure,) = kept.failures
    assert isinstance(failure, StorageFailed)


async def test_whatever_fails_what_is_said_to_be_on_disk_is_there(kept: Kept) -> None:
    """Any moves and removals at once, with any failures: the disk never has less than was said to be there."""
    choices = random.Random(3)
    said: dict[str, int] = {}

    async def client(name: str) -> None:
        for position in range(1, 40):
            kept.cursors.move(name, ALL, position, ANONYMOUS)
            with contextlib.suppress(StorageFull):
                await kept.cursors.on_disk(name)
                said[name] = position
            if choices.random() < 0.3:
                kept.disk.raises.append(choices.choice([None, StorageFull("full"), StorageBusy("busy")]))
            if name in said:
                assert kept.disk.saved[name] >= said[name]
            if choices.random() < 0.05:
                said.pop(name, None)
                kept.cursors.forget(name)
                with contextlib.suppress(StorageFull):
                    await kept.cursors.on_disk(name)
                    assert name not in kept.disk.saved

    await asyncio.gather(*(client(f"n{number}") for number in range(8)))
    kept.disk.raises.clear()
    for number in range(8):
        await kept.cursors.on_disk(f"n{number}")
    assert kept.disk.saved == {cursor.name: cursor.acked for cursor in kept.cursors.listed()}


async def test_a_reader_that_has_acked_all_is_moved_along(kept: Kept) -> None:
    """No parked cursors: a cursor follows past events that do not match, but never past the acked events."""
    subscription = Subscription(None, ALL, 10, name="a")  # type: ignore[arg-type]
    await kept.move("a", 10)
    kept.cursors.took("a", subscription)
    subscription.position = 50  # nothing matched
    await until(lambda: kept.disk.saved == {"a": 50})
    assert subscription.sent == 50, "which may be acked, because it was not said"
    subscription.position = subscription.sent = 60  # an event, which is not acked
    subscription.position = 70
    behind = Subscription(None, ALL, 10, name="b")  # type: ignore[arg-type]
    await kept.move("b", 10)
    kept.cursors.took("b", behind)
    behind.position = 20
    await until(lambda: kept.disk.saved["b"] == 20)  # it is looked at after the other
    assert kept.disk.saved["a"] == 50
    await kept.move("a", 60)
    await until(lambda: kept.disk.saved["a"] == 70)
    subscription.over = True
    subscription.position = 80
    behind.position = 30
    await until(lambda: kept.disk.saved["b"] == 30)
    assert kept.disk.saved["a"] == 70
    assert kept.cursors.reader("a") is None


# --- a store that servers share


class SharedDisk(Disk):
    """The same, for an engine where another server may claim a name."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Cursor] = {}
        self.unreadable = False

    async def cursors(self) -> list[Cursor]:
        await asyncio.sleep(0)
        if self.unreadable:
            raise StorageUnreadable("away")
        return list(self.rows.values())

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Sequence[str]:
        await super().save_cursors(changed, gone)
        held = [one for one in changed if self.rows[one.name].claim == one.claim]
        self.rows |= {one.name: one for one in held}
        return [one.name for one in changed if one not in held]

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor:
        found = self.rows.setdefault(cursor.name, cursor)
        self.rows[cursor.name] = replace(found, claim=cursor.claim)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.rows[cursor.name]


class Shared(Kept):
    """Cursors on such a disk; a client of this server has claimed one of them."""

    disk: SharedDisk
    claim: str

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] = []
        self.disk = SharedDisk()
        self.cursors = Cursors(
            self.disk,  # type: ignore[arg-type]
            self.failures.append,
            lambda reader, peer, name: self.lost.append(name),
        )

    async def claimed(self) -> str:
        claim = await self.cursors.claim("a", ALL, 0, ANONYMOUS, "somebody")
        assert claim
        return claim

    def lose(self) -> None:
        """A client of another server takes the name."""
        self.disk.rows["a"] = replace(self.disk.rows["a"], claim="another 1")


@pytest.fixture
async def shared(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shared]:
    monkeypatch.setattr(cursors_module, "SAVES_PER_S", 1000)
    shared = Shared()
    await shared.cursors.load()
    shared.cursors.start()
    shared.claim = await shared.claimed()
    yield shared
    await shared.cursors.stop()


async def test_a_move_that_was_refused_is_known_to_be(shared: Shared) -> None:
    """Even though the store cannot be asked who holds the name."""
    shared.lose()
    shared.disk.unreadable = True
    shared.cursors.move("a", ALL, 5, ANONYMOUS, shared.claim)
    await shared.cursors.on_disk("a")
    assert not shared.cursors.is_held("a", shared.claim)
    assert shared.disk.rows["a"].acked == 0


async def test_so_is_one_that_was_made_again_meanwhile(shared: Shared) -> None:
    shared.lose()
    shared.cursors.move("a", ALL, 5, ANONYMOUS, shared.claim)
    moving = asyncio.create_task(shared.cursors.on_disk("a"))
    await until(lambda: shared.disk.savings)
    shared.cursors.move("a", ALL, 6, ANONYMOUS, shared.claim)
    await moving
    assert not shared.cursors.is_held("a", shared.claim)


async def test_what_the_next_reader_has_acked_is_stored_although_the_one_before_has_lost(shared: Shared) -> None:
    shared.cursors.move("a", ALL, 5, ANONYMOUS, shared.claim)
    moving = asyncio.create_task(shared.cursors.on_disk("a"))
    claim = await shared.claimed()
    await until(lambda: shared.disk.savings)
    shared.cursors.move("a", ALL, 7, ANONYMOUS, claim)
    await shared.cursors.on_disk("a")
    await moving
    assert not shared.cursors.is_held("a", shared.claim)
    assert shared.cursors.is_held("a", claim)
    assert (shared.disk.rows["a"].acked, shared.disk.rows["a"].claim) == (7, claim)


async def test_an_ack_of_who_is_being_followed_on_the_same_server_is_not_said_to_be_stored(shared: Shared) -> None:
    reader = Subscription(None, ALL, 0, name="a", claim=shared.claim)  # type: ignore[arg-type]
    reader.sent = 9
    shared.cursors.took("a", reader)
    state: Any = SimpleNamespace(engine=ListEngine(shared=True), cursors=shared.cursors)
    asker: Any = SimpleNamespace(last_subscription=reader, identity=ANONYMOUS)
    acking = asyncio.create_task(ack(["5"], state, asker))
    claim = await shared.claimed()
    with pytest.raises(BadCommand, match="another client has subscribed as a"):
        await acking
    assert (shared.disk.rows["a"].acked, shared.disk.rows["a"].claim) == (0, claim)


async def test_a_reader_is_told_that_its_claim_is_lost(shared: Shared) -> None:
    reader = Subscription(None, ALL, 0, name="a", claim=shared.claim)  # type: ignore[arg-type]
    shared.cursors.took("a", reader)
    await shared.cursors.refresh()
    assert not shared.lost
    shared.lose()
    await shared.cursors.refresh()
    assert shared.lost == ["a"]


def test_the_order_of_patterns_does_not_matter() -> None:
    assert to_json(interest_in(("b", "a", "a"))) == to_json(interest_in(("a", "b")))
    assert to_json(interest_in(("a",))) != to_json(interest_in(("a",), source="s"))
    assert to_json(interest_in(("a",), shard=(1, 2))) != to_json(interest_in(("a",), shard=(2, 2)))


# --- on the wire


def lines_until(peer: Peer, enough: Callable[[Json], bool]) -> list[Json]:
    lines = [peer.reply()]
    while not enough(lines[-1]):
        lines.append(peer.reply())
    return lines


def subscribe(peer: Peer, arguments: str) -> Json:
    """SUBSCRIBE; return all lines up to ``caught_up``."""
    peer.send(f"SUBSCRIBE {arguments}\n".encode())
    return lines_until(peer, lambda line: line["status"] in ("caught_up", "rejected", "error"))


def name_of(peer: Peer) -> str:
    return f"127.0.0.1:{peer.socket.getsockname()[1]}"


def seqs(lines: list[Json]) -> list[int]:
    return [line["event"]["seq"] for line in lines if line["status"] == "event"]


def cursor(server: ServerProcess, name: str = "me") -> Json:
    return next(one for one in server.ask("CURSORS")["cursors"] if one["name"] == name)


def test_a_name_goes_on_behind_its_last_ack(server: ServerProcess) -> None:
    """S5. After a kill, and after a stop."""
    exchange(server.port, b"".join(events("e", 10)))
    with Peer(server.port) as peer:
        assert subscribe(peer, "* AFTER 2 AS me")[0]["after"] == 2
        assert peer.ask(b"ACK 5\n") == {"status": "ok", "name": "me", "acked": 5}
        server.kill()
    server.restart()
    with Peer(server.port) as peer:
        lines = subscribe(peer, "* AS me")
        assert (lines[0]["after"], seqs(lines)) == (5, [6, 7, 8, 9, 10])
        assert peer.ask(b"ACK 8\n")["acked"] == 8
    assert server.stop() == 0
    server.restart()
    with Peer(server.port) as peer:
        lines = subscribe(peer, "* AFTER 1 AS me")
        assert (lines[0]["after"], seqs(lines)) == (8, [9, 10]), "AFTER is not used for a name that is known"


def test_a_new_name_is_stored_before_it_is_answered(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 5)))
    for name, arguments, after in (("now", "*", 5), ("all", "* AFTER 0", 0), ("hour", "* SINCE 1h", 0)):
        with Peer(server.port) as peer:
            peer.send(f"SUBSCRIBE {arguments} AS {name}\n".encode())
            assert peer.reply()["after"] == after
    server.kill()
    server.restart()
    exchange(server.port, event("later"))
    assert {one["name"]: one["acked"] for one in server.ask("CURSORS")["cursors"]} == {"now": 5, "all": 0, "hour": 0}


def test_what_may_be_acked(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 5)) + event("x", "other"))
    with Peer(server.port) as peer:
        assert "no subscription with a name" in peer.ask(b"ACK 1\n")["detail"]
        subscribe(peer, "t AFTER 0 AS me BEAT 1")
        assert peer.ask(b"ACK 3\n")["acked"] == 3
        assert peer.ask(b"ACK 2\n") == {"status": "ok", "name": "me", "acked": 3}, "an older one changes nothing"
        assert "seq: 7 is past 6, the last that was sent" in peer.ask(b"ACK 7\n")["detail"]
        assert peer.ask(b"ACK 6\n")["acked"] == 6, "what caught_up has told counts"
        assert "a seq is missing" in peer.ask(b"ACK\n")["detail"]
        assert "seq: expected a number" in peer.ask(b"ACK x\n")["detail"]
        exchange(server.port, event("y", "other"))
        lines_until(peer, lambda line: line["status"] == "heartbeat" and line["seq"] == 7)
        assert peer.ask(b"ACK 7\n")["acked"] == 7, "and a heartbeat, too"
        peer.send(b"UNSUBSCRIBE\n")
        lines_until(peer, lambda line: "unsubscribed" in line)
        assert peer.ask(b"ACK 7\n")["acked"] == 7, "what was sent may be acked when the subscription is over"
        assert "seq: 8 is past 7" in peer.ask(b"ACK 8\n")["detail"]


def test_a_cursor_follows_what_does_not_match(server: ServerProcess) -> None:
    exchange(server.port, event("e"))
    with Peer(server.port) as peer, Peer(server.port) as idle:
        subscribe(peer, "t AFTER 0 AS me BEAT 0")
        subscribe(idle, "nothing AFTER 0 AS idle BEAT 0")
        for reader in (peer, idle):
            reader.ask(b"ACK 1\n")
        exchange(server.port, b"".join(events("o", 50, "other")))
        wait_until(lambda: cursor(server)["acked"] == 51)
        exchange(server.port, event("f"))
        assert peer.reply()["event"]["seq"] == 52
        exchange(server.port, b"".join(events("p", 5, "other")))
        wait_until(lambda: cursor(server, "idle")["acked"] == 57)
        assert cursor(server)["acked"] == 51, "52 is not acked"
        peer.ask(b"ACK 52\n")
        wait_until(lambda: cursor(server)["acked"] == 57)


@pytest.mark.parametrize(
    "other", ["b*", "a* b", "a* SOURCE s", "a* CONTAINS s", "a* SHARD 1/2", "*"], ids=lambda other: other
)
def test_a_name_is_for_what_it_was_made_for(server: ServerProcess, other: str) -> None:
    """R21: otherwise its older events would be skipped silently. The order of the patterns does not matter."""
    with Peer(server.port) as peer:
        subscribe(peer, "a* x AS me")
        peer.send(b"UNSUBSCRIBE\n")
        peer.reply()
        (refused,) = subscribe(peer, f"{other} AS me")
        assert refused["code"] == "bad_command"
        assert refused["detail"] == "me was created with other patterns or filters: FORGET it first"
        assert subscribe(peer, "x a* AS me")[-1]["status"] == "caught_up"


def test_cursors_are_listed(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 5)))
    with Peer(server.port) as one, Peer(server.port) as two:
        subscribe(one, "* AFTER 2 AS b")
        subscribe(two, "t AS 'a name'")
        two.send(b"UNSUBSCRIBE\n")
        two.reply()
        listed = server.ask("CURSORS")
        assert listed["total"] == 2
        first, second = listed["cursors"]
        assert first.pop("acked_at") >= second.pop("acked_at")
        assert first == {"name": "a name", "patterns": ["t"], "acked": 5, "lag": 0, "lag_s": 0.0, "peer": None}
        assert (second["lag"], second["peer"]) == (3, name_of(one))
        assert [one["name"] for one in server.ask("CURSORS 1")["cursors"]] == ["a name"]
        assert [one["name"] for one in server.ask("CURSORS 1 AFTER 'a name'")["cursors"]] == ["b"]
        assert server.ask("CURSORS AFTER b")["cursors"] == []


def test_a_name_is_forgotten(server: ServerProcess) -> None:
    """Its reader is told. The name can then be used again from the start, also with other patterns."""
    exchange(server.port, b"".join(events("e", 5)))
    with Peer(server.port) as peer, Peer(server.port) as admin:
        subscribe(peer, "* AFTER 0 AS me")
        assert peer.ask(b"ACK 3\n")["acked"] == 3
        assert admin.ask(b"FORGET me\n") == {"status": "ok", "name": "me", "forgotten": True}
        over = peer.reply()
        assert (over["status"], over["code"], over["seq"]) == ("error", "taken_over", 5)
        assert "me was forgotten" in peer.ask(b"ACK 4\n")["detail"]
        assert admin.ask(b"FORGET me\n") == {"status": "ok", "name": "me", "forgotten": False}
        assert "a name is missing" in admin.ask(b"FORGET\n")["detail"]
        server.kill()
    server.restart()
    with Peer(server.port) as peer:
        assert server.ask("CURSORS")["total"] == 0
        assert seqs(subscribe(peer, "t AFTER 1 AS me")) == [2, 3, 4, 5]
        assert peer.ask(b"FORGET me\n")["code"] == "taken_over", "by whoever it is"
        assert peer.reply()["forgotten"]


def test_so_many_names_are_kept(start_server: StartServer) -> None:
    server = start_server(changes=[changes.few_cursors])
    with Peer(server.port) as peer:
        for number in range(5):
            subscribe(peer, f"* AS n{number}")
            peer.send(b"UNSUBSCRIBE\n")
            peer.reply()
        (refused,) = subscribe(peer, "* AS one-more")
        assert (refused["code"], refused["detail"]) == ("busy", "5 names are kept already; FORGET some")
        assert subscribe(peer, "* AS n3")[0]["status"] == "ok"
        server.ask("FORGET n1")
        with Peer(server.port) as other:
            assert subscribe(other, "* AS one-more")[0]["status"] == "ok"


# --- one reader for a name


def test_the_newest_reader_of_a_name_wins(server: ServerProcess) -> None:
    """R19. The old reader is told, with a seq to resume from, and its connection may be used for something else."""
    exchange(server.port, b"".join(events("e", 5)))
    with Peer(server.port) as old, Peer(server.port) as new:
        subscribe(old, "* AFTER 0 AS me")
        old.ask(b"ACK 2\n")
        lines = subscribe(new, "* AS me")
        assert seqs(lines) == [3, 4, 5]
        over = old.reply()
        assert over == {
            "status": "error", "code": "taken_over",
            "detail": f"{name_of(new)} subscribed as me", "seq": 5,
        }  # fmt: skip
        exchange(server.port, event("f"))
        assert seqs([new.reply()]) == [6]
        assert old.ask(b"PING\n")["pong"], "no event before that"
        assert "another client has subscribed as me" in old.ask(b"ACK 5\n")["detail"]
        assert subscribe(old, "* AS me")[0]["after"] == 2
        assert new.reply()["code"] == "taken_over"


def test_of_many_that_come_at_once_one_reads(server: ServerProcess) -> None:
    """R19: their commands are carried out in one turn of the loop, before any of the replies has been sent."""
    exchange(server.port, b"".join(events("e", 5)))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in range(20)]
        for peer in peers:
            peer.ask(b"PING\n")
        for peer in peers:
            peer.send(b"SUBSCRIBE * AFTER 0 AS me\n")
        for peer in peers:
            assert peer.reply()["status"] == "ok"
        assert server.ask("STATS")["subscribers"] == 1
        exchange(server.port, event("last"))
        ends = [lines_until(peer, lambda line: line["status"] == "error" or 6 in seqs([line]))[-1] for peer in peers]
        assert [end["status"] for end in ends].count("event") == 1
        assert {end["code"] for end in ends if end["status"] == "error"} == {"taken_over"}


def test_a_standby_takes_over_from_a_reader_that_hangs(server: ServerProcess) -> None:
    """R19: at once, even though the old reader's buffer is full. When the old one wakes up, it sees what happened."""
    account = Account()
    account.send(server.port, "e", 5000, f'{{"n":"NAME","x":"{"x" * 2000}"}}')
    hanging = Reading(server.port, "* AFTER 0 AS me", [account], receive_buffer=4096, paused=True)
    wait_until(lambda: server.ask("SUBSCRIBERS")["subscribers"][0]["state"] == "stalled")
    standby = Reading(server.port, "* AS me", [account])
    standby.wait_for(1, timeout_s=SLACK * 1)
    standby.wait_for_line("caught_up")
    hanging.go_on()
    assert hanging.wait_for_line("error")["code"] == "taken_over"
    verify(hanging, [account])
    verify(standby, [account])
    assert len(standby.seqs) == 5000
    hanging.peer.send(b"PING\n")
    hanging.wait_for_line("ok")
    for one in (hanging, standby):
        one.close()
