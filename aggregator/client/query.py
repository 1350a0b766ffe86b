"""What a reader asks for, as lines of the protocol: patterns, followed by options in pairs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aggregator.wire import Word

Position = int | str
"""How far a reader has come: an opaque number or text, to be handed back as it is."""

_OPTIONS: Final = re.compile("AFTER|BEFORE|SINCE|UNTIL|LIMIT|SOURCE|CONTAINS|SHARD|BEAT|AS|WAIT", re.IGNORECASE)

_AGE: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def line(word: Word, patterns: Sequence[str], options: Mapping[str, object], limit: int | None = None) -> bytes:
    """The command with its LF. Options that are None are left out.

    Raises ValueError if there is no pattern, if one is empty, and if the result is not a single line.
    """
    if not patterns or "" in patterns:
        raise ValueError("expected patterns, none of them empty")
    first, *others = patterns
    arguments = [first, *map(_no_option, others), *([] if limit is None else [str(limit)])]
    for name, value in options.items():
        if value is not None:
            arguments += [name, str(value)]
    text = shlex.join([word, *arguments])
    if "\n" in text:
        raise ValueError("expected no line feed in a pattern or option")
    return text.encode() + b"\n"


def _no_option(pattern: str) -> str:
    """A pattern that is never taken for an option.

    Options are read from the end of the line, so a topic called AFTER is written as a set if another pattern precedes
    it.
    """
    return f"[{pattern[0]}]{pattern[1:]}" if _OPTIONS.fullmatch(pattern) else pattern


@dataclass(frozen=True, slots=True)
class Request:
    """A subscription that is requested again after each outage, each time for the part of it that is left."""

    patterns: Sequence[str]
    options: Mapping[str, object]
    """The options that stay the same."""
    since: str | None = None
    until: str | None = None
    limit: int | None = None

    def line(self, after: Position | None, events: int = 0, elapsed_s: float = 0.0) -> bytes:
        """The command, after this many events have come and this much time has passed since the first answer."""
        return line(
            Word.SUBSCRIBE,
            self.patterns,
            {
                "AFTER": after,
                "SINCE": self.since if after is None else None,
                "UNTIL": self.until and _later(self.until, elapsed_s),
                "LIMIT": None if self.limit is None else self.limit - events,
                **self.options,
            },
        )


def _later(moment: str, elapsed_s: float) -> str:
    """The same moment, expressed ``elapsed_s`` later: ages grow. It is the same second, or the next."""
    age = _AGE.fullmatch("0s" if moment.upper() == "NOW" else moment)
    return f"{int(age[1]) * _UNIT_S[age[2]] + int(elapsed_s)}s" if age and elapsed_s else moment
