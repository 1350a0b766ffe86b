"""A private network for one program: its own loopback, its own hosts file, and a name server that never answers.

Nothing outside is touched, and all of it disappears with the program.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import pytest

_SCRIPT: Final = """
set -e
ip link set lo up
if [ "$1" = without ]; then echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; fi
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/resolv.conf" /etc/resolv.conf
ip link add near type veth peer name far  # what goes to the name server ends in a cable
ip address add 192.0.2.1/24 dev near
ip link set near up
ip link set far up
ip neighbour add 192.0.2.53 lladdr 02:00:00:00:00:01 dev near
shift 2
exec "$@"
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")), reason="needs root, unshare and ip"
)


def private_network(folder: Path, ipv6: bool = True) -> tuple[str, ...]:
    """The words to put before a command so that it runs there."""
    (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (folder / "resolv.conf").write_text("nameserver 192.0.2.53\noptions timeout:30 attempts:3\n")
    return ("unshare", "--net", "--mount", "sh", "-c", _SCRIPT, "sh", "with" if ipv6 else "without", str(folder))
