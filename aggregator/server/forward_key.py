"""The key that Forward clients must know, read from its file at the start and at each reload."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from aggregator.server.reload import CannotLoad, read


class ForwardKey:
    """The key of the forward port. Without a file there is none, and clients need not know anything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.key: bytes | None = None
        """What a client must know when it connects. Clients that are connected stay when it changes."""

    def load(self) -> Callable[[], None]:
        """Read the file; return what puts its key in force. Raises CannotLoad, also if msgpack is missing."""
        if importlib.util.find_spec("msgpack") is None:
            raise CannotLoad("the forward port needs msgpack: pip install 'aggregator[forward]'")
        path, key = self._path, None
        if path is not None:
            key = read(path, "--forward-shared-key-file").rstrip(b"\r\n")
            if not key:
                raise CannotLoad(f"{path} (--forward-shared-key-file) is empty")

        def swap() -> None:
            self.key = key

        return swap
