"""What is in files, and can be read again without dropping anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class CannotLoad(Exception):
    """A file cannot be used; the text says why in one line, for an administrator."""


class Reloadable(Protocol):
    """What is in files."""

    def load(self) -> Callable[[], None]:
        """Read and check everything; return what replaces the old by the new. Raises CannotLoad.

        It is called in a thread, because a disk may be slow; what it returns is called in the event loop.
        """
