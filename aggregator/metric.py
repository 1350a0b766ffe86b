"""A number that the server shows, in ``STATS`` or to a metrics port. Each is declared once, beside what counts it."""

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
    """One number, or a few under one name, with its name on the wire and what it means. Units are in the name."""

    name: str
    value: float | dict[str, float | None] | None
    help: str
    kind: Kind = Kind.GAUGE
    in_health: bool = False
    """Whether ``HEALTH`` shows it too."""


def counter(name: str, help: str) -> Any:
    """Declare a counter as a field of a dataclass, which starts at 0."""
    return field(default=0, metadata={"name": name, "help": help, "kind": Kind.COUNTER})


def gauge(name: str, help: str) -> Any:
    """Declare a gauge in the same way."""
    return field(default=0, metadata={"name": name, "help": help, "kind": Kind.GAUGE})


def declared(owner: Any) -> Iterator[Metric]:
    """The metrics that a dataclass declares, with their values at this moment."""
    for one in fields(owner):
        if one.metadata:
            yield Metric(value=getattr(owner, one.name), **one.metadata)
