"""The URL of ``--db``: its hosts in turn, and how it is shown. The password is never shown.

Pure: nothing is connected.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import conninfo

from aggregator.storage.engine import StorageUnusable

DEFAULTS: Final[dict[str, Any]] = {
    # Of several hosts, the primary.
    "target_session_attrs": "read-write",
    "connect_timeout": 2,
    # After this long a host that has vanished is noticed, even while a batch is being sent to it.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": "aggregator",
}
"""Parameters of a connection, unless the URL sets them."""

_LISTS: Final = ("host", "hostaddr", "port")


class Target:
    """Where to connect. Raises StorageUnusable if the URL is not valid."""

    def __init__(self, url: str) -> None:
        try:
            given = conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            # libpq's text quotes the URL, and with it the password.
            raise StorageUnusable("PostgreSQL's client library does not understand the URL of --db") from None
        self._parameters = DEFAULTS | given
        lengths = {name: len(str(given[name]).split(",")) for name in _LISTS if name in given}
        self._hosts = max(lengths.values(), default=1)
        if any(length != self._hosts for name, length in lengths.items() if (name, length) != ("port", 1)):
            counts = ", ".join(f"{length} of {name}" for name, length in lengths.items())
            raise StorageUnusable(f"the lists in the URL of --db have different lengths: {counts}")
        self.database = str(given.get("dbname", given.get("user", "")))

    def parameters(self, turn: int) -> dict[str, Any]:
        """The parameters of a connection; each turn begins with another host."""
        first = turn % self._hosts
        turned = {}
        for name in _LISTS:
            if len(values := str(self._parameters.get(name, "")).split(",")) > 1:
                turned[name] = ",".join(values[first:] + values[:first])
        return self._parameters | turned

    @property
    def location(self) -> str:
        """The store as the log may show it: without user, password and options."""
        hosts = str(self._parameters.get("host") or self._parameters.get("hostaddr") or "").split(",")
        ports = str(self._parameters.get("port", "")).split(",")
        ports = ports if len(ports) == len(hosts) else ports * len(hosts)
        where = ",".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True))
        return f"postgresql://{where}/{self.database}"
