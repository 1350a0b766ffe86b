"""Whether a database file is sound: SQLite's opinion of it, and that each table agrees with the events."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from aggregator.event import KEY_BYTES, digest


def check_database(path: Path) -> None:
    """Assert that SQLite finds the file sound, and that counters, postings and keys agree with the events.

    Stop the server first.
    """
    with contextlib.closing(sqlite3.connect(path)) as database:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return database.execute(sql).fetchall()

        assert rows("PRAGMA integrity_check") == [("ok",)]
        ((count, last),) = rows("SELECT count(*), max(seq) FROM events")
        ((stored, next_seq, topics, posted_seq),) = rows("SELECT stored, next_seq, topics, posted_seq FROM totals")
        assert stored == count
        assert next_seq > (last or 0)
        counted = rows("SELECT topic, count(*), max(seq) FROM events GROUP BY topic ORDER BY topic")
        assert rows("SELECT name, stored, last_seq FROM topics ORDER BY name") == counted
        assert topics == len(counted)
        # Each block up to posted_seq has a posting for each of its topics, and for no other topic.
        posted = rows(
            "SELECT name, block, number FROM postings JOIN topics ON topics.id = topic ORDER BY block, number"
        )
        assert posted == rows(
            f"SELECT value, first_seq, key FROM blocks, json_each(blocks.topics) WHERE first_seq <= {posted_seq}"
            " ORDER BY first_seq, key"
        )
        assert set(rows("SELECT value, first_seq FROM blocks, json_each(blocks.topics)")) == set(
            rows("SELECT DISTINCT topic, (SELECT max(first_seq) FROM blocks WHERE first_seq <= seq) FROM events")
        )
        # Each key is in exactly one run, under the seq of its event, unless the event is newer than all runs.
        keyed = []
        last_of_all = 0
        for run, keys, last_seq in rows(
            "SELECT id, keys, last_seq FROM runs WHERE id NOT IN (SELECT coalesce(merging_into, 0) FROM runs)"
            " ORDER BY last_seq"
        ):
            found = rows(f"SELECT key, seq FROM keys_{run}")
            seqs = [seq for _, seq in found]
            assert len(found) == keys
            assert last_of_all < min(seqs) <= max(seqs) == last_seq
            last_of_all = last_seq
            keyed += found
        events = rows(f"SELECT topic, json, seq FROM events WHERE seq <= {last_of_all}")
        assert sorted(keyed) == sorted(
            (digest(topic, json.loads(text)["event_id"])[:KEY_BYTES], seq) for topic, text, seq in events
        )
