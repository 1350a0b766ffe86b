"""What TLS costs: the same server and events over TLS, compared with plain TCP."""

from __future__ import annotations

import statistics
from typing import Any

from bench.tables import markdown


def table(record: dict[str, Any]) -> str:
    runs = record["figures"]["runs"]
    ratios = {
        "acked events/s": ("≥ 0.90", [run["tls_over_plain"]["events_per_s"] for run in runs]),
        "one event in flight, p50": ("≤ 1.15", [run["tls_over_plain"]["one_in_flight_p50"] for run in runs]),
        "the server's processor time for an event": ("", [run["tls_over_plain"]["server_cpu"] for run in runs]),
    }
    return markdown.rows(
        [f"TLS over plain, medians of {len(runs)}", "bar", "ratio", "lowest, highest"],
        *(
            [name, bar, f"{statistics.median(found):.2f}", f"{min(found):.2f}, {max(found):.2f}"]
            for name, (bar, found) in ratios.items()
        ),
    )
