"""The same events sent to other systems: ``python -m bench peers``.

Every peer is a real one, started for the run on loopback in an empty folder of the same disk, with its own defaults
except where the bench names a setting. Events are encoded in the peer's own form before the clock starts, so that on
shared cores the client takes as little time as it can. What a peer holds at the end is counted in it, never by its
acks.

- ``peer``             what a peer is, and what is sent to it
- ``daemon``           the program of a peer: found, started, stopped
- ``wire``             a connection that sends prepared bytes and counts the replies
- ``rows``             the events in the SQLite file of a peer
- ``ours``             this project's server
- ``reference``        the system that this project descends from; ``reference_app`` is that system
- ``obvious``          the server that comes to mind first; ``obvious_server`` is that server
- ``postgres``, ``redis``, ``nats``, ``syslog``
- ``compare``          all of them in turn, and the command
"""
