"""Counts what became of the events."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson

from aggregator.client.send.rejects import Rejects
from aggregator.client.send.track import Place
from aggregator.wire import Code, Rejection, Status


class Tally:
    """Counts final replies, and passes rejections on."""

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects
        self._counts: Counter[str] = Counter()
        self.bytes = 0
        """How many bytes of files were read and have their final replies, without a gap in any file."""

    def take(self, place: Place, status: str, reply: bytes) -> None:
        """Count a final reply, as the Sender passes it on."""
        if status in (Status.STORED, Status.DUPLICATE):
            self._counts[status] += 1
        elif status == Status.REJECTED:
            self._reject(place, orjson.loads(reply))
        else:
            for number, result in enumerate(orjson.loads(reply)["results"], 1):
                if result["status"] == Status.REJECTED:
                    self._reject(place, result, f"event {number}: ")
                else:
                    self._counts[result["status"]] += 1
        self.bytes += place.piece.track.end(place)

    def skip(self, place: Place) -> None:
        """Count a line that has nothing to send."""
        self.bytes += place.piece.track.end(place)

    def reject(self, place: Place, rejection: Rejection) -> None:
        """Count a line that is not sent."""
        self._rejects.add(place.name, place.number, rejection.code, rejection.detail, place.content)
        self.skip(place)

    def _reject(self, place: Place, reply: dict[str, Any], where: str = "") -> None:
        code, detail = reply.get("code", Code.BAD_EVENT), reply.get("detail", "")
        self._rejects.add(place.name, place.number, code, f"{where}{detail}", place.content)

    @property
    def stored(self) -> int:
        return self._counts[Status.STORED]

    @property
    def duplicate(self) -> int:
        return self._counts[Status.DUPLICATE]

    @property
    def rejected(self) -> int:
        return self._rejects.count

    @property
    def taken(self) -> int:
        return self.stored + self.duplicate
