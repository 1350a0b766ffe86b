"""Ack latency of single events at an offered rate: from the moment an event was due, not from when it could be sent."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bench.peers.peer import Send, Work

CONNECTIONS: Final = 32
"""So many that a free one is there when an event is due: at 5,000 events/s each has 6 ms for an ack."""


def latency(sends: list[Send], work: Work, rate: float) -> dict[str, Any]:
    """Offer the events over these connections, each with a thread; any free one takes the next event.

    An event that is due while every connection waits for an ack has begun to wait itself: a peer that stalls is charged
    for everything that would have been sent meanwhile.
    """
    numbers = itertools.count()
    started = time.perf_counter() + 0.01

    def offer(send: Send) -> list[float]:
        latencies_s = []
        while (number := next(numbers)) < work.count:
            due = started + number / rate
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            send(work.events[number])
            latencies_s.append(time.perf_counter() - due)
        return latencies_s

    with ThreadPoolExecutor(len(sends)) as threads:
        ordered = sorted(itertools.chain.from_iterable(threads.map(offer, sends)))
    seconds = time.perf_counter() - started
    return {
        "events": work.count,
        "offered_per_s": rate,
        "achieved_per_s": round(work.count / seconds),
        **{f"p{part}_ms": round(ordered[len(ordered) * part // 100] * 1000, 3) for part in (50, 99)},
    }
