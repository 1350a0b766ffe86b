"""Rates: a sender that is too fast is slowed down. Nothing is dropped, and no other client notices."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import changes, identities
from tests.harness.changes import Change
from tests.harness.forward import ForwardPeer, forward
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event


class Limited:
    """A server with a limited client, ``slow``, and an unlimited one, ``fast``."""

    def __init__(
        self, start_server: StartServer, folder: Path, *options: str, changes: Sequence[Change] = (), **limits: object
    ) -> None:
        slow, self._slow_stanza = identities.with_token("slow", **{"publish": ["*"], **limits})
        fast, self._fast_stanza = identities.with_token("fast", publish=["*"], read=["*"], may=["monitor"])
        self.slow, self.fast = identities.auth(slow), identities.auth(fast)
        self._path = folder / "identities.toml"
        self.write()
        self.server: ServerProcess = start_server(
            "--identities", str(self._path), "--anonymous", "none", *options, changes=changes
        )

    def write(self, **limits: float) -> None:
        identities.write(self._path, {**self._slow_stanza, **limits}, self._fast_stanza)

    def is_slowed(self) -> bool:
        return self.slowed() > 0

    def slowed(self) -> int:
        """How many connections of the limited client are slowed down at the moment."""
        with Peer(self.server.port) as peer:
            peer.send(self.fast + b"CLIENTS\n")
            clients = peer.replies(2)[1]["clients"]
        return sum(one["slowed"] for one in clients if one["identity"] == "slow")

    def stats(self) -> dict[str, int]:
        with Peer(self.server.port) as peer:
            peer.send(self.fast + b"STATS\n")
            return peer.replies(2)[1]  # type: ignore[no-any-return]


def send_for_ever(peer: Peer, prefix: str) -> threading.Thread:
    """Send events as fast as the server takes them, until the peer is closed."""

    def send() -> None:
        number = 0
        try:
            while True:
                peer.send(b"".join(event(f"{prefix}-{number + i}") for i in range(100)))
                number += 100
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


MEASURED_S = 10
"""How long a rate is measured. At 1,000 events/s, a burst and a turn at either end are together a fifth of that."""


def rate_of(limited: Limited) -> float:
    """Events read per second, by the server's own clock: it counts them where it slows the client down."""
    before = limited.stats()
    time.sleep(MEASURED_S)
    after = limited.stats()
    return (after["received"] - before["received"]) / (after["uptime_s"] - before["uptime_s"])


@pytest.mark.parametrize(("connections", "events_per_s"), [(1, 1000), (3, 4000)])
def test_a_sender_at_full_speed_is_slowed_to_its_rate(
    start_server: StartServer, tmp_path: Path, connections: int, events_per_s: int
) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=events_per_s)
    peers = [Peer(limited.server.port) for _ in range(connections)]
    for number, peer in enumerate(peers):
        peer.ask(limited.slow)
        send_for_ever(peer, f"{number}")
        threading.Thread(target=_drain, args=(peer,), daemon=True).start()
    wait_until(lambda: limited.stats()["unique_processed"] > 2 * events_per_s)
    rate = rate_of(limited)
    for peer in peers:
        peer.reset()

    assert rate == pytest.approx(events_per_s, rel=0.2)
    assert limited.stats()["rejected"] == limited.stats()["errors"] == 0


def _drain(peer: Peer) -> None:
    try:
        while peer.raw_line():
            pass
    except (OSError, ValueError):
        pass


def test_bytes_are_limited_too(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, bytes_per_s=1_000_000)
    line = event("e", payload='{"x":"' + "x" * 100_000 + '"}')
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        started = time.monotonic()
        peer.send(line * 40)
        assert {reply["status"] for reply in peer.replies(40)} == {"stored", "duplicate"}
        took_s = time.monotonic() - started

    assert took_s >= 4 - 0.5 - 0.5, "4 MB, less the burst and the last read"


@pytest.mark.parametrize("line", [b"PING\n", b"no event\n", event("e", "db")])
def test_lines_that_are_no_events_count_too(start_server: StartServer, tmp_path: Path, line: bytes) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=100)
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        started = time.monotonic()
        peer.send(line * 700)
        peer.replies(700)
        took_s = time.monotonic() - started

    assert took_s >= 1.5, "all but the last turn"


def test_others_do_not_notice_a_sender_that_is_slowed(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=10)
    with Peer(limited.server.port) as slow, Peer(limited.server.port) as fast:
        slow.ask(limited.slow)
        fast.ask(limited.fast)
        slow.send(b"".join(event(f"s{number}") for number in range(2000)))
        started = time.monotonic()
        for number in range(200):
            assert fast.ask(event(f"f{number}"))["status"] == "stored"
        assert time.monotonic() - started < 20
        assert fast.ask(b"STATS\n")["unique_processed"] < 1500


@pytest.mark.parametrize("port", ["acked", "silent"])
def test_a_stop_does_not_wait_for_rates(start_server: StartServer, tmp_path: Path, port: str) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=1)
    server = limited.server
    with Peer(server.port if port == "acked" else server.silent_port) as peer:
        peer.send(limited.slow + b"".join(event(f"e{number}") for number in range(1500)))
        wait_until(lambda: limited.stats()["received"] >= 500)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
        if port == "acked":
            said = [reply["status"] for reply in peer.rest()]
            acked = said.count("stored")
            assert said == ["ok"] + ["stored"] * acked + ["error"] * (1500 - acked)
        else:
            acked = 1500
    server.start()
    assert limited.stats()["stored_total"] == acked


# --- what counts


def test_each_refused_member_of_a_batch_counts(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=100, publish=["app"])
    members = b",".join(event(f"e{number}", "db").strip() for number in range(200))
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        started = time.monotonic()
        assert peer.ask(b"[" + members + b"]\n")["rejected"] == 200
        assert peer.ask(b"PING\n")["pong"]
        assert time.monotonic() - started >= 1.4, "200 events, less the burst"


def test_each_text_counts_that_may_not_be_published(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, "--wrap-port", "0", events_per_s=10, publish=["db"])
    with Peer(limited.server.wrap_port) as peer:
        peer.send(limited.slow + b"a text\n" * 500)
        wait_until(lambda: limited.stats()["rejected"] >= 300)
        assert limited.is_slowed()


def test_each_event_counts_of_a_chunk_that_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    pytest.importorskip("msgpack", reason="the Forward port needs the extra forward")
    limited = Limited(
        start_server, tmp_path, "--forward-port", "0", events_per_s=10, publish=["app"], address=["127.0.0.0/8"]
    )
    with ForwardPeer(limited.server.port_of("forward")) as peer:
        peer.send(forward("db", [{"n": number} for number in range(1000)], "c"))
        assert peer.answer() is None
    with ForwardPeer(limited.server.port_of("forward")) as peer:
        peer.send(forward("app", [{"n": 1}]))
        wait_until(limited.is_slowed)


# --- the end of a pause


def test_a_pause_ends_with_its_rate(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=0.1)
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        peer.send(b"".join(event(f"e{number}") for number in range(300)))
        wait_until(limited.is_slowed)
        peer.send(event("last"))
        limited.write(events_per_s=10_000)
        limited.server.signal(signal.SIGHUP)
        assert [reply["status"] for reply in peer.replies(301)] == ["stored"] * 301


def test_no_pause_hides_that_a_client_has_gone(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=0.1, changes=[changes.short_looks])
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        peer.send(event("e") * 100)
        wait_until(limited.is_slowed)
    wait_until(lambda: limited.stats()["connections"] == 1)


def test_another_connection_does_not_get_round_a_rate(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=0.1)
    with Peer(limited.server.port) as one, Peer(limited.server.port) as other:
        one.ask(limited.slow)
        one.send(event("e") * 100)
        wait_until(limited.is_slowed)
        wait_until(lambda: limited.stats()["unique_processed"] == 1)
        other.ask(limited.slow)  # AUTH is answered at once
        other.send(event("f"))
        wait_until(lambda: limited.slowed() == 2)
        assert limited.stats()["unique_processed"] == 1
