"""What clients that keep nothing lose when the server restarts, as measured by ``tests/test_producers.py``."""

from __future__ import annotations

from typing import Any, Final

from bench.tables import markdown

_ENDS: Final = (("own", "SIGTERM"), ("lives on", "SIGTERM"), ("lives on", "SIGKILL"))


def table(record: dict[str, Any]) -> str:
    found: dict[str, dict[tuple[str, str], str]] = {}
    for test in record["figures"]["tests"].values():
        if (one := test.get("measured")) and "missing" in one:
            client, end = one["name"].split(", ")
            found.setdefault(client, {})[one["socket"], end] = f"{one['missing']} of {one['sent']}"
    return markdown.rows(
        ["client", "SIGTERM", "SIGTERM, socket from outside", "kill -9, socket from outside"],
        *([client, *(lost.get(end, "") for end in _ENDS)] for client, lost in sorted(found.items())),
    )
