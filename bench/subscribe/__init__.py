"""What readers get, and what they cost: ``python -m bench subscribe``.

Redis and NATS do the same in turns in the same run, each on loopback with its own defaults where they are not named.
All three are read by the same few lines, which look for one mark in the bytes of each event and for nothing else.

- ``tally``     counts what comes over a connection
- ``reader``    a process that reads over many connections, and says when what came
- ``system``    what is read from: ``ours``, ``redis``, ``nats``
- ``catch_up``  all that is stored, or part of it, as fast as it comes
- ``stages``    what an event of a catch-up costs, stage by stage, in one process
- ``fan_out``   each event to many readers, at an offered rate
- ``writer``    what readers cost those who send
- ``memory``    what readers cost in memory, whether they read or not
- ``moments``   finding a moment in the store
- ``measure``   all of that, and the command
"""
