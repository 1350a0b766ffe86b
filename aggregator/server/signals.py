"""What each signal does to a server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final

log = logging.getLogger("aggregator")

REPEAT_S: Final = 0.2
"""A signal that follows another within this time is the same request: ``timeout`` and some supervisors signal a
process, and then its group. Nobody types that fast."""


def handle(stop: asyncio.Event, reload: asyncio.Event) -> None:
    """Set ``stop`` at a signal that asks the server to end; at a second one end the process. Set ``reload`` at SIGHUP.

    A server that has a terminal ends at SIGHUP instead, because SIGHUP then means that the terminal is closed. SIGHUP
    never counts as a second signal: a terminal sends it more than once, and systemd may send it right after SIGTERM.
    """
    loop = asyncio.get_running_loop()
    has_terminal = _has_terminal()
    first_at = 0.0

    def on_signal(number: signal.Signals) -> None:
        nonlocal first_at
        if number == signal.SIGHUP and not has_terminal:
            reload.set()
        elif not stop.is_set():
            log.info("%s: stopping", number.name)
            first_at = loop.time()
            stop.set()
        elif number != signal.SIGHUP and loop.time() - first_at > REPEAT_S:
            log.warning("stopped at once by a second signal; events that were not acked may not be stored")
            logging.shutdown()
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        loop.add_signal_handler(number, on_signal, number)
    # SIGUSR1 and SIGUSR2, at which other servers reopen their logs, would end the process. SIGTTOU would suspend it if
    # it runs in the background and writes its log to a terminal on which somebody has set ``stty tostop``.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal. Under a service manager and in a container it has none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
