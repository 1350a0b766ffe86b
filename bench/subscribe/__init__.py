"""What readers get and what they cost: ``python -m bench subscribe``.

Redis and NATS do the same work in the same run, in turns, on loopback with their own defaults except where the bench
names a setting. The same few lines of code read all three: they look only for the one mark in the bytes of each event.

- ``tally``     counts what arrives over a connection
- ``reader``    a process that reads over many connections, and reports what arrived when
- ``system``    a system that is read from: ``ours``, ``redis``, ``nats``
- ``catch_up``  all stored events, or part of them, read as fast as possible
- ``stages``    what an event of a catch-up costs, stage by stage, in one process
- ``fan_out``   each event to many readers, at an offered rate
- ``writer``    what readers cost the senders
- ``memory``    what readers cost in memory, whether they read or not
- ``moments``   finding a moment in the store
- ``measure``   all of that, and the command
"""
