"""One server from its start to its end: the order of starting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import sys
from collections.abc import Coroutine, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, TypeVar

from aggregator import __version__, storage
from aggregator.config import Anonymous, Config
from aggregator.server import activation, binding, signals, sockets
from aggregator.server.admission import Admission
from aggregator.server.consumer import Consumer
from aggregator.server.cursors import Cursors
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.forward_key import ForwardKey
from aggregator.server.identities import Identities
from aggregator.server.intake import Intake
from aggregator.server.listeners import BACKLOG, SPARE_DESCRIPTORS, Listeners
from aggregator.server.peer import TICK_S
from aggregator.server.peer_log import PeerLog
from aggregator.server.port import FORWARD, PORTS, SILENT, Port
from aggregator.server.reload import CannotLoad, LogLevel, Reloadable, keep_loading, load
from aggregator.server.sockets import Bound
from aggregator.server.state import State
from aggregator.server.supervisor import Supervisor
from aggregator.server.tls_context import Contexts
from aggregator.storage.engine import AnyEngine, StorageBusy, StorageError, StorageFailed, StorageFull
from aggregator.wire import replies

log = logging.getLogger("aggregator")

LAST_COMMIT_S: Final = 2.0
"""How long the last batches may take beyond the drain timeout: many times what a full queue takes."""

FAILURE_REPLIES_S: Final = 0.5
"""How long a server whose store has failed takes to say so to its clients before it exits."""


T = TypeVar("T")


class CannotStart(Exception):
    """The server cannot start; the text says why in one line, for an administrator."""


class End(Enum):
    """How a server has ended."""

    WELL = auto()
    EARLY = auto()  # told to stop before it had a port
    BADLY = auto()  # not all that was read is stored


class Server:
    """One store, its consumer, and the listeners."""

    def __init__(
        self,
        config: Config,
        engine: AnyEngine,
        bound: Mapping[Port, Bound],
        files: Files,
    ) -> None:
        intake = Intake(config.queue_events, config.queue_bytes)
        feed = Feed(engine, intake)
        follower = Follower(engine, feed)
        cursors = Cursors(
            engine,
            on_failure=lambda error: self._consumer.fail(error),
            on_loss=lambda reader, peer, name: feed.fail(
                reader, replies.forgotten("another server", name) if peer is None else replies.taken_over(peer, name)
            ),
        )
        peer_log = PeerLog()
        admission = Admission(config, peer_log)
        self._state = state = State(
            config,
            engine,
            intake,
            feed,
            follower,
            cursors,
            files.forward_key,
            files.identities,
            admission,
            peer_log=peer_log,
        )
        files.identities.on_change = admission.renew
        self._consumer = Consumer(intake, engine, state.stats, state.health, config.max_batch, follower.committed)
        self._listeners = Listeners(state, files.contexts)
        if files.contexts:
            files.contexts.on_other_authorities = self._listeners.verify_again
        self._files = files
        self._supervisor = Supervisor(state.health, os.environ)
        self._bound = bound

    async def prove(self) -> None:
        """Commit something that changes nothing, before anybody relies on the store. Raises CannotStart.

        The server starts in spite of a full disk or another program's lock, because the consumer can wait for their
        end.
        """
        engine = self._state.engine
        try:
            await engine.probe()
        except StorageFailed as error:
            raise CannotStart(f"cannot use {engine.location}: {error}") from error
        except (StorageFull, StorageBusy) as error:
            self._state.health.trouble = str(error)
            log.error("events are not being stored: %s", error)

    async def run(self, stop: asyncio.Event, reload: asyncio.Event) -> bool:
        """Serve until ``stop`` is set, or until the store fails. Return whether all that was read is stored.

        The files are read again whenever ``reload`` is set.
        """
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        # 1. Accept clients.
        for port, bound in self._bound.items():
            await self._listeners.listen(port, bound)
        # 2. Store what arrives, until told to stop.
        await self._state.cursors.load()
        consumer = asyncio.create_task(self._consumer.run())
        self._state.feed.start()
        self._state.follower.start()
        self._state.cursors.start()
        self._say_ready()
        self._supervisor.ready()
        self._tick()
        reloading = asyncio.create_task(keep_loading(self._files.all, reload, self._state.stats))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({consumer, stopped}, return_when=asyncio.FIRST_COMPLETED)
        reloading.cancel()
        # 3. Stop, in either case.
        if consumer.done():
            stopped.cancel()
            await self._fail(consumer)
            return False
        return await self._drain(consumer)

    def _say_ready(self) -> None:
        bound = self._bound
        open_to_others = [name for port in bound for name in binding.reachable(bound[port])]
        if open_to_others and self._state.config.anonymous is Anonymous.ALL:
            log.warning(
                "no authentication: anybody who reaches %s may publish and read events", " or ".join(open_to_others)
            )
        if self._state.config.identities and self._state.config.anonymous is Anonymous.ALL:
            log.warning("--identities keeps nobody out: with --anonymous all, other clients may publish and read too")
        names = {port: " and ".join(map(sockets.name, one.sockets)) for port, one in bound.items()}
        shown = [f"{port.name} {names.get(port, 'off')}" for port in PORTS if port in names or port is SILENT]
        log.info(
            "aggregator %s ready: %s, %d events in %s",
            __version__, ", ".join(shown), self._state.engine.stored_total, self._state.engine.location,
        )  # fmt: skip
        if outside := [port.name for port, one in bound.items() if one.lives_on]:
            log.info("sockets that were passed in, and outlive this server: %s", ", ".join(outside))

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            # asyncio tries to accept a whole backlog each second, and would log a traceback each time.
            self._state.peer_log.say(logging.ERROR, "cannot accept clients: %s", error.strerror)
        else:
            loop.default_exception_handler(context)

    def _tick(self) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._listeners.tick()

    async def _drain(self, consumer: asyncio.Task[None]) -> bool:
        self._supervisor.stopping()
        # 1. Accept clients that have connected already.
        await self._listeners.empty_backlog()
        # 2. End every subscription, stop accepting, and end every connection.
        self._state.follower.stop()
        self._state.feed.stop(replies.no_more_deliveries())
        self._listeners.stop(replies.stopping())
        # 3. Wait for the connections, but not for ever. What was read from those that remain is stored all the same.
        loop, drain_timeout_s = asyncio.get_running_loop(), self._state.config.drain_timeout_s
        deadline = loop.time() + drain_timeout_s + LAST_COMMIT_S
        await self._listeners.all_gone(drain_timeout_s, unless=consumer)
        if consumer.done():
            await self._fail(consumer)
            return False
        if left := self._listeners.abort():
            log.warning("%d connections did not end in time", left)
            # Lines that were read may still wait for room in the queue. After ``close`` nobody would take them.
            await self._listeners.all_gone(deadline - loop.time(), unless=consumer)
        # 4. Let the consumer store what is queued, until the deadline.
        self._state.intake.close()
        done, _ = await asyncio.wait({consumer}, timeout=max(0.0, deadline - loop.time()))
        if not done or consumer.exception():
            health = self._state.health
            troubles = filter(None, self._state.engine.troubles().values())
            reason = health.failure or health.trouble or next(troubles, "a commit does not end")
            log.error(
                "stopped: some events that were read could not be stored, and none of these was acked: %s", reason
            )
            return False
        # 5. Close the store.
        await self._state.cursors.stop()
        self._state.peer_log.close()
        engine = self._state.engine
        with contextlib.suppress(StorageError, TimeoutError):
            async with asyncio.timeout_at(deadline):
                await engine.count()
        await engine.close()
        log.info("stopped: %d events in %s", engine.stored_total, engine.location)
        return True

    async def _fail(self, consumer: asyncio.Task[None]) -> None:
        """The store is broken: no more acks. Tell waiting clients, and leave the files to the next start's recovery."""
        failure = replies.store_failed(self._state.health.failure or "")
        self._supervisor.stopping()
        error = consumer.exception()
        defect = None if isinstance(error, StorageError) else error  # a traceback is no use for a broken disk
        log.critical("stopping: %s", failure.detail, exc_info=defect)
        self._state.follower.stop()
        self._state.feed.stop(failure)
        self._listeners.stop(failure)
        await self._listeners.all_gone(FAILURE_REPLIES_S)


class Files:
    """What one server reads from files, at its start and at SIGHUP."""

    def __init__(self, config: Config, ports: Sequence[Port]) -> None:
        self.contexts = Contexts(config) if any(port.tls for port in ports) else None
        self.identities = Identities(config)
        self.forward_key = ForwardKey(config.forward_shared_key_file)
        forward_key = self.forward_key if FORWARD in ports else None
        log_level = LogLevel(config.log_level_file) if config.log_level_file else None
        self.all: list[Reloadable] = [one for one in (self.contexts, self.identities, forward_key, log_level) if one]


async def serve(config: Config) -> End:
    """Run a server; return how it ended. Raises CannotStart, CannotListen and StorageUnusable.

    The process has to end by ``os._exit``. Threads may be stuck for ever, in a commit, a query to a name server, or a
    file on a disk that hangs, and would keep the process alive.
    """
    stop, reload = asyncio.Event(), asyncio.Event()
    signals.handle(stop, reload)  # before anything else: SIGTERM does not end a process 1 that has no handler
    _allow_descriptors(config.max_connections)
    inherited = _inherited()
    ports = [port for port in PORTS if port in inherited or port.is_on(config)]
    files = Files(config, ports)
    try:
        # 1. Read the files, and bind the ports, so that whatever is wrong there is found before there is a database.
        await _unless_stopped(stop, load(files.all), "reading files")
        bound = await _unless_stopped(stop, binding.bind(config, inherited), f"looking for {config.host}")
        # 2. Open the store, prove it, and serve.
        try:
            if why_not := binding.why_not_open(bound, files.identities.rules, files.forward_key.key):
                raise CannotStart(why_not)
            return await _serve(config, bound, files, stop, reload)
        finally:
            binding.remove_files(bound)
    except CannotLoad as error:
        raise CannotStart(str(error)) from error
    except _Stopped as early:
        log.info("stopped while %s", early)
        return End.EARLY


async def _serve(
    config: Config,
    bound: Mapping[Port, Bound],
    files: Files,
    stop: asyncio.Event,
    reload: asyncio.Event,
) -> End:
    engine = await _unless_stopped(stop, storage.open(config), "opening the store")
    try:
        server = Server(config, engine, bound, files)
        await _unless_stopped(stop, server.prove(), "proving the store")
        return End.WELL if await server.run(stop, reload) else End.BADLY
    except _Stopped:
        raise  # the probe's commit may be under way; the process ends
    except BaseException:
        await engine.close()
        raise


class _Stopped(Exception):
    """The server was told to stop; the text says what it was doing."""


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T], what: str) -> T:
    """Do ``work``, which a disk, a name server or a database may hold up for ever. Raises _Stopped."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio would log its error
        raise _Stopped(what)
    stopped.cancel()
    return working.result()


def _inherited() -> dict[Port, Bound]:
    try:
        return binding.inherited(os.environ)
    except activation.BadSocket as error:
        raise CannotStart(str(error)) from error


def _allow_descriptors(connections: int) -> None:
    """Stay below the limit of descriptors, where asyncio logs a thousand errors a second and uvloop drops peers.

    If the hard limit allows it, there is room for a whole backlog that arrives at once too: the event loop accepts all
    of it before the first client is refused.
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
