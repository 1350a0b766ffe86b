"""Ids for the lines of one file, made from the file's identity and all of its content up to the line.

So a line keeps its id when its file grows or is renamed, and two equal lines of a file have different ids. Content with
another beginning has other ids, even in the same file: lines that are written after the file was emptied in place are
new.

Only a file that is emptied and then begins with the same lines again would repeat ids. Its content between two times
that it was emptied is a *generation*. While the lines are the same as those of an earlier generation, the number of the
generation is a part of their ids. From the first different line on it is not, so that a process that reads the file for
the first time, and knows nothing of generations, gives these lines the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

HEAD_LINES: Final = 16
"""How many lines of each generation are remembered. If all of them are those of an earlier generation, the number of
the generation stays in the ids of all later lines."""

MAX_HEADS: Final = 1024
"""How many lines are remembered of all earlier generations of a file; the oldest are forgotten."""

_DIGEST_BYTES: Final = 16
_HEAD_BYTES: Final = 8


class LineIds:
    """Gives each line of one file its id, in order.

    ``seed`` distinguishes the file from others. Files that only their content is to distinguish have the same seed and
    no generations.
    """

    def __init__(self, seed: bytes, *, has_generations: bool) -> None:
        self.chain = self._seed = _digest(seed)
        """The digest of everything so far: the id of the last line."""
        self.generation = 0
        self._has_generations = has_generations
        self._earlier: dict[bytes, None] = {}  # lines at the heads of earlier generations
        self._heads: list[bytes] = []  # lines at the head of this generation
        self._repeats = False  # whether this generation has only repeated an earlier one so far

    def next(self, content: bytes) -> str:
        """The id of the next line."""
        self.chain = chain = _digest(self.chain + content)
        if len(self._heads) < HEAD_LINES:
            return self._next_of_head(chain)
        return chain.hex()

    def _next_of_head(self, chain: bytes) -> str:
        head = chain[:_HEAD_BYTES]
        self._heads.append(head)
        self._repeats = self._repeats and head in self._earlier
        if not self._repeats:
            return chain.hex()
        salted = _digest(chain + b"\n%d" % self.generation)  # no line contains a line feed
        if len(self._heads) == HEAD_LINES:
            self.chain = salted
        return salted.hex()

    def begin_again(self) -> None:
        """Begin the next generation, because the file was emptied."""
        self.chain = self._seed
        if self._has_generations:
            self.generation += 1
            self._earlier |= dict.fromkeys(self._heads)
            while len(self._earlier) > MAX_HEADS:
                del self._earlier[next(iter(self._earlier))]
            self._repeats = bool(self._earlier)
        self._heads = []

    def to_json(self, chain: bytes, number: int) -> dict[str, Any]:
        """What ``resume`` needs to go on after line ``number`` of this generation, which has this chain."""
        heads = self._heads[:number]
        return {
            "generation": self.generation,
            "chain": chain.hex(),
            "heads": b"".join(heads).hex(),
            "earlier": b"".join(self._earlier).hex(),
        }

    def resume(self, fields: Mapping[str, Any]) -> None:
        """Go on where another process has stopped."""
        self.generation = int(fields["generation"])
        self.chain = bytes.fromhex(fields["chain"])
        self._heads = _split(bytes.fromhex(fields["heads"]))
        self._earlier = dict.fromkeys(_split(bytes.fromhex(fields["earlier"])))
        self._repeats = self._heads[-1] in self._earlier if self._heads else bool(self._earlier)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _split(heads: bytes) -> list[bytes]:
    return [heads[i : i + _HEAD_BYTES] for i in range(0, len(heads), _HEAD_BYTES)]
