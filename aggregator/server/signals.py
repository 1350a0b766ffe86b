"""What each signal does to a server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final

log = logging.getLogger("aggregator")

REPEAT_S: Final = 0.2
"""The same signal within this time is the same request: ``timeout`` and some supervisors signal a process, and then
its group. Nobody types that fast."""


def handle(stop: asyncio.Event) -> None:
    """Set ``stop`` at a signal that asks the server to end; at a second one end the process.

    SIGHUP asks for an end too, because there is nothing to reload. It is never taken for a second signal: a terminal
    that is closed sends it more than once, and systemd sends it right after SIGTERM.
    """
    loop = asyncio.get_running_loop()
    first_at = 0.0

    def on_signal(number: signal.Signals) -> None:
        nonlocal first_at
        if not stop.is_set():
            log.info("%s: stopping", number.name)
            first_at = loop.time()
            stop.set()
        elif number != signal.SIGHUP and loop.time() - first_at > REPEAT_S:
            log.warning("stopped at once by a second signal; what was not acked may not be stored")
            logging.shutdown()
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        loop.add_signal_handler(number, on_signal, number)
    # SIGUSR1 and SIGUSR2 would end the process: other servers open their logs again at these. SIGTTOU would stop it:
    # in the background, for writing its log to a terminal on which somebody has set ``stty tostop``.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
