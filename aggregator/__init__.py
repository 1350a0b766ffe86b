"""A log aggregator: newline-delimited JSON events over TCP, deduplicated for ever, durable when acked.

An ack means that the event's transaction has been committed and fsynced; an event with the same (topic, event_id) is
never stored twice; nothing is lost in silence.

The layers, from the ground up, and the modules of each in reading order:

Ground: what all other layers use.

- ``event``                      what an event is, and the digest of its key
- ``position``                   a reader's position in a store with several lanes
- ``json_text``                  JSON as text: decode it, where its values end, how deep it is
- ``metric``                     a number that the server shows, and its declaration
- ``config``                     what an administrator may set
- ``address``                    network addresses as text
- ``openssl``                    a certificate with its key, and why OpenSSL has failed
- ``regular_file``               files that are read as a whole
- ``streams``                    standard input, output and error, in whatever state the caller left them

Wire: the language of the socket; no input or output.

- ``wire``                       the grammar and the words: statuses and codes
- ``wire.lines``                 bytes to lines
- ``wire.meaning``               lines to what they mean, a turn at a time
- ``wire.rules``                 JSON to events, or what is wrong with it
- ``wire.replies``               answers to bytes, and every text of a reply
- ``wire.pattern``               globs over topics
- ``wire.interest``              what a reader wants
- ``wire.moment``                points in time, as people type them and as they are shown
- ``wire.delivery``              stored events as a reader sees them
- ``wire.forward``               Forward, the protocol of Fluentd and Fluent Bit
- ``wire.forward.framing``       bytes to messages
- ``wire.forward.handshake``     the proof that both sides know the shared key, and acks
- ``wire.forward.entries``       messages to times and records
- ``wire.forward.events``        times and records to events
- ``wire.forward.values``        MessagePack to JSON

Wrap: whatever text programs write, as events; no input or output.

- ``wrap``                       what a text becomes
- ``wrap.recognition``           how a stream separates its texts, or that it holds no text
- ``wrap.scan``                  where a JSON object ends
- ``wrap.framing``               bytes to texts
- ``wrap.wrapper``               texts to events
- ``wrap.topic``                 a template to a topic
- ``wrap.fields``                the fields of a JSON object that name it and say its time
- ``wrap.syslog``                syslog lines
- ``wrap.stamp``                 the date and time in front of a line
- ``wrap.flatted``               log4js's default layout

Access: who may do what; no input or output, except for reading two files.

- ``access``                     who may do what
- ``access.token``               tokens, and how they are kept out of the log
- ``access.users``               the users of this machine
- ``access.topics``              the globs of a permission
- ``access.identity``            an identity: its name, and what it may do
- ``access.rules``               a client's proofs to its identity
- ``access.file``                the file of ``--identities``
- ``access.rate``                events and bytes a second to pauses

Storage: the promise on disk.

- ``storage``                    opens the engine that the configuration names
- ``storage.engine``             the seam: Engine, Batch, Commit, and the errors
- ``storage.block``              events that were committed together, as one row of either engine
- ``storage.sqlite``             SQLite as an engine; its DESIGN.md says why
- ``storage.sqlite.store``       the engine itself, put together from the parts below
- ``storage.sqlite.schema``      all tables, views and triggers
- ``storage.sqlite.file``        the lock, whether the file is ours, what a crash has left
- ``storage.sqlite.database``    the open database: its connections, its errors
- ``storage.sqlite.batch``       a batch that is filled, then packed
- ``storage.sqlite.writer``      a batch as one statement
- ``storage.sqlite.block``       blocks as SQLite has them: in JSON
- ``storage.sqlite.postings``    which blocks have events of a topic
- ``storage.sqlite.ledger``      the seq under which each key was first stored, for ever
- ``storage.sqlite.memtable``    the newest keys
- ``storage.sqlite.key_filter``  which keys are certainly new
- ``storage.sqlite.wal``         the write-ahead log: when to copy it, and when it is too large
- ``storage.sqlite.upkeep``      work done alongside the batches and in quiet times
- ``storage.sqlite.plans``       how the events of an interest are found
- ``storage.sqlite.reader``      everything that reads stored events
- ``storage.postgres``           PostgreSQL as an engine: many servers on one database, in lanes
- ``storage.postgres.store``     the engine itself, put together from the parts below
- ``storage.postgres.schema``    all tables and functions
- ``storage.postgres.target``    the URL: its hosts in turn, and which part of it may be shown
- ``storage.postgres.link``      one connection, remade whenever it is needed
- ``storage.postgres.errors``    what PostgreSQL's errors mean
- ``storage.postgres.query``     statements other than the batches
- ``storage.postgres.topics``    topic names to ids and lanes
- ``storage.postgres.positions`` a reader's position, in lanes
- ``storage.postgres.arrays``    arrays in PostgreSQL's binary format
- ``storage.postgres.batch``     a batch, and its parts by lane
- ``storage.postgres.lane``      one lane: each batch is sent again until its outcome is known
- ``storage.postgres.rows``      statements that find blocks, and rows of blocks as events
- ``storage.postgres.reader``    everything that reads stored events
- ``storage.postgres.census``    how many events and topics there are
- ``storage.postgres.cursors``   the cursors of all servers, each with an owner
- ``storage.postgres.news``      hints that another server has stored something

Server: one process.

- ``server``                     the path of an event through the server
- ``server.server``              starting and stopping
- ``server.signals``             what each signal does
- ``server.supervisor``          what the service manager is told, and its watchdog
- ``server.log``                 the log, which never blocks the server
- ``server.listeners``           accepting clients, and refusing them
- ``server.sockets``             a host and a port, or a path, as bound sockets
- ``server.port``                the kinds of port
- ``server.activation``          listening sockets that the service manager passes in
- ``server.binding``             which sockets the ports get, and which may be served
- ``server.tls``                 TLS between a transport and a client's protocol
- ``server.tls_transport``       the transport that the client's protocol sees
- ``server.tls_turns``           the turns in which TLS work for unauthenticated clients is done
- ``server.tls_handshake``       a client until its handshake is over
- ``server.tls_context``         certificates to TLS contexts
- ``server.reload``              the files that are read again at SIGHUP
- ``server.credentials``         what the network itself knows of a client
- ``server.identities``          the rules in force, and how they are replaced
- ``server.forward_key``         the key that Forward clients must know
- ``server.admission``           slots for clients: caps, and few slots for unauthenticated ones
- ``server.peer``                one client of any port: its transport, pressure, the phases of its end
- ``server.first_line``          whether a client's first line authenticates it
- ``server.caller``              the identity of one client
- ``server.authenticated_peer``  how a client is admitted, slowed and ended according to its identity
- ``server.connection``          one client of a port that takes lines
- ``server.inbox``               the input of such a client: bytes to lines to what they mean
- ``server.wrap``                one client of the wrap port
- ``server.wrap_inbox``          the input of such a client: bytes to texts to events
- ``server.forward``             one client of the Forward port
- ``server.forward_inbox``       the input of such a client: bytes to chunks of events
- ``server.outcomes``            the outcome of events, as replies
- ``server.deliveries``          the lines of a subscription, between replies
- ``server.tcp``                 whether a client that only reads is gone
- ``server.gate``                why reading from a client is paused
- ``server.turns``               a long answer, worked on in short turns
- ``server.slow_turns``          clients whose lines take long, one at a time
- ``server.outbox``              a client's output: replies in order
- ``server.intake``              the bounded queue to the consumer
- ``server.consumer``            queue to batches, batches to the engine, outcomes to connections
- ``server.commands``            the commands: name, usage, help, function
- ``server.queries``             patterns and options of a command that reads
- ``server.asker``               what a command knows of the client that sent it
- ``server.pages``               EVENTS and EVENT: stored events, a page at a time
- ``server.subscribe``           SUBSCRIBE, and the commands that belong to a subscription
- ``server.feed``                deliveries: what is stored, then what is committed
- ``server.follower``            what brings commits to the feed: this server's own, or all of a shared store
- ``server.live``                the subscribers at the head, and the commits on their way to them
- ``server.pieces``              lines for subscribers, joined for few writes
- ``server.subscription``        one subscriber: what it wants, how far it has come
- ``server.cursors``             named cursors: how far their readers have come, on disk
- ``server.purpose``             what a cursor's name was made for, and who may see its reader
- ``server.topic_search``        the topics that a client may read, searched for a limited time per answer
- ``server.state``               what the parts of one server share
- ``server.stats``               what is counted
- ``server.health``              what is wrong
- ``server.peer_log``            what the log says about clients, rate-limited
- ``server.excerpt``             the start of what a client has sent, in a form safe to log

Client: the wire from the other side. What programs may import:

- ``client``                   the names that programs may import
- ``client.sender``            a window of events in flight, each sent again until acked
- ``client.connection``        one connection: replies in, and why it ended
- ``client.connect``           a server's name to a connected socket, whichever of its addresses answers
- ``client.backoff``           pauses between attempts
- ``client.reply``             what a server answers, as a client reads it
- ``client.match``             whether a reply answers a line
- ``client.encode``            a mapping to an event's line
- ``client.ask``               one command, one answer
- ``client.subscriber``        stored events as an iterator, across outages
- ``client.subscription``      one SUBSCRIBE on one connection
- ``client.query``             a reader's request, as lines of the protocol
- ``client.delivered``         a stored event as it is delivered
- ``client.inbox``             events that have arrived and wait for the loop body
- ``client.acks``              acks of a reader with a name
- ``client.outage``            a time without the server: reported, retried, given up
- ``client.log_handler``       Python's logging to a server, by a thread
- ``client.log_queue``         lines of records that have no ack yet
- ``client.log_record``        a log record to an event
- ``client.terminal``          text made safe for a terminal
- ``client.screen``            standard error, written by a thread
- ``client.descriptors``       enough file descriptors for all files
- ``client.replace``           a file that is replaced as a whole

what ``aggregator tail`` and ``aggregator export`` are made of:

- ``client.read``              the package of these commands
- ``client.read.tail``         the newest events, and new ones as they come
- ``client.read.export``       all events of a period
- ``client.read.reading``      one run of either command: signals, and what its end means
- ``client.read.newest``       the newest events, page by page
- ``client.read.show``         events as JSON, text, columns
- ``client.read.output``       standard output or a file, written by a thread
- ``client.read.cursor_file``  the file of ``--cursor-file``

and what ``aggregator send`` is made of:

- ``client.send``              options to an exit code
- ``client.send.options``      what to send, where to, and how
- ``client.send.run``          one run: files to events, events to a server
- ``client.send.follow``       files and standard input, read to the end or followed
- ``client.send.inputs``       files, pipes and standard input: opened, told apart, read
- ``client.send.track``        one file: how far it is read, and how far it is acked
- ``client.send.in_order``     things that end in any order and count in order
- ``client.send.lines``        bytes of a file to lines with their positions
- ``client.send.sparse``       files with holes
- ``client.send.content``      text, compressed text, or something without lines
- ``client.send.compressed``   compressed bytes to plain bytes
- ``client.send.identity``     which file a file is, whatever its name
- ``client.send.line_ids``     ids for the lines of a file
- ``client.send.rotated``      files that were renamed, emptied after a copy, or missed
- ``client.send.positions``    the position reached in every file
- ``client.send.state``        the file of ``--state``
- ``client.send.wrap``         lines to events
- ``client.send.tally``        the outcomes of the events, counted
- ``client.send.rejects``      rejected lines: reported, and kept
- ``client.send.progress``     the progress bar, and messages while it is shown

Command line: argv and environment to options, outcomes to exit codes.

- ``cli``                        the commands, and what the exit codes mean
- ``cli.parser``                 options, their values, the environment
- ``cli.target``                 the server that a command talks to
- ``cli.selection``              which events a command reads
- ``cli.serve``                  ``aggregator serve``
- ``cli.send``                   ``aggregator send``
- ``cli.tail``                   ``aggregator tail``
- ``cli.export``                 ``aggregator export``
- ``cli.admin``                  ``aggregator admin``
- ``cli.unit``                   ``aggregator unit``
- ``cli.token``                  ``aggregator token``
- ``__main__``                   ``python -m aggregator``
"""

__version__ = "0.1.0"
