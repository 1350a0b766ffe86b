"""Admission: which clients get a slot. There are caps for all clients, for each address and for each identity.

A client takes a slot at the accept, before a byte is read, and gives it back at its end. Only a few slots may be
pending, that is, held by clients that have not authenticated. When there are too many, the oldest pending client is
dropped. If the newest were refused instead, a handful of connections a second would keep everybody out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from aggregator.access.identity import Identity
from aggregator.config import Config
from aggregator.metric import Kind, Metric
from aggregator.server.peer_log import PeerLog
from aggregator.wire import Failure, replies

log = logging.getLogger("aggregator")

ADDRESS_PENDING_DIVISOR: Final = 4
"""One address may have this part of the pending slots: 16 of 64."""

MAX_LEAVING: Final = 16
"""How many clients that are turned away may keep their slots at a time until they have read why. More would let
unauthenticated clients fill the slots."""


class Holder(Protocol):
    """What holds a slot: a connection or, before that, its TLS handshake."""

    def abort(self) -> None:
        """End at once, because others need the slot."""

    def expire(self) -> None:
        """End, because the client has not authenticated in time."""

    def renew(self) -> None:
        """Apply the rules again, because they have changed."""

    def disconnect(self, failure: Failure) -> None:
        """End, because the client may do nothing any more. What was read is stored and answered; no more is taken."""

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of the client."""


class Slot:
    """The slot of one connection."""

    __slots__ = ("holder", "identity", "number", "origin", "since")

    def __init__(self, number: int, origin: str, holder: Holder, since: float) -> None:
        self.number = number
        """Its number, counted from the start of the server. KILL takes it."""
        self.origin = origin
        """What counts as the client's address: see ``listeners``."""
        self.holder = holder
        self.since = since
        """``time.monotonic()`` of the accept."""
        self.identity: Identity | None = None


class Admission:
    """All slots of one server."""

    def __init__(self, config: Config, peer_log: PeerLog) -> None:
        self._config = config
        self._log = peer_log
        self._slots: dict[Slot, None] = {}
        self._origins: Counter[str] = Counter()
        self._identities: Counter[str] = Counter()
        self._pending: dict[Slot, None] = {}  # the oldest first
        self._pending_origins: Counter[str] = Counter()
        self._leaving: set[Slot] = set()
        self._accepted = 0
        self._evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        """All slots, the oldest first."""
        return iter(list(self._slots))

    def why_not(self, origin: str) -> Failure | None:
        """Why another client of this origin gets no slot; None: it gets one."""
        config = self._config
        if len(self._slots) >= config.max_connections:
            return replies.too_many_connections(config.max_connections)
        if self._origins[origin] >= config.address_connections:
            return replies.too_many_connections(config.address_connections, origin)
        return None

    def enter(self, origin: str, holder: Holder) -> Slot:
        """Give a slot to a client that is not identified yet."""
        self._accepted += 1
        slot = Slot(self._accepted, origin, holder, time.monotonic())
        self._slots[slot] = None
        self._origins[origin] += 1
        return slot

    def add_pending(self, slot: Slot) -> None:
        """Note that the slot's client has to authenticate. If that makes too many pending slots, drop the oldest."""
        if slot in self._pending:
            return  # it is pending since its TLS handshake
        self._pending[slot] = None
        self._pending_origins[slot.origin] += 1
        most = self._config.max_pending
        if self._pending_origins[slot.origin] > max(1, most // ADDRESS_PENDING_DIVISOR):
            self._evict(next(one for one in self._pending if one.origin == slot.origin))
        elif len(self._pending) > most:
            self._evict(next(iter(self._pending)))

    def why_not_as(self, slot: Slot, identity: Identity) -> Failure | None:
        """Why this slot cannot become one of the identity's connections; None: it can."""
        limit = identity.connections
        is_its = slot.identity is not None and slot.identity.name == identity.name
        if limit is None or is_its or self._identities[identity.name] < limit:
            return None
        return replies.too_many_of_identity(limit, identity.name)

    def identify(self, slot: Slot, identity: Identity) -> None:
        """Note whose slot this is; it is no longer pending."""
        self._remove_pending(slot)
        self._count_out(slot)
        slot.identity = identity
        self._identities[identity.name] += 1

    def leave(self, slot: Slot) -> None:
        """Give the slot back: its client has ended."""
        if slot in self._slots:
            del self._slots[slot]
            self._remove_pending(slot)
            self._count_out(slot)
            self._leaving.discard(slot)
            _subtract(self._origins, slot.origin)

    def begin_leaving(self, slot: Slot) -> bool:
        """Note that the client is turned away; return whether it may keep its slot until it has read why."""
        self._remove_pending(slot)
        if len(self._leaving) >= MAX_LEAVING:
            return False
        self._leaving.add(slot)
        return True

    def tick(self) -> None:
        """End the clients that have not authenticated in time."""
        latest = time.monotonic() - self._config.auth_timeout_s
        for slot in list(self._pending):
            if slot.since <= latest:
                _carefully(slot, slot.holder.expire)

    def renew(self) -> None:
        """Apply changed rules to all clients. A client that they leave without an identity ends; the others go on."""
        for slot in self:
            _carefully(slot, slot.holder.renew)

    def metrics(self) -> Iterator[Metric]:
        """The numbers of unauthenticated clients."""
        yield Metric("pending", len(self._pending), "connections that have not authenticated yet")
        yield Metric(
            "evicted", self._evicted, "unauthenticated connections dropped to make room for others", Kind.COUNTER
        )

    def _evict(self, slot: Slot) -> None:
        self._evicted += 1
        self._remove_pending(slot)
        self._log.say(
            logging.WARNING, "a client from %s was dropped before it authenticated, to make room for others",
            slot.origin,
        )  # fmt: skip
        slot.holder.abort()

    def _remove_pending(self, slot: Slot) -> None:
        if slot in self._pending:
            del self._pending[slot]
            _subtract(self._pending_origins, slot.origin)

    def _count_out(self, slot: Slot) -> None:
        if slot.identity:
            _subtract(self._identities, slot.identity.name)


def _carefully(slot: Slot, step: Callable[[], None]) -> None:
    """Call a method of a slot's holder. Whatever it raises, the other holders get their call."""
    try:
        step()
    except Exception:  # a defect of ours: it is unknown which rules would apply if the client went on
        log.exception("a client from %s is dropped", slot.origin)
        slot.holder.abort()


def _subtract(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]  # or the counter would grow with every name ever seen
