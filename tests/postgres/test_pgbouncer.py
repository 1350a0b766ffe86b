"""Through pgbouncer in transaction mode: no session belongs to a server, so nothing may depend on a session."""

from __future__ import annotations

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.pgbouncer import PROGRAM, PgBouncer
from tests.harness.postgres import Cluster
from tests.harness.reading import Reading, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@needs_pgbouncer
@pytest.mark.parametrize(("lanes", "standbys"), [(1, 0), (4, 1)])
def test_writing_and_reading_through_pgbouncer(
    shared_pair: Cluster, start_server: StartServer, record_figures: RecordFigures, lanes: int, standbys: int
) -> None:
    """Two servers, each with writers and readers: everything is exact. A lost hint only costs time."""
    with PgBouncer(shared_pair.primary) as bouncer:
        url = bouncer.url(shared_pair.new_database())
        servers = [start_server("--lanes", str(lanes), "--standbys", str(standbys), url=url) for _ in range(2)]
        account = Account()
        readers = [Reading(server.port, "t AFTER 0", [account]) for server in servers]
        loads = [Load(account, server.port, 2, f"s{number}c", again=3) for number, server in enumerate(servers)]
        for load in loads:
            load.wait_for_acks(1_000)
            load.stop()
        for load in loads:
            load.finish()
        verdict = account.verify(servers[0])
        for reader in readers:
            reader.wait_for(max(account.acked.values()))
            reader.close()
            verify(reader, [account])
        for server in servers:
            assert server.stop() == 0
    record_figures(f"pgbouncer, {lanes} lane{'s' * (lanes > 1)}", **verdict.figures)
