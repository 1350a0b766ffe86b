"""Stored events as a reader sees them: the event byte for byte, with its seq and the time of its receipt.

A delivered event is nested inside ``event``, so no field of a user's event can be mistaken for a field of the server's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Final

from aggregator.wire import moment

_CLOSING_BRACE: Final = b"}"[0]

EVENT_START: Final = b'{"status":"event","event":'
"""How each delivered line begins. ``line[26:-2]`` is the event; ``line`` includes its LF."""

ENVELOPE_BYTES: Final = 100
"""About how much longer a delivered line is than the event as it was sent."""


def shown(seq: int, json: bytes, received_at: int) -> bytes:
    """An event with two fields added at its end, because parsers keep the last of two fields with the same name.

    ``received_at`` is in milliseconds since 1970, UTC.
    """
    return b'%b,"seq":%d,"received_at":"%b"}' % (_open(json), seq, moment.shown(received_at).encode())


def lines(seqs: Iterable[int], json: Iterable[bytes], received_at: int) -> bytes:
    """The lines that deliver events of one commit, built in one step: a step for each line takes twice the time."""
    line = b'{"status":"event","event":%%b,"seq":%%d,"received_at":"%b"}}\n' % moment.shown(received_at).encode()
    opened = [one[:-1] if one[-1] == _CLOSING_BRACE else _open(one) for one in json]
    return line * len(opened) % tuple(chain.from_iterable(zip(opened, seqs, strict=True)))


def _open(json: bytes) -> bytes:
    """A JSON object without its last brace."""
    return json.rstrip()[:-1]
