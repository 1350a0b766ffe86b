"""Real log shippers over TLS with certificates of their own, and with the configuration files that README.md shows."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import identities, wire
from tests.harness.certificates import Authority
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.shippers import PACKAGES, SHIPPED_S, Shippers

pytestmark = pytest.mark.shipper

SHIPPERS = {
    "rsyslog gtls": ("rsyslog-tls.conf", PACKAGES["gtls"], {}),
    "rsyslog ossl": ("rsyslog-tls.conf", PACKAGES["ossl"], {'StreamDriver="gtls"': 'StreamDriver="ossl"'}),
    "syslog-ng": ("syslog-ng-tls.conf", "", {}),
}
LOST_PER_RESTART = {"syslog-ng": 1}
"""It looks for neither the end of the stream nor the end of TLS before it writes. Other shippers lose nothing."""


@pytest.fixture
def server(start_tls: StartServer, authority: Authority, tmp_path: Path) -> ServerProcess:
    known = identities.write(tmp_path / "known", {"name": "web", "cert": ["DNS:web-1"], "publish": ["t"]})
    return start_tls(
        "--identities", str(known), "--tls-client-ca", str(authority.certificate),
        prefix=("setsid",),
    )  # fmt: skip


@pytest.fixture
def ship(server: ServerProcess, authority: Authority, tmp_path: Path) -> Iterator[Callable[[str, Path], None]]:
    shippers = Shippers(tmp_path)

    def start(name: str, log: Path) -> None:
        configuration, package, more = SHIPPERS[name]
        client = authority.issue("web-1")
        files = {"ca.pem": authority.certificate, "web-1.pem": client.certificate, "web-1.key": client.key}
        paths = {f"/etc/aggregator/{file}": f"{path}" for file, path in files.items()}
        here = {"/var/log/app.log": f"{log}", "6514": f"{server.tls_silent_port}", **paths, **more}
        shippers.start(configuration, here, package)

    yield start
    shippers.end()


def _append(log: Path, lines: list[bytes]) -> None:
    with log.open("ab") as file:
        file.writelines(lines)


@pytest.mark.parametrize("name", SHIPPERS)
def test_restarts_and_reloads_lose_nothing(
    name: str, ship: Callable[[str, Path], None], server: ServerProcess, tmp_path: Path
) -> None:
    may_lose = LOST_PER_RESTART.get(name, 0)
    log = tmp_path / "app.log"
    lines = wire.events("e", 20_000)
    _append(log, lines[:8_000])
    ship(name, log)

    def stored() -> int:
        return int(server.ask("STATS")["stored_total"])

    wait_until(lambda: stored() > 1000, SHIPPED_S)
    server.signal(signal.SIGHUP)
    _append(log, lines[8_000:10_000])
    wait_until(lambda: stored() == 10_000, SHIPPED_S)  # a reload loses nothing of any client

    _append(log, lines[10_000:14_000])
    wait_until(lambda: stored() > 10_000, SHIPPED_S)
    assert server.stop() == 0  # with lines on the way, unless the machine was late
    _append(log, lines[14_000:19_000])
    server.restart()
    wait_until(lambda: stored() >= 19_000 - may_lose, SHIPPED_S)

    assert server.stop() == 0  # with an idle shipper
    server.restart()
    _append(log, lines[19_000:])
    wait_until(lambda: stored() >= 20_000 - 2 * may_lose, SHIPPED_S)
    assert server.ask("STATS")["duplicate_dropped"] == 0
    assert server.ask("STATS")["rejected"] == 0
