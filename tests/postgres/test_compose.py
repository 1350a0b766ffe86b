"""docker-compose.postgres.yml: the programs in it are run here exactly as it writes them, but without containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import ROOT, postgres
from tests.harness.polling import wait_until
from tests.harness.postgres import new_folder, program_path, user
from tests.harness.server_process import StartServer
from tests.harness.wire import event, exchange, free_port

FILE: Final = ROOT / "docker-compose.postgres.yml"
READ: Final = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"


@pytest.fixture
def services() -> Any:
    """The contents of the file, parsed by Debian's own Python, which has a YAML parser beside docker-compose."""
    done = subprocess.run(["/usr/bin/python3", "-c", READ], input=FILE.read_text(), capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no python3-yaml")
    return json.loads(done.stdout)["services"]


def test_the_file_is_valid_and_publishes_to_this_machine_only() -> None:
    ports = re.findall(r'^ +- "([0-9.:]+)"', FILE.read_text(), re.MULTILINE)
    assert ports == [f"127.0.0.1:{port}" for port in ("8080:8080", "8081:8081", "9080:8080", "9081:8081")]
    for compose in (["docker", "compose"], ["docker-compose"]):  # the plugin, and Debian's package
        if shutil.which(compose[0]) and subprocess.run([*compose, "version"], capture_output=True).returncode == 0:
            done = subprocess.run([*compose, "--file", FILE, "config", "--quiet"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("neither docker compose nor docker-compose is installed")


@contextmanager
def service(one: Any, folder: Path, name: str, port: int, **hosts: str) -> Iterator[None]:
    """Run one PostgreSQL of the file on a port of its own, with addresses in place of host names."""
    words = [word.replace("$$", "$") for word in (*one["entrypoint"], *one["command"])]
    for host, address in hosts.items():
        words = [word.replace(f"host={host}", address) for word in words]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PG")},
        **one["environment"],
        "PGDATA": str(folder / name),
        "PGPORT": str(port),
        "PATH": f"{program_path('postgres').parent}:{os.environ['PATH']}",
        "LC_ALL": "C",
    }
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd="/", **user()
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)  # the stop signal of the image
        process.wait(60)


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_two_servers_over_what_the_file_starts(
    services: Any, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From empty volumes, and once more from the volumes that the first round has filled."""
    if reason := postgres.missing():
        pytest.skip(reason)
    folder = new_folder()
    first, second = free_port(), free_port()
    settings = services["aggregator"]["environment"]
    assert services["aggregator2"]["environment"] == settings
    monkeypatch.setenv("PGPASSWORD", settings["PGPASSWORD"])
    hosts = settings["AGGREGATOR_DB"].replace("primary,standby", f"127.0.0.1:{first},127.0.0.1:{second}")
    try:
        for status in ("stored", "duplicate"):
            with (
                service(services["primary"], folder, "primary", first),
                service(services["standby"], folder, "standby", second, primary=f"host=127.0.0.1 port={first}"),
            ):
                wait_until(lambda: b"streaming" in (folder / "standby.log").read_bytes(), 60)
                servers = [start_server("--standbys", settings["AGGREGATOR_STANDBYS"], url=hosts) for _ in range(2)]
                replies = [exchange(server.port, event("e"))[0] for server in servers]
                told = [reply["status"] for reply in replies]
                assert told == [status, "duplicate"], replies
                for server in servers:
                    assert server.stop() == 0
            (folder / "standby.log").write_bytes(b"")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
