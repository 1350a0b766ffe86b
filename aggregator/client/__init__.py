"""The wire from the other side. Programs may import what is named here.

- ``sender``   a window of events in flight, sent again until acked
- ``ask``      one command, one answer
- ``reply``    what a server answers, as a client reads it
- ``send``     files and standard input as events: ``aggregator send``
"""

from aggregator.client.ask import ask
from aggregator.client.reply import NotOurProtocol
from aggregator.client.sender import GaveUp, Sender

__all__ = ["GaveUp", "NotOurProtocol", "Sender", "ask"]
