"""What the parts of one server share. Each part gets all of it; none of it is global."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.config import Config
from aggregator.server.admission import Admission
from aggregator.server.cursors import Cursors
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.forward_key import ForwardKey
from aggregator.server.health import Health
from aggregator.server.identities import Identities
from aggregator.server.intake import Intake
from aggregator.server.peer_log import PeerLog
from aggregator.server.slow_turns import SlowTurns
from aggregator.server.stats import Stats
from aggregator.server.topic_search import TopicSearches
from aggregator.storage.engine import AnyEngine


@dataclass(frozen=True, slots=True)
class State:
    """One server's configuration, its store, its queue, what it counts, and its secret."""

    config: Config
    engine: AnyEngine
    intake: Intake
    feed: Feed
    follower: Follower
    cursors: Cursors
    forward_key: ForwardKey = field(default_factory=lambda: ForwardKey(None))
    identities: Identities = field(default_factory=lambda: Identities(Config()))
    admission: Admission = field(default_factory=lambda: Admission(Config(), PeerLog()))
    stats: Stats = field(default_factory=Stats)
    health: Health = field(default_factory=Health)
    peer_log: PeerLog = field(default_factory=PeerLog)
    slow_turns: SlowTurns = field(default_factory=SlowTurns)
    topic_searches: TopicSearches = field(default_factory=TopicSearches)
