"""Which keys are certainly new: two bits of memory for each key save most look-ups.

The filter may say "maybe" of a key that was never stored, because other keys have set its bits. Such a key is looked up
for nothing. The filter never says "new" of a key that was stored, because

- every key's bits are set before the key goes to the database, and no bit is ever cleared;
- after a start the bits of older keys are set again from the ledger, in the order of their digests, and a key past the
  point that this has reached is "maybe" whatever its bits say.

It is a Bloom filter whose two bits lie in one byte, because each byte that Python looks at takes time. Its size is
fixed. With 64 MiB, 2 % of new keys are looked up for nothing, each in all runs, when 25 million keys are stored, and
12 % when 100 million are. 128 MiB halve that, but exceed the memory that a server with a stalled disk may take. All of
the filter is allocated at the start, so that memory does not grow with history.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import struct
from typing import Final

_BYTE_BITS = 26
FILTER_BYTES: Final = 1 << _BYTE_BITS

# A digest's first 32 bits, big-endian so that their order is the digests': 26 choose a byte, 6 the two bits in it.
_BYTE_SHIFT = 32 - _BYTE_BITS
_MASK_SHIFT = _BYTE_SHIFT - 6
_PAIRS = [1 << one | 1 << other for one, other in itertools.combinations(range(8), 2)]
_MASKS = [_PAIRS[number % len(_PAIRS)] for number in range(64)]
_HEADS = struct.Struct(">I28x")

ALL: Final = 1 << 32
"""Past the highest head of a digest: the filter knows every key."""


class KeyFilter:
    """Two bits of a byte for each key. Digests are those of ``event.digest``."""

    def __init__(self) -> None:
        # Each look-up goes to a random place, which is faster with pages of 2 MiB. Not every kernel has them, and
        # shared memory, which is mmap's default, hardly ever gets them.
        self._bits = mmap.mmap(-1, FILTER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):
            self._bits.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, FILTER_BYTES, mmap.PAGESIZE):
            self._bits[start] = 0  # takes the memory now, so that it does not grow with the keys
        self.known_below = ALL
        """Stored keys whose digest starts below this 32-bit number are in the filter."""

    @property
    def filled(self) -> float:
        """The part of the stored keys that the filter knows, from 0 to 1."""
        return self.known_below / ALL

    def maybe(self, digests: bytes, position: int) -> list[int]:
        """Return the numbers of the keys that are not certainly new; remember all keys.

        ``digests`` holds 32 bytes for each key; the first key has the number ``position``.
        """
        bits, known_below, masks = self._bits, self.known_below, _MASKS
        maybe = []
        for number, (head,) in enumerate(_HEADS.iter_unpack(digests), position):
            index = head >> _BYTE_SHIFT
            mask = masks[head >> _MASK_SHIFT & 63]
            byte = bits[index]
            if byte & mask != mask:
                bits[index] = byte | mask
                if head < known_below:
                    continue
            maybe.append(number)
        return maybe

    def add_heads(self, heads: bytes) -> None:
        """Remember stored keys; ``heads`` holds the first four bytes of each key's digest."""
        bits = self._bits
        for (head,) in struct.iter_unpack(">I", heads):
            bits[head >> _BYTE_SHIFT] |= _MASKS[head >> _MASK_SHIFT & 63]
