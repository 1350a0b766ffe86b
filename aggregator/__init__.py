"""A log aggregator: newline-delimited JSON events over TCP, deduplicated for ever, durable when acked.

An ack means that the event's transaction has been committed and fsynced; an event with the same (topic, event_id) is
never stored twice; nothing is lost in silence.

The modules, in reading order:

- ``event``          what an event is; the only decoding of event JSON
- ``protocol``       the wire protocol without input or output: bytes in, lines out; replies; the grammar
- ``config``         every limit with its reason
- ``intake``         the bounded queue between connections and consumer
- ``consumer``       queue -> batch -> store -> replies, after the commit
- ``batch``          what one transaction stores, packed while the one before commits
- ``key_filter``     which keys are certainly new
- ``block``          events that were committed together, as one row
- ``store``          append, read, counters, checkpoints, in SQL
- ``ledger``         under which seq each key was first stored, for ever
- ``database_file``  the lock, whose file it is, what a crash has left
- ``connection``     one client: lines in, replies out in order
- ``peer_log``       what the log says of clients, limited
- ``admin``          the admin commands, each a function
- ``stats``          counters and gauges
- ``server``         listeners, signals, starting and stopping
- ``client``         the wire from the other side: a window of events in flight, resent until acked
- ``tail``           files and standard input as lines that know where they stand
- ``send``           such lines as events to a server, with progress and a summary
- ``cli``            argv and environment to options, outcomes to exit codes
"""

__version__ = "0.1.0"
