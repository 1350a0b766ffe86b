"""One server process, and the path of an event through it.

    client ──TCP──> connection ──submission──> intake ──batch──> consumer ──append──> engine
       ^           (wire.meaning)           (bounded queue)    (one task)          (storage)
       └─────────── outbox <──────────────── after the commit ─────┘

Each arrow is a call; only the one into the engine is awaited.
"""
