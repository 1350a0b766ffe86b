"""What an administrator may set, with the reason for each default. Every other limit is next to the code it bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


class Anonymous(StrEnum):
    """Which clients are let in without authenticating."""

    LOOPBACK = "loopback"
    """Clients on this machine: at a loopback address, or on a unix socket."""
    NONE = "none"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator may set; `aggregator serve --help` shows the same list."""

    host: str = "127.0.0.1"
    """Loopback by default, because clients on this machine need not authenticate."""

    port: int = 8080
    """The acked port; 0 means any free port."""

    silent_port: int | None = 8081
    """The port that never writes a byte; 0 means any free port, None means no such port."""

    forward_port: int | None = None
    """The port that takes Forward; 0 means any free port, None means no such port."""

    forward_shared_key_file: Path | None = None
    """The file with the key that Forward clients must know; None: no key is asked for, and a client may send if it is
    known without saying who it is, by its address for example, or let in as anonymous."""

    forward_id: str | None = None
    """The field of a Forward record that holds the event_id; None: the event_id is made of the chunk's name and the
    record's index in the chunk."""

    forward_source: str | None = None
    """The field of a Forward record that holds the source; None: the source is the peer's address."""

    forward_chunk_bytes: int = 16 * MIB
    """Longest Forward message: Fluent Bit's chunks have 2 MB, Fluentd's in-memory chunks 8 MB, and a little around
    them."""

    wrap_port: int | None = None
    """The port that makes events of whatever text arrives; 0 means any free port, None means no such port."""

    wrap_topic: str = "app"
    """The topic of wrapped texts: a template in the grammar of ``wrap.topic``."""

    wrap_id_field: str | None = None
    """The field of a JSON object that holds its event_id; None: the event_id is a random UUID, because equal lines are
    not duplicates."""

    tls_host: str = "*"
    """The address that the TLS ports listen on. By default every address, because these ports serve other machines."""

    tls_port: int | None = None
    """The acked port over TLS; 0 means any free port, None means no such port."""

    tls_silent_port: int | None = None
    """The same for the silent port; 6514 is usual for syslog over TLS (RFC 5425)."""

    tls_cert: Path | None = None
    """The server's certificate in PEM, followed by the intermediate certificates."""

    tls_key: Path | None = None
    """The certificate's key in PEM, not encrypted; None: the key is in the same file as the certificate."""

    tls_client_ca: Path | None = None
    """The CA certificates that must have signed the clients' certificates; None: no client is asked for a
    certificate."""

    tls_crl: Path | None = None
    """The revocation lists of the client CAs. A certificate of a CA without a currently valid list is refused."""

    socket: Path | None = None
    """The unix socket that answers like the acked port; None: no such socket."""

    silent_socket: Path | None = None
    """The unix socket that is silent like the silent port; None: no such socket."""

    socket_mode: str = "0660"
    """The mode of the unix sockets' files, in octal as for chmod(1). Whoever may write to the file may connect: by
    default its owner and its group."""

    anonymous: Anonymous = Anonymous.LOOPBACK
    """Which clients are let in without authenticating. The default is what the server did before there were
    identities. Behind a proxy on this machine, every client comes from loopback."""

    identities: Path | None = None
    """The file that says who may do what; None: only the superuser and the server's own user are known."""

    auth_timeout_s: float = 10.0
    """How long a client may take to authenticate, counted from the accept. A TLS handshake over a bad link takes a
    second or two."""

    max_pending: int = 64
    """Unauthenticated clients at a time. When one more arrives, the oldest is dropped. So a legitimate client is served
    if fewer than this arrive while it authenticates."""

    db: Path | str = Path("data/events.db")
    """The database file, whose folder is created; or the URL of a PostgreSQL database, which many servers may share."""

    lanes: int | None = None
    """Lanes of a PostgreSQL database; None: as many as it already has, and one in a new database. With several lanes,
    more servers store at once, and readers see one order for each topic instead of one order of all events."""

    standbys: int = 0
    """Synchronous standbys that PostgreSQL must be set to wait for. Nothing is stored while it is set to fewer."""

    queue_events: int = 30_000
    """Events read but not yet handed to a commit. The default lets four busy clients have one full batch committed, one
    decided and one filled at the same time. With a shorter queue they wait for their share although the next batch
    could be read."""

    queue_bytes: int = 64 * MIB
    """The same limit in bytes, for large events: 10,000 events of 6 KiB."""

    max_batch: int = 10_000
    """Events in one transaction. 3,000 were measured 17 % slower; 20,000 were 4 % faster, but acks came twice as
    late."""

    wal_limit_bytes: int = 1024 * MIB
    """While the WAL is larger than this, nothing is stored until a checkpoint succeeds: the WAL must not fill the disk.
    Checkpoints fail while another program reads, or because the disk fails. The limit is many times what a checkpoint
    in time leaves, so a program that reads for a minute holds up nobody."""

    max_line_bytes: int = MIB
    """Longest line. rsyslog and syslog-ng send at most 256 KiB unless configured up."""

    max_connections: int = 960
    """Together with the spare descriptors this stays below 1,024, which is the usual descriptor limit and in many
    containers the hard limit. log4js alone was seen to open 279 connections."""

    address_connections: int = 720
    """The same limit for one address: three quarters, so that a host that leaks connections leaves slots for others,
    the administrator among them. Not fewer, because all clients on this machine, or behind one router, have one
    address."""

    line_timeout_s: float = 120.0
    """How long a line that has begun may stay unfinished. Keepalive waits as long for a vanished peer, so a link that
    is cut in the middle of a line and comes back costs nothing. A line of a mebibyte then needs 70 kbit/s. Between its
    lines a client may be silent for ever."""

    reply_buffer_bytes: int = MIB
    """Replies that may wait in this process for one client that reads slowly: those to about 10,000 events."""

    drain_timeout_s: float = 5.0
    """How long a stopping server goes on reading from its silent clients; Docker sends SIGKILL after 10 s."""

    log_level: str = "info"

    log_level_file: Path | None = None
    """The file with the log level, which is read again at SIGHUP; None: the level never changes."""
