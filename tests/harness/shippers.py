"""Real log shippers, unpacked by tests/shippers/install, with the configuration files that the README shows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT

CONFIGURATIONS: Final = ROOT / "tests" / "shippers"
UNPACKED: Final = Path(os.environ.get("SHIPPERS_DIR", "/opt/aggregator-shippers"))

SHIPPED_S: Final = 60.0
"""How long a shipper may take to send everything that a test writes."""

PACKAGES: Final = {"gtls": "rsyslog-gnutls", "ossl": "rsyslog-openssl"}
"""Debian's packages of rsyslog's drivers for TLS."""


class Shippers:
    """Shippers that were started, and keep their state in one folder. The test has to ``end`` them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, configuration: str, replacements: Mapping[str, str], package: str = "") -> None:
        """Start the shipper of this configuration, with these paths and ports in place of those that it shows."""
        is_rsyslog = configuration.startswith("rsyslog")
        here = {**replacements, **({"/var/spool/rsyslog": f"{self._folder}"} if is_rsyslog else {})}
        text = (CONFIGURATIONS / configuration).read_text()
        for shown, instead in here.items():
            assert text.count(shown) == 1, shown
            text = text.replace(shown, instead)
        rewritten = self._folder / configuration
        rewritten.write_text(text)
        command, libraries = (rsyslog if is_rsyslog else syslog_ng)(rewritten, self._folder, package)
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
        self._running.append(subprocess.Popen(command, env=environment))

    def end(self) -> None:
        for shipper in self._running:
            shipper.terminate()
        for shipper in self._running:
            try:
                shipper.wait(10)
            except subprocess.TimeoutExpired:
                shipper.kill()
                shipper.wait()


def rsyslog(configuration: Path, state: Path, package: str = "") -> tuple[list[str], str]:
    """Its command line, and the folder of its libraries."""
    folder = _unpacked(package or "rsyslog")
    libraries = next(folder.glob("usr/lib/*-linux-*"))
    command = [f"{folder}/usr/sbin/rsyslogd", "-n", "-iNONE", "-M", f"{libraries}/rsyslog", "-f", f"{configuration}"]
    return command, f"{libraries}"


def syslog_ng(configuration: Path, state: Path, package: str = "") -> tuple[list[str], str]:
    folder = _unpacked("syslog-ng-core")
    modules = next(folder.glob("usr/lib/syslog-ng/3*"))
    command = [
        f"{folder}/usr/sbin/syslog-ng", "--foreground", "--no-caps", "--module-path", f"{modules}",
        "--cfgfile", f"{configuration}", "--persist-file", f"{state}/syslog-ng.persist",
        "--control", f"{state}/syslog-ng.ctl", "--pidfile", f"{state}/syslog-ng.pid",
    ]  # fmt: skip
    libraries = [modules.parent, *folder.glob("usr/lib/*-linux-*"), *folder.glob("lib/*-linux-*")]
    return command, ":".join(map(str, libraries))


def _unpacked(package: str) -> Path:
    if not (UNPACKED / package).exists():
        pytest.skip(f"{package} is not in {UNPACKED}: run {CONFIGURATIONS / 'install'}")
    return UNPACKED / package
