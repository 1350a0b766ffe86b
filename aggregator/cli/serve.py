"""``aggregator serve``: the server."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import logging
import os
import sys
from collections.abc import Callable
from itertools import combinations
from typing import Final, NoReturn

import uvloop

from aggregator.cli.parser import (
    Commands,
    anonymous,
    count,
    database,
    field,
    file,
    host,
    lanes,
    log_level,
    mode,
    option,
    port,
    port_or_off,
    seconds,
    size,
    standbys,
    topic_template,
    unknown_variables,
)
from aggregator.config import Config
from aggregator.server import log as server_log
from aggregator.server.port import PORTS
from aggregator.server.server import CannotStart, End, serve
from aggregator.server.sockets import CannotListen
from aggregator.storage.engine import StorageUnusable

log = logging.getLogger("aggregator")

SWITCH_INTERVAL_S: Final = 0.0001
"""How long Python lets one thread run while another waits, instead of 5 ms: the database's thread asks for the
interpreter several times a batch. With 0.5 ms the median latency at half load was half as long again; 0.02 ms are no
better, and the switching begins to cost."""

GC_THRESHOLDS: Final = (100_000, 20, 100)
"""When Python looks for reference cycles, instead of after every 700 new objects: a batch makes tens of thousands of
objects, none of them in a cycle, and all are gone with the next batch. Measured: 9 % more events a second."""

UMASK: Final = 0o027
"""The files are for the server's user and group only, because anybody who can read them can read every event."""


def add_command(commands: Commands) -> None:
    """Add ``serve`` to the commands."""
    server = commands.add_parser("serve", help="run the server (the default)")
    server.set_defaults(run=run, parser=server)
    defaults = Config()
    option(server, "--host", host, defaults.host, "address that the plain ports listen on")
    option(server, "--port", port, defaults.port, "acked port; 0: any free one")
    option(server, "--silent-port", port_or_off, defaults.silent_port, "port that never writes a byte; 0: any; off")
    option(server, "--forward-port", port_or_off, defaults.forward_port, "port for Forward; 0: any; off", shown="off")
    option(
        server, "--forward-shared-key-file", file, None, "file with the key that Forward clients must know",
        shown="none",
    )  # fmt: skip
    option(server, "--forward-id", field, None, "field of a Forward record to use as event_id", shown="the chunk's")
    option(server, "--forward-source", field, None, "field of a Forward record to use as source", shown="the peer")
    option(server, "--forward-chunk-bytes", size, defaults.forward_chunk_bytes, "longest Forward message")
    option(server, "--wrap-port", port_or_off, defaults.wrap_port, "port that takes any text; 0: any; off", shown="off")
    option(
        server, "--wrap-topic", topic_template, defaults.wrap_topic,
        "topic of wrapped texts, such as logs.{program|app}",
    )  # fmt: skip
    option(server, "--wrap-id-field", field, defaults.wrap_id_field, "JSON field to use as event_id", shown="a UUID")
    option(server, "--tls-host", host, defaults.tls_host, "address that the TLS ports listen on")
    option(server, "--tls-port", port_or_off, defaults.tls_port, "acked port over TLS; 0: any; off", shown="off")
    option(server, "--tls-silent-port", port_or_off, defaults.tls_silent_port, "silent port over TLS", shown="off")
    option(server, "--tls-cert", file, None, "certificate in PEM, with its chain", shown="none")
    option(server, "--tls-key", file, None, "its key in PEM", shown="in the same file")
    option(server, "--tls-client-ca", file, None, "CA that signs clients' certificates", shown="none")
    option(server, "--tls-crl", file, None, "revocation lists of that CA in PEM", shown="none")
    option(server, "--socket", file, None, "unix socket that answers like --port", shown="none")
    option(server, "--silent-socket", file, None, "unix socket like --silent-port", shown="none")
    option(server, "--socket-mode", mode, defaults.socket_mode, "who may connect to the unix sockets")
    option(server, "--anonymous", anonymous, defaults.anonymous, "who need not authenticate: loopback, none, all")
    option(server, "--identities", file, None, "file that says who may do what", shown="none")
    option(server, "--auth-timeout", seconds, defaults.auth_timeout_s, "seconds to authenticate", "auth_timeout_s")
    option(server, "--max-pending", count, defaults.max_pending, "unauthenticated clients at a time")
    option(server, "--db", database, defaults.db, "database file (its folder is created), or postgresql://…")
    option(server, "--lanes", lanes, defaults.lanes, "lanes of a PostgreSQL database", shown="as it has; 1 at first")
    option(server, "--standbys", standbys, defaults.standbys, "synchronous standbys that PostgreSQL must wait for")
    option(server, "--queue-events", count, defaults.queue_events, "events waiting to be stored")
    option(server, "--queue-bytes", size, defaults.queue_bytes, "the same in bytes")
    option(server, "--max-batch", count, defaults.max_batch, "events in one transaction")
    option(server, "--wal-limit-bytes", count, defaults.wal_limit_bytes, "WAL size above which nothing is stored")
    option(server, "--max-line-bytes", size, defaults.max_line_bytes, "longest line")
    option(server, "--max-connections", count, defaults.max_connections, "clients at a time")
    option(server, "--address-connections", count, defaults.address_connections, "clients at a time from one address")
    option(server, "--line-timeout", seconds, defaults.line_timeout_s, "seconds to finish a line", "line_timeout_s")
    option(server, "--reply-buffer-bytes", size, defaults.reply_buffer_bytes, "replies waiting for one client")
    option(
        server, "--drain-timeout", seconds, defaults.drain_timeout_s, "seconds to end at shutdown", "drain_timeout_s"
    )
    option(server, "--log-level", log_level, defaults.log_level, "debug, info, warning or error")
    option(server, "--log-level-file", file, None, "file with the level, read again at SIGHUP", shown="none")


def run(options: argparse.Namespace) -> int:
    """Serve until stopped; return the exit code."""
    config = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    for one, other in combinations(PORTS, 2):
        if (number := one.number(config)) and number == other.number(config):
            options.parser.error(f"{one.option} and {other.option} are both {number}")
    os.umask(os.umask(UMASK) | UMASK)  # a stricter umask stays
    to_stderr = server_log.start(config.log_level)
    for remark in options.remarks:
        log.warning(remark)
    if unknown := unknown_variables(options.variables):
        log.warning("ignored, because they are not options: %s", ", ".join(unknown))
    try:
        run_server(config)
    except (CannotStart, CannotListen, StorageUnusable) as error:
        to_stderr.say(f"aggregator: {error}")
    except Exception:  # a defect of ours
        log.critical("cannot continue", exc_info=True)
    return 1


def run_server(config: Config, new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> NoReturn:
    """Run the event loop, and end the process. Raises as ``serve`` does."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        end = runner.run(serve(config))
        logging.shutdown()
        os._exit(1 if end is End.BADLY else 0)
