"""README's two ways to PostgreSQL work exactly as written: from nothing on one Debian machine, and from SQLite."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT
from tests.harness.account import Account
from tests.harness.postgres import Cluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import MOVED
from tests.harness.wire import event, exchange

SECTION: Final = (ROOT / "README.md").read_text().partition("\n## PostgreSQL\n")[2].partition("\n## ")[0]
SETUP, SERVE, MOVE = re.findall(r"^```bash\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)

FOLDERS: Final = ("/etc/postgresql", "/var/lib/postgresql", "/var/log/postgresql", "/run/postgresql")
"""Where Debian keeps clusters. The test mounts its own folders there, in a namespace that no other process sees."""


PART: Final = 200
"""How many events are sent at a time."""


class Shell:
    """A shell of root with a mount namespace of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--mount", "bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, cwd="/",
        )  # fmt: skip

    def run(self, script: str) -> str:
        """Run a script, each command of which must succeed; return its output."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f'( set -e\n{script}\n) < /dev/null\necho "ended with $?"\n')
        self._process.stdin.flush()
        said = ""
        while "ended with " not in said:
            line = self._process.stdout.readline()
            assert line, said
            said += line
        assert said.endswith("ended with 0\n"), said
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A machine with Debian's PostgreSQL installed and no cluster created."""
    if not (shutil.which("pg_createcluster") and Path("/usr/lib/postgresql/15").exists()):
        pytest.skip("Debian's PostgreSQL 15 is not installed")
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd would start the clusters, and sees other folders")
    place = Path(f"/tmp/aggregator-readme-{tmp_path.name}")
    shell = Shell()
    try:
        for folder in FOLDERS:
            shell.run(
                f"install -d -o postgres -g postgres {place}{folder}; mkdir -p {folder}; "
                f"mount --bind {place}{folder} {folder}"
            )
        yield shell
    finally:
        shell.run("for name in logs1 logs2; do pg_ctlcluster 15 $name stop -m immediate || true; done")
        shell.close()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.root
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_from_nothing_on_one_debian_machine(
    shell: Shell, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers, one database, and a primary that waits for its standby."""
    install, *rest = SETUP.splitlines()
    assert install == "apt-get install -y postgresql"
    shell.run("\n".join(rest))
    password, export, *servers = SERVE.splitlines()
    subprocess.run(["bash", "-ec", password], cwd=tmp_path, check=True)
    assert export == "export PGPASSFILE=$PWD/pgpass"
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    started = []
    for command in servers:
        url, standbys = re.findall(r"^aggregator serve --db (\S+) --standbys (\d+)", command)[0]
        started.append(start_server("--standbys", standbys, url=url))
    one, other = started
    assert [reply["status"] for reply in exchange(one.port, event("e"))] == ["stored"]
    assert [reply["status"] for reply in exchange(other.port, event("e"))] == ["duplicate"]
    waits = shell.run(
        "su postgres -c 'psql -Atp 5441 -c \"SELECT application_name, sync_state FROM pg_stat_replication\"'"
    )
    assert "logs2|quorum" in waits
    for server in started:
        assert server.ask("HEALTH")["health"] == "healthy"
        assert server.stop() == 0


def test_from_sqlite_to_postgresql(
    shared_cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """README's command moves all events. A second run stores none of them twice, and moves those that came since."""
    old = start_server()
    url = shared_cluster.url(shared_cluster.new_database())
    new = start_server("--lanes", "4", "--standbys", "0", url=url)
    accounts = [Account(f"topic {number}") for number in range(5)]
    for account in accounts:
        for part in range(MOVED // PART // 5):
            account.send(old.port, f"e{part}", PART)
    move(old, new)
    for account in accounts[:2]:
        account.send(old.port, "later", 100)
        account.send(new.port, "new", 100)
    move(old, new)
    told = new.ask("STATS")
    assert told["stored_total"] == MOVED + 400
    for account in accounts:
        was, now = (
            {name: bytes_of(one) for name, one in server.stored(account.topic).items()} for server in (old, new)
        )
        assert now.items() >= was.items()
    record_figures("from SQLite to PostgreSQL", sent=MOVED, stored=told["stored_total"], lost=0, duplicate=0)
    for server in (old, new):
        assert server.stop() == 0


def bytes_of(found: dict[str, object]) -> dict[str, object]:
    """An event without what the server has added, as it was sent."""
    return {name: value for name, value in found.items() if name not in ("seq", "received_at")}


def move(old: ServerProcess, new: ServerProcess) -> None:
    """Run README's command between these two servers."""
    line = MOVE.replace("127.0.0.1:8080", f"127.0.0.1:{old.port}").replace("127.0.0.1:9080", f"127.0.0.1:{new.port}")
    line = line.replace("aggregator ", f"{sys.executable} -m aggregator ")
    done = subprocess.run(
        ["bash", "-ec", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
