"""All tables, views and triggers, on one page. The modules that own them say what they are for.

``SCHEMA`` is what the file contains. ``TEMPORARY`` is what the connection that writes creates for itself.
"""

from __future__ import annotations

from typing import Final

from aggregator.event import DIGEST_BYTES, KEY_BYTES
from aggregator.storage.block import BLOCK_EVENTS

VERSION: Final = 7
"""``PRAGMA user_version``. Goes up with each change to a table."""

APPLICATION_ID: Final = 0x41475245
"""``PRAGMA application_id`` of our files ("AGRE"), so that a database of another program is never taken for ours."""

KEY_COLUMNS: Final = "(key BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID"
"""The columns of a table of keys, in memory or on disk: KEY_BYTES of a key's digest, and the seq of its event."""

BLOCK_COLUMNS: Final = "first_seq, received_at, topics, numbers, ends, data, (SELECT min(first_seq) FROM blocks)"
"""The columns of a block that is read. The last column tells, as of that read, whether older blocks are gone."""

MEMTABLES: Final = 2

SCHEMA: Final = f"""
BEGIN;
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    stored INTEGER NOT NULL DEFAULT 0,     -- events in this topic
    last_seq INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE blocks (                      -- block.py
    first_seq INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL,          -- milliseconds since 1970, UTC
    topics TEXT NOT NULL,                  -- JSON array of names
    numbers TEXT NOT NULL,                 -- JSON array, for each seq from first_seq on: index in topics
    ends TEXT NOT NULL,                    -- JSON array, likewise: where in data its event ends
    data BLOB NOT NULL                     -- the events as they were sent, end to end
);
CREATE INDEX blocks_received_at ON blocks (received_at);
CREATE TABLE places (                      -- 0 to {BLOCK_EVENTS - 1}: the places in a block
    place INTEGER PRIMARY KEY
);
INSERT INTO places
    WITH RECURSIVE counted(place) AS (SELECT 0 UNION ALL SELECT place + 1 FROM counted LIMIT {BLOCK_EVENTS})
    SELECT place FROM counted;
-- For people; the server does not use it. SQLite cannot know which block holds a seq: a condition on seq examines every
-- event, a condition on block or received_at only the blocks that match. Whether a place is in use is tested by a
-- subquery, because SQLite evaluates it after everything else.
CREATE VIEW events AS
    SELECT seq, json_extract(topics, '$[' || json_extract(numbers, here) || ']') AS topic,
           json ->> 'event_id' AS event_id, json ->> 'timestamp' AS timestamp, json ->> 'source' AS source,
           received_at, json, block
    FROM (
        SELECT block, seq, received_at, topics, numbers, here, ends, start,
               CAST(substr(data, start + 1, json_extract(ends, here) - start) AS TEXT) AS json
        FROM (
            SELECT first_seq AS block, first_seq + place AS seq, received_at, topics, numbers, ends, data,
                   '$[' || place || ']' AS here,
                   iif(place, json_extract(ends, '$[' || (place - 1) || ']'), 0) AS start
            FROM blocks CROSS JOIN places
        )
    )
    WHERE (SELECT json_extract(ends, here) > start);
CREATE TABLE postings (                    -- postings.py
    topic INTEGER NOT NULL REFERENCES topics,
    block INTEGER NOT NULL REFERENCES blocks,
    number INTEGER NOT NULL,               -- of the topic in that block
    PRIMARY KEY (topic, block)
) WITHOUT ROWID;
CREATE TABLE totals (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next_seq INTEGER NOT NULL,             -- never handed out before, whatever is deleted
    stored INTEGER NOT NULL,
    topics INTEGER NOT NULL,
    posted_seq INTEGER NOT NULL,           -- first_seq of the last block whose postings are written
    store TEXT NOT NULL                    -- a random name of this database
);
INSERT INTO totals VALUES (1, 1, 0, 0, 0, lower(hex(randomblob(8))));
CREATE TABLE cursors (                     -- readers that have a name
    name TEXT PRIMARY KEY,
    interest TEXT NOT NULL,                -- what the name was made for; only the server interprets it
    acked INTEGER NOT NULL,                -- seq
    acked_at INTEGER NOT NULL              -- milliseconds since 1970, UTC
) WITHOUT ROWID;
CREATE TABLE runs (                        -- ledger.py; the keys of run N are in a table keys_N
    id INTEGER PRIMARY KEY,                -- a higher one has newer keys, within a level
    level INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,             -- highest of its keys; the seqs of complete runs do not overlap
    merging_into INTEGER                   -- id of the run that will replace it
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""


def insert_keys(memtable: int, values: str) -> str:
    """SQL that inserts keys into a memtable: ``digests`` and a JSON array ``seqs``, names that ``values`` precedes."""
    return (
        f"INSERT INTO memtable_{memtable} SELECT substr({values}digests, {DIGEST_BYTES} * key + 1, {KEY_BYTES}), value"
        f" FROM json_each({values}seqs)"
    )


_MEMTABLES = "".join(f"CREATE TEMP TABLE memtable_{number} {KEY_COLUMNS};\n" for number in range(MEMTABLES))
_INSERTS = "".join(f"{insert_keys(number, 'NEW.')} WHERE NEW.memtable = {number};\n" for number in range(MEMTABLES))

# The transaction of a batch is a trigger: inserting a row into the view runs all of it in one statement.
TEMPORARY: Final = f"""
{_MEMTABLES}
CREATE TEMP VIEW batch AS                  -- one row is ``batch.Packed.parameters``
    SELECT NULL AS first_seq, NULL AS next_seq, NULL AS received_at, NULL AS stored, NULL AS memtable, NULL AS seqs,
           NULL AS digests, NULL AS topics, NULL AS new_topics, NULL AS blocks, NULL AS data;
CREATE TEMP TRIGGER append_batch INSTEAD OF INSERT ON batch BEGIN
    SELECT RAISE(ABORT, 'another program has stored events')
        WHERE NOT EXISTS (SELECT 1 FROM totals WHERE next_seq = NEW.first_seq);
    {_INSERTS}
    INSERT INTO blocks (first_seq, received_at, topics, numbers, ends, data)
        SELECT json_extract(value, '$[0]'), NEW.received_at, json_extract(value, '$[3]'), json_extract(value, '$[4]'),
               json_extract(value, '$[5]'), substr(NEW.data, json_extract(value, '$[1]'), json_extract(value, '$[2]'))
        FROM json_each(NEW.blocks);
    INSERT INTO topics (name, stored, last_seq)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(NEW.topics) WHERE true
        ON CONFLICT (name) DO UPDATE SET stored = stored + excluded.stored, last_seq = excluded.last_seq;
    UPDATE totals SET next_seq = NEW.next_seq, stored = stored + NEW.stored, topics = topics + NEW.new_topics;
END;
CREATE TEMP TRIGGER write_postings AFTER UPDATE OF posted_seq ON totals BEGIN
    INSERT INTO postings (topic, block, number)
        SELECT (SELECT id FROM topics WHERE name = named.value), first_seq, named.key
        FROM blocks CROSS JOIN json_each(blocks.topics) AS named
        WHERE first_seq > OLD.posted_seq AND first_seq <= NEW.posted_seq;
END;
"""

SAVE_CURSORS: Final = """
INSERT INTO cursors (name, interest, acked, acked_at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           json_extract(value, '$[3]')
    FROM json_each(?) WHERE true
    ON CONFLICT (name) DO UPDATE SET interest = excluded.interest, acked = excluded.acked, acked_at = excluded.acked_at
"""
FORGET_CURSORS: Final = "DELETE FROM cursors WHERE name IN (SELECT value FROM json_each(?))"

APPEND: Final = """
INSERT INTO batch VALUES (:first_seq, :next_seq, :received_at, :stored, :memtable, :seqs, :digests,
                          :topics, :new_topics, :blocks, :data)
"""
