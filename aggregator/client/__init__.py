"""The protocol from the client's side. Programs may import the names that are listed here.

- ``Sender``       events in flight, each sent again until acked
- ``Subscriber``   stored events as an iterator, across restarts
- ``LogHandler``   Python's logging to a server
- ``ask``          one command, one answer
"""

from aggregator.client.ask import ask
from aggregator.client.delivered import DeliveredEvent
from aggregator.client.log_handler import LogHandler
from aggregator.client.reply import NotOurProtocol, Reply
from aggregator.client.sender import GaveUp, Sender
from aggregator.client.subscriber import Subscriber
from aggregator.client.subscription import AnotherStore, Gap, Refused, TakenOver

__all__ = [
    "AnotherStore",
    "DeliveredEvent",
    "Gap",
    "GaveUp",
    "LogHandler",
    "NotOurProtocol",
    "Refused",
    "Reply",
    "Sender",
    "Subscriber",
    "TakenOver",
    "ask",
]
