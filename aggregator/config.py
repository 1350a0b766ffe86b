"""What an administrator may set, each with the reason for its default. Every other limit is beside what it bounds."""

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
    """The port that never writes a byte; 0 means any free one, None means that there is none."""

    forward_port: int | None = None
    """The port that takes Forward; 0 means any free one, None means that there is none."""

    forward_shared_key_file: Path | None = None
    """The file with the key that Forward clients must know; None: whoever connects may send."""

    forward_id: str | None = None
    """The field of a Forward record that is the event_id; None: the chunk's name and the index in it."""

    forward_source: str | None = None
    """The field of a Forward record that is the source; None: the peer's address."""

    forward_chunk_bytes: int = 16 * MIB
    """Longest Forward message: Fluent Bit's chunks have 2 MB, Fluentd's in memory 8 MB, and a little around them."""

    wrap_port: int | None = None
    """The port that makes an event of whatever text arrives; 0 means any free one, None means that there is none."""

    wrap_topic: str = "app"
    """The topic of what is wrapped: a template, by the grammar in ``wrap.topic``."""

    wrap_id_field: str | None = None
    """The field of a JSON object that is its event_id; None: a random UUID, because equal lines are no duplicates."""

    db: Path | str = Path("data/events.db")
    """The database file, whose folder is made; or the URL of a PostgreSQL database, which many servers may share."""

    lanes: int | None = None
    """Lanes of a PostgreSQL database; None: as many as it has, and one at first. Where there are several, more servers
    store at once, and readers have one order for each topic, not one of all events."""

    standbys: int = 0
    """Synchronous standbys that PostgreSQL must be set to wait for: nothing is stored while it is set to fewer."""

    queue_events: int = 30_000
    """Events read but not yet handed to a commit: four busy clients can have one full batch committed, one decided, and
    one filled at a time. With fewer they wait for their share, while the next batch could be read."""

    queue_bytes: int = 64 * MIB
    """The same bound for large events: 10,000 events of 6 KiB."""

    max_batch: int = 10_000
    """Events in one transaction. 3,000 were measured 17 % slower, 20,000 4 % faster but twice as late."""

    wal_limit_bytes: int = 1024 * MIB
    """Above this nothing is stored until a checkpoint succeeds (another program reads, or the disk fails): the WAL must
    not fill the disk. It is many times what a checkpoint in time leaves, so reading for a minute holds up nobody."""

    max_line_bytes: int = MIB
    """Longest line. rsyslog and syslog-ng send at most 256 KiB unless configured up."""

    max_connections: int = 960
    """With the spare descriptors below 1,024, the usual limit, in many containers the hard one. log4js alone was seen
    to open 279."""

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
