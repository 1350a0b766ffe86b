"""rsyslog and syslog-ng, which write to a file what arrives over TCP: no ack, no deduplication.

They show the least that it costs to take a line at all. The time ends when the file holds every line.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.daemon import free_port, libraries, running, unpacked
from bench.peers.peer import Peer, Running, Work
from bench.peers.wire import Connection

CHUNK: Final = 500
STALL_S: Final = 60.0

RSYSLOG: Final = """
global(workDirectory="{folder}")
module(load="imtcp")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="file")
template(name="line" type="string" string="%rawmsg%\\n")
ruleset(name="file") {{ action(type="omfile" file="{output}" template="line") }}
"""

SYSLOG_NG: Final = """
@version: {version}
source tcp {{ network(ip("127.0.0.1") port({port}) flags(no-parse)); }};
destination file {{ file("{output}" template("$MSG\\n")); }};
log {{ source(tcp); destination(file); flags(flow-control); }};
"""


def peers() -> list[Peer]:
    guarantee = "no ack, no fsync, no deduplication"
    return [
        Peer("rsyslog", guarantee, False, _rsyslog, deduplicates=False),
        Peer("syslog-ng", guarantee, False, _syslog_ng, deduplicates=False),
    ]


@contextmanager
def _rsyslog(folder: Path) -> Iterator[Running]:
    package, port, output = unpacked("rsyslog"), free_port(), folder / "events.log"
    configuration = folder / "rsyslog.conf"
    configuration.write_text(RSYSLOG.format(folder=folder, port=port, output=output))
    modules = next(package.glob("usr/lib/*-linux-*/rsyslog"))
    command = [f"{package}/usr/sbin/rsyslogd", "-n", "-iNONE", "-M", f"{modules}", "-f", f"{configuration}"]
    version = _version([command[0], "-v"], package)
    with running(command, folder / "rsyslog.log", port, env=libraries(package)):
        yield _Syslog(port, output, {"rsyslog": version.split()[1]})


@contextmanager
def _syslog_ng(folder: Path) -> Iterator[Running]:
    package, port, output = unpacked("syslog-ng-core"), free_port(), folder / "events.log"
    modules = next(package.glob("usr/lib/syslog-ng/*.*"))
    configuration = folder / "syslog-ng.conf"
    configuration.write_text(SYSLOG_NG.format(version=modules.name, port=port, output=output))
    command = [
        f"{package}/usr/sbin/syslog-ng", "--foreground", "--no-caps", "--module-path", f"{modules}",
        "--cfgfile", f"{configuration}", "--persist-file", f"{folder}/syslog-ng.persist",
        "--control", f"{folder}/syslog-ng.ctl", "--pidfile", f"{folder}/syslog-ng.pid",
    ]  # fmt: skip
    version = _version([command[0], "--module-path", f"{modules}", "--version"], package)
    with running(command, folder / "syslog-ng.log", port, env=libraries(package)):
        yield _Syslog(port, output, {"syslog-ng": version.partition("(")[2].partition(")")[0]})


class _Syslog(Running):
    def __init__(self, port: int, output: Path, versions: dict[str, str]) -> None:
        self._port = port
        self._output = output
        self._versions = versions

    def send(self, work: Work) -> float:
        chunks = [b"".join([event.line for event in batch]) for batch in work.batches(CHUNK)]
        total = sum(map(len, chunks))
        connection = Connection(self._port)
        started = time.perf_counter()
        for chunk in chunks:
            connection.socket.sendall(chunk)
        self._wait_for(total)
        seconds = time.perf_counter() - started
        connection.close()
        return seconds

    def _wait_for(self, size: int) -> None:
        best, since = -1, time.monotonic()
        while (now := self._size()) < size:
            if now > best:
                best, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_S:
                return  # lines were lost, which the count of stored lines will show
            time.sleep(0.005)

    def _size(self) -> int:
        return self._output.stat().st_size if self._output.exists() else 0

    def stored(self) -> int:
        with self._output.open("rb") as file:
            return sum(1 for _ in file)

    def versions(self) -> dict[str, str]:
        return self._versions


def _version(command: list[str], package: Path) -> str:
    return subprocess.run(command, env=libraries(package), capture_output=True, text=True, check=True).stdout
