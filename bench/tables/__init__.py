"""The tables of figures in documents: each module makes Markdown of one result file."""

from collections.abc import Callable
from typing import Any, Final

from bench.tables import (
    engine,
    failover,
    faults,
    growth,
    handshakes,
    latency,
    load,
    peers,
    producers,
    stages,
    subscribe,
    tls,
)

TABLES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "load": load.table,
    "stages": stages.table,
    "latency": latency.table,
    "growth": growth.table,
    "peers": peers.table,
    "subscribe": subscribe.table,
    "engine": engine.table,
    "failover": failover.table,
    "faults": faults.table,
    "found": faults.found_table,
    "readers": faults.found_table,
    "soak": faults.soak_table,
    "producers": producers.table,
    "tls": tls.table,
    "handshakes": handshakes.table,
}
"""The functions by the name of the result file."""
