"""What an administrator may set, each with the reason for its default. Every other limit is beside what it bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


class Anonymous(StrEnum):
    """Who is let in without being known."""

    LOOPBACK = "loopback"
    """Whoever is on this machine: at a loopback address, or on a unix socket."""
    NONE = "none"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator may set; `aggregator serve --help` shows the same list."""

    host: str = "127.0.0.1"
    """Loopback unless told otherwise, because whoever is there need not say who he is."""

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

    tls_host: str = "*"
    """Where the TLS ports listen: they are there for other machines."""

    tls_port: int | None = None
    """The acked port over TLS; 0 means any free one, None means that there is none."""

    tls_silent_port: int | None = None
    """The same for the silent port; 6514 is usual for syslog over TLS (RFC 5425)."""

    tls_cert: Path | None = None
    """The server's certificate in PEM, with those between it and the root behind it."""

    tls_key: Path | None = None
    """Its key in PEM, not encrypted; None: it is in the same file."""

    tls_client_ca: Path | None = None
    """The certificates that those of clients have to be signed by; None: no client is asked for one."""

    tls_crl: Path | None = None
    """Their revocation lists. Without one that is valid now no certificate of that CA is taken."""

    socket: Path | None = None
    """The unix socket that answers like the acked port; None: there is none."""

    silent_socket: Path | None = None
    """The unix socket that is silent like the silent port; None: there is none."""

    socket_mode: str = "0660"
    """Who may connect to the unix sockets, as chmod(1) takes it: who may write to the file. Its group by default."""

    anonymous: Anonymous = Anonymous.LOOPBACK
    """Who is let in without being known: as before there were identities. Behind a proxy on this machine everybody
    comes from loopback."""

    identities: Path | None = None
    """The file that says who may do what; None: nobody is known but the superuser and the server's own user."""

    auth_timeout_s: float = 10.0
    """How long a client may take to authenticate, from the accept on: a TLS handshake over a bad link takes a second
    or two."""

    max_pending: int = 64
    """Unauthenticated clients at a time. When one more comes the oldest is dropped, so a legitimate client is served if
    fewer than this come while it authenticates."""

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

    log_level_file: Path | None = None
    """The file with the log level, which is read again at SIGHUP; None: the level stays as it is."""
