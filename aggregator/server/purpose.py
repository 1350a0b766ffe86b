"""The purpose of a cursor's name, as the store keeps it with the cursor, and who may know of a reader.

A purpose is JSON. It has the patterns and filters that the reader asked for; ``readable``, the topics that the reader
could read when it last moved the cursor, unless it could read all; and ``owner``, the identity that the name belongs
to, if there is one. Names that were made before there were owners have none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import orjson

from aggregator.access.identity import Identity
from aggregator.access.topics import Topics
from aggregator.wire.interest import Interest

REMEMBERED: Final = 1000
"""Answers that are cached: enough for one asker and all the names that the store keeps."""


def to_json(interest: Interest, owner: str | None = None) -> str:
    """A purpose as text. Two purposes are equal if their texts are."""
    options = {
        "source": interest.source, "contains": interest.contains, "shard": interest.shard,
        "readable": interest.readable, "owner": owner,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    return orjson.dumps({"patterns": sorted(set(interest.patterns)), **given}).decode()


def patterns(purpose: str) -> list[str]:
    """The patterns of a purpose."""
    found: list[str] = orjson.loads(purpose)["patterns"]
    return found


def owner_of(purpose: str) -> str | None:
    """The identity that owns the name."""
    owner: str | None = orjson.loads(purpose).get("owner")
    return owner


def is_for(purpose: str, interest: Interest) -> bool:
    """Whether the purpose's reader asked for the same as ``interest``, whatever either of the two readers may read."""
    return _request(purpose) == _request(to_json(interest))


def _request(purpose: str) -> dict[str, Any]:
    return {name: value for name, value in orjson.loads(purpose).items() if name not in ("readable", "owner")}


def is_visible_to(purpose: str, asker: Identity) -> bool:
    """Whether ``asker`` may know of a reader: it owns the name, or may read everything that this reader can get."""
    return asker.read.every or _is_visible(purpose, asker.name, asker.read)


@lru_cache(maxsize=REMEMBERED)
def _is_visible(purpose: str, asker: str, may_read: Topics) -> bool:
    made_for = orjson.loads(purpose)
    return (
        made_for.get("owner") == asker
        or may_read.cover(made_for["patterns"])
        or ("readable" in made_for and may_read.cover(made_for["readable"]))
    )
