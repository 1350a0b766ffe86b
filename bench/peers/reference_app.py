"""The system that this project descends from: events over HTTP, validated by models, queued, one row and commit each.

``python -m bench.peers.reference_app PORT DATABASE``. It acks before the event is stored.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiosqlite
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Event(BaseModel):
    topic: str
    event_id: str
    timestamp: datetime
    source: str
    payload: dict[str, Any]


def application(path: str) -> FastAPI:
    queue: asyncio.Queue[Event] = asyncio.Queue()

    async def consume(database: aiosqlite.Connection) -> None:
        while True:
            event = await queue.get()
            await database.execute(
                "INSERT OR IGNORE INTO events VALUES (?, ?, ?)",
                (event.topic, event.event_id, event.model_dump_json()),
            )
            await database.commit()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with aiosqlite.connect(path) as database:
            await database.execute("PRAGMA journal_mode=WAL")
            await database.execute(
                "CREATE TABLE events (topic TEXT, event_id TEXT, event TEXT, PRIMARY KEY (topic, event_id))"
            )
            consumer = asyncio.create_task(consume(database))
            yield
            consumer.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/publish")
    async def publish(body: Event | list[Event]) -> dict[str, int]:
        events = body if isinstance(body, list) else [body]
        for event in events:
            await queue.put(event)
        return {"accepted": len(events)}

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
