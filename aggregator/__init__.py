"""A log aggregator: newline-delimited JSON events over TCP, deduplicated for ever, durable when acked.

An ack means that the event's transaction has been committed and fsynced; an event with the same (topic, event_id) is
never stored twice; nothing is lost in silence.

The floors, and the modules on each in reading order:

Ground: what everything else speaks of.

- ``event``                      what an event is, and the digest of its key
- ``json_text``                  JSON as text: decode it, where its values end, how deep it is
- ``metric``                     a number that the server shows, and its declaration
- ``config``                     what an administrator may set

Wire: the language of the socket, without any input or output.

- ``wire``                       the grammar and the words: statuses and codes
- ``wire.lines``                 bytes to lines
- ``wire.meaning``               lines to what they mean, a turn at a time
- ``wire.rules``                 JSON to events, or what is wrong with it
- ``wire.replies``               answers to bytes, and every text of a reply

Storage: the promise on disk.

- ``storage``                    opens the engine that the configuration names
- ``storage.engine``             the seam: Engine, Batch, Commit, and the errors
- ``storage.sqlite``             SQLite as an engine; its DESIGN.md says why
- ``storage.sqlite.store``       the engine itself, put together from the parts below
- ``storage.sqlite.schema``      all tables, views and triggers
- ``storage.sqlite.file``        the lock, whose file it is, what a crash has left
- ``storage.sqlite.database``    the open database: its connections, its errors
- ``storage.sqlite.batch``       a batch that is filled, then packed
- ``storage.sqlite.writer``      a batch as one statement
- ``storage.sqlite.block``       events that were committed together, as one row
- ``storage.sqlite.postings``    which blocks have events of a topic
- ``storage.sqlite.ledger``      under which seq each key was first stored, for ever
- ``storage.sqlite.memtable``    the newest keys
- ``storage.sqlite.key_filter``  which keys are certainly new
- ``storage.sqlite.wal``         the write-ahead log: when to copy it, and when it is too large
- ``storage.sqlite.upkeep``      what is done beside the batches and in quiet times
- ``storage.sqlite.reader``      everything that reads stored events

Server: one process.

- ``server``                     the way of an event through it
- ``server.server``              starting, stopping, signals
- ``server.listeners``           accepting clients, and refusing them
- ``server.port``                the kinds of port
- ``server.connection``          one client: lines in, replies out, the phases of its end
- ``server.gate``                why reading from a client is paused
- ``server.outbox``              replies in order, and pushes between them
- ``server.intake``              the bounded queue to the consumer
- ``server.consumer``            queue to batches, batches to the engine, outcomes to connections
- ``server.commands``            the commands: name, usage, help, function
- ``server.state``               what the parts of one server share
- ``server.stats``               what is counted
- ``server.health``              what is wrong
- ``server.peer_log``            what the log says of clients, limited

Client: the wire from the other side.

- ``client``                     what programs may import
- ``client.sender``              a window of events in flight, each sent again until acked
- ``client.ask``                 one command, one answer
- ``client.reply``               what a server answers, as a client reads it
- ``client.follow``              files and standard input as lines that know where they stand
- ``client.send``                such lines as events to a server: ``aggregator send``

- ``cli``                        argv and environment to options, outcomes to exit codes
- ``__main__``                   ``python -m aggregator``
"""

__version__ = "0.1.0"
