"""One server from its start to its end: the order of starting and stopping, and signals."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import sys
from typing import Any, Final

from aggregator import __version__, storage
from aggregator.config import Config
from aggregator.server.connection import TICK_S
from aggregator.server.consumer import Consumer
from aggregator.server.intake import Intake
from aggregator.server.listeners import BACKLOG, SPARE_DESCRIPTORS, Listeners
from aggregator.server.port import ACKED, SILENT
from aggregator.server.state import State
from aggregator.storage.engine import AnyEngine, StorageError
from aggregator.wire import replies

log = logging.getLogger("aggregator")

LAST_COMMIT_S: Final = 2.0
"""How long the last batches may take beyond the drain timeout: many times what a full queue takes."""

FAILURE_REPLIES_S: Final = 0.5
"""How long a server whose store has failed takes to say so to its clients before it exits."""


class CannotStart(Exception):
    """The server cannot start; the text says why in one line, for an administrator."""


class Server:
    """One store, its consumer, and the listeners."""

    def __init__(self, config: Config, engine: AnyEngine) -> None:
        self._state = state = State(config, engine, Intake(config.queue_events, config.queue_bytes))
        self._consumer = Consumer(state.intake, engine, state.stats, state.health, config.max_batch)
        self._listeners = Listeners(state)

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until ``stop`` is set, or until the store fails. Return whether all that was read is stored."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        # 1. Listen, so that a port in use is found before anything else happens.
        config, engine = self._state.config, self._state.engine
        acked = await self._listeners.listen(ACKED, config.host, config.port)
        silent = "off"
        if config.silent_port is not None:
            silent = await self._listeners.listen(SILENT, config.host, config.silent_port)
        # 2. Store what arrives, until told to stop.
        consumer = asyncio.create_task(self._consumer.run())
        log.info(
            "aggregator %s ready: acked port %s, silent port %s, %d events in %s",
            __version__, acked, silent, engine.stored_total, engine.location,
        )  # fmt: skip
        self._tick()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({consumer, stopped}, return_when=asyncio.FIRST_COMPLETED)
        # 3. Stop, in either case.
        if consumer.done():
            stopped.cancel()
            await self._fail(consumer)
            return False
        return await self._drain(consumer)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            # asyncio tries a whole backlog in vain each second, and would log a traceback each time.
            self._state.peer_log.say(logging.ERROR, "cannot accept clients: %s", error.strerror)
        else:
            loop.default_exception_handler(context)

    def _tick(self) -> None:
        self._listeners.tick()
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def _drain(self, consumer: asyncio.Task[None]) -> bool:
        # 1. Accept who has connected already, and then nobody any more.
        await self._listeners.empty_backlog()
        # 2. End every connection.
        self._listeners.stop(replies.stopping())
        # 3. Wait for them, but not for ever. What was read of those that remain is stored all the same.
        loop, drain_timeout_s = asyncio.get_running_loop(), self._state.config.drain_timeout_s
        deadline = loop.time() + drain_timeout_s + LAST_COMMIT_S
        await self._listeners.all_gone(drain_timeout_s, unless=consumer)
        if consumer.done():
            await self._fail(consumer)
            return False
        if left := self._listeners.abort():
            log.warning("%d connections did not end in time", left)
            # Lines that were read may still wait for room in the queue: after ``close`` nobody would take them.
            await self._listeners.all_gone(deadline - loop.time(), unless=consumer)
        # 4. Let the consumer store what is queued, in what is left of that time and a little more.
        self._state.intake.close()
        done, _ = await asyncio.wait({consumer}, timeout=max(0.0, deadline - loop.time()))
        if not done or consumer.exception():
            health = self._state.health
            reason = health.failure or health.trouble or "a commit does not end"
            log.error("stopped: not all that was read could be stored, and none of that was acked: %s", reason)
            return False
        # 5. Close the store.
        engine = self._state.engine
        await engine.close()
        log.info("stopped: %d events in %s", engine.stored_total, engine.location)
        return True

    async def _fail(self, consumer: asyncio.Task[None]) -> None:
        """The store is broken: no more acks. Tell those who wait, and leave the files to the next start's recovery."""
        failure = replies.store_failed(self._state.health.failure or "")
        error = consumer.exception()
        defect = None if isinstance(error, StorageError) else error  # a traceback is no use for a broken disk
        log.critical("stopping: %s", failure.detail, exc_info=defect)
        self._listeners.stop(failure)
        await self._listeners.all_gone(FAILURE_REPLIES_S)


async def serve(config: Config) -> bool:
    """Run a server; return whether it ended well. Raises CannotStart, CannotListen and StorageUnusable.

    After False the store may still be stuck in a commit: the process has to end by ``os._exit``, because the database's
    threads would keep it alive.
    """
    stop = asyncio.Event()
    _handle_signals(stop)  # before anything else: a process 1 without a handler is not ended by SIGTERM at all
    _allow_descriptors(config.max_connections)
    engine = await storage.open(config)
    try:
        return await Server(config, engine).run(stop)
    except BaseException:
        await engine.close()
        raise


def _handle_signals(stop: asyncio.Event) -> None:
    def on_signal(name: str) -> None:
        if stop.is_set():
            log.warning("stopped at once by a second signal; what was not acked may not be stored")
            logging.shutdown()
            os._exit(1)
        log.info("%s: stopping", name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)


def _allow_descriptors(connections: int) -> None:
    """At the limit of descriptors asyncio logs a thousand errors a second and uvloop drops peers: stay below it.

    Where it may be, also when a whole backlog arrives at once: the event loop accepts all of it before the first one
    is refused.
    """
    needed = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if allowed < needed:
        raise CannotStart(
            f"max-connections {connections} needs {needed} descriptors, and the limit here is {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed + BACKLOG:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed + BACKLOG, allowed), hard))
