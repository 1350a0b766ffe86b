"""Environment variables: when they are read, and what is said of those that nothing reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import DEADLINE_S
from tests.harness.private_network import needs_root, private_network
from tests.harness.server_process import ServerProcess, StartServer

LINK = "tcp://10.0.0.1:8080"

KUBERNETES = {
    "AGGREGATOR_SERVICE_HOST": "10.0.0.1",
    "AGGREGATOR_SERVICE_PORT": "8080",
    "AGGREGATOR_SERVICE_PORT_ACKED": "8080",
    "AGGREGATOR_PORT": LINK,
    "AGGREGATOR_PORT_8080_TCP": LINK,
    "AGGREGATOR_PORT_8080_TCP_PROTO": "tcp",
    "AGGREGATOR_PORT_8080_TCP_PORT": "8080",
    "AGGREGATOR_PORT_8080_TCP_ADDR": "10.0.0.1",
    "AGGREGATOR_SILENT_SERVICE_HOST": "10.0.0.1",
    "AGGREGATOR_SILENT_PORT": "tcp://10.0.0.1:8081",
    "AGGREGATOR_SILENT_PORT_8081_TCP_ADDR": "10.0.0.1",
}
"""The variables that Kubernetes sets in a namespace with the services aggregator and aggregator-silent."""

VARIABLES = [
    "AGGREGATOR_" + name.upper().replace("-", "_")
    for name in re.findall(r"^\| `--([a-z-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
]

ANY_TEXT = [
    f"AGGREGATOR_{name}"
    for name in (
        "HOST", "DB", "IDENTITIES", "WRAP_TOPIC", "WRAP_ID_FIELD", "FORWARD_SHARED_KEY_FILE", "FORWARD_ID",
        "FORWARD_SOURCE", "TLS_HOST", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_CRL", "SOCKET", "SILENT_SOCKET",
        "LOG_LEVEL_FILE",
    )
]  # fmt: skip
"""For these variables a question mark is a valid value."""


def warnings(server: ServerProcess) -> list[str]:
    return re.findall(r"WARNING (.*)", server.log)


def test_a_variable_is_judged_only_by_the_command_that_needs_it(server: ServerProcess) -> None:
    bad = dict.fromkeys([*VARIABLES, "AGGREGATOR_TO"], "?")
    assert aggregator("--version", environment=bad).returncode == 0
    assert aggregator("serve", "--help", environment=bad).returncode == 0
    done = aggregator("admin", "--to", f"127.0.0.1:{server.port}", "PING", environment=bad)
    assert (done.returncode, done.stderr) == (0, "")
    bad |= dict.fromkeys(["AGGREGATOR_CA", "AGGREGATOR_CERT", "AGGREGATOR_KEY"], "?")  # needed only for TLS
    done = aggregator("send", "--to", f"127.0.0.1:{server.port}", "/dev/null", environment=bad)
    assert done.returncode == 0
    assert_one_line(aggregator("admin", "PING", environment=bad), 2, "AGGREGATOR_TO", "'?'")


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name not in ANY_TEXT])
def test_a_variable_that_is_wrong_is_named(tmp_path: Path, variable: str) -> None:
    assert_one_line(aggregator(cwd=tmp_path, environment={variable: "?"}), 2, f"serve: {variable}: ", "'?'")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_wins(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGREGATOR_PORT", LINK)
    monkeypatch.setenv("AGGREGATOR_SILENT_PORT", "no number")
    monkeypatch.setenv("AGGREGATOR_MAX_BATCH", "0")
    monkeypatch.setenv("AGGREGATOR_QUEUE_EVENTS", "123")
    server = start_server("--max-batch", "7")
    assert server.ask("STATS")["queue_limit"] == 123
    assert warnings(server) == []


def test_what_is_set_but_empty_is_not_set(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "AGGREGATOR_NONSENSE"):
        monkeypatch.setenv(variable, "")
    server = start_server()
    assert f"acked port 127.0.0.1:{server.port}, " in server.log
    assert server.ask("STATS")["queue_limit"] == 30_000
    assert warnings(server) == []
    done = aggregator("admin", "PING", environment={"AGGREGATOR_TO": "", "AGGREGATOR_PORT": str(server.port)})
    assert done.returncode == 0


def test_an_unknown_variable_is_said_once(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KUBERNETES, "AGGREGATOR_TO": "elsewhere:80", "AGGREGATOR_QUEUE_EVENT": "5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGGREGATOR_HOSTS", "0.0.0.0")
    server = start_server()
    assert warnings(server) == ["no options, and ignored: AGGREGATOR_HOSTS, AGGREGATOR_QUEUE_EVENT"]
    assert aggregator("admin", "--to", f"127.0.0.1:{server.port}", "PING").stderr == ""


@pytest.mark.root
@needs_root
def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_port(tmp_path: Path) -> None:
    """On a private network, because the default ports may be in use on this machine."""
    (tmp_path / "home").mkdir()
    with subprocess.Popen(
        [*private_network(tmp_path), sys.executable, "-m", "aggregator"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path / "home",
        env={**os.environ, "PYTHONPATH": str(ROOT), **KUBERNETES},
    ) as server:  # fmt: skip
        assert server.stderr
        lines = [server.stderr.readline() for _ in range(3)]
        server.terminate()
        assert server.wait(DEADLINE_S) == 0
    for variable, line in zip(("AGGREGATOR_PORT", "AGGREGATOR_SILENT_PORT"), lines, strict=False):
        assert f"WARNING {variable}={KUBERNETES[variable]} is ignored: Kubernetes sets it" in line
    assert "ready: acked port 127.0.0.1:8080, silent port 127.0.0.1:8081, " in lines[2]


@pytest.mark.root
@needs_root
def test_admin_says_that_it_ignores_it(tmp_path: Path) -> None:
    done = aggregator("admin", "PING", prefix=private_network(tmp_path), environment=KUBERNETES)
    ignored, refused = done.stderr.splitlines()
    assert ignored.startswith(f"aggregator: AGGREGATOR_PORT={LINK} is ignored: Kubernetes sets it")
    assert refused == "aggregator: 127.0.0.1:8080: Connection refused"
    assert done.returncode == 1


def test_no_name_of_a_database_is_an_error(tmp_path: Path) -> None:
    assert_one_line(aggregator("--db", "", "--port", "0", cwd=tmp_path), 2, "--db: expected the name of a file")
    assert list(tmp_path.iterdir()) == []
