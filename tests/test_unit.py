"""``aggregator unit``: units that systemd accepts, with the paths of this installation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from aggregator.server.port import PORTS, Port
from tests.harness import ROOT

MOST_EXPOSED: Final = 1.2
"""The most that ``systemd-analyze security`` may report: 0 is a service that can do nothing, 10 one that can do all."""

SOCKETS: Final = [f"aggregator-{port.descriptor}.socket" for port in PORTS]

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (systemd)")


def unit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aggregator", "unit", *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all units as files."""
    for name in ("aggregator.service", *SOCKETS):
        done = unit(name)
        assert done.returncode == 0
        (tmp_path / name).write_text(done.stdout)
    return tmp_path


def test_the_service_is_this_installation() -> None:
    text = unit().stdout
    (command,) = re.findall("^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = command.split()
    assert Path(program).is_absolute()
    assert arguments == (["serve"] if program.endswith("/aggregator") else ["-m", "aggregator", "serve"])
    assert not re.search("@[A-Z]+@", text)
    assert unit("aggregator.service").stdout == text


def test_the_service_can_tell_users_apart() -> None:
    """In a user namespace it would see the kernel's overflow uid instead of each user's uid."""
    assert "PrivateUsers=no\n" in unit().stdout


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.descriptor)
def test_each_port_has_a_socket_of_its_name(port: Port) -> None:
    name = port.descriptor
    text = unit(f"aggregator-{name}.socket").stdout
    assert f"FileDescriptorName={name}\n" in text
    where = r"\d+" if port.tls else "/run/.*" if port.unix else r"127\.0\.0\.1:\d+"
    assert re.search(f"^ListenStream={where}$", text, re.MULTILINE)
    assert ("SocketMode=0660\n" in text) == port.unix
    assert not re.search("@[A-Z]+@", text)


def test_another_name_is_one_line() -> None:
    done = unit("nginx.service")
    assert (done.returncode, done.stdout) == (2, "")
    assert "aggregator-acked.socket" in done.stderr


@needs_systemd
def test_systemd_has_nothing_to_say_about_them(folder: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, folder.iterdir()))], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if "aggregator" in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_the_service_can_do_little(folder: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(folder / "aggregator.service")],
        capture_output=True, text=True,
    )  # fmt: skip
    if "--offline" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= MOST_EXPOSED
