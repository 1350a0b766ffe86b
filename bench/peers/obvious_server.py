"""The server that comes to mind first: it reads a line, queues it and acks; a consumer stores what is queued.

``python -m bench.peers.obvious_server PORT DATABASE``. It acks before the event is stored.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiosqlite

BATCH = 500
QUEUE_EVENTS = 10_000

Row = tuple[str, str, str]


async def main(port: int, path: str) -> None:
    queue: asyncio.Queue[Row] = asyncio.Queue(QUEUE_EVENTS)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            event = json.loads(line)
            await queue.put((event["topic"], event["event_id"], line.decode()))
            writer.write(b'{"status":"ok"}\n')
            await writer.drain()
        writer.close()

    async with aiosqlite.connect(path) as database:
        await database.execute("PRAGMA journal_mode=WAL")
        await database.execute(
            "CREATE TABLE events (topic TEXT, event_id TEXT, event TEXT, PRIMARY KEY (topic, event_id))"
        )
        async with await asyncio.start_server(serve, "127.0.0.1", port):
            while True:
                batch = [await queue.get()]
                while len(batch) < BATCH and not queue.empty():
                    batch.append(queue.get_nowait())
                await database.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?)", batch)
                await database.commit()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
