"""What the parts of a server share, for tests of one part without a server."""

from __future__ import annotations

from aggregator.config import Config
from aggregator.server.cursors import Cursors
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.intake import Intake
from aggregator.server.state import State
from tests.harness.dict_engine import DictEngine


def state() -> State:
    engine, intake = DictEngine(), Intake(1, 1)
    feed = Feed(engine, intake)
    cursors = Cursors(engine, lambda _: None, lambda *_: None)
    return State(Config(), engine, intake, feed, Follower(engine, feed), cursors)
