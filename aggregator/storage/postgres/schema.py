"""All tables and functions. Each start makes them or checks the version; many servers may start at once.

A *lane* is a schema with keys, blocks, postings, and a row that every batch locks first. The lock puts the commits of a
lane in sequence: a session that sees a number sees all lower numbers. A topic lives in one lane for ever, so its dedup,
its order and its reads stay within one lane. On Citus each lane is on one node, and no statement is distributed.

Three rules hold for every statement here. No plan may depend on statistics: with a join, the function kept a plan that
was made for an empty table, and took twice the time, so keys are looked up by a scalar subquery. No commit may change a
row that other commits change: while any session holds a snapshot open, all dead versions of that row have to be walked
over. Long arrays are expanded by ``SELECT unnest(…)``: ``FROM unnest(…)`` first writes each to a tuple store, which
cost ``append`` a quarter of its time.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from aggregator.position import STRIDE
from aggregator.storage.engine import StorageUnusable

VERSION: Final = 4
"""Goes up with each change to a table or a function."""

Connection = psycopg.AsyncConnection[Any]

LOCK_TIMEOUT_S: Final = 5
"""How long a batch waits for its lane. After that it fails, before anything is stored."""

WEAK: Final = "AGG01"
"""The SQLSTATE of an append that is refused because its commit would not be durable."""

LOCK: Final = 0x41475245
"""The advisory lock that a server holds while it makes tables or topics ("AGRE")."""

LANES: Final = "SELECT lanes FROM aggregator.store"

_COMMON: Final = """
CREATE SCHEMA aggregator;
CREATE TABLE aggregator.store (
    version int NOT NULL,
    name text NOT NULL,                          -- random: a position is valid in one store only
    stride int NOT NULL,                         -- see positions.py
    lanes int NOT NULL
);
CREATE TABLE aggregator.topics (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    lane int NOT NULL                            -- never changes: lanes that are added get new topics only
);
CREATE TABLE aggregator.cursors (                -- of readers that have a name
    name text COLLATE "C" PRIMARY KEY,
    interest text NOT NULL,                      -- what it was made for, as the server writes it
    acked text NOT NULL,                         -- a position
    acked_at bigint NOT NULL,                    -- milliseconds since 1970, UTC
    claim text NOT NULL                          -- of the present reader of the name: only its acks count
);
"""

_LANE: Final = """
CREATE SCHEMA {lane};
CREATE TABLE {lane}.lane (                       -- one row, which each batch locks and none changes
    floor bigint NOT NULL                        -- the first number
);
INSERT INTO {lane}.lane VALUES (1);
CREATE TABLE {lane}.keys (
    key uuid PRIMARY KEY,                        -- the first 16 bytes of the key's digest
    number bigint NOT NULL                       -- the number of its event
);
CREATE TABLE {lane}.blocks (                     -- see storage/block.py
    first bigint PRIMARY KEY,
    following bigint NOT NULL,                   -- the first number of the next block
    received_at bigint NOT NULL,                 -- milliseconds since 1970, UTC; never falls
    token uuid NOT NULL,                         -- of the batch: it identifies its events if it is sent again
    topics bytea NOT NULL,                       -- the ids of its topics, int4
    numbers bytea NOT NULL,                      -- for each event one byte: its index in topics
    ends bytea NOT NULL,                         -- for each event one int4: where it ends in data
    skip int[],                                  -- places of duplicates: their JSON is in data, and never shown
    data bytea {compression} NOT NULL            -- the events as they were sent, end to end
);
CREATE TABLE {lane}.postings (                   -- which blocks have events of a topic
    topic int,
    block bigint,
    events int NOT NULL,
    last bigint NOT NULL,                        -- the number of the last of these events
    PRIMARY KEY (topic, block)
);
CREATE INDEX postings_block ON {lane}.postings (block);
CREATE TABLE {lane}.counts (                     -- of the postings up to ``counted``
    topic int PRIMARY KEY,
    stored bigint NOT NULL,
    last bigint NOT NULL
);
CREATE TABLE {lane}.counted (
    block bigint NOT NULL,
    stored bigint NOT NULL,
    topics bigint NOT NULL
);
INSERT INTO {lane}.counted VALUES (0, 0, 0);

-- Raise an error unless a commit waits for the disk, and for p_standbys standbys.
CREATE FUNCTION {lane}.durable(p_standbys int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE names text := current_setting('synchronous_standby_names'); standbys int;
BEGIN
    standbys := CASE WHEN names = '' THEN 0
                ELSE coalesce(substring(names FROM '(?i)^\\s*(?:first|any)?\\s*(\\d+)\\s*\\(')::int, 1) END;
    IF current_setting('transaction_isolation') <> 'read committed'
        OR current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
        OR current_setting('fsync') <> 'on' OR current_setting('full_page_writes') <> 'on' OR standbys < p_standbys
    THEN
        RAISE EXCEPTION USING ERRCODE = '{weak}', MESSAGE = format(
            'not durable: transaction_isolation=%s synchronous_commit=%s fsync=%s full_page_writes=%s '
            'synchronous_standby_names=%L with --standbys %s', current_setting('transaction_isolation'),
            current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
            names, p_standbys);
    END IF;
END $$;

-- Lock the lane until the commit is on the standbys. The lock is enough to make the commit wait for them.
CREATE FUNCTION {lane}.hold(p_standbys int, OUT floor bigint) LANGUAGE plpgsql
SET search_path = {lane} SET lock_timeout = '{lock_timeout_s}s' AS $$
BEGIN
    PERFORM durable(p_standbys);
    SELECT l.floor INTO STRICT floor FROM lane l FOR UPDATE;
END $$;

CREATE FUNCTION {lane}.append(
    p_keys uuid[], p_places int[], p_groups int[],           -- per event, sorted by key: half the time at 300,000 keys
    p_topics int[], p_block int[],        -- per group (a topic's events in a block): topic, first place of the block
    p_firsts int[], p_tops bytea[], p_numbers bytea[], p_ends bytea[], p_data bytea[],           -- for each block
    p_token uuid, p_standbys int,
    OUT start bigint, OUT received_at bigint,
    OUT again int[], OUT stored bigint[]                                     -- duplicates: places, numbers
) LANGUAGE plpgsql SET search_path = {lane} SET lock_timeout = '{lock_timeout_s}s' AS $$
DECLARE known bigint[];
BEGIN
    start := hold(p_standbys);
    -- Each statement from here on has a new snapshot, and sees all earlier commits of the lane.
    SELECT greatest(start, b.following), b.received_at INTO start, received_at
        FROM blocks b ORDER BY b.first DESC LIMIT 1;
    start := coalesce(start, (SELECT l.floor FROM lane l));
    -- The clock of the database, because each server has its own.
    received_at := greatest(received_at, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    SELECT array_agg((SELECT k.number FROM keys k WHERE k.key = i.key)) INTO known
        FROM (SELECT unnest(p_keys)) AS i(key);
    INSERT INTO keys SELECT i.key, start + i.place
        FROM (SELECT unnest(p_keys), unnest(p_places), unnest(known)) AS i(key, place, old) WHERE i.old IS NULL;
    SELECT array_agg(i.place), array_agg(i.old) INTO again, stored
        FROM (SELECT unnest(p_places), unnest(known)) AS i(place, old) WHERE i.old IS NOT NULL;
    IF cardinality(again) = cardinality(p_keys) THEN
        RETURN;
    END IF;
    WITH skipped AS MATERIALIZED (
        SELECT p_block[i.grp] AS first, array_agg(i.place - p_block[i.grp]) AS places
        FROM (SELECT unnest(p_groups), unnest(p_places), unnest(known)) AS i(grp, place, old)
        WHERE i.old IS NOT NULL GROUP BY 1
    )
    INSERT INTO blocks SELECT start + b.first, start + b.first + length(b.numbers), append.received_at, p_token, b.tops,
            b.numbers, b.ends, (SELECT s.places FROM skipped s WHERE s.first = b.first), b.data
        FROM unnest(p_firsts, p_tops, p_numbers, p_ends, p_data) AS b(first, tops, numbers, ends, data);
    INSERT INTO postings SELECT p_topics[i.grp], start + p_block[i.grp], count(*), start + max(i.place)
        FROM (SELECT unnest(p_groups), unnest(p_places), unnest(known)) AS i(grp, place, old)
        WHERE i.old IS NULL GROUP BY i.grp;
END $$;

-- The number before the first event received at this time or later: a binary search, because received_at never falls.
CREATE FUNCTION {lane}.seek(p_received_at bigint, OUT low bigint) LANGUAGE plpgsql SET search_path = {lane} AS $$
DECLARE high bigint; middle bigint; found record;
BEGIN
    low := 0;
    high := coalesce((SELECT b.following FROM blocks b ORDER BY b.first DESC LIMIT 1), 1) - 1;
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        SELECT b.first, b.received_at INTO found FROM blocks b WHERE b.first <= middle ORDER BY b.first DESC LIMIT 1;
        IF found.first IS NOT NULL AND found.received_at >= p_received_at THEN
            high := found.first - 1;
        ELSE
            low := middle;
        END IF;
    END LOOP;
END $$;

-- Count the new postings, unless another session does. With seqscan on, the planner may take all postings for new. With
-- it off, reading the one row of ``counted`` looks so expensive that the plan would be compiled, which takes 0.4 s.
CREATE FUNCTION {lane}.count_up() RETURNS void LANGUAGE plpgsql
SET search_path = {lane} SET enable_seqscan = off SET jit = off AS $$
DECLARE done bigint; upto bigint; added bigint; made bigint;
BEGIN
    SELECT c.block INTO done FROM counted c FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT b.first INTO upto FROM blocks b ORDER BY b.first DESC LIMIT 1;
    IF upto IS NULL OR upto <= done THEN
        RETURN;
    END IF;
    WITH new AS (SELECT p.topic, sum(p.events) AS events, max(p.last) AS last FROM postings p
                 WHERE p.block > done AND p.block <= upto GROUP BY p.topic),
    changed AS (INSERT INTO counts AS c SELECT n.topic, n.events, n.last FROM new n
                ON CONFLICT (topic) DO UPDATE SET stored = c.stored + excluded.stored, last = excluded.last
                RETURNING (xmax = 0) AS made)
    SELECT (SELECT sum(events) FROM new), (SELECT count(*) FROM changed c WHERE c.made) INTO added, made;
    UPDATE counted c SET block = upto, stored = c.stored + added, topics = c.topics + made;
END $$;

-- The events and topics of this lane, including those that are not counted yet.
CREATE FUNCTION {lane}.totals(OUT stored bigint, OUT topics bigint) LANGUAGE plpgsql
SET search_path = {lane} SET enable_seqscan = off SET jit = off AS $$
BEGIN
    WITH counted AS MATERIALIZED (SELECT c.block, c.stored, c.topics FROM counted c),
    new AS MATERIALIZED (SELECT p.topic, sum(p.events) AS events FROM postings p
                         WHERE p.block > (SELECT block FROM counted) GROUP BY p.topic)
    SELECT c.stored + coalesce((SELECT sum(n.events) FROM new n), 0),
           c.topics + (SELECT count(*) FROM new n WHERE (SELECT o.topic FROM counts o WHERE o.topic = n.topic) IS NULL)
    INTO stored, topics FROM counted c;
END $$;
"""


# Not by to_regclass: it may remember from before our wait for the lock that there was no such table.
_THERE: Final = """
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'aggregator' AND c.relname = 'store'
"""


def lane_name(lane: int) -> str:
    """The schema of a lane."""
    return f"lane_{lane}"


async def hold(connection: Connection, lane: int, standbys: int) -> None:
    """Commit something that changes nothing, and check that it waited for the standbys. Raises psycopg.Error."""
    for function in ("hold", "durable"):
        await connection.execute(f"SELECT {lane_name(lane)}.{function}(%s)", (standbys,))


class Store:
    """The store that ``prepare`` has found or made."""

    def __init__(self, version: int, name: str, stride: int, lanes: int) -> None:
        self.version = version
        self.name = name
        self.stride = stride
        self.lanes = lanes


async def read(connection: Connection) -> Store | None:
    """The store that is there, if there is one."""
    if not await _rows(connection, _THERE):
        return None
    rows = await _rows(connection, "SELECT version, name, stride, lanes FROM aggregator.store")
    if not rows:
        raise StorageUnusable("the row of aggregator.store is missing")
    (row,) = rows
    if row[0] != VERSION:
        raise StorageUnusable(f"the schema has version {row[0]}, and this aggregator knows {VERSION}")
    return Store(*row)


async def prepare(connection: Connection, lanes: int | None) -> Store:
    """Make what is missing, or add lanes. Raises StorageUnusable and psycopg.Error.

    Without ``lanes`` their number stays as it is; a new store gets one lane. The connection commits each statement.
    """
    found = await read(connection)
    if found is None or (lanes or 0) > found.lanes:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            found = await read(connection)  # another server may have made it
            if found is None:
                stride = 1 if (lanes or 1) == 1 else STRIDE
                await connection.execute(_COMMON)
                await connection.execute(
                    "INSERT INTO aggregator.store VALUES (%s, encode(substring(uuid_send(gen_random_uuid()) FOR 8),"
                    " 'hex'), %s, 0)",
                    (VERSION, stride),
                )
            elif found.stride == 1 and (lanes or 0) > 1:
                raise StorageUnusable("this store was made with one lane, and its seqs leave no room for others")
            before = found.lanes if found else 0
            compression = await _compression(connection)
            for lane in range(before, max(before, lanes or 1)):
                await connection.execute(
                    _LANE.format(
                        lane=lane_name(lane), compression=compression, lock_timeout_s=LOCK_TIMEOUT_S, weak=WEAK
                    )
                )
            await connection.execute("UPDATE aggregator.store SET lanes = %s", (max(before, lanes or 1),))
        found = await read(connection)
        assert found
    return found


async def _compression(connection: Connection) -> str:
    """lz4, if this build has it: it takes a third of the time of pglz."""
    ((methods,),) = await _rows(connection, "SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
    return "COMPRESSION lz4" if "lz4" in methods else ""


async def _rows(connection: Connection, statement: str) -> list[Any]:
    return await (await connection.execute(statement)).fetchall()
