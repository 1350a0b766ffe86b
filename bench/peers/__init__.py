"""The same events sent to other systems: ``python -m bench peers``.

Every peer is a real one, started for the run on loopback in an empty folder of the same disk, with its own defaults
where they are not named here. What is sent is put into the peer's own form before the clock starts, so that on shared
cores the client takes as little as it can. What a peer holds at the end is counted in the peer, never by its acks.

- ``peer``             what a peer is, and what it is sent
- ``daemon``           a peer's program: found, started, stopped
- ``wire``             a connection that sends prepared bytes and counts the replies
- ``rows``             the events in a peer's SQLite file
- ``ours``             this project's server
- ``reference``        the system it descends from; ``reference_app`` is that system
- ``obvious``          the server that comes to mind first; ``obvious_server`` is that server
- ``postgres``, ``redis``, ``nats``, ``syslog``
- ``compare``          all of them in turn, and the command
"""
