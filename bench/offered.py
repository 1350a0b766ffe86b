"""The open-loop sender: events are sent at a rate, whatever the server does. A latency counts from the due moment.

So a server that stalls is charged for every event that would have been sent during the stall (no coordinated omission).
No event is sent before its moment. How long after its moment it is sent is the sender's own lateness: it is part of the
latencies and reported with them, as is the processor time that the sender takes from the server.

The sender is one thread that waits in ``select``, because the timers of an event loop have a resolution of 1 ms.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias

from bench.channel import Channel
from bench.percentiles import percentiles

CONNECTIONS: Final = 32
"""How many connections single events are offered over, to us and to the peers."""

SINGLY_UP_TO: Final = 10_000.0
"""Up to this rate each event is sent alone, at its own moment."""

STEP_S: Final = 0.001
"""Above that rate, the sender looks once in this time and sends all events that have become due, like a client with a
buffer. Sending each event alone would cost the sender more of the shared cores than the server."""

LEAD_S: Final = 0.01
"""The time until the first event is due."""

STALL_S: Final = 60.0
"""If no ack comes for so long, the server hangs and the run has failed."""

WARM_UP: Final = 0.05
"""This part of the events is sent first and is not counted."""

Wait: TypeAlias = Callable[[Iterable[int], Iterable[int], Iterable[int], float], tuple[list[int], list[int], list[int]]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each event is due."""

    started: float
    rate: float
    count: int

    def moment(self, number: int) -> float:
        """When this event is due."""
        return self.started + number / self.rate

    def due(self, now: float) -> int:
        """How many events are due by ``now``."""
        number = min(self.count, max(0, int((now - self.started) * self.rate)))
        while number and self.moment(number - 1) > now:  # because of rounding
            number -= 1
        while number < self.count and self.moment(number) <= now:
            number += 1
        return number


def offer(
    channels: Sequence[Channel], rate: float, clock: Callable[[], float] = time.perf_counter, wait: Wait = select.select
) -> dict[str, Any]:
    """Offer ``rate`` events a second: event ``n`` goes over channel ``n % len(channels)``. Closes the channels."""
    width, count = len(channels), sum(channel.count for channel in channels)
    by_descriptor = {channel.fileno(): channel for channel in channels}
    step_s = STEP_S if rate > SINGLY_UP_TO else 0.0
    cpu_s = time.thread_time()
    plan = Schedule(clock() + LEAD_S, rate, count)
    sent, missing = 0, count
    looked = heard = plan.started
    while missing:
        wait_s = max(plan.moment(sent), looked + step_s) - clock() if sent < count else STALL_S
        unsent = [descriptor for descriptor, channel in by_descriptor.items() if channel.unsent]
        readable, writable, _ = wait(by_descriptor, unsent, (), max(0.0, wait_s))
        now = clock()
        if now >= looked + step_s and (due := plan.due(now)) > sent:
            looked = now
            for number in range(sent, min(due, sent + width)):  # the first due event of each channel that has any
                channel, place = channels[number % width], number // width
                ready = (due - number + width - 1) // width
                channel.send(place, place + ready)
                channel.left += [clock()] * ready
            sent = due
        for descriptor in writable:
            by_descriptor[descriptor].flush()
        for descriptor in readable:
            acks = by_descriptor[descriptor].receive()
            by_descriptor[descriptor].acked += [now] * acks
            missing -= acks
            heard = now
        if now - heard > STALL_S:
            break
    seconds, cpu_s = clock() - plan.started, time.thread_time() - cpu_s
    for channel in channels:
        channel.close()
    latencies_s = after_due(plan, [channel.acked for channel in channels])
    lateness_s = after_due(plan, [channel.left for channel in channels])
    return {
        "events": len(latencies_s),
        "connections": width,
        "offered_per_s": rate,
        "achieved_per_s": round(count / seconds),
        "errors": missing,
        **percentiles(latencies_s),
        "sender": {
            **{f"late_{name}": value for name, value in percentiles(lateness_s, (50, 99)).items()},
            "cpu_us_per_event": round(cpu_s / count * 1e6, 2),
        },
    }


def after_due(plan: Schedule, moments: Sequence[Sequence[float]]) -> list[float]:
    """How long after it was due something happened to each counted event; ``moments`` are by channel."""
    width, first = len(moments), int(plan.count * WARM_UP)
    after_s = list(
        chain.from_iterable(
            [moment - plan.moment(place * width + which) for place, moment in enumerate(of_channel)][
                max(0, (first - which + width - 1) // width) :
            ]
            for which, of_channel in enumerate(moments)
        )
    )
    if after_s and min(after_s) < 0:
        raise AssertionError("an event left, or was acked, before it was due")
    return after_s
