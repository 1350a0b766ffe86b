"""Forward, the protocol of Fluentd, Fluent Bit and the fluent-logger libraries, from the server's side.

Fluentd's wiki has its "Forward Protocol Specification v1" and "v1.5". A connection is a stream of MessagePack values::

    server   HELO                         with a shared key only: ["HELO", {nonce, auth, keepalive}]
    client   PING                         ["PING", hostname, salt, digest, username, password]
    server   PONG                         ["PONG", whether it is let in, why not, hostname, digest]

    client   nil                          a heartbeat
          or [tag, time, record, option]            Message
          or [tag, [[time, record], …], option]     Forward
          or [tag, bin, option]                     PackedForward: the entries one after the other, as bytes;
                                                    CompressedPackedForward: the same in gzip
    server   {"ack": chunk}               for each message whose option has a chunk, after its events' commit

A client that gets no ack sends the message again, with the same chunk. The option may be left out. A time is a number
of seconds, an EventTime (ext type 0: 32 bits of seconds, 32 of nanoseconds), or, since v1.5, an array of such a time
and metadata.

A message passes through the modules in this order: ``framing`` (bytes to messages), ``entries`` (messages to times and
records), ``events`` (entries to events), ``values`` (MessagePack to JSON). None of them does input or output. All of
them need msgpack, which is in the extra ``forward``; this module does not.
"""

from __future__ import annotations


class NotForward(Exception):
    """What a client sent is not Forward, or exceeds a limit; the text tells an administrator why."""
