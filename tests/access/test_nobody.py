"""Until an inbox is told who its client is, the client may do nothing."""

from __future__ import annotations

import pytest

from aggregator.access.identity import ANONYMOUS, NOBODY, Identity
from aggregator.access.topics import Topics
from aggregator.event import Events
from aggregator.server.inbox import Inbox
from aggregator.server.port import ACKED, FORWARD, WRAP
from aggregator.server.wrap_inbox import WrapInbox
from tests.harness.state import state
from tests.harness.wire import event

LINES = {Inbox: event("e"), WrapInbox: b"a text\n"}


def published(inbox: Inbox | WrapInbox) -> int:
    """How many events the inbox gives out of what it was fed."""
    return sum(len(found) for found in inbox.turn() if isinstance(found, Events))


@pytest.fixture(params=[Inbox, WrapInbox])
def inbox(request: pytest.FixtureRequest) -> Inbox | WrapInbox:
    kind: type[Inbox] | type[WrapInbox] = request.param
    made = kind(state(), ACKED if kind is Inbox else WRAP)
    made.feed(10 * LINES[kind])
    return made


def test_nobody_may_publish(inbox: Inbox | WrapInbox) -> None:
    assert published(inbox) == 0


def test_nor_by_chunks() -> None:
    pytest.importorskip("msgpack", reason="the Forward port needs the extra forward")
    from aggregator.server.forward_inbox import ForwardInbox  # here, because it needs the extra

    assert ForwardInbox(state(), FORWARD).publisher is NOBODY


@pytest.mark.parametrize("identity", [ANONYMOUS, Identity("web", Topics(["t", "app"]))])
def test_whoever_is_known_may(inbox: Inbox | WrapInbox, identity: Identity) -> None:
    inbox.identify(identity)
    assert published(inbox) == 10
