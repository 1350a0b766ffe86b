"""Every limit of the server, each with its reason beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator may set; `aggregator serve --help` shows the same list."""

    host: str = "127.0.0.1"
    """Loopback unless told otherwise: there is no authentication."""

    port: int = 8080
    """The acked port; 0 means any free one."""

    silent_port: int | None = 8081
    """The port that never writes a byte; 0 means any free one, None means none."""

    db: Path = Path("data/events.db")
    """The database file; its folder is made."""

    queue_events: int = 30_000
    """Events read but not yet handed to a commit: four busy clients can have one full batch committed, one decided, and
    one filled at a time. With fewer they wait for their share, while the next batch could be read."""

    queue_bytes: int = 64 * MIB
    """The same bound for large events: 10,000 events of 6 KiB."""

    max_batch: int = 10_000
    """Events in one transaction. 3,000 were measured 17 % slower, 20,000 4 % faster but twice as late."""

    wal_limit_bytes: int = 1024 * MIB
    """Above this nothing is stored until a checkpoint succeeds (another program reads, or the disk fails): the WAL must
    not fill the disk. Many times what a checkpoint in time leaves, so that reading for a minute holds up nobody."""

    max_line_bytes: int = MIB
    """Longest line. rsyslog and syslog-ng send at most 256 KiB unless configured up."""

    max_connections: int = 960
    """With SPARE_DESCRIPTORS below 1,024, the usual limit, in many containers the hard one. log4js alone was seen to
    open 279."""

    address_connections: int = 720
    """The same from one address: three quarters, so that one host that leaks connections leaves places to the others,
    the administrator's among them. Not fewer: all that is on this machine, or behind one router, has one address."""

    line_timeout_s: float = 120.0
    """How long a line that has begun may stay unfinished. As long as a peer that has vanished is waited for: a link
    that was cut in the middle of a line and comes back costs nothing. A mebibyte then needs 70 kbit/s. A client that
    is silent between its lines may be so for ever."""

    reply_buffer_bytes: int = MIB
    """Replies waiting in this process for one client that reads slowly: those of about 10,000 events."""

    drain_timeout_s: float = 5.0
    """How long a stopping server goes on reading from its silent clients; Docker sends SIGKILL after 10 s."""

    log_level: str = "info"


IN_FLIGHT_DIVISOR: Final = 4
"""One connection may have this part of the queue in flight, so that a flooder shares the queue instead of owning it;
four connections together can still fill it."""

TURN_LINES: Final = 500
"""Lines of one connection judged in one turn of the loop, about 1 ms: the end of a commit is noticed, and the next one
started, only between turns. 250 were no better, all that one read brings some 10 % slower."""

PIECE_LINES: Final = 100
"""Lines that are judged together, in three quarters of the time that they take one by one; with fewer the fixed cost
shows. If one among them is no plain event, they are judged one by one after all."""

FEWEST_PIECE_LINES: Final = 6
"""Up to five lines take less time one by one."""

GATHER_EVENTS: Final = 256
GATHER_S: Final = 0.004
"""While so many events wait, a connection from which fewer than PIECE_LINES were read is read on only after this time.
At half of peak over 8 connections, each read has a dozen lines, and to read, judge and answer them by the dozen took a
tenth more processor time, and a quarter more in the percentiles. With fewer events waiting a commit is over sooner than
this."""

LOW_WATER_DIVISOR: Final = 2
"""Paused senders are resumed at this part of a limit: half keeps the consumer busy while they wake up."""

TRUNCATE_DIVISOR: Final = 4
"""A WAL file of more than this part of its limit is cut at the next checkpoint, which waits for readers for that: those
that always overlap would keep it from ever starting anew."""

REPLY_DEADLINE_S: Final = 5.0
"""How long a client may leave its reply buffer full before it is muted. Long enough for a busy reader to come back,
short enough that a fire-and-forget sender on the wrong port is held up only once."""

TICK_S: Final = 1.0
"""How often unfinished lines are looked at. Their age is counted in these looks, not by the clock: if it was the
server that stood still, nobody is to blame."""

LINGER_S: Final = 1.0
"""How long to wait for the peer's end after ours, reading and dropping: closing a socket with unread data makes the
kernel send a reset, which destroys replies that the peer has not read yet."""

BUSY_LINGER_S: Final = 0.1
"""The same for a client over the connection cap; half of the spare descriptors may wait for that at a time."""

EMPTY_BACKLOG_S: Final = 0.5
"""How long a stopping server accepts those who have connected already; thousands a second are no trouble."""

LAST_COMMIT_S: Final = 2.0
"""How long the last batches may take beyond the drain timeout: many times what a full queue takes."""

FAILURE_REPLIES_S: Final = 0.5
"""How long a server whose store has failed takes to say so to its clients before it exits."""

QUIET_S: Final = 1.0
"""A silent client that sends nothing for so long after our half of the close is closed: what it has to say next, it
says to the next server. Under load shippers send every few milliseconds."""

SPARE_DESCRIPTORS: Final = 32
"""Descriptors needed beside the connections: database, WAL, shared memory, lock, listeners, event loop, logs."""

BACKLOG: Final = 1024
"""Connections the kernel completes before we accept them; shippers come back all at once after a restart."""

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""A peer that vanished without a word is noticed after 60 + 4 x 15 s. Shippers are silent for hours: there is no idle
timeout."""

PEER_LOG_INTERVAL_S: Final = 10.0
"""What clients do wrong is logged at most once in this time for each kind of it, with the number left out."""

EVENTS_DEFAULT: Final = 10
EVENTS_MAX: Final = 1000
"""Events in one answer to EVENTS, and topics in one answer to TOPICS; the rest is a page further."""
