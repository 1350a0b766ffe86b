"""Users at the other end of a unix socket, and users that the kernel cannot identify."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from aggregator.access import users
from tests.harness import identities
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json

USER = 1001

IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user")


def can_have_namespaces() -> bool:
    try:
        return subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def asked_by(uid: int, path: Path, line: bytes) -> Json:
    """The server's answer to this user."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        os.seteuid(uid)
        try:
            peer.connect(str(path))
        finally:
            os.seteuid(0)
        peer.sendall(line)
        return json.loads(peer.makefile("rb").readline())


def test_what_the_kernel_says_for_users_that_it_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, uid in (("4711\n", 4711), ("", 65534), (None, 65534)):
        path = tmp_path / "overflowuid"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(users, "_OVERFLOW_UID", path)
        assert users.overflow_uid.__wrapped__() == uid


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users on a unix socket")
@pytest.mark.skipif(not can_have_namespaces(), reason="needs user namespaces (unshare of util-linux)")
@pytest.mark.parametrize("anonymous", ["loopback", "none"])
def test_a_user_that_cannot_be_told_is_no_user_of_the_file(new_server: StartServer, anonymous: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # accessible to all users
        known = identities.write(
            folder / "identities.toml", {"name": "web", "uid": [USER], "publish": ["*"], "may": ["admin"]}
        )
        server: ServerProcess = new_server(
            "--identities", str(known), "--anonymous", anonymous, "--socket", str(folder / "socket"),
            "--socket-mode", "0666", prefix=IN_A_NAMESPACE,
        ).start()  # fmt: skip
        said = asked_by(USER, folder / "socket", b"WHOAMI\n")
        if anonymous == "loopback":
            assert (said["identity"], said["by"]) == ("anonymous", "anonymous"), "but it is on this machine"
        else:
            assert said["code"] == "auth_required"
        assert asked_by(0, folder / "socket", b"WHOAMI\n")["identity"] == "administrator"
        wait_until(lambda: asked_by(0, folder / "socket", b"STATS\n")["connections"] == 1)
        server.stop()
