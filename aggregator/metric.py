"""Numbers that the server shows, in ``STATS`` or on a metrics port. Each is declared once, next to what counts it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, fields
from enum import StrEnum
from typing import Any, NamedTuple


class Kind(StrEnum):
    """How a metric behaves; the words are those of the Prometheus text format."""

    COUNTER = "counter"  # only grows while the server runs
    GAUGE = "gauge"


class Metric(NamedTuple):
    """One number, or a few under one name, with the name on the wire and the meaning. The name contains the unit."""

    name: str
    value: float | dict[str, float | None] | None
    help: str
    kind: Kind = Kind.GAUGE
    in_health: bool = False
    """Whether ``HEALTH`` shows it too."""


def counter(name: str, help: str) -> Any:
    """Declare a field of a dataclass as a counter, which starts at 0."""
    return field(default=0, metadata={"name": name, "help": help, "kind": Kind.COUNTER})


def gauge(name: str, help: str) -> Any:
    """Declare a gauge in the same way."""
    return field(default=0, metadata={"name": name, "help": help, "kind": Kind.GAUGE})


def declared(owner: Any) -> Iterator[Metric]:
    """The metrics that a dataclass declares, with their current values."""
    for one in fields(owner):
        if one.metadata:
            yield Metric(value=getattr(owner, one.name), **one.metadata)
